"""Documents to chunks with the context that is encoded with each. Knows no files, no models and no index."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from index.chunker import ChunkSettings, Offsets, chunk, ending
from index.document import Document
from index.store import Placed


def place(
    document: Document, name: str, tokenize: Callable[[str], Offsets], settings: ChunkSettings
) -> Iterator[Placed]:
    """Cuts a document; `name`, that of its file, is shown where it has neither headings nor a title.

    The name is not encoded: a file may be renamed, and its text stays the same.
    """
    title = ending(document.title)
    contexts: dict[str, str] = {}  # a long section's heading would be read again for each of its chunks
    for one in chunk(document, tokenize, settings):
        heading = one.heading or title
        if heading not in contexts:
            contexts[heading] = _context(heading, tokenize, settings.heading_tokens)
        yield Placed(one, document.record, contexts[heading], heading or name)


def _context(heading: str, tokenize: Callable[[str], Offsets], most: int) -> str:
    """What is encoded of a heading path: its end, which is the most specific."""
    spans = tokenize(heading) if heading else ()
    return heading[spans[-most][0] :] if len(spans) > most else heading


def named_apart(documents: list[Document]) -> list[Document]:
    """The documents of one file, those of equal names told apart by a number: `id`, `id~2`."""
    names: set[str] = set()
    counts: Counter[str] = Counter()
    named = []
    for document in documents:
        name = document.record
        while name in names:  # also where a document bears the name that another was just given
            counts[document.record] += 1
            name = f"{document.record}~{counts[document.record] + 1}"
        names.add(name)
        named.append(document if name == document.record else replace(document, record=name))
    return named
