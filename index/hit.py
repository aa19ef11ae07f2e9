"""A passage that was found, and what stands around it in its document and on its page. Knows no rankings."""

import sqlite3
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from index.store import words_between

GAP = 16
"""Most characters between neighbouring passages that are blanks and rules, not words that were left out."""
FARTHEST = 10_000
"""Most neighbouring passages that are joined to a hit on either side."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, with all that is needed to open it at its place."""

    rank: int
    """From 1."""
    score: float
    """What the ranking is by: 0 to 1 among a hybrid search's candidates, else `cosine`, `bm25` or the reranker's."""
    chunk_id: str
    source: str
    """Absolute path of the document; for a file of several, `path#record`."""
    page: int | None
    """From 1; None for formats without pages."""
    heading: str
    """The headings above the passage, outermost first, joined by ' > '; the document's title or file name without."""
    start: int
    """First character of the passage in the document's extracted text."""
    end: int
    text: str
    cosine: float | None = None
    """Similarity of query and passage, -1 to 1; None in a lexical search."""
    bm25: float | None = None
    """0 or more; None in a dense search."""
    also: list[str] = field(default_factory=list)
    """Other documents that hold the same passage, or nearly."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Box:
    """A stretch of a line on a page, in points from the page's top left corner."""

    page: int
    left: float
    top: float
    right: float
    bottom: float


def around(db: sqlite3.Connection, hit: Hit, characters: int) -> tuple[str, str]:
    """What stands before and after a passage in its document, from the neighbouring passages."""
    first, last = max(0, hit.start - characters), hit.end + characters
    sql = (
        "SELECT near.start, near.end, text FROM chunks AS here JOIN chunks AS near USING (file, record) "
        "JOIN passages ON near.row = passages.row "
        "WHERE here.chunk_id = ? AND near.start < ? AND near.end > ? ORDER BY near.start"
    )
    rows = db.execute(sql, (hit.chunk_id, last, first)).fetchall()
    return _stitched(rows, first, hit.start), _stitched(rows, hit.end, last)


def boxes(db: sqlite3.Connection, hit: Hit, start: int, end: int) -> list[Box]:
    """Where `start` to `end` of a hit's document stand on its page: a box a line.

    Empty for formats whose pages have no fixed layout.
    """
    sql = "SELECT file, record FROM chunks WHERE chunk_id = ?"
    found = db.execute(sql, (hit.chunk_id,)).fetchone()
    if not found or hit.page is None:
        return []
    lines: list[Box] = []
    for word in words_between(db, found[0], found[1], hit.page, start, end):
        left, top, right, bottom = word.box
        if lines and lines[-1].top < (top + bottom) / 2 < lines[-1].bottom and left >= lines[-1].left:
            before = lines.pop()
            top, bottom, left = min(top, before.top), max(bottom, before.bottom), before.left
        lines.append(Box(word.page, left, top, right, bottom))
    return lines


def expanded(db: sqlite3.Connection, hit: Hit, neighbours: int) -> Hit:
    """A hit with the passages beside it, as far as nothing but blanks stands between."""
    sql = (
        "SELECT near.start, near.end, text FROM chunks AS here JOIN chunks AS near USING (file, record) "
        "JOIN passages ON near.row = passages.row "
        "WHERE here.chunk_id = ? AND near.id BETWEEN here.id - ? AND here.id + ? ORDER BY near.start"
    )
    rows = db.execute(sql, (hit.chunk_id, neighbours, neighbours)).fetchall()
    start, end, text = hit.start, hit.end, hit.text
    for first, last, more in rows:  # those after it, outwards
        if first >= hit.start and last > end and first - end <= GAP:
            text += _blank(first - end) + more[max(0, end - first) :]
            end = last
    for first, last, more in reversed(rows):
        if last <= hit.end and first < start and start - last <= GAP:
            text = more[: start - first] + _blank(start - last) + text
            start = first
    return replace(hit, start=start, end=end, text=text)


def _stitched(rows: list[tuple[int, int, str]], first: int, last: int) -> str:
    """The text of `first` to `last` from passages that may overlap or leave blanks between them."""
    pieces: list[str] = []
    for start, end, text in rows:
        low, high = max(start, first), min(end, last)
        if low < high:
            pieces.append(text[low - start : high - start])
            first = high
    return "\n".join(pieces)


def _blank(length: int) -> str:
    """What stands between two passages, in as many characters: a blank between sentences, else new lines."""
    return " " if length == 1 else "\n" * max(0, length)
