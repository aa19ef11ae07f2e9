"""The shape of a document after loading: one text, and the blocks it is made of. Knows no file format."""

from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["heading", "text", "code", "table"]


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a document's text that belongs together: a heading, a paragraph, a list, a table, a code block.

    A long block is cut between sentences; code and tables are cut between lines, so a table has a row a line.
    """

    start: int
    """First character, counted in the document's text."""
    end: int
    """One past the last character."""
    kind: BlockKind = "text"
    level: int = 0
    """1 to 6 for a heading, 0 otherwise."""
    title: str = ""
    """A heading's words without their markup."""
    page: int | None = None
    """Page number from 1, for formats that have pages."""


@dataclass(frozen=True, slots=True)
class Word:
    """Where a word of the text stands on its page, for formats that have pages of fixed layout."""

    start: int
    """First character, counted in the document's text."""
    end: int
    page: int
    """From 1."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in points (1/72 inch) from the top left corner of the page as it is shown."""


@dataclass(frozen=True, slots=True)
class Document:
    """A loaded document. Text outside every block (comments, front matter) is never indexed."""

    text: str
    blocks: tuple[Block, ...]
    title: str = ""
    """What the document calls itself, where the format says so."""
    record: str = ""
    """Its name within its file, for files that hold several documents: a JSONL line's `_id`, for one."""
    words: tuple[Word, ...] = ()
    """In ascending order of `start`."""
