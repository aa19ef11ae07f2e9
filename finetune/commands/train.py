"""`rag-finetune train`: a run of training."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from index import console
from index.console import say


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("train", help="train an adapter, or the whole model, as a YAML file says")
    command.add_argument("config", type=Path, metavar="CONFIG.yaml", help="see docs/finetune.md for its keys")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the file; repeatable")
    command.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")
    command.add_argument("--force", action="store_true", help="replace a finished run in the same folder")
    command.set_defaults(run=run)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    from finetune.config import read_config
    from finetune.training.train import train

    settings = [*options.set, *(["resume_from_checkpoint=true"] if options.resume else [])]
    result = train(read_config(options.config, settings), options.config.stem, options.force)
    if options.json:
        return result
    say(f"adapter in {result['adapter']}")
    for line in following(Path(result["adapter"])):
        say(line)
    return None


def following(adapter: Path) -> list[str]:
    """Lines that tell what to do with an adapter that was trained."""
    from finetune.export import lora

    name = shlex.quote(str(adapter))
    target = "gguf" if lora.obstacle(adapter) else "gguf-lora"
    return [
        f"compare it with its base: rag-finetune evaluate {name} --data FILE",
        *([f"make it ready for the chat: rag-finetune export {name} --to {target}"] if lora.mergeable(adapter) else []),
    ]
