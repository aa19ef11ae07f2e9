"""The command `rag-app`; each of its commands is a module of rag_app.commands."""

from index import console
from rag_app.commands import adapters, ask, calibrate, chat, chats
from rag_app.commands import eval as evaluation


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `rag-app`; returns the exit code."""
    root = console.parser("rag-app", "A question in, a cited answer out.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for command in (ask, chat, chats, adapters, calibrate, evaluation):
        command.add(commands)
    return console.run(root, arguments)
