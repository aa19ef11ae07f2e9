"""The command `rag-finetune`; each of its commands is a module of finetune.commands."""

import importlib
import pkgutil

from finetune import commands
from index import console


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `rag-finetune`; returns the exit code."""
    root = console.parser("rag-finetune", "Examples in, adapter or exported model out.")
    added = root.add_subparsers(required=True, metavar="COMMAND")
    for module in sorted(one.name for one in pkgutil.iter_modules(commands.__path__)):
        importlib.import_module(f"finetune.commands.{module}").add(added)
    return console.run(root, arguments)
