"""One answer in the making, and what all strategies share: write, show, cite, count. Knows no strategy."""

import time
from collections.abc import Generator as Stream
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from index import Hit
from rag_app.answer import Answer, Cited, Event, Reading, Step, StepTaken, Thinking, Token, Waiting
from rag_app.citations import Citation, Citer
from rag_app.errors import PromptTooLong
from rag_app.generator import Generator
from rag_app.halves import repaired
from rag_app.prompt import ECHO, NOT_FOUND, Message, Turns
from rag_app.quotes import QuoteCheck
from rag_app.reasoning import Reasoning
from rag_app.repeats import Repeats
from rag_app.settings import Options

NOTHING = "The model found no answer."
"""Shown when the model wrote nothing, or nothing but repetitions."""
LEAST_REPLY = 32
"""Tokens below which another reply is not worth beginning."""
HISTORY_SHARE = 4
"""History may fill at most one part in this many of the window: the passages are what the answer comes from."""


class Clock:
    """Milliseconds, by laps."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def lap(self) -> float:
        """Since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return round((self._last - last) * 1000, 1)

    def total(self) -> float:
        """Since the start."""
        return round((time.perf_counter() - self._start) * 1000, 1)


@dataclass(slots=True)
class Run:
    """The state of one answer, handed to a strategy."""

    answer: Answer
    generator: Generator
    options: Options
    passages: list[Hit]
    """What the model may read, best first; a run of steps adds to it."""
    history: Turns
    clock: Clock
    adapters: tuple[tuple[str, float], ...] = ()
    """What the engine's `stream` takes as `adapters`: the same from the first reply to the last."""
    least_confidence: float | None = None
    """Confidence of retrieval below which nothing is answered from passages alone."""

    @property
    def question(self) -> str:
        """What is asked, as it was asked."""
        return self.answer.question

    def reply_room(self) -> int:
        """Tokens that the next reply may have: of the reply's own limit, and of what is left of the budget."""
        return min(self.generator.decoding.max_tokens, self.budget_left())

    def budget_left(self) -> int:
        """Tokens that may still be written for this question."""
        return self.options.budget - self.answer.usage["completion_tokens"]

    def prompt_room(self) -> int:
        """Tokens that a prompt may have, so that a reply of full length, or a quarter of the window, fits beside it."""
        window = self.generator.window()
        return window - min(self.generator.decoding.max_tokens, window // 4)

    def write(self, messages: Sequence[Message], **settings: Any) -> Stream[Event, None, str]:
        """Has the model reply; the text arrives as Thinking and is returned."""
        text = ""
        repeats = Repeats()
        chunks = self._chunks(messages, settings)
        for piece in chunks:
            if isinstance(piece, str):
                piece = repeats.feed(piece)
                text += piece
                yield Thinking(piece)
                if repeats.looping:
                    break
            else:
                yield piece
        chunks.close()
        rest = repeats.finish()
        if rest:
            yield Thinking(rest)
        return text + rest

    def say(self, messages: Sequence[Message], **settings: Any) -> Iterator[Event]:
        """Has the model reply; the reply is the answer."""
        writer = self.writer()
        yield from writer.of(self._chunks(messages, {"stop": [ECHO], **settings}))
        self.answer.finish_reason = "repeated" if writer.looping else self.answer.finish_reason

    def show(self, text: str) -> Iterator[Event]:
        """Makes a text that is already there the answer."""
        # Checked whatever the engine can do: a mask looked at the reply as a whole, not at this part of it.
        yield from self.writer(check_quotes=self.options.quotes).of(iter([text]))

    def refuse(self) -> Iterator[Event]:
        """Answers, without the model, that the documents do not hold the answer."""
        self.answer.answer, self.answer.refused, self.answer.finish_reason = NOT_FOUND, True, "refused"
        self.answer.timings.setdefault("first_token_ms", 0.0)
        yield Token(NOT_FOUND)

    def step(self, step: Step) -> Iterator[Event]:
        """Keeps a step and tells of it."""
        self.answer.steps.append(step)
        yield StepTaken(step)

    def writer(self, check_quotes: bool | None = None) -> "Writer":
        """What turns a reply into the answer, cited from the passages as they are now.

        Args:
            check_quotes: whether quote marks are checked afterwards; by default where the engine cannot mask.
        """
        if check_quotes is None:
            check_quotes = self.options.quotes and "quotes" not in self.generator.abilities
        return Writer(self.answer, self.passages, check_quotes)

    def _chunks(self, messages: Sequence[Message], settings: dict[str, Any]) -> "Stream[str | Event, None, None]":
        """The reply's pieces, and beats as events; fills in the counts."""
        answer, wanted = self.answer, {"max_tokens": self.reply_room(), **settings}
        if self.options.quotes and "quotes" in self.generator.abilities and self.passages:
            wanted["quotes"] = [hit.text for hit in self.passages]
        if self.adapters:
            wanted["adapters"] = self.adapters
        if "grammar" not in self.generator.abilities:
            wanted.pop("grammar", None)
        self.clock.lap()
        reasoning = Reasoning()
        chunks = self.generator.stream([(message.role, message.content) for message in messages], **wanted)
        for chunk in chunks:
            if usage := chunk.usage_metadata:
                answer.usage["prompt_tokens"] += usage["input_tokens"]
                answer.usage["completion_tokens"] += usage["output_tokens"]
                answer.usage["cached_tokens"] += (usage.get("input_token_details") or {}).get("cache_read") or 0
            answer.finish_reason = chunk.response_metadata.get("finish_reason") or answer.finish_reason
            if chunk.text:
                answer.timings.setdefault("first_token_ms", self.clock.lap())
                # Half a character, which some servers send, can be neither kept nor printed.
                thought, text = reasoning.feed(repaired(chunk.text))
                if thought:
                    yield Thinking(thought)
                if text:
                    yield text
            elif place := chunk.response_metadata.get("place"):
                yield Waiting(place)
            elif not chunk.response_metadata.get("finish_reason"):
                yield Reading()
        if rest := reasoning.finish():
            yield rest
        answer.timings.setdefault("first_token_ms", self.clock.lap())

    def fit(self, prompt: Any, passages: Sequence[Hit]) -> list[Message]:
        """The prompt with as many passages, from the best, and as much history, from the newest, as the window holds.

        Args:
            prompt: a function of passages' texts and history that gives the messages.
            passages: from the best.

        Raises:
            PromptTooLong: there is no room for even one passage.
        """
        room = self.prompt_room()
        texts = [hit.text for hit in passages]

        def cost(count: int, turns: int) -> int:
            kept = self.history[len(self.history) - turns :]
            return self.generator.count_tokens(prompt(texts[:count], kept))

        kept = _most(len(texts), lambda count: cost(count, 0) <= room)
        if not kept and texts:
            raise PromptTooLong(
                f"the question is too long: {cost(0, 0):,} tokens with the instructions leave no room for a "
                f"passage and an answer in the model's window of {self.generator.window():,}. Shorten it, and put long "
                "texts into the index instead; or give the model a larger window with --n-ctx"
            )
        alone = cost(kept, 0)
        most = min(room, alone + self.generator.window() // HISTORY_SHARE)
        turns = _most(len(self.history), lambda count: cost(kept, count) <= most)
        self.passages = list(passages[:kept])
        self.answer.dropped, self.answer.history_dropped = len(texts) - kept, len(self.history) - turns
        messages: list[Message] = prompt(texts[:kept], self.history[len(self.history) - turns :])
        self.history = self.history[len(self.history) - turns :]
        return messages


def _most(count: int, fits: Any) -> int:
    """The largest number from 0 to `count` that fits, where fewer always fit when more do."""
    low, high = 0, count
    if not count or fits(count):  # as a rule all do, and counting tokens costs time
        return count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Writer:
    """Turns what the model writes into what is shown, and fills in the answer."""

    def __init__(self, answer: Answer, passages: Sequence[Hit], check_quotes: bool) -> None:
        self._answer = answer
        self._repeats = Repeats()
        self._quotes = QuoteCheck([hit.text for hit in passages], [answer.question]) if check_quotes else None
        self._citer = Citer(answer.question, passages)
        self._cited: list[Citation] = []
        self._declined = False

    @property
    def looping(self) -> bool:
        """Whether the reply went round in circles and was ended there."""
        return self._repeats.looping

    def of(self, pieces: "Iterator[str | Event]") -> Iterator[Event]:
        """Shows a reply; events among its pieces pass through."""
        for piece in pieces:
            if not isinstance(piece, str):
                yield piece
                continue
            yield from self._show(self._citer.feed(self._checked(self._repeats.feed(piece))))
            if self.looping or self._declined:
                break
        if isinstance(pieces, Stream):
            pieces.close()  # the model stops
        yield from self._finish()

    def cite(self, citations: Sequence[Citation]) -> Iterator[Event]:
        """Adds citations that the answer's own words do not lead to."""
        new = [citation for citation in citations if citation not in self._citer.citations]
        self._citer.citations.extend(new)
        self._answer.citations = self._citer.citations
        marks = "".join(f" [{n}]" for n in dict.fromkeys(c.n for c in new))
        if marks:
            self._answer.answer += marks
            yield Token(marks)
        yield from map(Cited, new)

    def _checked(self, text: str) -> str:
        return self._quotes.feed(text) if self._quotes else text

    def _finish(self) -> Iterator[Event]:
        if not self._declined:
            rest = self._checked(self._repeats.finish()) + (self._quotes.finish() if self._quotes else "")
            yield from self._show(self._citer.feed(rest) + self._citer.finish())
        answer = self._answer
        if not answer.answer.strip():
            yield from self._show(NOTHING)
        answer.answer = answer.answer.strip()
        answer.citations = self._citer.citations
        answer.refused = declines(answer.answer)
        if self._quotes and self._quotes.dropped:
            answer.notes.append(
                f"{self._quotes.dropped} quoted texts stand in no passage: their quote marks were taken away"
            )

    def _show(self, text: str) -> Iterator[Event]:
        if not self._answer.answer:
            text = text.lstrip()  # models like to begin with a blank or a line
        if text != NOTHING and declines(
            self._answer.answer + text
        ):  # what came after would be no answer from documents
            text = NOT_FOUND[len(self._answer.answer) :]
            self._declined, self._answer.finish_reason = True, "stop"
        self._answer.answer += text
        if text:
            yield Token(text)
        if len(self._citer.citations) > len(self._cited):
            new = self._citer.citations[len(self._cited) :]
            self._cited = list(self._citer.citations)
            yield from map(Cited, new)


def declines(answer: str) -> bool:
    """Whether an answer says that the documents do not hold one."""
    return answer == NOTHING or answer.casefold().startswith(NOT_FOUND.casefold().rstrip("."))
