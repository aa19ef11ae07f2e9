"""How often an answer is tied to the right passage, and a wrong answer to any: the markers of `rag_app.citations`.

Run: .venv/bin/python -m bench.citations [--data ../shared/data] [--every 12]

Questions of SQuAD's training part with the four passages that search finds for them, the gold paragraph in the last
one's place where it is not among them. Answers are written from the labels, no model: the answer alone, the sentence
that holds it, and a statement in the question's own words ('Central Asia did the black death originate.'); the wrong
ones are those with an answer of another question that stands in none of the four passages.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.machine import machine
from index import Hit, Index, build
from index.encoder import SentenceEncoder
from index.paths import home
from rag_app.citations import Citer

RESULTS = Path(__file__).parent / "results"
ASKED = re.compile(r"\b(?:what|which|who|whom|when|where|why|how(?: many| much| long)?)\b", re.I)
Case = tuple[str, list[Hit], dict[str, str], set[int]]


def statement(question: str, answer: str) -> str:
    """The question with the answer in its question word's place."""
    text = question.strip().rstrip("?")
    said = ASKED.sub(lambda _: answer, text, count=1)
    return f"{said if said != text else f'{text}: {answer}'}."


def sentence(paragraph: str, answer: str) -> str:
    """The sentence of a paragraph that holds the answer."""
    at = max(paragraph.find(answer), 0)
    start = max((m.end() for m in re.finditer(r"[.!?]\s+", paragraph) if m.end() <= at), default=0)
    end = re.compile(r"[.!?](?=\s|$)").search(paragraph, at + len(answer))
    return paragraph[start : end.end() if end else None]


def cases(data: Path, every: int) -> Iterator[Case]:
    """Question, its four passages, answers by kind ('wrong …' for wrong ones), numbers of the passages that hold it."""
    corpus = data / "squad" / "train_corpus.jsonl"
    texts = {row["_id"]: row["text"] for row in map(json.loads, corpus.read_text("utf-8").splitlines())}
    rows = map(json.loads, (data / "squad" / "train_questions.jsonl").read_text("utf-8").splitlines())
    asked = [row for row in rows if row["answerable"]][::every]
    encoder, directory = SentenceEncoder(), home() / "bench" / "SQuAD-train"
    build([corpus], directory, encoder=encoder)
    chance = random.Random(0)
    with Index.open(directory, encoder) as index:
        for row in asked:
            gold, answer = texts[row["paragraph_id"]], row["answers"][0].strip(" .")
            hits = index.search(row["question"], 4)
            place = f"{corpus.resolve()}#{row['paragraph_id']}"
            if not any(hit.source == place and answer in hit.text for hit in hits):
                hits[-1] = replace(hits[-1], source=place, text=gold, start=0, end=len(gold))
            right = {n for n, hit in enumerate(hits, 1) if hit.source == place and answer in hit.text}
            joined = " ".join(hit.text for hit in hits).lower()
            other = next(
                a
                for r in chance.sample(asked, min(99, len(asked)))
                if (a := r["answers"][0].strip(" .")).lower() not in joined
            )
            said = {
                "answer": answer,
                "sentence": sentence(gold, answer),
                "statement": statement(row["question"], answer),
            }
            wrong = {"wrong answer": other, "wrong statement": statement(row["question"], other)}
            yield row["question"], hits, said | wrong, right


def main() -> None:
    """Prints a table and writes it to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--show", default="", help="a kind of answers to print with their markers")
    options = parser.parse_args()
    counts: dict[str, dict[str, int]] = {}
    tokens, seconds, started = 0, 0.0, 0.0
    for question, hits, answers, right in cases(options.data, options.every):
        for kind, answer in answers.items():
            started = time.perf_counter()
            citer = Citer(question, hits)
            pieces = re.findall(r"\s?\S{1,5}|\s", answer)  # about as long as tokens
            shown = "".join(map(citer.feed, pieces)) + citer.finish()
            seconds, tokens = seconds + time.perf_counter() - started, tokens + len(pieces)
            marked = {citation.n for citation in citer.citations}
            if kind == options.show:
                print(f"{question}\n  -> {shown}   right: {right}")
            row = counts.setdefault(kind, {"answers": 0, "cited": 0, "rightly": 0})
            row["answers"] += 1
            row["cited"] += bool(marked)
            row["rightly"] += bool(marked & right)
    table: dict[str, dict[str, Any]] = {}
    for kind, row in counts.items():
        table[kind] = {"answers": row["answers"], "cited": round(row["cited"] / row["answers"], 3)}
        if not kind.startswith("wrong"):
            table[kind]["recall"] = round(row["rightly"] / row["answers"], 3)
            table[kind]["precision"] = round(row["rightly"] / max(row["cited"], 1), 3)
        print(f"{kind:16}", table[kind])
    print(f"{seconds / tokens * 1e6:.0f} microseconds a token, with the Citer's making")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "scores": table}, indent=1)
    (RESULTS / "citations.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
