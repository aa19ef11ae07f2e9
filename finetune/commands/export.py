"""`rag-finetune export`: what was trained becomes what is served, and is proven to be the same."""

import argparse
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say, warn
from rag_app.commands import output

if TYPE_CHECKING:
    from finetune.export.export import Made
    from finetune.export.wanted import Wanted

TARGETS = ("merged", "gguf", "gguf-lora", "gptq")
USE = {
    "gguf": "rag-app ask --model {} QUESTION",
    "gguf-lora": "rag-app adapters add {}",
    "merged": "rag-app ask --engine transformers --model {} QUESTION",
    "gptq": "rag-app ask --engine transformers --model {} QUESTION",
}
ONLY = {
    "type": ("gguf", "gguf-lora"), "imatrix": ("gguf",), "converter": ("gguf",), "data": ("gguf", "gptq"),
    "bits": ("gptq",), "group_size": ("gptq",), "base": ("merged", "gguf", "gptq"),
}  # fmt: skip
"""Flags, and what they are for."""


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser(
        "export", help="make what is served of a run: GGUF, a LoRA for llama.cpp, GPTQ, 16 bits"
    )
    command.add_argument(
        "run_",
        type=console.words,
        metavar="RUN",
        help="a run, an adapter's folder, a model's folder, a Hub id, or base",
    )
    command.add_argument(
        "--to", choices=TARGETS, required=True,
        help="gguf: a file for llama.cpp; gguf-lora: the adapter alone, to be swapped into a chat that runs; merged: 16"
        " bits for Transformers; gptq: 4 or 8 bits for GPUs",
    )  # fmt: skip
    command.add_argument(
        "--type", metavar="TYPE[,TYPE]",
        help="of gguf: f32, f16, bf16, Q8_0 (default, or what qat trained for), Q6_K, Q5_K_M, Q4_K_M, Q4_0 …; of"
        " gguf-lora: f16 (default) or f32",
    )  # fmt: skip
    command.add_argument(
        "--base", choices=("original", "dequantised"),
        help="what a qlora run is merged onto: the base as it came (default), or as NF4 rounds it",
    )  # fmt: skip
    command.add_argument("--model", type=console.words, metavar="MODEL", help="the run's base, where it was moved")
    command.add_argument("--out", type=output.named, metavar="PATH", help="default: RUN/export/…")
    command.add_argument("--force", action="store_true", help="replace what is there")
    command.add_argument(
        "--imatrix", choices=("on", "off"),
        help="weigh the weights by texts (default: on below 6 bits, where the training data is there)",
    )  # fmt: skip
    command.add_argument(
        "--data", type=output.named, metavar="PATH",
        help="a file of examples or an index to weigh and calibrate by (default: what the run was trained on)",
    )  # fmt: skip
    command.add_argument("--bits", type=int, choices=(4, 8), help="of gptq (default: 4)")
    command.add_argument(
        "--group-size", type=int, metavar="N", help="of gptq: weights that share a scale (default: 64); -1: a row's"
    )
    command.add_argument(
        "--converter", type=Path, metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py, for other kinds of models"
    )
    command.set_defaults(run=run, fail=command.error)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    began, notes = time.monotonic(), list[str]()
    wanted = _wanted(options)
    try:
        from finetune.export.export import export

        with console.progress_bars() as progress:
            made = export(options.run_, wanted, options.model, progress, notes.append)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or "interrupted; nothing was written: run it again") from None
    if options.json:
        found = [{"place": str(one.place), "bytes": one.bytes, "proof": asdict(one.proof)} for one in made]
        return {"to": options.to, "exports": found, "notes": notes, "seconds": round(time.monotonic() - began, 1)}
    for note in notes:
        warn(note)
    for one in made:
        _show(one, options.to)
    return None


def _wanted(options: argparse.Namespace) -> "Wanted":
    """What the flags say; those of another target are bad usage."""
    from finetune.errors import ExportInvalid
    from finetune.export.wanted import GROUP, Wanted, types

    for name, targets in ONLY.items():
        if getattr(options, name) is not None and options.to not in targets:
            options.fail(f"--{name.replace('_', '-')} is for --to {' and '.join(targets)}: leave it out")
    try:
        kinds = types(options.type) if options.type else ()
    except ExportInvalid as error:
        options.fail(str(error))
    if options.to == "gguf-lora" and not {*kinds} <= {"f16", "f32"}:
        options.fail("--type of gguf-lora is f16 or f32: give one of them")
    return Wanted(
        to=options.to, types=kinds, dequantised=options.base == "dequantised",
        out=Path(options.out) if options.out else None, force=options.force, data=options.data,
        imatrix=None if options.imatrix is None else options.imatrix == "on", bits=options.bits or 4,
        group_size=options.group_size or GROUP, converter=options.converter,
    )  # fmt: skip


def _show(made: "Made", to: str) -> None:
    """A line for a person."""
    from finetune.export.places import amount

    found = made.proof.measured
    far = f"logits at most {found['difference']:.2g} from the source's (KL {found['divergence']:.1g})"
    say(f"{made.place}: {amount(made.bytes)}, {far}. Use it: {USE[to].format(shlex.quote(str(made.place)))}")
