"""The command `rag-app`: ask. Every command is a function from parsed options to JSON."""

import argparse
import math
import sys
from functools import partial
from typing import Any

from index import console
from index.console import say
from index.paths import printable, shown


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `rag-app`; returns the exit code."""
    return console.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    root = console.parser("rag-app", "A question in, a cited answer out.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    ask = commands.add_parser("ask", help="answer a question from the indexed documents")
    ask.add_argument("question", type=console.words, metavar="QUESTION")
    ask.add_argument("-k", type=int, default=4, metavar="N", help="how many passages the model reads (default: 4)")
    ask.add_argument("--model", metavar="FILE", help="a GGUF file (default: $RAG_MODEL, or the bundled model)")
    ask.add_argument("--max-tokens", type=_positive, default=256, metavar="N", help="longest answer (default: 256)")
    ask.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help="0, the default, is greedy")
    ask.add_argument("--seed", type=int, default=0, metavar="N", help="for temperatures above 0 (default: 0)")
    ask.set_defaults(run=_ask)
    console.add_index(ask)
    console.add_json(ask)
    return root


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 up")
    return value


def _ask(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.encoder import SentenceEncoder
    from rag_app.bot import Bot, Done, Token
    from rag_app.engines.llama import LlamaCpp

    model = LlamaCpp(
        path=options.model, max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed
    )
    bot = Bot(model, options.index, partial(SentenceEncoder, options.encoder), options.k)
    begun = False
    try:
        for event in bot.stream(options.question):
            if isinstance(event, Token) and not options.json:
                begun = True
                print(printable(event.text), end="", flush=True)  # noqa: T201
            elif isinstance(event, Done):
                if options.json:
                    return event.answer.as_dict()
                _print_sources(event.answer)
    except BaseException:
        if begun:
            say()  # the error gets a line of its own
        raise
    finally:
        model.close()
    return None


def _print_sources(answer: Any) -> None:
    say()
    if answer.finish_reason == "length":
        say("(cut at the most tokens allowed: --max-tokens)")
    if not answer.refused and not answer.citations:
        say("(no passage bears this answer out: read the nearest ones yourself)")
    say("\nNearest passages:" if not answer.citations else "\nSources:")
    for hit in answer.hits[: len(answer.hits) - answer.dropped]:
        page = f", page {hit.page}" if hit.page else ""
        say(f"[{hit.rank}] {shown(hit.source)}{page}: {hit.heading}")
        for citation in answer.citations:
            if citation.n == hit.rank:
                say(f'    "{" ".join(citation.quote.split())}"')
    if answer.dropped:
        print(f"rag-app: {answer.dropped} passages did not fit the model's window", file=sys.stderr)  # noqa: T201
