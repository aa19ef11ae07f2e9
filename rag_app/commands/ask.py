"""`rag-app ask`: one question, one answer."""

import argparse
import sys
from typing import Any

from index import console
from index.console import say, warn
from index.paths import printable, shown
from rag_app.commands import flags

WIDTH = 300
"""Most characters of a thought or an observation that are printed."""


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
    from rag_app.answer import Done

    bot, generator = flags.make_bot(options)
    screen = None if options.json else Screen()
    try:
        for event in bot.stream(options.question):
            if screen:
                screen.show(event)
            elif isinstance(event, Done):
                return event.answer.as_dict()
    except BaseException:
        if screen:
            screen.break_line()  # the error gets a line of its own
        raise
    finally:
        generator.close()
    return None


class Screen:
    """Prints an answer as it comes: the answer and its sources on stdout, how it came about on stderr."""

    def __init__(self) -> None:
        self._begun = False
        self._waiting = False
        self._terminal = sys.stderr.isatty()

    def show(self, event: Any) -> None:
        """Prints one event."""
        from rag_app.answer import Done, Query, Reading, StepTaken, Token, Waiting

        if isinstance(event, Waiting | Reading) and not self._begun:
            self._status(f"{event.place} before you …" if isinstance(event, Waiting) else "reading …")
            return
        self._status("")
        if isinstance(event, Token):
            self._begun = True
            print(printable(event.text), end="", flush=True)  # noqa: T201
        elif isinstance(event, Query) and event.rewritten:
            warn(f"searching for: {event.text}")
        elif isinstance(event, StepTaken):
            for line in step_lines(event.step):
                warn(line)
        elif isinstance(event, Done):
            self.break_line()
            print_sources(event.answer)

    def break_line(self) -> None:
        """Ends a line that was begun."""
        self._status("")
        if self._begun:
            say()
        self._begun = False

    def _status(self, text: str) -> None:
        """What is being done, on a terminal, in a line that vanishes."""
        if self._terminal and (text or self._waiting):
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
            self._waiting = bool(text)


def step_lines(step: Any) -> list[str]:
    """A step for a person, a line for each part, each cut to one line."""
    if not step.action:
        return [f"Thought: {_cut(step.thought)}"]
    lines = [f"Thought: {_cut(step.thought)}"] if step.thought else []
    lines.append(f"Action: {step.action}: {_cut(step.input)}")
    return (
        [*lines, f"{'Error' if step.error else 'Observation'}: {_cut(step.observation)}"] if step.observation else lines
    )


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[:WIDTH]} …"


def print_sources(answer: Any) -> None:
    """What stands under an answer: remarks, passages, quotes."""
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
    for note in answer.notes:
        warn(f"rag-app: {note}")
