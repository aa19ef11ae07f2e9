"""Every method on the same examples for the same steps: parameters, memory, speed, loss and score of each.

Run on an idle machine: .venv/bin/python bench/methods.py --squad ../shared/data/squad

The first run makes the dataset: SQuAD questions of the training part with two passages each, split by article. Every
method then trains in a process of its own, at its own default learning rate, on the same rows in the same order, one
example to a row, so that virtual tokens are not at a disadvantage. What is finished is not done again; 24 steps of 8
examples take about two minutes a method on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.machine import machine
from finetune.config import METHODS, VIRTUAL, Config, checked

BASE = "base"
"""The model as it is, measured by a step of no size."""
LAST = 0.25
"""Share of the steps that the training loss is the mean of."""


def settings(method: str, steps: int, folder: Path, samples: int) -> Config:
    """One run's configuration; all but the method is the same."""
    own: dict[str, Any] = {"learning_rate": 1e-12, "adapter": "lora"} if method == BASE else {"adapter": method}
    if own["adapter"] not in VIRTUAL:
        own["share_prefixes"] = False
    return checked(
        {
            "datasets": [{"path": str(folder / "examples.jsonl")}],
            "output_dir": str(folder / "runs" / method),
            "max_steps": 1 if method == BASE else steps,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "warmup_ratio": 0.1,
            "eval_samples": samples,
            "eval_steps": steps,
            "save_steps": steps,
            "logging_steps": 1,
            "use_tensorboard": False,
            "on_bad_record": "skip",
            **own,
        },
        method,
    )


def measured(config: Config) -> dict[str, Any]:
    """One method, in this process."""
    import torch
    from transformers import TrainerCallback

    from finetune.training.train import train
    from finetune.training.trainer import AnswerTrainer

    began, seen = time.perf_counter(), dict[str, float]()

    class Watch(TrainerCallback):
        """Time, tokens and memory of the steps alone: neither loading nor evaluation is in them."""

        def on_train_begin(self, *given: Any, **more: Any) -> None:
            seen["began"] = time.perf_counter()

        def on_optimizer_step(self, *given: Any, **more: Any) -> None:
            seen["seconds"] = time.perf_counter() - seen["began"]
            seen["tokens"] = made[0].useful
            status = Path("/proc/self/status").read_text("utf-8")  # VmHWM is reset by exec, ru_maxrss is not
            seen["peak"] = int(status.split("VmHWM:")[1].split()[0]) / 2**20

    made: list[Any] = []

    def trainer(*arguments: Any) -> Any:
        made.append(AnswerTrainer(*arguments))
        made[0].add_callback(Watch())
        return made[0]

    found = train(config, force=True, trainer=trainer)
    losses = [one["loss"] for one in found["history"] if "loss" in one]
    last = losses[-max(1, round(LAST * len(losses))) :]
    scores = next(one for one in reversed(found["history"]) if "eval_score" in one)
    total = sum(one.numel() for one in made[0].model.parameters())
    return {
        "trainable": found["trainable"],
        "share": found["trainable"] / total,
        "peak_gib": round(seen["peak"], 2),
        "tokens_per_second": round(seen["tokens"] / seen["seconds"], 1),
        "train_loss": round(sum(last) / len(last), 4),
        "scores": {name: round(one, 4) for name, one in scores.items() if name.startswith("eval_")},
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
    }


def dataset(squad: Path, folder: Path, questions: int) -> None:
    """Examples as `rag-finetune dataset` makes them."""
    from finetune.cli import main as finetune

    if not (folder / "examples.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        corpus, asked = squad / "train_corpus.jsonl", squad / "train_questions.jsonl"
        if code := finetune(
            ["dataset", "--corpus", str(corpus), "--questions", str(asked), "--limit", str(questions), "-k", "2",
             "--val-share", "0.25", "--no-share-passages", "--out", str(folder / "examples.jsonl")]
        ):  # fmt: skip
            sys.exit(code)


def main() -> None:
    """Prints a Markdown table, or with --json all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, default=Path("../shared/data/squad"))
    parser.add_argument("--folder", type=Path, default=Path(".rag/bench-methods"), help="for data, runs and results")
    parser.add_argument("--methods", default=",".join((BASE, *METHODS)))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--questions", type=int, default=600, help="of the dataset")
    parser.add_argument("--samples", type=int, default=64, help="questions that each is scored on")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.one:
        print("RESULT", json.dumps(measured(settings(options.one, options.steps, folder, options.samples))))
        return
    dataset(options.squad, folder, options.questions)
    results = {method: _apart(method, options, folder) for method in options.methods.split(",")}
    if options.json:
        print(json.dumps({"machine": machine(), "steps": options.steps, "results": results}, indent=1))
    else:
        print("\n".join(table(results)))


def _apart(method: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The result of a process of its own, or the one that is there already."""
    kept = folder / f"{method}-{options.steps}-{options.samples}.json"
    if not kept.exists():
        command = [
            sys.executable, __file__, "--one", method, "--folder", str(folder),
            "--steps", str(options.steps), "--samples", str(options.samples),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{method} failed")
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        kept.write_text(line.removeprefix("RESULT "), "utf-8")
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    print(method, found, file=sys.stderr, flush=True)
    return found


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Rows of Markdown."""
    lines = [
        "| method | trainable parameters | peak memory | tokens/s | training loss | held-out loss | F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, one in results.items():
        scores = one["scores"]
        loss, f1 = scores["eval_loss"], scores.get("eval_question_answering_f1", scores["eval_score"])
        if method == BASE:
            lines.append(f"| the model as it is | | | | | {loss:.3f} | {f1:.3f} |")
            continue
        lines.append(
            f"| {method} | {one['trainable']:,} ({one['share']:.2%}) | {one['peak_gib']:.2f} GiB | "
            f"{one['tokens_per_second']:.0f} | {one['train_loss']:.3f} | {loss:.3f} | {f1:.3f} |"
        )
    return lines


if __name__ == "__main__":
    main()
