"""The recipe in one command: documents and questions to an adapter, and the adapter's scores on documents unseen.

    python examples/recipes/squad/run.py ../shared/data/squad

The folder holds `train_corpus.jsonl` ({_id, title, text} a line), `train_questions.jsonl` ({id, question, answers,
answerable, paragraph_id, title} a line), and the same as `test_…` of other articles, which only the last step reads.
Each step is a command of `rag-finetune` that this script prints; what is finished is not done again.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from finetune.cli import main as finetune
from index.paths import home

HERE = Path(__file__).parent
METRICS = {
    "f1_answerable": "F1, answerable",
    "em_answerable": "EM, answerable",
    "abstention_precision": "abstention precision",
    "abstention_recall": "abstention recall",
    "abstention_f1": "abstention F1",
    "f1": "F1, all",
}


def step(name: str, *arguments: str, done: Path) -> float:
    """Runs a command unless what it makes is there; returns its seconds."""
    print(f"$ rag-finetune {name} {shlex.join(arguments)}", flush=True)
    if done.exists():
        print(f"  '{done}' is there already", flush=True)
        return 0.0
    began = time.perf_counter()
    if code := finetune([name, *arguments]):
        sys.exit(code)
    return time.perf_counter() - began


def main() -> None:
    """Data, training, evaluation, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("squad", type=Path, help="folder of the four files")
    parser.add_argument("--out", type=Path, default=home() / "recipes" / "squad", help="where everything goes")
    parser.add_argument("--set", action="append", default=[], help="key=value for training")
    parser.add_argument("--limit", type=int, help="questions of the test part, drawn at random")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data, adapter, rows = options.out / "train.jsonl", options.out / "run" / "adapter", options.out / "test_rows.jsonl"
    corpus, questions = options.squad / "train_corpus.jsonl", options.squad / "train_questions.jsonl"
    made = step(
        "dataset", "--corpus", str(corpus), "--questions", str(questions), "--rounds", "3",
        "--out", str(data), done=data,
    )  # fmt: skip
    settings = [f"datasets=[{{path: {json.dumps(str(data))}}}]", f"output_dir={options.out / 'run'}", *options.set]
    sets = [part for setting in settings for part in ("--set", setting)]
    trained = step("train", str(HERE / "recipe.yaml"), *sets, "--resume", done=adapter)
    limit = ["--limit", str(options.limit)] if options.limit else []
    scored = step(
        "evaluate", str(adapter), "--data", str(options.squad / "test_questions.jsonl"),
        "--corpus", str(options.squad / "test_corpus.jsonl"), "--out", str(rows), *limit, done=rows,
    )  # fmt: skip
    print(f"data {made:.0f} s, training {trained:.0f} s, evaluation {scored:.0f} s")


if __name__ == "__main__":
    main()
