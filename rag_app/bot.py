"""A question in, a cited answer out, as a stream of events that the terminal and the page share.

question ─► search ─► fit the window ─► prompt ─► generate ─► cite ─► Answer
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from index import Hit, Index, QueryInvalid
from index.encoder import Encoder, SentenceEncoder
from rag_app.citations import Citation, Citer
from rag_app.errors import PromptTooLong
from rag_app.prompt import NOT_FOUND, Message, question_prompt
from rag_app.repeats import Repeats

MIN_SCORE = 0.25
"""Cosine below which the nearest passage has nothing to do with the question: of 2,578 questions about the indexed
documents 0.3% fall below it, of 1,873 about other subjects 44% (bench/refusal.py on SQuAD's training part)."""

NOTHING = "The model found no answer."
"""Shown when the model wrote nothing, or nothing but repetitions."""


class ChatModel(Protocol):
    """What answering needs of a chat model, beside LangChain's `stream`."""

    max_tokens: int

    def check(self) -> Path:
        """The model's file; raises a RagError when there is none."""
        ...

    def start(self) -> None:
        """Begins to load the model without waiting for it."""
        ...

    def kill(self) -> None:
        """Ends the model at once; the next question loads it again."""
        ...

    def window(self) -> int:
        """Context window in tokens; waits until the model is loaded."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model will read it."""
        ...

    def stream(self, input: Any) -> Iterator[Any]:
        """LangChain's: the answer as message chunks. Closing the iterator, a generator, stops the model."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """The search has ended."""

    hits: list[Hit]


@dataclass(frozen=True, slots=True)
class Reading:
    """The model is reading the passages; sent now and then, so that the answer can be stopped meanwhile."""


@dataclass(frozen=True, slots=True)
class Token:
    """The next piece of the answer, markers included."""

    text: str


@dataclass
class Answer:
    """An answer, complete or as far as it came; the JSON form of `rag-app ask`."""

    question: str
    answer: str = ""
    citations: list[Citation] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    """Everything found, best first; citation n is of hit n."""
    refused: bool = False
    """Whether the reply is that the documents do not hold the answer."""
    dropped: int = 0
    """How many of the hits, from the last, did not fit the model's window."""
    finish_reason: str = ""
    """'stop', 'length' (cut at the most tokens allowed), 'repeated' (ended where it began to repeat itself) or
    'refused' (not put to the model)."""
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds: load_ms (encoder and model, nearly 0 when they are loaded), retrieve_ms (after loading),
    first_token_ms (from the finished prompt to the first token), total_ms (everything)."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    answer: Answer


Event = Found | Reading | Token | Done


class Bot:
    """Answers questions from one index with one model; takes up a rebuilt index at the next question."""

    def __init__(
        self,
        model: ChatModel,
        directory: str | Path | None = None,
        encoder: Encoder | type[SentenceEncoder] | Any = SentenceEncoder,
        k: int = 4,
    ) -> None:
        self.model, self.directory, self.k = model, directory, k
        self._encoder = encoder
        self._index: Index | None = None
        self._lock = threading.Lock()

    def index(self) -> Index:
        """The current generation of the index.

        Raises:
            NoIndex: there is none.
            IndexDamaged: it is damaged.
        """
        with self._lock:
            if self._index is None or not self._index.is_current():
                self._index = Index.open(self.directory, self._encoder)
            return self._index

    def check(self) -> None:
        """Looks, without loading anything, whether a question could be answered.

        Raises:
            RagError: there is no index, no encoder or no model; the text names the remedy.
        """
        self.index()
        self.model.check()

    def load(self) -> None:
        """Loads index, encoder and model, side by side; later questions find them ready."""
        index = self.index()
        self.model.start()
        self._encoder = index.load_encoder()
        self.model.window()

    def ask(self, question: str) -> Answer:
        """The whole answer at once; raises what `stream` raises."""
        for event in self.stream(question):
            if isinstance(event, Done):
                return event.answer
        raise AssertionError("a stream ends with Done")

    def stream(self, question: str) -> Generator[Event]:
        """The answer as it is made: Found, Readings, Tokens, then Done. Closing the iterator stops the model.

        Raises:
            RagError: one of index.errors or rag_app.errors; its text is a line for a person.
        """
        clock = _Clock()
        if not question.strip():
            raise QueryInvalid("the question is empty: write one")
        self.load()
        answer = Answer(question, timings={"load_ms": clock.lap()})
        answer.hits = self.index().search(question, self.k)
        answer.timings["retrieve_ms"] = clock.lap()
        prompt, passages = self._fit(answer)
        yield Found(answer.hits)
        if max(hit.cosine or 0.0 for hit in answer.hits) < MIN_SCORE:
            yield from self._refuse(answer)
        else:
            yield from self._generate(answer, prompt, passages, clock)
        answer.timings["total_ms"] = clock.total()
        yield Done(answer)

    def _fit(self, answer: Answer) -> tuple[list[Message], list[Hit]]:
        """The prompt with as many passages, from the best, as the window holds beside the answer."""
        texts = [hit.text for hit in answer.hits]
        window = self.model.window()
        room = window - min(self.model.max_tokens, window // 4)

        def cost(passages: int) -> int:
            return self.model.count_tokens(question_prompt(answer.question, texts[:passages]))

        kept = bisect_right(range(1, len(texts) + 1), room, key=cost)
        if kept:
            answer.dropped = len(texts) - kept
            return question_prompt(answer.question, texts[:kept]), answer.hits[:kept]
        raise PromptTooLong(
            f"the question is too long: {cost(0):,} tokens with the instructions leave no room for a passage and an "
            f"answer in the model's window of {window:,}. Shorten it, and put long texts into the index instead"
        )

    def _refuse(self, answer: Answer) -> Iterator[Event]:
        answer.answer, answer.refused, answer.finish_reason = NOT_FOUND, True, "refused"
        answer.timings["first_token_ms"] = 0.0
        yield Token(NOT_FOUND)

    def _generate(self, answer: Answer, prompt: list[Message], passages: list[Hit], clock: "_Clock") -> Iterator[Event]:
        writer = _Writer(answer, passages)
        clock.lap()
        chunks = self.model.stream([(message.role, message.content) for message in prompt])
        for chunk in chunks:
            writer.note(chunk)
            if not chunk.text:
                if "first_token_ms" not in answer.timings:
                    yield Reading()
                continue
            answer.timings.setdefault("first_token_ms", clock.lap())
            if shown := writer.feed(chunk.text):
                yield Token(shown)
            if writer.looping:
                answer.finish_reason = "repeated"
                break
        del chunks  # a generator that nobody holds closes, and the model stops
        if rest := writer.finish():
            yield Token(rest)
        answer.timings.setdefault("first_token_ms", clock.lap())


class _Writer:
    """Turns what the model writes into what is shown, and fills in the answer."""

    def __init__(self, answer: Answer, passages: list[Hit]) -> None:
        self._answer = answer
        self._repeats = Repeats()
        self._citer = Citer(answer.question, passages)

    @property
    def looping(self) -> bool:
        return self._repeats.looping

    def note(self, chunk: Any) -> None:
        """Takes the counts that come with a chunk; they add up."""
        if usage := chunk.usage_metadata:
            self._answer.usage["prompt_tokens"] += usage["input_tokens"]
            self._answer.usage["completion_tokens"] += usage["output_tokens"]
        self._answer.finish_reason = chunk.response_metadata.get("finish_reason") or self._answer.finish_reason

    def feed(self, text: str) -> str:
        return self._show(self._citer.feed(self._repeats.feed(text)))

    def finish(self) -> str:
        rest = self._show(self._citer.feed(self._repeats.finish()) + self._citer.finish())
        if not self._answer.answer.strip():
            rest = self._show(NOTHING)
        self._answer.answer = self._answer.answer.strip()
        self._answer.citations = self._citer.citations
        self._answer.refused = declines(self._answer.answer)
        return rest

    def _show(self, text: str) -> str:
        if not self._answer.answer:
            text = text.lstrip()  # models like to begin with a blank or a line
        self._answer.answer += text
        return text


def declines(answer: str) -> bool:
    """Whether an answer says that the documents do not hold one."""
    return answer == NOTHING or answer.casefold().startswith(NOT_FOUND.casefold().rstrip("."))


class _Clock:
    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return round((self._last - last) * 1000, 1)

    def total(self) -> float:
        """Milliseconds since the start."""
        return round((time.perf_counter() - self._start) * 1000, 1)
