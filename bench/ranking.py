"""How well search ranks, and how the fusion was chosen: dense, BM25 and their fusions on labelled sets.

Run: .venv/bin/python -m bench.ranking [--data ../shared/data]

The weight and the kind of fusion are picked on SQuAD's training part alone (1,484 answerable questions to 793
paragraphs); SciFact and DBpedia-Entity only report. A document counts by its best passage; passages are those of the
default chunk size. Every set's index is kept below the home, so a second run encodes nothing.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from index import Index, beir, build, metrics
from index.encoder import SentenceEncoder
from index.engine import _top
from index.fusion import convex
from index.paths import home

RESULTS = Path(__file__).parent / "results"
POOL = 100
Fuse = Callable[[Any, Any], Any]


def ranks(scores: Any) -> Any:
    """From 0, best first."""
    return np.argsort(np.argsort(-scores, kind="stable"), kind="stable")


def stretched(scores: Any) -> Any:
    """From the minimum to the maximum."""
    return (scores - scores.min()) / max(scores.max() - scores.min(), 1e-9)


def min_max(weight: float) -> Fuse:
    """Both scores stretched."""
    return lambda dense, bm25: weight * stretched(dense) + (1 - weight) * stretched(bm25)


METHODS: dict[str, Fuse] = {
    "dense": lambda dense, bm25: dense,
    "BM25": lambda dense, bm25: bm25,
    "reciprocal ranks, 60": lambda dense, bm25: 1 / (61 + ranks(dense)) + 1 / (61 + ranks(bm25)),
    **{f"min-max, {w} dense": min_max(w) for w in (0.4, 0.5, 0.6, 0.7)},
    **{f"over maximum, {w} dense": (lambda d, b, w=w: convex(d, b, w)) for w in (0.3, 0.4, 0.5, 0.6, 0.7)},
}


def squad(data: Path) -> tuple[Path, dict[str, str], dict[str, dict[str, int]]]:
    """Every third answerable question of the training part; its paragraph is what is to be found."""
    lines = (data / "squad" / "train_questions.jsonl").read_text("utf-8").splitlines()[::3]
    rows = [row for row in map(json.loads, lines) if row["answerable"]]
    judged = {row["id"]: {str(row["paragraph_id"]): 1} for row in rows}
    return data / "squad" / "train_corpus.jsonl", {row["id"]: row["question"] for row in rows}, judged


def beir_set(folder: Path) -> tuple[Path, dict[str, str], dict[str, dict[str, int]]]:
    """Corpus, queries and judgements."""
    return folder / "corpus.jsonl", beir.read_queries(folder / "queries.jsonl"), beir.read_qrels(folder / "qrels.tsv")


def runs(index: Index, queries: dict[str, str]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Method, query and the scores of its documents."""
    sql = "SELECT row, record FROM chunks"
    records = dict(index._db.execute(sql).fetchall())
    for query, text in queries.items():
        vector = index.load_encoder().encode_query(text)
        bm25 = index._lexical.scores(index._lexical.term_ids(text))
        rows = np.union1d(index._vectors.search(vector, POOL)[0], _top(bm25, POOL))
        dense = index._vectors.get(rows) @ vector
        for method, fuse in METHODS.items():
            best: dict[str, float] = {}
            for row, score in zip(rows.tolist(), fuse(dense, bm25[rows]).tolist(), strict=True):
                best[records[row]] = max(score, best.get(records[row], -9.0))
            yield method, query, best


def main() -> None:
    """Prints a table and writes it to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data: Path = parser.parse_args().data
    sets = {
        "SQuAD train": squad(data),
        "SciFact": beir_set(data / "scifact"),
        "DBpedia": beir_set(data / "dbpedia_entity"),
    }
    encoder = SentenceEncoder()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, (corpus, queries, judged) in sets.items():
        directory = home() / "bench" / name.replace(" ", "-")
        build([corpus], directory, encoder=encoder)
        queries = {query: text for query, text in queries.items() if query in judged}
        found: dict[str, dict[str, dict[str, float]]] = {}
        with Index.open(directory, encoder) as index:
            for method, query, scores in runs(index, queries):
                found.setdefault(method, {})[query] = scores
        for method, run in found.items():
            row = {"ndcg@10": metrics.ndcg(judged, run, 10), "recall@4": metrics.recall(judged, run, 4)}
            table.setdefault(method, {})[name] = {key: round(value, 4) for key, value in row.items()}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "pool": POOL, "scores": table}, indent=1)
    (RESULTS / "ranking.json").write_text(text + "\n", "utf-8")
    lines = ["| nDCG@10 / recall@4 | " + " | ".join(sets) + " |", "| --- |" + " ---: |" * len(sets)]
    for method, row_of in table.items():
        values = (f"{row_of[name]['ndcg@10']:.3f} / {row_of[name]['recall@4']:.3f}" for name in sets)
        lines.append(f"| {method} | " + " | ".join(values) + " |")
    (RESULTS / "ranking.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
