"""How well retrieval tells questions about the documents from questions about something else, by which measure.

Run: .venv/bin/python -m bench.refusal [--data ../shared/data]

Half of the articles of SQuAD's training part are indexed, then the other half. Questions on them are 'about', those on
the other half 'foreign', HotpotQA's closed-book ones 'trivia', and SQuAD 2.0's unanswerable ones on indexed articles
'adversarial'. For each weight of `rag_app.confidence`: the AUC of about against the rest, and what share of each kind
the highest threshold turns away that turns away at most 0.3%, 1% or 2% of those about the documents. 'halved' are the
about ones with half of their common words taken away, for people who say it in other words than the documents.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from index import Index, build
from index.encoder import SentenceEncoder
from index.lexical import terms
from rag_app import confidence

RESULTS = Path(__file__).parent / "results"
WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 1.0)
Pairs = dict[str, list[Any]]
"""By kind, an array per question: (4, 2) cosine and share of common words of its first passages."""


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def indexed(articles: dict[str, list[str]], folder: Path, encoder: SentenceEncoder) -> Index:
    """A document an article."""
    for title, texts in articles.items():
        name = "".join(c if c.isalnum() else "_" for c in title)
        (folder / f"{name}.md").write_text(f"# {title}\n\n" + "\n\n".join(texts), "utf-8")
    build([folder], folder / ".index", encoder=encoder)
    return Index.open(folder / ".index", encoder)


def pair(index: Index, question: str) -> Any:
    """Cosine and share of common words of the first passages."""
    words = frozenset(terms(question)) - confidence._stop_terms()
    hits = index.search(question, confidence.PASSAGES)
    return np.array([(hit.cosine, confidence.common(words, hit) if words else hit.cosine) for hit in hits])


def asked(data: Path, titles: set[str]) -> Iterator[tuple[str, str]]:
    """Kind and text of every question."""
    for row in rows(data / "squad" / "train_questions.jsonl"):
        if row["title"] not in titles:
            yield "foreign", row["question"]
        else:
            yield ("about" if row["answerable"] else "adversarial"), row["question"]
    for row in rows(data / "hotpotqa" / "closedbook.jsonl"):
        yield "trivia", row["question"]


def collect(data: Path) -> Pairs:
    """Both halves, one after the other."""
    articles = defaultdict(list)
    for row in rows(data / "squad" / "train_corpus.jsonl"):
        articles[row["title"]].append(row["text"])
    pairs: Pairs = defaultdict(list)
    encoder = SentenceEncoder()
    for half in (0, 1):
        titles = set(sorted(articles)[half::2])
        these = {title: articles[title] for title in titles}
        with tempfile.TemporaryDirectory() as folder, indexed(these, Path(folder), encoder) as index:
            for kind, question in asked(data, titles):
                pairs[kind].append(pair(index, question))
    pairs["halved"] = [found * (1, 0.5) for found in pairs["about"]]
    return pairs


def judged(pairs: Pairs, weight: float) -> dict[str, Any]:
    """AUCs and the shares that three thresholds turn away."""
    sure = {kind: np.array([(p @ (1 - weight, weight)).max() for p in found]) for kind, found in pairs.items()}
    about = sure.pop("about")
    result: dict[str, Any] = {"weight": weight}
    result["auc"] = {kind: round(confidence.auc(about, values), 4) for kind, values in sure.items() if kind != "halved"}
    for share in (0.003, 0.01, 0.02):
        floor = float(np.sort(about)[int(share * len(about))])
        turned = {kind: round(float((values < floor).mean()), 3) for kind, values in sure.items()}
        result[f"about {share:.1%} lost"] = {"threshold": round(floor, 3), **turned}
    return result


def main() -> None:
    """Prints the figures and writes them to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    pairs = collect(parser.parse_args().data)
    figures = {
        "questions": {kind: len(found) for kind, found in pairs.items()},
        "chosen": {"weight": confidence.WEIGHT, "threshold": confidence.DEFAULT},
        "weights": [judged(pairs, weight) for weight in WEIGHTS],
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=1)
    (RESULTS / "refusal.json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
