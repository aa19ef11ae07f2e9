"""What pruning costs the bundled model, and what distilling the whole model into the pruned one gives back.

Run on an idle machine: .venv/bin/python -m bench.compress --squad ../shared/data/squad
SQuAD questions of the training part with four passages each, four questions to the same passages; a tenth of them,
on other passages, is held out. Perplexity is that of the answers and of the passages held out; the score is F1.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import machine
from bench.training import examples
from finetune.compress import prune
from finetune.compress.prune import Pruning
from finetune.example import read_examples
from index.console import progress_bars

RESULTS = Path(__file__).parent / "results"
STAGES = ("pruned", "distilled")


def pruned(data: Path, steps: int) -> list[dict[str, Any]]:
    """The reports, with the seconds that each took."""
    made = list(read_examples(data))
    found = []
    for how in (
        Pruning(method="magnitude", share=0.5),
        Pruning(method="wanda", share=0.5, distill=steps),
        Pruning(method="wanda", share=0.5, group=4),
        Pruning(method="layers", layers=4, distill=steps),
    ):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, progress_bars() as progress:
            report = prune.prune(None, made, Path(folder) / "model", how, progress)
        found.append({**report, "seconds": time.perf_counter() - began})
        show(found[-1:], first=len(found) == 1)
    return found


def name(report: dict[str, Any]) -> str:
    """Of a row."""
    how = Pruning(**{key: report[key] for key in asdict(Pruning())})
    if how.method in prune.STRUCTURED:
        return f"{how.layers} {how.method} less"
    return f"{how.method} {'2:4' if how.group else how.share}"


def show(reports: list[dict[str, Any]], first: bool) -> None:
    """A table."""
    if first:
        print("| | perplexity of answers | of passages | score | weights, MB | zeros |\n|---|---|---|---|---|---|")
        row("whole", reports[0]["stages"]["before"])
    for report in reports:
        for stage in STAGES:
            if stage in report["stages"]:
                row(f"{name(report)}{', distilled' if stage == 'distilled' else ''}", report["stages"][stage])


def row(label: str, stage: dict[str, Any]) -> None:
    """One of them."""
    zeros = stage["zeros"] / stage["parameters"]
    print(
        f"| {label} | {stage['answers']:.2f} | {stage['texts']:.2f} | {stage['score']:.3f} "
        f"| {stage['bytes'] / 1e6:.0f} | {zeros:.0%} |",
        flush=True,
    )


def main() -> None:
    """Prints a table and writes the reports to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, default=Path("../shared/data/squad"))
    parser.add_argument("--examples", type=int, default=480)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    prune.HELD_OUT = 48
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        examples(options.squad, data, options.examples)
        reports = pruned(data, options.steps)
    result = {"machine": machine(), "steps": options.steps, "examples": options.examples, "reports": reports}
    (RESULTS / "compress.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
