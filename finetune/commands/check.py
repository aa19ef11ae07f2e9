"""`rag-finetune check`: what training would run on."""

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from index import console
from index.console import say


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("check", help="print the base model, the prompt version and what training runs on")
    command.set_defaults(run=run)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
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
