"""`rag-app ask`: one question, one answer."""

import argparse
import sys
from typing import Any

from index import console
from rag_app.commands import flags


def add(commands: Any) -> None:
    """Adds the command."""
    ask = commands.add_parser("ask", help="answer a question from the indexed documents")
    ask.add_argument("question", type=console.words, metavar="QUESTION")
    ask.set_defaults(run=run)
    console.add_index(ask)
    console.add_json(ask)
    flags.add_generator(ask)
    flags.add_decoding(ask)
    flags.add_answer(ask)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Streams the answer to a person, or gives it whole to a program."""
    with flags.own_stdout(options):
        bot, generator = flags.make_bot(options)
        try:
            if options.json:
                return bot.ask(options.question).as_dict()
            _show(bot, options.question)
        finally:
            generator.close()
    return None


def _show(bot: Any, question: str) -> None:
    from rag_app.terminal import Screen

    screen = Screen(sys.stdout, sys.stderr)
    try:
        for event in bot.stream(question):
            screen.show(event)
    finally:
        screen.end()  # an error gets a line of its own
