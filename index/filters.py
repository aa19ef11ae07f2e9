"""What a search is narrowed to: source=guides/*.md, format=pdf, title=, heading=, page=2-5. Knows no ranking."""

import os
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath

from index.errors import QueryInvalid

Value = str | int | Sequence[str | int]
LAST_PAGE = 2**62
"""Beyond any; SQLite's numbers end soon after."""
PAGES = re.compile(r"\s*(\d+)\s*(-\s*(\d+)\s*)?")
MOST_VALUES = 10_000
"""Values of one key; SQLite takes 32,766 parameters."""
KEYS = ("source", "format", "title", "heading", "page")


def parse(pairs: Iterable[str]) -> dict[str, list[str]]:
    """`key=value` strings, as on a command line; a key given twice means either."""
    filters: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise QueryInvalid(f"the filter '{pair}' is not of the form key=value (keys: {', '.join(KEYS)})")
        filters.setdefault(key, []).append(value)
    return filters


def where(filters: Mapping[str, Value], db: sqlite3.Connection) -> tuple[str, list[str | int]]:
    """The filters as an SQL condition on the table `chunks`, and its parameters.

    Args:
        filters: values by key. Values of one key are alternatives; all keys must hold. `source` is a document, a
            folder, or a pattern for a path or its end, and `path#record` one document of a file of several; `format` a
            suffix; `title` a pattern; `heading` words of the
            heading path; `page` a number or a range. Case counts for `source` only.
        db: the tables of a generation.

    Raises:
        QueryInvalid: an unknown key, too many values, or a page that is no number.
    """
    conditions: list[str] = []
    parameters: list[str | int] = []
    for key, value in filters.items():
        values = [_text(one) for one in (value if isinstance(value, list | tuple | set | frozenset) else [value])]
        if len(values) > MOST_VALUES:
            raise QueryInvalid(f"the filter '{key}' has {len(values):,} values: give at most {MOST_VALUES:,}")
        if key in ("source", "format", "title"):
            conditions.append(f"file IN ({_files(key, values, db)})")
            if key == "source" and (records := _records(values, db)):
                chosen = _either([f"(file IN ({files}) AND record = ?)" for files, _ in records])
                conditions[-1] = f"({conditions[-1]} OR {chosen})"
                parameters += [record for _, record in records]
        elif key == "heading":
            conditions.append(_either(["instr(casefold(heading), ?)" for _ in values]))
            parameters += [words.casefold() for words in values]
        elif key == "page":
            edges = [_pages(words) for words in values]
            conditions.append(_either([f"page BETWEEN {first} AND {last}" for first, last in edges]))
        else:
            raise QueryInvalid(f"there is no filter '{key}': use {', '.join(KEYS)}")
    return " AND ".join(conditions) or "1", parameters


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def _either(conditions: Sequence[str]) -> str:
    """Any of them, halved and halved again: SQLite takes expressions of a depth of 1,000."""
    if len(conditions) < 2:
        return conditions[0] if conditions else "0"
    half = len(conditions) // 2
    return f"({_either(conditions[:half])} OR {_either(conditions[half:])})"


def _records(values: list[str], db: sqlite3.Connection) -> list[tuple[str, str]]:
    """What `path#record` names: the files, and the record in them. A `#` may be part of either."""
    cuts = [(value[:at], value[at + 1 :]) for value in values for at in range(len(value) - 1) if value[at] == "#"]
    named = [(_files("source", [path], db), record) for path, record in cuts[:MOST_VALUES] if path]
    return [(files, record) for files, record in named if files]


def _files(key: str, values: list[str], db: sqlite3.Connection) -> str:
    rows = db.execute("SELECT id, path, title FROM files")
    if key == "source":
        tests = [_SourceTest(value) for value in values]
        found = [i for i, path, _ in rows if any(test(path) for test in tests)]
    elif key == "format":
        suffixes = {"." + value.lower().removeprefix(".") for value in values}
        found = [i for i, path, _ in rows if PurePath(path).suffix.lower() in suffixes]
    else:
        found = [i for i, _, title in rows if any(_fits(title.casefold(), v.casefold()) for v in values)]
    return ", ".join(map(str, found))


class _SourceTest:
    """Whether a path is a document, lies in a folder, or matches a pattern."""

    def __init__(self, value: str) -> None:
        self._pattern, self._end = value, "/" + value
        self._absolute = os.path.abspath(value)  # noqa: PTH100  (resolve follows links)
        self._folder = self._absolute.rstrip("/") + "/"

    def __call__(self, path: str) -> bool:
        if path == self._absolute or path.startswith(self._folder) or path.endswith(self._end):
            return True
        return fnmatchcase(path, self._pattern) or fnmatchcase(path, "*/" + self._pattern)


def _fits(words: str, pattern: str) -> bool:
    return words == pattern or fnmatchcase(words, pattern)


def _pages(value: str) -> tuple[int, int]:
    found = PAGES.fullmatch(value)
    try:
        if found:
            first, last = int(found[1]), int(found[3] or found[1])
            return min(first, LAST_PAGE), min(last, LAST_PAGE)
    except ValueError:  # thousands of digits
        pass
    raise QueryInvalid(f"'{value[:40]}' is no page: give a number or a range, as in page=2-5")
