"""Bytes to text of any encoding, and plain text to paragraphs."""

import re
from collections.abc import Iterator
from unicodedata import category

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
    """Text of unknown encoding with newlines as `\\n`: UTF-16 by its mark or look, else UTF-8, else by detection."""
    if wide := _wide(data):
        text = data.decode(wide, errors="replace")
        if _share(text, "Cn", "Co", "Cs") > 0.02:  # any bytes at all are UTF-16, of characters that nobody writes
            raise LoadError("the content is binary, not text")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = _nearly_utf8(data) or _detected(data)
    if "\0" in text or _share(text, "Cc") > 0.02:
        raise LoadError("the content is binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _wide(data: bytes) -> str:
    """The kind of UTF-16 that it is; empty for none."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    high, low = data[:2000:2].count(0), data[1:2000:2].count(0)
    if min(high, low) == 0 and max(high, low) > len(data[:2000]) // 5:  # Western text in two bytes a letter
        return "utf-16-be" if high else "utf-16-le"
    return ""


def _nearly_utf8(data: bytes) -> str:
    """UTF-8 with a few damaged bytes, which become U+FFFD; empty if it is not that."""
    text = data.decode("utf-8-sig", errors="replace")
    bad = text.count("\ufffd")
    sound = sum(1 for c in text[:1_000_000] if c > "\x7f") - bad
    return text if sound > 4 * bad else ""


def _detected(data: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(data[:100_000], cp_isolation=list(ENCODINGS))
    best = matches.best()
    if best is None:
        text = data.decode("utf-8", errors="replace")
        if text.count("\ufffd") * 100 < len(text) and "\0" not in text:
            return text
        raise LoadError("the text encoding is not recognised; save the file as UTF-8")
    # A Western text often reads as well in a Central European or Baltic code page, with other accents: prefer its own.
    western = any("cp1252" in m.could_be_from_charset and m.coherence >= best.coherence for m in matches)
    return data.decode("cp1252" if western else best.encoding, errors="replace")


def _share(text: str, *categories: str) -> float:
    """Of the text's beginning, what is of these Unicode categories, or could not be decoded."""
    sample = text[:5_000]
    found = sum(1 for c in sample if c == "\ufffd" or (c not in "\t\n\r\f\x1b" and category(c) in categories))
    return found / max(1, len(sample))


def paragraphs(text: str, start: int = 0, end: int | None = None) -> Iterator[Block]:
    """The stretches of `text[start:end]` that blank lines set apart."""
    for match in PARAGRAPH.finditer(text, start, len(text) if end is None else end):
        yield Block(match.start(), match.start() + len(match.group().rstrip()))


def load_text(source: Source) -> list[Document]:
    """Plain text: a block per paragraph."""
    text = decode(source.data)
    return [Document(text, tuple(paragraphs(text)))]
