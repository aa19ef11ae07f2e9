"""Answers and conversations as a terminal shows them, and as they are piped on. Text out; reads nothing, knows no bot.

On a terminal everything goes to one stream: steps dimmed, what is being done in a line that vanishes, lines broken to
its width. Elsewhere the answer and its sources go to `out`, how they came about to `err`, and nothing is coloured.
"""

import os
import textwrap
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TextIO

from index.paths import printable, shown
from rag_app.answer import Done, Event, Query, Reading, Step, StepTaken, Thinking, Token, Waiting
from rag_app.chats import Chat, Exchange

NARROWEST, USUAL = 20, 80
"""Columns: fewer are taken for these; as many where the stream does not tell."""
SHORT = 300
"""Most characters of a thought or an observation that are shown."""


class Screen:
    """Prints; remembers whether a line has been begun, and what has to vanish."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self.terminal = out.isatty()
        """Whether a person looks at it."""
        self._err = out if self.terminal else err
        self._dims = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._status = ""
        self._begun = False
        self._thoughts = ""

    def width(self) -> int:
        """Columns of the terminal, now: it may have been resized."""
        with suppress(OSError, ValueError, AttributeError):
            if columns := os.get_terminal_size(self._out.fileno()).columns:
                return max(NARROWEST, columns)
        return USUAL

    def say(self, line: str = "", indent: str = "") -> None:
        """A line, broken at blanks on a terminal; further lines begin with `indent`."""
        self.end()
        for part in self._broken(line, indent):
            print(part, file=self._out, flush=True)

    def aside(self, line: str) -> None:
        """A line on how an answer came about, dimmed."""
        self.end()
        for part in self._broken(line, "  "):
            print(f"\x1b[2m{part}\x1b[0m" if self._dims else part, file=self._err, flush=True)

    def warn(self, line: str) -> None:
        """An error or another line that must be seen."""
        self.end()
        print(" ".join(printable(line).split()), file=self._err, flush=True)

    def status(self, text: str) -> None:
        """What is being done, on a terminal, until something else is printed."""
        if not self.terminal or self._begun or text == self._status:
            return
        self._wipe()
        line = " ".join(printable(text).split())
        while _columns(line) >= self.width():
            line = line[:-1]
        self._status = line
        print(self._status, end="", file=self._out, flush=True)

    def end(self) -> None:
        """Ends a line that has been begun, and lets the status vanish."""
        self._wipe()
        if self._begun:
            print(file=self._out, flush=True)
        self._begun = False

    def show(self, event: Event) -> None:
        """An event of an answer, as it comes."""
        match event:
            case Token():
                self._wipe()
                self._begun = True
                print(printable(event.text), end="", file=self._out, flush=True)
            case Waiting():
                self.status(f"waiting: {event.place} before you")
            case Reading():
                self.status("reading …")
            case Thinking():
                self._thoughts = f"{self._thoughts}{event.text}"[-1000:]
                words = " ".join(self._thoughts.split())
                room = self.width() - 13
                self.status(f"thinking: {'…' * (len(words) > room)}{words[-room:]}")
            case StepTaken():
                self._thoughts = ""
                self.step(event.step)
            case Query(rewritten=True):
                self.aside(f"searching for: {event.text}")
            case Done():
                self._thoughts = ""
                self.sources(asdict(event.answer))

    def step(self, step: Step) -> None:
        """A thought, an action and what came of it."""
        if step.thought:
            self.aside(f"Thought: {_cut(step.thought)}")
        if step.action:
            self.aside(f"Action: {step.action}: {_cut(step.input)}")
        if step.observation:
            self.aside(f"{'Error' if step.error else 'Observation'}: {_cut(step.observation)}")

    def sources(self, details: dict[str, Any]) -> None:
        """What stands under an answer: where it comes from, and what a reader should know.

        Args:
            details: an answer as kept (Turn.details); of a damaged one nothing is shown.
        """
        self.end()
        with suppress(KeyError, TypeError, AttributeError):
            hits, citations = passages(details), details["citations"]
            if details["finish_reason"] == "length":
                self.say("(cut at the most tokens allowed)")
            if hits and not citations and not details["refused"]:
                self.say("(no passage bears this answer out: read the nearest ones yourself)")
            if hits:
                self.say()
                self.say("Sources:" if citations else "Nearest passages:")
            for hit in hits:
                quotes = [citation["quote"] for citation in citations if citation["n"] == hit["rank"]]
                if quotes or not citations:
                    self.say(_label(hit), "    ")
                for quote in quotes:
                    self.say(f'    "{" ".join(quote.split())}"', "     ")
            for note in details.get("notes", ()):
                self.aside(f"({note})")

    def passage(self, hit: dict[str, Any]) -> None:
        """A passage in full, under its place."""
        self.say(f"{_label(hit)} (characters {hit['start']:,} to {hit['end']:,})", "    ")
        for line in str(hit["text"]).splitlines():
            self.say(f"    {line}", "    ")
        self.say()

    def exchange(self, exchange: Exchange) -> None:
        """A question and its answer, as they were kept."""
        self.say(f"{exchange.number}. {' '.join(exchange.question.content.split())}", "   ")
        answer = exchange.answer
        if answer is None:
            self.say("   (no answer was kept)")
            return
        for line in answer.content.splitlines():
            self.say(f"   {line}", "   ")
        if answer.details.get("stopped"):
            self.say("   (stopped)")
        if error := answer.details.get("error"):
            self.say(f"   ({error})", "   ")
        if adapters := answer.details.get("adapters"):
            self.say(f"   (with {', '.join(map(str, adapters))})", "   ")
        said = {1: "+", -1: "-"}.get(answer.rating, "")
        if said or answer.comment:
            self.say(f"   rated: {' '.join([said, answer.comment]).strip()}", "   ")
        if answer.correction:
            self.say(f"   corrected: {answer.correction}", "   ")

    def chats(self, chats: Sequence[Chat]) -> None:
        """Conversations, a line or two each."""
        for chat in chats:
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(chat.last))
            self.say(f"{chat.id}  {day}  {chat.messages:>3}  {chat.title or '(no question)'}", "    ")

    def _broken(self, line: str, indent: str) -> Iterator[str]:
        text = printable(line).expandtabs()
        if not self.terminal or len(text) <= self.width():
            yield from text.split("\n")
            return
        for part in text.split("\n"):
            yield from textwrap.wrap(part, self.width(), subsequent_indent=indent, drop_whitespace=True) or [""]

    def _wipe(self) -> None:
        """Blanks, not a control sequence: right on every terminal."""
        if self._status:
            print(f"\r{' ' * _columns(self._status)}\r", end="", file=self._out, flush=True)
        self._status = ""


def passages(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages that the model read, of an answer as kept; none of a damaged one."""
    hits, dropped = details.get("hits"), details.get("dropped", 0)
    if not isinstance(hits, list) or not isinstance(dropped, int):
        return []
    needed = {"rank", "source", "page", "heading", "start", "end", "text"}
    return [hit for hit in hits[: len(hits) - dropped] if isinstance(hit, dict) and needed <= hit.keys()]


def _columns(text: str) -> int:
    """Columns that a line takes on a terminal, where characters of East Asia are two wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _label(hit: dict[str, Any]) -> str:
    page = f", page {hit['page']}" if hit["page"] else ""
    return f"[{hit['rank']}] {shown(str(hit['source']))}{page}: {hit['heading']}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[:SHORT]} …"
