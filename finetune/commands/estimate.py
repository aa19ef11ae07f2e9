"""`rag-finetune estimate`: the memory of a run, before anything is loaded."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say

if TYPE_CHECKING:
    from finetune.config import Config
    from finetune.training.estimate import Estimate
    from finetune.training.train import Steps


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("estimate", help="print the memory that a run takes, before anything is loaded")
    command.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml", help="a run; see docs/finetune.md")
    command.add_argument("--model", metavar="MODEL", help="another base model: its config.json, folder, file or Hub id")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the file; repeatable")
    command.set_defaults(run=run, fail=command.error)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    if not options.config and not options.model:
        options.fail("name a CONFIG.yaml, or a --model, or both")
    from finetune.config import read_config
    from finetune.training.estimate import described, estimate

    config = read_config(options.config, options.set)
    with console.progress_bars() as progress:
        progress("reading", 0, 2)
        row, labels, steps = _rows(config, measured=options.model is None)
        values = described(options.model or config.base_model)
        progress("rehearsing", 1, 2)
        found = estimate(config, values, row, labels)
        progress("rehearsing", 2, 2)
    free, verdict = _verdict(found, config)
    if options.json:
        fits = None if free is None else found.total <= free
        return {**found.as_dict(), "steps": steps.total if steps else None, "available": free, "fits": fits}
    for line in found.lines():
        say(line)
    say()
    say(verdict)
    if steps:
        say(steps.few(config) or f"{steps.total:,} steps of the optimiser in all")
    return None


def _rows(config: "Config", measured: bool) -> "tuple[int, int, Steps | None]":
    """Tokens of the longest row, most labels of one, and the run's steps: those of the data where there are any.

    Without, a row is as long as may be, a quarter of it is answers, and nobody knows the steps.
    """
    if config.datasets and measured:
        from finetune.training.train import Steps, longest, prepare

        made = prepare(config).train
        return *longest(made), Steps.of(config, len(made))
    return config.sequence_len, config.sequence_len if config.train_on_inputs else -(-config.sequence_len // 4), None


def _verdict(found: "Estimate", config: "Config") -> tuple[int | None, str]:
    """Bytes that are free, if the device is here, and whether the run fits."""
    from finetune.errors import DoesNotFit
    from finetune.training.estimate import available, check, gigabytes
    from rag_app.errors import SettingInvalid

    try:
        free = available(config.device)
    except SettingInvalid:
        return None, f"there is no device '{config.device}' here to compare with"
    try:
        check(found, free)
    except DoesNotFit as error:
        return free, str(error)
    return free, f"it fits: {gigabytes(free)} are free"
