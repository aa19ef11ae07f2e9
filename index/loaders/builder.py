"""Puts a document together, block by block, for formats whose text is not their file. Knows no format."""

from collections.abc import Iterable, Sequence
from typing import Any

from index.document import Block, BlockKind, Document

SMALL_TABLE = 1000
"""Characters up to which a table is written with pipes, seen whole; a longer one names its columns in each row."""
MAX_COLUMNS = 1000


class Builder:
    """A growing text and its blocks, a blank line between them."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._pieces: list[str] = []
        self._length = 0

    def heading(self, words: str, level: int, page: int | None = None) -> None:
        """A heading; its level is brought into 1 to 6."""
        words = " ".join(words.split())
        self._add(words, "heading", page, min(max(level, 1), 6), words)

    def text(self, text: str, page: int | None = None) -> None:
        """A paragraph or a list."""
        self._add(text.strip(), "text", page)

    def code(self, text: str, page: int | None = None) -> None:
        """Lines whose indentation counts."""
        self._add(text.rstrip().lstrip("\n"), "code", page)

    def table(self, rows: Iterable[Sequence[str]], header: bool, page: int | None = None) -> None:
        """A table, a row a line. With `header`, the first row names the columns."""
        lines = table_lines(rows, header)
        self._add("\n".join(lines), "table", page)

    def paragraphs(self, text: str, page: int | None = None) -> None:
        """Text whose paragraphs are set apart by blank lines."""
        for paragraph in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
            self.text(paragraph, page)

    def embed(self, document: Document, deeper: int = 0) -> None:
        """The blocks of another document, its headings `deeper` levels down; what it leaves out stays out."""
        for block in document.blocks:
            text = document.text[block.start : block.end]
            level = min(block.level + deeper, 6) if block.level else 0
            self._add(text, block.kind, block.page, level, block.title)

    def _add(self, text: str, kind: BlockKind, page: int | None, level: int = 0, title: str = "") -> None:
        if not text or text.isspace():
            return
        if self._pieces:
            self._pieces.append("\n\n")
            self._length += 2
        self.blocks.append(Block(self._length, self._length + len(text), kind, level, title, page))
        self._pieces.append(text)
        self._length += len(text)

    def document(self, title: str = "", record: str = "") -> Document:
        """What was added so far."""
        return Document("".join(self._pieces), tuple(self.blocks), " ".join(title.split()), record)


def table_lines(rows: Iterable[Sequence[str]], header: bool) -> list[str]:
    """A row a line: with pipes while that is short, else as `column: value; column: value`, clear by itself."""
    clean = [[" ".join(cell.split()) for cell in row[:MAX_COLUMNS]] for row in rows]
    clean = [row for row in clean if any(row)]
    if not clean:
        return []
    width = max(max((n for n, cell in enumerate(row, 1) if cell), default=0) for row in clean)
    if width == 1:
        return [row[0] for row in clean]
    size = 0
    for row in clean:
        size += sum(map(len, row[:width])) + 3 * width
        if size > SMALL_TABLE:
            return _records(clean, width) if header and len(clean) > 1 else [_cells(row[:width]) for row in clean]
    lines = ["| " + " | ".join((row + [""] * width)[:width]) + " |" for row in clean]
    if header and len(lines) > 1:
        lines.insert(1, "|" + "---|" * width)
    return lines


def _records(rows: list[list[str]], width: int) -> list[str]:
    names = (rows[0] + [""] * width)[:width]
    return [
        "; ".join(f"{name}: {cell}" if name else cell for name, cell in zip(names, row, strict=False) if cell)
        for row in rows[1:]
    ]


def _cells(row: list[str]) -> str:
    return " | ".join(cell for cell in row if cell)


def as_text(value: Any) -> str:
    """A cell's value for a person: whole numbers without a fraction, times without a midnight."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value).removesuffix(" 00:00:00")
