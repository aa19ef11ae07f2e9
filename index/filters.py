"""What a search is narrowed to: `source=guides/*.md`, `format=pdf`, `title=`, `heading=`, `page=2-5`. Knows no ranking."""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath

from index.errors import QueryInvalid

Value = str | int | Sequence[str | int]
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
            folder, or a pattern for a path or its end; `format` a suffix; `title` a pattern; `heading` words of the
            heading path; `page` a number or a range. Case counts for `source` only.
        db: the tables of a generation.

    Raises:
        QueryInvalid: an unknown key, or a page that is no number.
    """
    conditions: list[str] = []
    parameters: list[str | int] = []
    for key, value in filters.items():
        values = [value] if isinstance(value, str | int) else list(value)
        if key in ("source", "format", "title"):
            conditions.append(f"file IN ({_files(key, [str(v) for v in values], db)})")
        elif key == "heading":
            conditions.append("(" + " OR ".join("heading LIKE ? ESCAPE '\\'" for _ in values) + ")")
            parameters += [f"%{_escaped(str(v))}%" for v in values]
        elif key == "page":
            conditions.append("(" + " OR ".join("page BETWEEN ? AND ?" for _ in values) + ")")
            parameters += [edge for v in values for edge in _pages(v)]
        else:
            raise QueryInvalid(f"there is no filter '{key}': use {', '.join(KEYS)}")
    return " AND ".join(conditions) or "1", parameters


def _files(key: str, values: list[str], db: sqlite3.Connection) -> str:
    rows = db.execute("SELECT id, path, title FROM files")
    if key == "source":
        tests = [_SourceTest(value) for value in values]
        found = [i for i, path, _ in rows if any(test(path) for test in tests)]
    elif key == "format":
        suffixes = {"." + value.lower().removeprefix(".") for value in values}
        found = [i for i, path, _ in rows if PurePath(path).suffix.lower() in suffixes]
    else:
        found = [i for i, _, title in rows if any(fnmatch(title.lower(), v.lower()) for v in values)]
    return ", ".join(map(str, found))


class _SourceTest:
    """Whether a path is a document, lies in a folder, or matches a pattern."""

    def __init__(self, value: str) -> None:
        self._pattern = value
        self._absolute = str(Path(value).absolute()) if not any(c in value for c in "*?[") else ""

    def __call__(self, path: str) -> bool:
        if self._absolute and (path == self._absolute or path.startswith(self._absolute.rstrip("/") + "/")):
            return True
        if self._absolute and path.endswith("/" + self._pattern.lstrip("/")):
            return True
        return fnmatch(path, self._pattern) or fnmatch(path, "*/" + self._pattern)


def _escaped(words: str) -> str:
    return words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _pages(value: str | int) -> tuple[int, int]:
    first, dash, last = str(value).partition("-")
    try:
        return int(first), int(last) if dash else int(first)
    except ValueError:
        raise QueryInvalid(f"'{value}' is no page: give a number or a range, as in page=2-5") from None
