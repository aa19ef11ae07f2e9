"""Files to documents, a module per family of formats. Raises LoadError with the reason; knows nothing of chunks.

Nothing here opens a file, starts a process or uses the network: bytes come in, documents go out. Libraries of formats
are imported where they are used, so that importing this package is light. Files may be hostile: see index/reader.py,
which calls this in processes that may die.
"""

from collections.abc import Callable
from pathlib import Path

from index.document import Document
from index.errors import LoadError
from index.loaders.html import load_html
from index.loaders.markdown import load_markdown
from index.loaders.pdf import PAGE_BREAK, load_pdf
from index.loaders.source import Source
from index.loaders.text import decode, load_text, paragraphs

__all__ = ["LOADERS", "PAGE_BREAK", "decode", "load", "paragraphs"]

LOADERS: dict[str, Callable[[Source], list[Document]]] = {
    ".md": load_markdown,
    ".markdown": load_markdown,
    ".txt": load_text,
    ".html": load_html,
    ".htm": load_html,
    ".pdf": load_pdf,
}


def load(path: Path, data: bytes, *, ocr: bool = False, warnings: list[str] | None = None) -> list[Document]:
    """The documents in `data`, the content of the file at `path`: one, or one per record of a file of records.

    Args:
        path: only its name counts; the file is not opened.
        data: the file's content.
        ocr: reads pages that are pictures, which takes seconds each; needs the extra `ocr`.
        warnings: takes a line for every kind of thing that had to be left out.

    Raises:
        LoadError: the format is not supported, or the file holds no readable text; the message is the reason.
    """
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        raise LoadError(f"files of type '{path.suffix or path.name}' are not read (known: {' '.join(sorted(LOADERS))})")
    if not data.strip():
        raise LoadError("the file is empty")
    source = Source(path.name, data, ocr, [] if warnings is None else warnings)
    documents = [document for document in loader(source) if document.blocks]
    if not documents:
        raise LoadError("the file holds no text")
    return documents
