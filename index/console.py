"""Habits that all three commands share: `--json`, one-line errors, exit codes, progress bars. Knows no commands."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from index.errors import RagError
from index.paths import printable

Command = Callable[[argparse.Namespace], "dict[str, Any] | None"]

UNITS = {"reading": " files", "encoding": " passages", "searching": " queries", "answering": " questions"}


class Failed(RagError):
    """A command did its work, and its outcome is a failure: exit code 1, and `result` is printed for `--json`."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Bad usage: one line and exit code 2."""
        raise _Usage(f"{message}. See: {self.prog} --help", self.prog)


class _Usage(Exception):
    pass


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The parser of a console script, with `--version`."""
    result = _Parser(prog=prog, description=description)
    result.add_argument("--version", action="version", version=f"{prog} {version('rag-app')}")
    return result


def add_json(command: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout, for programs")


def add_index(command: argparse.ArgumentParser) -> None:
    """Adds `--index` and `--encoder`."""
    command.add_argument("--index", metavar="DIR", help="the index (default: ./.rag/index, or $RAG_HOME/index)")
    command.add_argument(
        "--encoder",
        metavar="MODEL",
        help="a sentence-transformers folder or Hub id (default: $RAG_ENCODER, or bundled)",
    )


def run(root: argparse.ArgumentParser, arguments: list[str] | None = None) -> int:
    """Parses, runs the command that the parser chose (its `run` default) and prints what it returns.

    Returns:
        0 done, 1 failed with one line on stderr, 2 bad usage, 130 interrupted.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123  (closed by who started the program)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows not every character gets a code in its place
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(root, sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        _drop_stdout()
        return 1


def _run(root: argparse.ArgumentParser, given: list[str]) -> int:
    as_json = "--json" in given
    try:
        Path.cwd()
    except FileNotFoundError:
        return _failed(root.prog, "the current folder is gone: change to another", 1, as_json)
    try:
        options = root.parse_args(given)
        result = options.run(options)
        if result is not None:
            print(json.dumps(result))  # noqa: T201  (ASCII: right in every encoding of stdout)
        sys.stdout.flush()
        return 0
    except _Usage as error:
        return _failed(error.args[1], str(error.args[0]), 2, as_json)
    except Failed as error:
        return _failed(root.prog, str(error), 1, as_json, error.result)
    except RagError as error:
        return _failed(root.prog, str(error), 1, as_json)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as error:  # a command may say itself how to go on
        message = str(error) or "interrupted; nothing is lost, run it again to go on"
        return _failed(root.prog, message, 130, as_json)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        return _failed(root.prog, f"{error.strerror or error}{where}: make room or check the permissions", 1, as_json)


def _failed(prog: str, message: str, code: int, as_json: bool, result: dict[str, Any] | None = None) -> int:
    line = printable(" ".join(message.split()))
    try:
        if as_json:
            print(json.dumps({**(result or {}), "error": line}))  # noqa: T201
        sys.stdout.flush()
    except OSError:  # a full disk under stdout, or no reader: the line below tells it
        _drop_stdout()
    print(f"{prog}: {line}", file=sys.stderr)  # noqa: T201
    return code


def _drop_stdout() -> None:
    """Sends to nowhere what stdout still holds: Python would try again to write it while it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str = "") -> None:
    """A line for a person on stdout."""
    print(printable(line))  # noqa: T201


def warn(line: str) -> None:
    """A line for a person on stderr."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def words(argument: str) -> str:
    """For argparse: text whose bytes may not be UTF-8, made so."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def size() -> dict[str, Any]:
    """How large a terminal stderr is, for tqdm, which draws nothing on one that says it has no columns or no rows."""
    with suppress(OSError):
        found = os.get_terminal_size(sys.stderr.fileno())
        if found.columns and found.lines:
            return {"dynamic_ncols": True}
    return {"ncols": 80, "nrows": 24}


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a callback `(stage, done, total)` that draws a bar per stage on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from tqdm import tqdm

    bars: dict[str, tqdm[Any]] = {}

    def show(stage: str, done: int, total: int) -> None:
        for other in [name for name in bars if name != stage]:
            bars.pop(other).close()
        if stage not in bars:
            unit = UNITS.get(stage, " steps")
            bars[stage] = tqdm(desc=stage, total=total, unit=unit, file=sys.stderr, leave=False, **size())
        bars[stage].update(done - bars[stage].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
