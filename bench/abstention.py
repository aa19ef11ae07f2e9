"""How often an adapter had better abstain, on the validation part of its own data: the curve, and the weight for it.

Run: .venv/bin/python bench/abstention.py .rag/recipes/squad/run .rag/recipes/squad/train.jsonl
A question's odds are those of abstaining against the model's own answer. The best ones, by SQuAD 2.0's overall F1, tell
what to multiply `abstention_weight` with in the next run: exp(-odds). Nothing of a test part is read.
"""

import argparse
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from finetune.evaluation import adapters
from finetune.evaluation.abstention import Threshold, cut, threshold, weighed
from finetune.example import read_examples
from index.console import progress_bars
from rag_app.engines.layout import Layout
from rag_app.scores import f1

STEPS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def row(one: Threshold) -> str:
    """Of the table."""
    return f"| {one.odds:.2f} | {one.overall:.3f} | {one.f1_answerable:.3f} | {one.f1:.3f} |"


def main() -> None:
    """Prints a table and the advice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="its folder, or that of its run")
    parser.add_argument("data", type=Path, help="the dataset file that it was trained on")
    parser.add_argument("--limit", type=int, default=440, help="questions, drawn at random")
    options = parser.parse_args()
    adapter = adapters.find(options.adapter)
    if adapter is None:
        parser.error(f"'{options.adapter}' is no adapter")
    examples = [one for one in read_examples(options.data) if one.part == "validation"]
    random.Random(1).shuffle(examples)
    model, tokenizer = adapters.load(adapter, adapters.base_of(adapter))
    with progress_bars() as progress:
        found = weighed(model, Layout("", tokenizer), examples[: options.limit], progress=progress)
    right = [f1(one.answer, one.example.golds) for one in found]
    print("| abstain from odds | overall F1 | F1, answerable | abstention F1 |\n|---|---|---|---|")
    print("\n".join(row(cut(found, right, odds)) for odds in STEPS))
    best = threshold(found)
    print(f"\nbest at {best.odds:.2f}: multiply abstention_weight by {math.exp(-best.odds):.2f}")


if __name__ == "__main__":
    main()
