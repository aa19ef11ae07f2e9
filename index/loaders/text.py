"""Bytes to text of any encoding, and plain text to paragraphs."""

import re
from collections.abc import Iterator

from index.document import Block, Document
from index.errors import LoadError
from index.loaders.source import Source

PARAGRAPH = re.compile(r"\S(?:.*(?:\n(?!\s*\n).*)*)?")
# What texts that are not UTF-8 are written in. Rarer ones are left out: detection takes them for these too often.
ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1255", "cp1256", "cp1257", "koi8_r", "iso8859_2"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)


def decode(data: bytes) -> str:
    """Text of unknown encoding with newlines as `\\n`: UTF-8 if valid, then by byte order mark, then by detection."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = _detected(data)
    if "\0" in text or _share_of_controls(text) > 0.02:
        raise LoadError("the content is binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _detected(data: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(data[:100_000], cp_isolation=list(ENCODINGS))
    best = matches.best()
    if best is None:
        raise LoadError("the text encoding is not recognised; save the file as UTF-8")
    # A Western text often reads as well in a Central European or Baltic code page, with other accents: prefer its own.
    western = any("cp1252" in m.could_be_from_charset and m.coherence >= best.coherence for m in matches)
    return data.decode("cp1252" if western else best.encoding, errors="replace")


def _share_of_controls(text: str) -> float:
    sample = text[:50_000]
    controls = sum(1 for c in sample if (c < " " and c not in "\t\n\r\f\x1b") or c == "\ufffd")
    return controls / max(1, len(sample))


def paragraphs(text: str, start: int = 0, end: int | None = None) -> Iterator[Block]:
    """The stretches of `text[start:end]` that blank lines set apart."""
    for match in PARAGRAPH.finditer(text, start, len(text) if end is None else end):
        yield Block(match.start(), match.start() + len(match.group().rstrip()))


def load_text(source: Source) -> list[Document]:
    """Plain text: a block per paragraph."""
    text = decode(source.data)
    return [Document(text, tuple(paragraphs(text)))]
