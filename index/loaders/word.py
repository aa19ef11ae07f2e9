"""Word documents (docx): headings by style, lists, tables, code, footnotes, text boxes, in the order of the text.

Read from the XML itself: python-docx leaves out footnotes, text boxes, content controls and accepted insertions.
"""

from collections.abc import Iterator
from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.archive import Archive
from index.loaders.builder import Builder
from index.loaders.source import Source

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
VAL = f"{W}val"
MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
# Deleted, moved away, or said a second time for old programs.
LEFT_OUT = {f"{W}del", f"{W}moveFrom", "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}
CHARACTERS = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
CODE = ("code", "preformatted", "verbatim", "listing")


def load_docx(source: Source) -> list[Document]:
    """The body, with footnotes after their paragraphs; no page headers, comments or deleted text."""
    archive = Archive(source.data)
    main = next((n for n in ("word/document.xml", "word/document2.xml") if n in archive.names), "")
    root = archive.xml(main) if main else None
    if root is None:
        raise LoadError("the content is a zip archive, but no Word document")
    body = root.find(f"{W}body")
    builder = Builder()
    if body is not None:
        _Body(builder, archive).add(body)
    return [builder.document(archive.title())]


class _Body:
    def __init__(self, builder: Builder, archive: Archive) -> None:
        self._builder = builder
        self._styles = _Styles(archive)
        self._numbering = _Numbering(archive)
        self._notes = {kind: _notes(archive, kind) for kind in ("footnote", "endnote")}
        self._open: list[str] = []
        self._open_kind = ""

    def add(self, body: Any) -> None:
        """All paragraphs and tables, those within content controls included."""
        for element in _blocks(body):
            if element.tag == f"{W}tbl":
                self._flush()
                self._builder.table(*_table(element))
            else:
                self._paragraph(element)
        self._flush()

    def _paragraph(self, element: Any) -> None:
        boxes: list[Any] = []
        text = _text(element, boxes)
        properties = element.find(f"{W}pPr")
        style = _value(properties, f"{W}pStyle")
        level, is_code = self._styles.look(style, properties)
        number = self._numbering.mark(properties, self._styles.numbering(style))
        if not text.strip():
            if is_code and self._open_kind == "code":
                self._open.append("")
        elif level:
            self._flush()
            self._builder.heading(text, level)
        elif is_code or number:
            kind = "code" if is_code else "list"
            if self._open_kind != kind:
                self._flush()
            self._open_kind = kind
            self._open.append(text if is_code else number + " ".join(text.split()))
        else:
            self._flush()
            self._builder.text(text)
        self._asides(element, boxes)

    def _asides(self, element: Any, boxes: list[Any]) -> None:
        """Footnotes and text boxes that hang on a paragraph."""
        for kind, notes in self._notes.items():
            for reference in element.iter(f"{W}{kind}Reference") if notes else ():
                if note := notes.get(reference.get(f"{W}id", "")):
                    self._flush()
                    self._builder.text(note)
        for box in boxes:
            self._flush()
            self.add(box)

    def _flush(self) -> None:
        if self._open_kind == "code":
            self._builder.code("\n".join(self._open))
        elif self._open:
            self._builder.text("\n".join(self._open))
        self._open, self._open_kind = [], ""


class _Styles:
    """What paragraph styles say of headings, lists and code."""

    def __init__(self, archive: Archive) -> None:
        root = archive.xml("word/styles.xml")
        styles = [] if root is None else root.findall(f"{W}style")
        self._styles = {style.get(f"{W}styleId", ""): style for style in styles}
        self._seen: dict[str, tuple[int, bool]] = {}

    def look(self, name: str, properties: Any) -> tuple[int, bool]:
        """The heading level (0: none), and whether it is code."""
        if name not in self._seen:
            self._seen[name] = self._resolve(name)
        level, is_code = self._seen[name]
        own = _value(properties, f"{W}outlineLvl")
        return (int(own) + 1 if own.isdigit() and int(own) < 9 else level), is_code

    def _resolve(self, name: str) -> tuple[int, bool]:
        level, is_code = 0, False
        for style in self._chain(name):
            called = _value(style, f"{W}name").lower()
            outline = _value(style.find(f"{W}pPr"), f"{W}outlineLvl")
            is_code = is_code or any(word in called for word in CODE)
            if not level and called.startswith("heading ") and called[8:].isdigit():
                level = int(called[8:])
            elif not level and called == "title":
                level = 1
            elif not level and outline.isdigit() and int(outline) < 9:
                level = int(outline) + 1
        return min(level, 6), is_code

    def _chain(self, name: str) -> Iterator[Any]:
        for _ in range(10):  # styles may be based on each other in a ring
            style = self._styles.get(name)
            if style is None:
                return
            yield style
            name = _value(style, f"{W}basedOn")

    def numbering(self, name: str) -> Any:
        """The list that a style puts its paragraphs in."""
        found = (style.find(f"{W}pPr/{W}numPr") for style in self._chain(name))
        return next((numbering for numbering in found if numbering is not None), None)


class _Numbering:
    """The marks of list items, counted."""

    def __init__(self, archive: Archive) -> None:
        root = archive.xml("word/numbering.xml")
        self._formats: dict[tuple[str, str], str] = {}
        self._counts: dict[tuple[str, str], int] = {}
        if root is None:
            return
        kinds = {
            (abstract.get(f"{W}abstractNumId"), level.get(f"{W}ilvl")): _value(level, f"{W}numFmt")
            for abstract in root.findall(f"{W}abstractNum")
            for level in abstract.findall(f"{W}lvl")
        }
        for number in root.findall(f"{W}num"):
            abstract = _value(number, f"{W}abstractNumId")
            for (of, level), kind in kinds.items():
                if of == abstract:
                    self._formats[number.get(f"{W}numId", ""), level or "0"] = kind

    def mark(self, properties: Any, by_style: Any) -> str:
        """`- `, `3. ` or nothing, indented by the item's depth."""
        own = properties.find(f"{W}numPr") if properties is not None else None
        numbering = by_style if own is None else own
        if numbering is None or (number := _value(numbering, f"{W}numId")) in ("", "0"):
            return ""
        level = _value(numbering, f"{W}ilvl") or "0"
        depth = min(int(level), 9) if level.isdigit() else 0
        if self._formats.get((number, level), "bullet") in ("bullet", "none"):
            return "  " * depth + "- "
        for of, below in [key for key in self._counts if key[0] == number and key[1] > level]:
            del self._counts[of, below]
        count = self._counts[number, level] = self._counts.get((number, level), 0) + 1
        return "  " * depth + f"{count}. "


def _value(element: Any, child: str) -> str:
    found = element.find(child) if element is not None else None
    return "" if found is None else found.get(VAL) or ""


def _blocks(parent: Any) -> Iterator[Any]:
    for element in parent:
        if element.tag in (f"{W}p", f"{W}tbl"):
            yield element
        elif element.tag not in LEFT_OUT:  # content controls, custom XML, insertions
            yield from _blocks(element)


def _text(element: Any, boxes: list[Any] | None = None) -> str:
    pieces: list[str] = []
    _collect(element, pieces, [] if boxes is None else boxes)
    return "".join(pieces)


def _collect(element: Any, pieces: list[str], boxes: list[Any]) -> None:
    for child in element:
        tag = child.tag
        if tag in (f"{W}t", MATH_TEXT):
            pieces.append(child.text or "")
        elif tag in CHARACTERS:
            pieces.append(CHARACTERS[tag])
        elif tag == f"{W}txbxContent":
            boxes.append(child)
        elif tag not in LEFT_OUT and tag != f"{W}pPr" and len(child):
            _collect(child, pieces, boxes)


def _notes(archive: Archive, kind: str) -> dict[str, str]:
    root = archive.xml(f"word/{kind}s.xml")
    notes = [] if root is None else root.findall(f"{W}{kind}")
    plain = [note for note in notes if note.get(f"{W}type") is None]  # the others are separator lines
    return {note.get(f"{W}id", ""): " ".join(_text(note).split()) for note in plain}


def _table(table: Any) -> tuple[list[list[str]], bool]:
    """Rows of cells, and whether the first row names the columns."""
    rows: list[list[str]] = []
    for row in table.iterchildren(f"{W}tr"):
        cells: list[str] = []
        for cell in _cells(row):
            properties = cell.find(f"{W}tcPr")
            merged = properties.find(f"{W}vMerge") if properties is not None else None
            if merged is not None and merged.get(VAL) != "restart" and rows and len(cells) < len(rows[-1]):
                cells.append(rows[-1][len(cells)])
            else:
                cells.append("\n".join(_text(p) for p in cell.iter(f"{W}p")))
            across = _value(properties, f"{W}gridSpan")
            cells += [""] * (min(int(across), 100) - 1 if across.isdigit() else 0)
        rows.append(cells)
    return rows, len(rows) > 1 and all(cell.strip() for cell in rows[0])


def _cells(row: Any) -> Iterator[Any]:
    for child in row:
        if child.tag == f"{W}tc":
            yield child
        elif child.tag in (f"{W}sdt", f"{W}sdtContent", f"{W}customXml", f"{W}ins"):
            yield from _cells(child)
