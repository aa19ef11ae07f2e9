"""OpenDocument texts and presentations (odt, odp), read from their XML: headings, lists, tables, notes, slides."""

from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.archive import CORE_TITLE, Archive
from index.loaders.builder import Builder
from index.loaders.source import Source

NS = "{urn:oasis:names:tc:opendocument:xmlns:"
TEXT, TABLE, OFFICE, DRAW = (f"{NS}{name}:1.0}}" for name in ("text", "table", "office", "drawing"))
PRESENTATION, STYLE = f"{NS}presentation:1.0}}", f"{NS}style:1.0}}"
LEFT_OUT = {f"{TEXT}tracked-changes", f"{OFFICE}annotation", f"{TEXT}sequence-decls", f"{OFFICE}forms"}
MAX_REPEATED = 100
"""Most blanks, columns or rows that one element may stand for."""


def load_odf(source: Source) -> list[Document]:
    """The body in its order; slides are pages."""
    archive = Archive(source.data)
    manifest = archive.read("META-INF/manifest.xml")
    if b"encryption-data" in manifest:
        raise LoadError("the file is password-protected; save a copy without the password")
    root = archive.xml("content.xml")
    body = root.find(f"{OFFICE}body") if root is not None else None
    if root is None or body is None:
        raise LoadError("the content is a zip archive, but no OpenDocument file")
    builder = Builder()
    _Body(builder, _code_styles(root)).add(body)
    meta = archive.xml("meta.xml")
    return [builder.document("" if meta is None else meta.findtext(CORE_TITLE) or "")]


def _code_styles(root: Any) -> set[str]:
    """Paragraph styles whose name, or whose parent's, says that they are for code."""
    names = {"Preformatted_20_Text", "Source_20_Code"}
    parents = {s.get(f"{STYLE}name"): s.get(f"{STYLE}parent-style-name") for s in root.iter(f"{STYLE}style")}
    return names | {name for name, parent in parents.items() if parent in names}


class _Body:
    def __init__(self, builder: Builder, code: set[str]) -> None:
        self._builder, self._code = builder, code
        self._page: int | None = None
        self._lines: list[str] = []

    def add(self, parent: Any) -> None:
        """What stands in `parent`, paragraph by paragraph."""
        for element in parent:
            tag = element.tag
            style = element.get(f"{TEXT}style-name", "")
            if tag == f"{TEXT}p" and style in self._code:
                self._lines.append(plain(element))
                continue
            self._flush()
            if tag == f"{TEXT}h":
                level = element.get(f"{TEXT}outline-level", "1")
                self._builder.heading(plain(element), int(level) if level.isdigit() else 1, self._page)
            elif tag == f"{TEXT}p":
                self._paragraph(element, style)
            elif tag == f"{TEXT}list":
                self._builder.text("\n".join(_items(element, 0)), self._page)
            elif tag == f"{TABLE}table":
                self._table(element)
            elif tag == f"{DRAW}page":
                self._slide(element)
            elif tag not in LEFT_OUT:
                self.add(element)
        self._flush()

    def _paragraph(self, element: Any, style: str) -> None:
        if style == "Title":
            self._builder.heading(plain(element), 1, self._page)
        else:
            self._builder.text(plain(element), self._page)
        for box in element.iter(f"{DRAW}text-box"):
            self.add(box)
        for note in element.iter(f"{TEXT}note-body"):
            self._builder.text("\n".join(plain(p) for p in note.iter(f"{TEXT}p")), self._page)

    def _slide(self, page: Any) -> None:
        self._page = (self._page or 0) + 1
        for frame in page.iterchildren(f"{DRAW}frame"):
            if frame.get(f"{PRESENTATION}class") == "title":
                words = " ".join(plain(p) for p in frame.iter(f"{TEXT}p"))
                self._builder.heading(words, 1, self._page)
            else:
                self.add(frame)
        for notes in page.iterchildren(f"{PRESENTATION}notes"):
            self.add(notes)

    def _table(self, table: Any) -> None:
        rows = [_cells(row) for row in table.iter(f"{TABLE}table-row")]
        header = table.find(f"{TABLE}table-header-rows") is not None
        self._builder.table(rows, header or (len(rows) > 1 and all(cell.strip() for cell in rows[0])), self._page)

    def _flush(self) -> None:
        if self._lines:
            self._builder.code("\n".join(self._lines), self._page)
            self._lines = []


def _cells(row: Any) -> list[str]:
    cells: list[str] = []
    for cell in row.iterchildren(f"{TABLE}table-cell", f"{TABLE}covered-table-cell"):
        text = "\n".join(plain(p) for p in cell.iter(f"{TEXT}p", f"{TEXT}h"))
        cells += [text] * _count(cell, f"{TABLE}number-columns-repeated")
    return cells


def _items(items: Any, depth: int) -> list[str]:
    lines = []
    for item in items:
        for part in item:
            if part.tag == f"{TEXT}list":
                lines += _items(part, depth + 1)
            else:
                lines.append("  " * depth + "- " + " ".join(plain(part).split()))
    return [line for line in lines if line.strip(" -")]


def _count(element: Any, name: str) -> int:
    value = element.get(name, "1")
    return min(int(value), MAX_REPEATED) if value.isdigit() and len(value) < 10 else 1


def plain(element: Any) -> str:
    """The words of one paragraph, without the notes and boxes that hang on it."""
    pieces = [element.text or ""]
    for child in element:
        if child.tag == f"{TEXT}s":
            pieces.append(" " * _count(child, f"{TEXT}c"))
        elif child.tag == f"{TEXT}tab":
            pieces.append("\t")
        elif child.tag == f"{TEXT}line-break":
            pieces.append("\n")
        elif child.tag not in (f"{TEXT}note", f"{DRAW}frame", f"{OFFICE}annotation", f"{DRAW}custom-shape"):
            pieces.append(plain(child))
        pieces.append(child.tail or "")
    return "".join(pieces)
