"""Runs a model's Python where it can do no harm. Knows no models, tools or prompts.

The program runs in Monty, an interpreter of a part of Python, in a process of its own that has no files, no network,
no environment and no other programs, and that ends at its limits of time and memory, inside a single operation too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_monty import CollectString, MontySession

MODULES = "math, datetime, re, decimal, itertools, collections, functools, json, random, bisect, csv and dataclasses"
"""What a program may import, of use to a model."""
LONGEST_PROGRAM = 100_000
"""Characters."""
MOST_PRINTED = 1 << 20
"""Bytes; a program that prints more has gone astray."""
GRACE = 0.5
"""Seconds after the time limit at which a process that does not end by itself is killed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program."""

    value: str
    """Text of the variable `answer`; of the last expression where there is none; else the last line printed."""
    printed: str
    error: str
    """What went wrong, one line for the model; empty when nothing did."""


def run_python(code: str, *, seconds: float = 2.0, megabytes: int = 64, characters: int = 2000) -> Outcome:
    """Runs a program; whatever it does, the answer comes within about `seconds` + 1.

    Args:
        code: a program, not fenced.
        seconds: of running.
        megabytes: of memory.
        characters: most of `value`, and of `printed`; what is longer is cut and says so.
    """
    if len(code) > LONGEST_PROGRAM:
        return Outcome("", "", f"the program has {len(code):,} characters: write a short one")
    from pydantic_monty import CollectString, Monty, ResourceLimits

    limits: ResourceLimits = {
        "max_feed_duration_secs": seconds,
        "max_memory": megabytes << 20,
        "max_recursion_depth": 200,
        "max_suspensions": 100,
    }
    printed = CollectString(max_bytes=MOST_PRINTED)
    value, error = "", ""
    try:
        with (
            Monty(max_processes=1, feed_duration_limit_grace=GRACE, request_timeout=seconds + GRACE) as pool,
            # The same program gives the same outcome; a wait would outlast the clock, which stops meanwhile.
            pool.checkout(limits=limits, os_policy={"sleep": "zero", "random_start": {"seed": 0}}) as session,
        ):
            value = _value(session, code.encode("utf-8", "replace").decode(), printed, characters)
    except Exception as problem:  # values that Python cannot take over raise what they like
        error = _told(problem, seconds, megabytes)
    output = printed.output.strip()
    if not (value or error):
        value = _cut(output.rpartition("\n")[2], characters)
    return Outcome(value, _cut(output, characters), error)


def text_of(value: object, characters: int = 2000) -> str:
    """A value as a reader would write it: no quotes round texts, no brackets round the outermost list, 0.3 for 0.1+0.2.

    It costs no more than `characters` of it do, however large and entangled the value is.
    """
    text = ""
    for piece in _pieces(value, outermost=True):
        text += piece[: characters + 1]
        if len(text) > characters:
            break
    return _cut(text.strip(), characters)


def _value(session: "MontySession", code: str, printed: "CollectString", characters: int) -> str:
    from pydantic_monty import MontyRuntimeError

    value = session.feed_run(code, print_callback=printed)
    try:
        answer = session.feed_run("answer", print_callback=printed)
    except MontyRuntimeError as problem:
        if not isinstance(problem.exception(), NameError):  # too large to be sent, say
            raise
    else:
        value = value if answer is None else answer
    return "" if value is None else text_of(value, characters)


def _pieces(value: object, *, outermost: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _joined(((key, item) for key, item in value.items()), "" if outermost else "{}", pairs=True)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from _joined(iter(value), "" if outermost else "()" if isinstance(value, tuple) else "[]")
    elif isinstance(value, float):
        yield str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"
    elif isinstance(value, bytes):
        yield str(value[:1000])
    elif type(value).__module__.startswith("pydantic_monty"):  # a class, a function or an instance of a class
        yield f"<{getattr(value, 'name', type(value).__name__)}>"
    else:
        yield str(value)


def _joined(items: Iterator[Any], brackets: str, pairs: bool = False) -> Iterator[str]:
    yield brackets[:1]
    for place, item in enumerate(items):
        if place:
            yield ", "
        if pairs:
            yield from _pieces(item[0])
            yield ": "
        yield from _pieces(item[1] if pairs else item)
    yield brackets[1:]


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}… (cut)"


def _told(problem: Exception, seconds: float, megabytes: int) -> str:
    """One line that a model can mend its program by."""
    from pydantic_monty import MontyCrashedError, MontyRuntimeError, MontySyntaxError

    message = " ".join(str(problem).split())[:300]
    if isinstance(problem, MontyCrashedError) or "feed time limit exceeded" in message:
        return f"the program ran for more than {seconds:g} seconds: make it shorter"
    if message.startswith("MemoryError"):
        return f"the program needs more than {megabytes} MB, or prints without end: make it smaller"
    if "integer string conversion" in message:
        return "a number has more than 4,300 digits: round it, or count its digits by logarithms"
    if isinstance(problem, MontySyntaxError):
        message = f"SyntaxError: {message}"
    elif message.startswith("ModuleNotFoundError"):
        message += f"; there are {MODULES}"
    elif not isinstance(problem, MontyRuntimeError):
        message = f"the answer is no plain value: {type(problem).__name__}: {message}"
    frames = problem.traceback() if isinstance(problem, MontyRuntimeError | MontySyntaxError) else []
    return f"line {frames[-1].line}: {message}" if frames else message
