"""`rag-finetune prune`: weights or whole layers taken out of a model, and what that costs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say
from rag_app.commands import output

if TYPE_CHECKING:
    from finetune.compress.prune import Pruning


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("prune", help="take weights or whole layers out of a model; see what that costs")
    command.add_argument(
        "model", nargs="?", type=console.words, metavar="MODEL",
        help="a model's or adapter's folder, a Hub id, a GGUF file (default: $RAG_MODEL, or bundled)",
    )  # fmt: skip
    command.add_argument("--out", type=output.named, required=True, metavar="DIR", help="the folder of what is left")
    command.add_argument(
        "--data", type=output.named, required=True, metavar="FILE",
        help="examples: the training part chooses what goes, the validation part, or a tenth, tells what it costs",
    )  # fmt: skip
    command.add_argument(
        "--method", choices=("magnitude", "wanda", "layers", "block"),
        help="single weights by magnitude or wanda (default); whole layers, the least of all or the least in a row",
    )  # fmt: skip
    command.add_argument("--sparsity", metavar="SHARE", help="of the weights that go: 0.3 (default), or 2:4")
    command.add_argument("--layers", type=int, metavar="N", help="how many layers go")
    command.add_argument("--distill", type=int, default=0, metavar="STEPS", help="steps towards the model as it was")
    command.add_argument("--force", action="store_true", help="replace what an earlier run left in the folder")
    command.set_defaults(run=run, fail=command.error)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    from finetune.compress.prune import free, prune
    from finetune.config import Config, Data
    from finetune.data.records import load_examples

    how = _how(options)
    out = free(Path(options.out), options.force, options.model)
    examples, _ = load_examples((Data(path=options.data),), Config())
    with console.progress_bars() as progress:
        report = prune(options.model, examples, out, how, progress)
    if options.json:
        return report
    _show(report)
    say(f"\nthe model is in {out}")
    return None


def _how(options: argparse.Namespace) -> "Pruning":
    """What the flags say; contradictions are bad usage."""
    from finetune.compress.prune import STRUCTURED, Method, Pruning
    from finetune.errors import ConfigInvalid

    method: Method = options.method or ("wanda" if options.layers is None else "layers")
    if options.layers is not None and method not in STRUCTURED:
        options.fail(f"--layers is for the methods layers and block: give --sparsity with {method}")
    if options.sparsity is not None and method in STRUCTURED:
        options.fail(f"--sparsity is for the methods magnitude and wanda: give --layers with {method}")
    pattern = options.sparsity == "2:4"
    try:
        share = 0.5 if pattern else 0.3 if options.sparsity is None else float(options.sparsity)
        return Pruning(
            method=method, share=share, group=4 if pattern else None, layers=options.layers or 0,
            distill=options.distill,
        )  # fmt: skip
    except ConfigInvalid as error:
        options.fail(str(error))
    except ValueError:
        options.fail(f"--sparsity is '{options.sparsity}': give a number above 0 and below 1, or 2:4")
    raise AssertionError


def _show(report: dict[str, Any]) -> None:
    """A table for a person."""
    stages = report["stages"]
    removed = f", layers {', '.join(map(str, report['removed']))} removed" if "removed" in report else ""
    say(f"{report['base_model']}, {report['method']}{removed}; measured on {report['held_out']} examples held out")
    say(f"\n{'':20}" + "".join(f"{name:>14}" for name in stages))
    for label, key, form in (
        ("perplexity, answers", "answers", "{:.2f}"),
        ("perplexity, passages", "texts", "{:.2f}"),
        ("score", "score", "{:.3f}"),
        ("parameters", "parameters", "{:,}"),
        ("of them zero", "zeros", "{:,}"),
        ("bytes", "bytes", "{:,}"),
    ):
        cells = ["-" if stage[key] is None else form.format(stage[key]) for stage in stages.values()]
        say(f"{label:20}" + "".join(f"{cell:>14}" for cell in cells))
