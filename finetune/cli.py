"""The command `rag-finetune`: check. Every command is a function from parsed options to JSON."""

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from index import console
from index.console import say


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `rag-finetune`; returns the exit code."""
    return console.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    root = console.parser("rag-finetune", "Examples in, adapter or exported model out. Training itself is yet to come.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="print the base model, the prompt version and what training would run on")
    check.set_defaults(run=_check)
    console.add_json(check)
    return root


def _check(options: argparse.Namespace) -> dict[str, Any] | None:
    import torch

    from rag_app.models import locate
    from rag_app.prompt import PROMPT_VERSION

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    packages = {name: _version(name) for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")}
    result = {"base_model": str(locate()), "prompt_version": PROMPT_VERSION, "device": device, "packages": packages}
    if options.json:
        return result
    say(f"base model {locate().name}, prompt version {PROMPT_VERSION}, device {device}")
    for name, installed in packages.items():
        say(f"  {name} {installed or 'not installed'}")
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
