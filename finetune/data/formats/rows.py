"""Files of any form to rows with their places. Knows JSON and CSV, and no data set.

A row that cannot be read is a row with a `problem`, so that who reads can stop there or go on behind it.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from finetune.errors import DatasetEmpty
from rag_app.halves import repaired

LONGEST_LINE = 256 << 20
"""Bytes; a longer line is passed over without being held in memory."""
LONGEST_DOCUMENT = 2 << 30
"""Bytes of a file that is one JSON value, which has to be held in memory."""
TABLES = (".csv", ".tsv", ".tab")


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it stands in its file."""

    place: str
    """'file:line'."""
    value: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be read, and what to do; '' where it can."""


def rows(path: Path) -> Iterator[Row]:
    """The records of a file: JSON Lines, a JSON list or object, or a table with a header; compressed by gzip or not.

    Raises:
        DatasetEmpty: the file cannot be read.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream: Any = gzip.GzipFile(fileobj=plain) if packed else plain
            if path.with_suffix("" if path.suffix == ".gz" else path.suffix).suffix.lower() in TABLES:
                yield from _table(path, stream)
            elif _is_lines(stream):
                yield from _lines(path, stream)
            else:
                yield from _document(path, stream)
    except OSError as error:
        raise DatasetEmpty(f"'{path}' cannot be read ({error.strerror or error}): check the path") from error
    except (EOFError, zlib.error) as error:
        raise DatasetEmpty(f"'{path}' is compressed and damaged: fetch it again") from error


def _is_lines(stream: IO[bytes]) -> bool:
    """Whether its first line that is not blank is no beginning of a longer JSON value; goes back to the start."""
    first = b""
    while not first.strip(b"\xef\xbb\xbf \t\r\n"):
        first = stream.readline(LONGEST_LINE)
        if not first:
            break
    more = stream.read(1)
    stream.seek(0)
    text = first.decode("utf-8-sig", "replace").strip()
    begun = more and text.startswith("{") and text.endswith(("{", "[", ",", ":"))
    return not (text.startswith("[") or begun)


def _lines(path: Path, stream: IO[bytes]) -> Iterator[Row]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        place = f"{path}:{number}"
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield Row(place, problem=f"longer than {LONGEST_LINE >> 20} MB: write one record a line")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield Row(place, problem="not UTF-8: convert the file")
            continue
        if text.strip():
            yield _row(place, text)


def parsed(text: str) -> Any:
    """The value of a JSON text, with texts that a tokenizer takes.

    Raises:
        ValueError: it is no JSON, or holds NaN or Infinity.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text, parse_constant=_refused)
    return _repaired(value, text)


def _repaired(value: Any, text: str) -> Any:
    # Only an escape can bring half a surrogate pair past UTF-8.
    if "\\ud" not in text and "\\uD" not in text:
        return value
    return json.loads(repaired(json.dumps(value, ensure_ascii=False)))


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def _row(place: str, text: str) -> Row:
    try:
        return _object(place, parsed(text))
    except (ValueError, RecursionError) as error:
        return Row(place, problem=_no_json(error))


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(place, problem="no JSON object: write one a record")
    return Row(place, value)


def _no_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply: write texts and lists of texts"
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return f"no JSON ({reason}): write one JSON object a record"


def _document(path: Path, stream: IO[bytes]) -> Iterator[Row]:
    """A file that is one JSON value: the elements of a list, each with the line that it begins in, or an object."""
    data = stream.read(LONGEST_DOCUMENT + 1)
    if len(data) > LONGEST_DOCUMENT:
        yield Row(f"{path}:1", problem=f"a JSON value of more than {LONGEST_DOCUMENT >> 30} GB: write JSON Lines")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield Row(f"{path}:{line}", problem="not UTF-8: convert the file")
        return
    yield from _elements(path, text)


def _elements(path: Path, text: str) -> Iterator[Row]:
    decoder = json.JSONDecoder(parse_constant=_refused)
    at, line = _past(text, 0, " \t\r\n"), 1
    closing = "]" if text.startswith("[", at) else ""
    counted, at = 0, at + len(closing)
    while (begin := _past(text, at, " \t\r\n,")) < len(text) and not (closing and text[begin] == closing):
        line, counted = line + text.count("\n", counted, begin), begin
        try:
            value, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:  # where the next one would begin cannot be known
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield Row(f"{path}:{at}", problem=f"{_no_json(error)}. What follows is not read")
            return
        yield _object(f"{path}:{line}", _repaired(value, text[begin:at]))
    if text[begin:].strip() != closing:
        line += text.count("\n", counted, begin)
        yield Row(f"{path}:{line}", problem="the list does not end here, or more follows it: is the file whole?")


def _past(text: str, at: int, signs: str) -> int:
    while at < len(text) and text[at] in signs:
        at += 1
    return at


def _table(path: Path, stream: IO[bytes]) -> Iterator[Row]:
    """The rows of a table by the names in its first line; the delimiter is what stands there most often."""
    # Bytes that are no UTF-8 become halves of surrogate pairs, by which their row is known.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(2**31 - 1)  # how long a text may be is not this file's to say
    head = text.readline()
    delimiter = max("\t;,|", key=head.count) if any(sign in head for sign in "\t;,|") else ","
    names = next(csv.reader([head], delimiter=delimiter), [])
    table = csv.reader(text, delimiter=delimiter)
    begun = 2
    while True:
        place = f"{path}:{begun}"
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield Row(place, problem=f"no row of a table ({error}): correct it")
            begun = table.line_num + 2
            continue
        begun = table.line_num + 2
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield _cells(place, [name.strip() for name in names], cells)


def _cells(place: str, names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names):
        return Row(place, problem="not as many cells as the first line has names: put quotes around texts with commas")
    if any("\udc80" <= sign <= "\udcff" for cell in cells for sign in cell if sign > "\ud7ff"):
        return Row(place, problem="not UTF-8: convert the file")
    return Row(place, dict(zip(names, cells, strict=True)))
