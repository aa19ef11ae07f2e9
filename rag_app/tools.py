"""What a model may do in a run of steps: the standard tools, a user's own, and one way to use them. No models here.

Tools are LangChain's (`BaseTool`). Whatever a tool does, using it gives an observation that the model can read on.
"""

import asyncio
import contextvars
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from index.errors import RagError
from rag_app.citations import SENTENCE
from rag_app.engines.marks import whole
from rag_app.errors import SettingInvalid
from rag_app.parse import program_of
from rag_app.prompt import plain
from rag_app.sandbox import run_python

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from index import Hit

STANDARD = ("search", "lookup", "calculator", "python", "finish")
NUMBERED = ("search", "lookup", "finish")
"""Those whose results may have a passage's number at the head of a line; they write it themselves."""
BEAT = 0.2
"""Seconds between two signs of life."""
SECONDS = 30.0
"""After which a user's tool is waited for no longer."""
LONGEST = 4000
"""Characters of an observation; the rest is cut."""
BRIEF = 80
"""Characters by which a passage that was shown before is named again."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
SUM = re.compile(r"(?:\d|[-+*/%().,\s]|\b(?:sqrt|min|max|round|abs|floor|ceil|log|exp|pi|e)\b|(?<=[\d.])e[-+]?\d)+")
SIGNS = {"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**", "$": "", "€": "", "£": "", "=": ""}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
LABEL = re.compile(r"^([ \t]*)(question|thought|action|input|observation)(?=[ \t]*:)", re.I | re.M)
LONGEST_SUM = 1000
"""Characters."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tool gave, for the model."""

    text: str
    error: bool = False


class Notebook:
    """The passages found in one run, each under the number that observations and citations know it by."""

    def __init__(self, search: "Callable[[str], list[Hit]]") -> None:
        self.hits: list[Hit] = []
        """In order of first finding; `rank` is the number."""
        self._search = search
        self._numbers: dict[str, int] = {}
        self._last: list[Hit] = []
        self._term, self._results, self._shown = "", list[str](), 0

    def search(self, query: str) -> str:
        """Searches, and tells the passages found; those shown before by their first words only."""
        found = self._search(query)
        seen = len(self.hits)
        for hit in found:
            if hit.chunk_id not in self._numbers:
                self._numbers[hit.chunk_id] = len(self.hits) + 1
                self.hits.append(replace(hit, rank=len(self.hits) + 1))
        self._last = [self.hits[self._numbers[hit.chunk_id] - 1] for hit in found]
        self._term = ""
        shown = [f"[{hit.rank}] {plain(hit.text) if hit.rank > seen else _again(hit)}" for hit in self._last]
        return "\n\n".join(shown) or "Nothing was found; search with other words."

    def lookup(self, term: str) -> str:
        """The next sentence that holds `term`: of the passages found last, then of all found before.

        As in ReAct (Yao et al. 2022): the same term again goes on to the next result.
        """
        term = " ".join(term.lower().split())
        if not self.hits:
            return "There are no passages yet; search first."
        if term != self._term:
            passages = dict.fromkeys([hit.rank for hit in self._last] + [hit.rank for hit in self.hits])
            self._term, self._shown = term, 0
            self._results = [line for n in passages for line in _sentences(self.hits[n - 1], term)]
        if self._shown == len(self._results):
            return "No more results." if self._results else f"No passage found so far holds '{term}'."
        self._shown += 1
        return f"(Result {self._shown} / {len(self._results)}) {self._results[self._shown - 1]}"


def _again(hit: "Hit") -> str:
    text = " ".join(plain(hit.text).split())
    return f"(shown before) {text[:BRIEF]}{'…' if len(text) > BRIEF else ''}"


def _sentences(hit: "Hit", term: str) -> list[str]:
    lines = (" ".join(match[0].split()) for match in SENTENCE.finditer(plain(hit.text)))
    return [f"[{hit.rank}] {line}" for line in lines if term and term in line.lower()]


def standard_tools(notebook: Notebook) -> "dict[str, BaseTool]":
    """The tools of every run, by name; search and lookup write into `notebook`."""

    def search(query: str) -> str:
        """Finds passages of the documents. Input: words to search for."""
        return notebook.search(query)

    def lookup(term: str) -> str:
        """Finds the next sentence that holds a word in the passages found so far. Input: the word."""
        return notebook.lookup(term)

    def python(program: str) -> str:
        """Runs a short Python program and gives its variable `answer`. Input: the program."""
        outcome = run_python(program_of(program))
        if outcome.error:
            raise _failure(outcome.error)
        return outcome.value or "the program gave `answer` no value"

    def finish(answer: str) -> str:
        """Ends with the answer. Input: the answer, short."""
        return answer

    from langchain_core.tools import tool

    return {made.name: made for made in map(tool, (search, lookup, calculator, python, finish))}


def calculator(expression: str) -> str:
    """Computes with + - * / // % ** ( ) sqrt min max round abs; 15% is 0.15. Input: numbers only, such as (3+4)*12."""
    outcome = run_python(f"from math import sqrt, floor, ceil, log, exp, pi, e\n({_sum(expression)})")
    message = outcome.error.removeprefix("line 2: ")
    if "program" in message or "4,300 digits" in message or outcome.value in ("inf", "-inf", "nan"):
        message = "the numbers grow too large"
    elif not (message or NUMBER.fullmatch(outcome.value)):
        message = "it is not one real number"
    if message:
        raise _failure(f"cannot compute this: {message}")
    return outcome.value


def _sum(text: str) -> str:
    """What people write, as Python; nothing but numbers, signs and the named functions comes through."""
    if len(text) > LONGEST_SUM:
        raise _failure(f"cannot compute {len(text):,} characters: give at most {LONGEST_SUM:,}")
    text = text.lower()
    for sign, meant in SIGNS.items():
        text = text.replace(sign, meant)
    called = re.search(r"[a-z]\s*\(", text)  # commas may part arguments there; else they part thousands

    def thousands(comma: re.Match[str]) -> str:
        before = text[: comma.start()]
        return "," if called and before.count("(") > before.count(")") else ""

    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", thousands, text)
    # A percent sign with no number after it, or with "of", is a percentage; else the remainder of a division.
    text = re.sub(r"(?<![\d.])(\d[\d.]*|\.\d+)\s*%(?=\s*(?:$|[-)+*/,]|of\b))", r"(\1/100)", text)
    text = re.sub(r"\bof\b", "*", text)
    if not SUM.fullmatch(text):
        raise _failure("the calculator takes only numbers, + - * / // % ** ( ) and sqrt, min, max, round, abs")
    return text


def load_tool(spec: str) -> "BaseTool":
    """A user's own tool.

    Args:
        spec: 'module:name' of a LangChain tool, or of a function with a docstring and type hints; the current folder
            is searched for the module first.

    Raises:
        SettingInvalid: there is no such thing, or it cannot be a tool.
    """
    module, colon, name = spec.partition(":")
    if not (colon and module and name):
        raise SettingInvalid(f"the tool '{spec}' cannot be found: name it as module:name, such as mytools:weather")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        holder = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise SettingInvalid(f"the tool '{spec}' cannot be loaded: {_line(error)}") from error
    if not hasattr(holder, name):
        raise SettingInvalid(f"the tool '{spec}' cannot be loaded: the module '{module}' has no '{name}'")
    return as_tool(getattr(holder, name))


def as_tool(given: "BaseTool | Callable[..., Any]") -> "BaseTool":
    """A LangChain tool as it is, or a function made into one.

    Raises:
        SettingInvalid: it is neither, has no docstring, or its name is taken or cannot be written by a model.
    """
    from langchain_core.tools import BaseTool, tool

    if isinstance(given, BaseTool):
        return _named_well(given)
    name = getattr(given, "__name__", type(given).__name__)
    if not callable(given) or isinstance(given, type):
        raise SettingInvalid(
            f"the tool '{name}' is of type {type(given).__name__}: give a function or a LangChain tool"
        )
    if not (given.__doc__ or "").strip():
        raise SettingInvalid(f"the tool '{name}' has no docstring: write one, the model chooses tools by it")
    try:
        made = tool(given)
        made.args  # noqa: B018  (hints that cannot be described fail here)
    except Exception as error:  # whatever its hints make pydantic raise
        raise SettingInvalid(f"the tool '{name}' cannot be described: {_line(error)}") from error
    return _named_well(made)


def _named_well(given: "BaseTool") -> "BaseTool":
    if given.name in STANDARD:
        raise SettingInvalid(f"the tool '{given.name}' has the name of a standard tool: give it another")
    if not NAME.fullmatch(given.name):
        raise SettingInvalid(f"the tool '{given.name}' cannot be called so: use up to 64 letters, digits, _ and -")
    arguments = _arguments(given)
    if len(arguments) < 2:
        return given
    form = ", ".join(f'"{name}": {kind}' for name, kind in arguments.items())
    return given.model_copy(update={"description": f"{given.description.rstrip()} Input: {{{form}}}"})


def use(tools: "Mapping[str, BaseTool]", name: str, text: str, seconds: float = SECONDS) -> Observation:
    """Uses one tool on what the model wrote; arguments and outcome as those of `use_slowly`."""
    *_, last = use_slowly(tools, name, text, seconds)
    assert last is not None
    return last


def use_slowly(
    tools: "Mapping[str, BaseTool]", name: str, text: str, seconds: float = SECONDS
) -> Iterator[Observation | None]:
    """Uses one tool on what the model wrote; whatever goes wrong becomes an observation.

    Yields None every BEAT seconds while a user's tool works, and the observation last. Who loses patience closes it.

    Args:
        tools: by name.
        name: which one.
        text: its only argument; or a JSON object, for several.
        seconds: after which a user's tool is waited for no longer. Its thread cannot be ended and runs on.
    """
    tool = tools.get(name)
    if tool is None:
        yield Observation(f"there is no tool '{_one_line(name)[:BRIEF]}': use one of {', '.join(tools)}", error=True)
    elif name in STANDARD:  # they keep their own limits, and an index is used from the thread that opened it
        try:
            yield _observed(tool, text)
        except Exception as error:  # an index may fail in many ways
            yield Observation(_reason(name, error), error=True)
    else:
        yield from _awaited(tool, text, seconds)


def _awaited(tool: "BaseTool", text: str, seconds: float) -> Iterator[Observation | None]:
    """Uses a user's tool in a thread of its own, for as long as may be waited."""
    done: SimpleQueue[Observation] = SimpleQueue()

    def run() -> None:
        try:
            done.put(_observed(tool, text))
        except BaseException as error:  # an interruption or an exit, too: it is not the tool's to end us
            try:
                done.put(Observation(_reason(tool.name, error), error=True))
            except BaseException:  # its text is code of the tool's as well
                done.put(Observation(f"tool {tool.name} failed: {type(error).__name__}", error=True))

    Thread(target=contextvars.copy_context().run, args=(run,), daemon=True, name=f"tool {tool.name}").start()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            observation = done.get(timeout=min(BEAT, left))
        except Empty:
            yield None
            continue
        yield observation
        return
    yield Observation(f"tool {tool.name} failed: no result within {seconds:g} seconds", error=True)


def _observed(tool: "BaseTool", text: str) -> Observation:
    result = _result(tool, _given(tool, whole(text)))
    if tool.name in NUMBERED:
        return Observation(whole(result))
    cut = f"… (cut: {len(result):,} characters)" if len(result) > LONGEST else ""
    return Observation(_plain(result[:LONGEST]) + cut)


def _plain(text: str) -> str:
    """A text in which no line passes for a passage, or for a turn of the run."""
    return LABEL.sub(r"\1(\2)", plain("\n".join(whole(text).splitlines())))


def _one_line(text: str) -> str:
    return _plain(" ".join(text.split()))


def _result(tool: "BaseTool", given: dict[str, Any]) -> str:
    is_async = getattr(tool, "coroutine", None) is not None and getattr(tool, "func", None) is None
    result = asyncio.run(tool.ainvoke(given)) if is_async else tool.invoke(given)
    if isinstance(result, bytes):
        result = result.decode("utf-8", "replace")
    elif isinstance(result, dict | list | tuple):
        result = json.dumps(result, ensure_ascii=False, default=str)
    return "(no result)" if result is None else str(result).strip() or "(no result)"


def _arguments(tool: "BaseTool") -> dict[str, str]:
    """The names and kinds of a tool's arguments."""
    return {name: str(schema.get("type", "value")) for name, schema in tool.args.items()}


def _given(tool: "BaseTool", text: str) -> dict[str, Any]:
    """The model's text as the tool's arguments; pydantic makes numbers of texts where the tool wants them.

    Raises:
        ToolException: an argument is missing or unknown.
    """
    arguments = tool.args
    required = [name for name, schema in arguments.items() if "default" not in schema]
    takes = ", ".join(arguments) or "no arguments"
    if not arguments:
        return {}
    value = _json(text)
    if isinstance(value, dict) and (len(arguments) > 1 or set(value) == set(arguments)):
        unknown = [name for name in value if name not in arguments]
        missing = [name for name in required if name not in value]
        if unknown or missing:
            wrong = f"it knows no {', '.join(unknown)}" if unknown else f"it lacks {', '.join(missing)}"
            raise _failure(f"tool {tool.name}: {wrong}; it takes {takes}")
        return value
    if len(required) > 1:
        raise _failure(f"tool {tool.name} takes a JSON object with {takes}")
    only = (required or list(arguments))[0]
    if not text.strip() and only in required:
        raise _failure(f"tool {tool.name} has no input: give it {only}")
    if not text.strip():
        return {}
    is_json = arguments[only].get("type") in ("array", "object", "null") and value is not None
    return {only: value if is_json else text}


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
        return json.loads(whole(json.dumps(value, ensure_ascii=False)))  # it may spell halves of characters out
    except (ValueError, RecursionError):
        return None


def _failure(message: str) -> Exception:
    from langchain_core.tools import ToolException

    return ToolException(message)


def _reason(name: str, error: BaseException) -> str:
    """One line for the model."""
    from langchain_core.tools import ToolException
    from pydantic import ValidationError

    if isinstance(error, RagError | ToolException):
        told = str(error).strip() or f"tool {name} failed"
    elif isinstance(error, ValidationError):
        wrong = (f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        told = f"tool {name} cannot take this: {'; '.join(wrong)}"
    else:
        told = f"tool {name} failed: {_line(error)}"
    return _one_line(told)[:LONGEST]


def _line(error: BaseException) -> str:
    return _one_line(f"{type(error).__name__}: {error}").removesuffix(":")[:500]
