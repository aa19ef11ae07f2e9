"""Rich text (rtf): its paragraphs and tables; the format knows no headings by name."""

import re

from index.document import Document
from index.errors import LoadError
from index.loaders.builder import Builder
from index.loaders.source import Source

# Pictures and embedded objects, as hexadecimal digits: most of many files, and nothing in them is text.
PICTURE = re.compile(r"[0-9a-fA-F\s]{2000,}")
CODE_PAGE = re.compile(rb"\\ansicpg(\d{3,5})")


def load_rtf(source: Source) -> list[Document]:
    """A block a paragraph."""
    from striprtf.striprtf import rtf_to_text

    if not source.data.lstrip().startswith(b"{\\rtf"):
        raise LoadError("the content is not RTF")
    page = CODE_PAGE.search(source.data[:2000])
    encoding = f"cp{page[1].decode()}" if page else "cp1252"
    try:
        "".encode(encoding)
    except LookupError:
        encoding = "cp1252"
    # striprtf reads a str of one character a byte, and decodes the escapes by itself.
    text = rtf_to_text(  # type: ignore[no-untyped-call]
        PICTURE.sub("", source.data.decode("latin-1")), encoding=encoding, errors="replace"
    )
    builder = Builder()
    row: list[list[str]] = []
    for line in text.splitlines():
        if line.endswith("|") and len(line) > 1:
            row.append(line[:-1].split("|"))
            continue
        _add_rows(builder, row)
        builder.text(line)
    _add_rows(builder, row)
    return [builder.document(_title(source.data))]


def _add_rows(builder: Builder, rows: list[list[str]]) -> None:
    if rows:
        builder.table(rows, len(rows) > 1 and all(cell.strip() for cell in rows[0]))
        rows.clear()


def _title(data: bytes) -> str:
    found = re.search(rb"\{\\info[^{}]*\{\\title ([^{}\\]{1,300})\}", data[:20_000])
    return found[1].decode("latin-1") if found else ""
