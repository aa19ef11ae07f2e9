"""PowerPoint presentations (pptx): a page a slide, its title as a heading, text, tables, charts' words and notes."""

from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.archive import REL, Archive
from index.loaders.builder import Builder
from index.loaders.source import Source

A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
TITLES = ("title", "ctrTitle")
REPEATED = ("dt", "ftr", "sldNum", "hdr")
"""Placeholders that say the same on every slide."""


def load_pptx(source: Source) -> list[Document]:
    """Slides in the order of the show, hidden ones included."""
    archive = Archive(source.data)
    root = archive.xml("ppt/presentation.xml")
    if root is None:
        raise LoadError("the content is a zip archive, but no PowerPoint presentation")
    relations = archive.relations("ppt/presentation.xml")
    builder = Builder()
    for page, slide in enumerate(root.iter(f"{P}sldId"), 1):
        _add_slide(builder, archive, relations.get(slide.get(f"{REL}id", ""), ""), page)
    return [builder.document(archive.title())]


def _add_slide(builder: Builder, archive: Archive, name: str, page: int) -> None:
    root = archive.xml(name)
    if root is None:
        return
    shapes = [(_placeholder(shape), shape) for shape in root.iter(f"{P}sp", f"{P}graphicFrame")]
    shapes.sort(key=lambda pair: pair[0] not in TITLES)  # stable: the rest stays in its order
    for kind, shape in shapes:
        if kind in TITLES:
            builder.heading(_text(shape), 1, page)
        elif kind not in REPEATED and shape.tag == f"{P}sp":
            builder.text("\n".join(_lines(shape, kind)), page)
        for table in shape.iter(f"{A}tbl"):
            rows = [["\n".join(_lines(cell)) for cell in row.iter(f"{A}tc")] for row in table.iter(f"{A}tr")]
            properties = table.find(f"{A}tblPr")
            builder.table(rows, properties is not None and properties.get("firstRow") == "1", page)
    notes = next((part for part in archive.relations(name).values() if "notesSlides/" in part), "")
    root = archive.xml(notes)
    for shape in root.iter(f"{P}sp") if root is not None else ():
        if _placeholder(shape) == "body":
            builder.text("\n".join(_lines(shape)), page)


def _placeholder(shape: Any) -> str:
    found = next(shape.iter(f"{P}ph"), None)
    return "" if found is None else found.get("type", "body")


def _lines(shape: Any, kind: str = "") -> list[str]:
    lines = []
    for paragraph in shape.iter(f"{A}p"):
        text = " ".join(_text(paragraph).split())
        level = paragraph.find(f"{A}pPr")
        depth = 0 if level is None or not level.get("lvl", "0").isdigit() else min(int(level.get("lvl", "0")), 9)
        if text:
            lines.append("  " * depth + ("- " if kind == "body" else "") + text)
    return lines


def _text(element: Any) -> str:
    pieces = []
    for part in element.iter(f"{A}t", f"{A}br", f"{A}p"):
        pieces.append((part.text or "") if part.tag == f"{A}t" else " ")
    return "".join(pieces)
