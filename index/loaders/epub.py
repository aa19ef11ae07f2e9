"""EPUB books: the chapters in the order of the spine, each as the HTML that it is."""

from typing import Any
from urllib.parse import unquote

from index.document import Document
from index.errors import LoadError
from index.loaders.archive import CORE_TITLE, Archive, joined
from index.loaders.builder import Builder
from index.loaders.html import add_html
from index.loaders.source import Source

OPF = "{http://www.idpf.org/2007/opf}"
NCX = "{http://www.daisy.org/z3986/2005/ncx/}"
CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
CHAPTERS = ("application/xhtml+xml", "text/html", "application/xml", "text/x-oeb1-document")


def load_epub(source: Source) -> list[Document]:
    """Every chapter; one without a heading of its own gets the name that the table of contents has for it."""
    archive = Archive(source.data)
    package = _package(archive)
    root = archive.xml(package)
    if root is None:
        raise LoadError("the content is a zip archive, but no EPUB book")
    if b"EncryptedData" in archive.read("META-INF/encryption.xml") and "META-INF/rights.xml" in archive.names:
        raise LoadError("the book is protected against copying (DRM); nothing can read it but its own reader")
    folder = package.rpartition("/")[0]
    items = {item.get("id"): item for item in root.iter(f"{OPF}item")}
    names = _contents(archive, folder, items.values())
    builder = Builder()
    for reference in root.iter(f"{OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is not None and "nav" not in item.get("properties", "") and item.get("media-type") in CHAPTERS:
            _add_chapter(builder, source, archive, joined(folder, unquote(item.get("href", ""))), names)
    return [builder.document(root.findtext(CORE_TITLE) or "")]


def _package(archive: Archive) -> str:
    container = archive.xml("META-INF/container.xml")
    found = next(container.iter(f"{CONTAINER}rootfile"), None) if container is not None else None
    if found is not None:
        return unquote(found.get("full-path", ""))
    return next((name for name in sorted(archive.names) if name.endswith(".opf")), "")


def _contents(archive: Archive, folder: str, items: Any) -> dict[str, str]:
    """Names of chapters by their parts."""
    ncx = next((item for item in items if item.get("media-type") == "application/x-dtbncx+xml"), None)
    place = joined(folder, unquote(ncx.get("href", ""))) if ncx is not None else ""
    try:
        root = archive.xml(place)
    except LoadError:  # the book can be read without
        root = None
    names: dict[str, str] = {}
    for point in root.iter(f"{NCX}navPoint") if root is not None else ():
        target = point.find(f"{NCX}content")
        if target is not None:
            part = joined(place.rpartition("/")[0], unquote(target.get("src", "").partition("#")[0]))
            names.setdefault(part, point.findtext(f"{NCX}navLabel/{NCX}text") or "")
    return names


def _add_chapter(builder: Builder, source: Source, archive: Archive, name: str, names: dict[str, str]) -> None:
    chapter = Builder()
    try:
        add_html(chapter, archive.read(name))
    except LoadError as error:
        source.warnings.append(f"chapter '{name}' is left out: {error}")
        return
    if chapter.blocks and not any(block.kind == "heading" for block in chapter.blocks):
        builder.heading(names.get(name, ""), 1)
    builder.embed(chapter.document())
