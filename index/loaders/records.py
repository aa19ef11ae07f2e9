"""Data in rows and keys (csv, tsv, json, jsonl): rows that name their columns, and a document a record."""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.builder import Builder
from index.loaders.sheets import names_columns
from index.loaders.source import Source
from index.loaders.text import decode, load_text

NAMES = ("_id", "id", "docid", "doc_id", "uuid")
"""Fields that name a record; the first that is there."""
TITLES = ("title", "name", "headline", "subject")
TEXTS = ("text", "contents", "content", "body", "abstract", "passage", "document")
MAX_FIELD = 10_000_000
MAX_DEPTH = 50


def load_table(source: Source) -> list[Document]:
    """CSV with any of the usual separators. Rows name their columns where the first row does."""
    text = decode(source.data)
    csv.field_size_limit(MAX_FIELD)
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=_delimiter(source.name, text)))
    except csv.Error:
        return load_text(source)
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    builder = Builder()
    builder.table(rows, names_columns(rows))
    return [builder.document()]


def _delimiter(name: str, text: str) -> str:
    if name.lower().endswith((".tsv", ".tab")):
        return "\t"
    lines = [line for line in text[:20_000].split("\n")[:20] if line.strip()]
    # What stands in most lines, and first of all in the first.
    return max(",;\t|", key=lambda mark: (sum(mark in line for line in lines), lines[0].count(mark) if lines else 0))


def load_json(source: Source) -> list[Document]:
    """A list of objects is a document an object; anything else is one document, a line a value with its path."""
    text = decode(source.data)
    try:
        value = json.loads(text)
    except ValueError as error:
        if "Extra data" in str(error) and text.lstrip().startswith("{"):
            return load_jsonl(source)  # lines of JSON under the wrong name
        raise LoadError(f"the content is not valid JSON ({error})") from error
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return list(_documents(enumerate(value, 1), source))
    builder = Builder()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [("", value)]
    for key, item in items:
        builder.text("\n".join(_lines(str(key), item, 0)))
    return [builder.document()]


def load_jsonl(source: Source) -> list[Document]:
    """A document a line; lines that are no objects are passed over, and counted in a warning."""
    bad: list[int] = []
    return list(_documents(_rows(decode(source.data), bad), source, bad))


def _rows(text: str, bad: list[int]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                bad.append(number)


def _documents(rows: Iterable[tuple[int, Any]], source: Source, bad: list[int] | None = None) -> Iterator[Document]:
    bad, count = [] if bad is None else bad, 0
    for number, row in rows:
        document = _record(row, number) if isinstance(row, dict) else None
        if document is None or not document.blocks:
            bad.append(number)
        else:
            count += 1
            yield document
    if bad:
        bad.sort()
        which = ", ".join(map(str, bad[:10])) + (", …" if len(bad) > 10 else "")
        if not count:
            raise LoadError(f"no line holds a JSON object with text (lines {which})")
        source.warnings.append(f"{len(bad):,} of {len(bad) + count:,} records hold no text that can be read: {which}")


def _record(row: dict[str, Any], number: int) -> Document | None:
    """The record's own text first, then what else it says."""
    name = next((row[key] for key in NAMES if isinstance(row.get(key), str | int) and row[key] != ""), number)
    title_key = next((key for key in TITLES if isinstance(row.get(key), str)), "")
    text_key = next((key for key in TEXTS if isinstance(row.get(key), str)), "")
    builder = Builder()
    title = " ".join(str(row.get(title_key, "")).split())
    builder.heading(title, 1)
    builder.paragraphs(row.get(text_key, ""))
    left = {key: value for key, value in row.items() if key not in (title_key, text_key) and value is not name}
    builder.text("\n".join(line for key, value in left.items() for line in _lines(key, value, 0)))
    return builder.document(title, str(name))


def _lines(path: str, value: Any, depth: int) -> Iterator[str]:
    """`a.b: value` for all that stands below `path`."""
    if depth > MAX_DEPTH:
        yield f"{path}: {json.dumps(value, ensure_ascii=False)}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _lines(f"{path}.{key}" if path else str(key), item, depth + 1)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for item in value:
            yield from _lines(path, item, depth + 1)
    elif isinstance(value, list):
        if value:
            yield f"{path}: {', '.join(map(_scalar, value))}"
    elif value is not None and value != "":
        yield f"{path}: {_scalar(value)}" if path else _scalar(value)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
