"""What rewriting follow-ups does to search: recall and MRR of the passage that answers, with three kinds of query.

Run: .venv/bin/python -m bench.followups [--show]

60 questions within conversations about the demo documents: 30 that lean on what was said, 30 that stand alone. The
rules of `rag_app.followup` were written with the rows of part 'dev' in view; 'held-out' only reports. The index of
the demo documents is kept below the home.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import machine
from index import Index, build
from index.encoder import SentenceEncoder
from index.paths import home
from rag_app.followup import standalone

ROOT = Path(__file__).parent.parent
ROWS = Path(__file__).with_name("followups.jsonl")
RESULTS = Path(__file__).parent / "results"
DEPTH = 20
Row = dict[str, Any]

QUERIES: dict[str, Callable[[Row], str]] = {
    "as asked": lambda row: row["question"],
    "rewritten": lambda row: standalone(row["question"], [tuple(pair) for pair in row["history"]]),
    "always with the question before": lambda row: f"{row['history'][-1][0]} {row['question']}",
}


def rank(index: Index, row: Row, query: str) -> int:
    """Of the first passage that holds the row's text, from 1; 0 where none of the first `DEPTH` does."""
    gold = " ".join(row["gold_text"].split())
    for hit in index.search(query, DEPTH):
        if hit.source.endswith(row["gold_source"]) and gold in " ".join(hit.text.split()):
            return hit.rank
    return 0


def scores(ranks: list[int]) -> dict[str, float]:
    """Recall and mean reciprocal rank."""
    count = len(ranks)
    return {
        "questions": count,
        "recall@1": round(sum(rank == 1 for rank in ranks) / count, 3),
        "recall@4": round(sum(1 <= rank <= 4 for rank in ranks) / count, 3),
        "mrr": round(sum(1 / rank for rank in ranks if rank) / count, 3),
    }


def main() -> None:
    """Prints a table and writes it to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the rows of part dev with their ranks")
    show = parser.parse_args().show
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    encoder, directory = SentenceEncoder(), home() / "bench" / "peft-docs"
    build([ROOT / "examples" / "peft_docs" / "docs"], directory, encoder=encoder)
    table: dict[str, Any] = {}
    with Index.open(directory, encoder) as index:
        ranks = [{name: rank(index, row, query(row)) for name, query in QUERIES.items()} for row in rows]
    for kind, alone in (("follow-ups", False), ("stand alone", True)):
        for part in ("dev", "held-out"):
            of = [n for n, row in enumerate(rows) if row["standalone"] == alone and row["part"] == part]
            changed = sum(QUERIES["rewritten"](rows[n]) != rows[n]["question"] for n in of)
            found = {name: scores([ranks[n][name] for n in of]) for name in QUERIES}
            table[f"{kind}, {part}"] = {"changed": changed, **found}
            print(f"{kind}, {part}: {changed} of {len(of)} changed")
            for name, row in found.items():
                print(f"  {name:32} " + "  ".join(f"{key} {value:.3f}" for key, value in list(row.items())[1:]))
    for row, found in zip(rows, ranks, strict=True):
        if show and row["part"] == "dev":
            print(*found.values(), QUERIES["rewritten"](row), sep="\t")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "depth": DEPTH, "scores": table}, indent=1)
    (RESULTS / "followups.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
