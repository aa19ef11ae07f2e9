"""Source code and settings files: the text as written, in blocks that a reader would not tear apart.

No parser a language: nearly all of them start what belongs together at the left margin after a blank line.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from index.document import Block, Document
from index.loaders.source import Source
from index.loaders.text import decode

LARGE = 2000
"""Characters beyond which a definition is split into those within it."""
# A line that goes on with what stands before it although a blank line may be between them.
GOES_ON = re.compile(r"[)\]}]|end\b|else\b|elif\b|except\b|finally\b|rescue\b|ensure\b|fi\b|done\b|esac\b|#endif|#else")
SETTING = re.compile(r"^(?=[^\s#;}\])-])", re.MULTILINE)


def load_code(source: Source) -> list[Document]:
    """A block a top-level definition, or a paragraph of code."""
    text = decode(source.data)
    return [Document(text, tuple(_definitions(text, 0, len(text), 0)))]


def load_settings(source: Source) -> list[Document]:
    """YAML, TOML, INI: a block a top-level key or section."""
    text = decode(source.data)
    sections = re.finditer(r"^(?=\[)", text, re.MULTILINE)
    edges = [match.start() for match in sections] or [match.start() for match in SETTING.finditer(text)]
    return [Document(text, tuple(_blocks(text, [0, *edges, len(text)])))]


def _blocks(text: str, edges: list[int]) -> Iterator[Block]:
    for start, end in pairwise(edges):
        if trimmed := _trimmed(text, start, end):
            yield trimmed


def _definitions(text: str, start: int, end: int, indent: int) -> Iterator[Block]:
    edges = [start]
    for match in re.finditer(r"\n[^\S\n]*\n(?=([^\S\n]*)\S)", text[start:end]):
        at = start + match.end()
        if len(match[1].expandtabs(4)) <= indent and not GOES_ON.match(text, at + len(match[1])):
            edges.append(at)
    edges.append(end)
    for first, last in pairwise(edges):
        block = _trimmed(text, first, last)
        if block is None:
            continue
        deeper = _next_indent(text, first, last, indent) if last - first > LARGE else 0
        if deeper:
            yield from _definitions(text, first, last, deeper)
        else:
            yield block


def _next_indent(text: str, start: int, end: int, indent: int) -> int:
    """The smallest indentation after a blank line that is larger than `indent`; 0: there is none."""
    found = {len(m[1].expandtabs(4)) for m in re.finditer(r"\n[^\S\n]*\n([^\S\n]*)(?=\S)", text[start:end])}
    return min((width for width in found if indent < width <= 16), default=0)


def _trimmed(text: str, start: int, end: int) -> Block | None:
    """The stretch as a block of code, without blank lines around it but with its first line's indentation."""
    piece = text[start:end].rstrip()
    first = re.match(r"(?:[^\S\n]*\n)*", piece)
    lead = first.end() if first else 0
    return Block(start + lead, start + len(piece), "code") if piece[lead:].strip() else None
