"""A question in, a cited answer out, as a stream of events that the terminal, the page and a server share.

question ─► stand alone ─► search ─► confident enough? ─► strategy: prompt, model, tools ─► cite ─► Answer
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Stream
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import Index, QueryInvalid
from index.encoder import Encoder, SentenceEncoder
from rag_app.adapters.choice import chosen
from rag_app.adapters.registry import Registry
from rag_app.answer import Answer, Done, Event, Found, Query
from rag_app.chats import Turn
from rag_app.confidence import PASSAGES, calibration, confidence
from rag_app.errors import SettingInvalid
from rag_app.followup import needs_context, standalone
from rag_app.generator import Generator
from rag_app.halves import repaired
from rag_app.prompt import PROMPT_VERSION, Turns, standalone_prompt
from rag_app.run import Clock, Run
from rag_app.settings import Options

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

LONGEST_QUESTION = 100_000
"""Characters; longer texts belong into the index."""
REWRITTEN_BY = 64
"""Most tokens of a question that the model rewrites."""


class Bot:
    """Answers questions from one index with one model; takes up a rebuilt index at the next question."""

    def __init__(
        self,
        model: Generator,
        directory: str | Path | None = None,
        encoder: Encoder | type[SentenceEncoder] | Any = SentenceEncoder,
        options: Options | None = None,
        tools: "Sequence[BaseTool | Callable[..., Any]]" = (),
    ) -> None:
        self.model, self.directory, self.options, self.tools = model, directory, options or Options(), tools
        self.adapters = Registry()
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
        self.model.check()
        self.model.start()
        self._encoder = index.load_encoder()
        self.model.window()

    def ask(self, question: str, history: Sequence[Turn] = (), options: Options | None = None) -> Answer:
        """The whole answer at once; raises what `stream` raises."""
        for event in self.stream(question, history, options):
            if isinstance(event, Done):
                return event.answer
        raise AssertionError("a stream ends with Done")

    def stream(
        self, question: str, history: Sequence[Turn] = (), options: Options | None = None
    ) -> Stream[Event, None, None]:
        """The answer as it is made; Done comes last. Closing the iterator stops the model.

        Args:
            question: what is asked.
            history: the conversation so far, oldest first.
            options: how to answer, instead of the bot's own.

        Raises:
            RagError: one of index.errors or rag_app.errors; its text is a line for a person.
        """
        options = options or self.options
        clock = Clock()
        question = _checked(question)
        tools = self._tools(options)
        self.load()
        model, adapters = self.model.check(), chosen(self.model, options, self.adapters)
        answer = Answer(question, strategy=options.strategy, model=model, prompt_version=PROMPT_VERSION)
        answer.adapters = list(adapters.names)
        answer.notes += adapters.notes
        answer.settings = {**options.changed(), **self.model.decoding.changed()}
        answer.timings["load_ms"] = clock.lap()
        # A question that stands alone is asked alone: with the conversation before it, the bundled model goes on with
        # its last answer. So "What is the lunch allowance?" was answered with the okapi's tongue.
        before = turns(history)
        run = Run(answer, self.model, options, [], before if needs_context(question, before) else (), clock)
        run.adapters = adapters.uses
        answer.query = yield from self._query(run)
        yield Query(answer.query, answer.query != question)
        index = self.index()
        clock.lap()
        found = index.search(answer.query, max(options.k, PASSAGES))
        answer.confidence = round(confidence(answer.query, found), 6)  # of as many as it is calibrated with
        answer.hits = run.passages = found[: options.k]
        answer.timings["retrieve_ms"] = clock.lap()
        yield Found(answer.hits)
        yield from self._answer(run, index, tools)
        answer.timings["total_ms"] = clock.total()
        yield Done(answer)

    def _query(self, run: Run) -> Stream[Event, None, str]:
        """The question as it can be searched for; a follow-up is rewritten so that it stands alone."""
        how = run.options.rewrite
        if how == "off" or not run.history:
            return run.question
        if how == "model":
            messages = standalone_prompt(run.question, run.history[-3:])
            if self.model.count_tokens(messages) <= run.prompt_room():
                lines = (yield from run.write(messages, max_tokens=REWRITTEN_BY)).strip().splitlines()
                if lines and lines[0].strip():
                    return lines[0].strip()
        return standalone(run.question, run.history)

    def _answer(self, run: Run, index: Index, tools: "Mapping[str, BaseTool]") -> Iterator[Event]:
        from rag_app.strategies.direct import chain_of_thought, few_shot, zero_shot

        answer, options = run.answer, run.options
        run.least_confidence = options.min_confidence
        if run.least_confidence is None:
            calibrated = calibration(index)
            run.least_confidence = calibrated.threshold
            answer.notes += [calibrated.note] if calibrated.note else []
        if answer.confidence < run.least_confidence and options.strategy != "react":  # whose tools may know more
            yield from run.refuse()
            return
        match options.strategy:
            case "zero-shot":
                yield from zero_shot(run)
            case "few-shot":
                yield from few_shot(run, index.load_encoder().encode)
            case "cot":
                yield from chain_of_thought(run)
            case "pal":
                from rag_app.strategies.pal import pal

                yield from pal(run)
            case "react":
                yield from self._react(run, index, tools)
        _tell_of_what_was_dropped(answer)

    def _react(self, run: Run, index: Index, tools: "Mapping[str, BaseTool]") -> Iterator[Event]:
        from rag_app.strategies.react import react
        from rag_app.tools import Notebook, standard_tools

        notebook = Notebook(lambda query: index.search(query, run.options.k))
        yield from react(run, notebook, {**standard_tools(notebook), **tools})

    def _tools(self, options: Options) -> "dict[str, BaseTool]":
        """The user's own tools, where the strategy uses any."""
        if options.strategy != "react" or not (options.tools or self.tools):
            return {}
        from rag_app.tools import as_tool, load_tool

        made = [*map(as_tool, self.tools), *map(load_tool, options.tools)]
        named = {tool.name: tool for tool in made}
        if len(named) < len(made):
            twice = next(tool.name for tool in made if sum(other.name == tool.name for other in made) > 1)
            raise SettingInvalid(f"there are two tools '{twice}': rename or leave out one of them")
        return named


def turns(history: Sequence[Turn]) -> Turns:
    """Questions with their answers, oldest first; questions that got none are left out."""
    pairs, asked = list[tuple[str, str]](), ""
    for turn in history:
        if turn.role == "user":
            asked = turn.content
        else:
            if asked and turn.content.strip() and not turn.details.get("error"):
                pairs.append((asked, turn.content))
            asked = ""
    return pairs


def _checked(question: str) -> str:
    if not isinstance(question, str):
        raise QueryInvalid(f"the question is no text, but {type(question).__name__}: write one")
    if not question.strip():
        raise QueryInvalid("the question is empty: write one")
    if len(question) > LONGEST_QUESTION:
        raise QueryInvalid(
            f"the question has {len(question):,} characters: ask in at most {LONGEST_QUESTION:,}, "
            "and put long texts into the index instead"
        )
    return repaired(question)


def _tell_of_what_was_dropped(answer: Answer) -> None:
    if answer.dropped:
        answer.notes.append(f"{answer.dropped} of {len(answer.hits)} passages did not fit the model's window")
    if answer.history_dropped:
        answer.notes.append(
            f"{answer.history_dropped} earlier questions and their answers did not fit the model's window"
        )
