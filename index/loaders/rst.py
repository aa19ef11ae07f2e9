"""reStructuredText: sections, code blocks, comments left out. The text stays as written.

By its layout alone: docutils takes a hundred times as long, and would read files that the text names.
"""

import re
from collections.abc import Iterator

from index.document import Block, Document
from index.loaders.source import Source
from index.loaders.text import decode

RULE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1*\s*$")
PARAGRAPH = re.compile(r"\S(?:.*(?:\n(?!\s*\n).*)*)?")
COMMENT = re.compile(r"\.\.(?:[^\S\n]+(?!\[|_|\||[\w:+.-]+::).*)?$", re.MULTILINE)
CODE = re.compile(
    r"\.\. (?:code-block|code|sourcecode|parsed-literal|testcode|doctest|prompt|literalinclude|productionlist)::|>>> "
)
DIRECTIVE = re.compile(r"\.\. [\w:+.-]+::")
MARKUP = re.compile(
    r":[\w:.+-]+:`(?:([^`<]*?)\s*<[^`]*>|[~!]?([^`]*))`|`([^`<]*?)\s*<[^`]*>`_+|``([^`]*)``|[*`]+([^*`]+)[*`]+_*"
)


def load_rst(source: Source) -> list[Document]:
    """Blocks are paragraphs; levels of headings go by the order in which their underlines are first met."""
    text = decode(source.data)
    blocks = tuple(_blocks(text))
    title = next((block.title for block in blocks if block.kind == "heading"), "")
    return [Document(text, blocks, title)]


def _blocks(text: str) -> Iterator[Block]:
    levels: list[str] = []
    skip_below = literal_below = -1  # indentation of the comment or the `::` that a paragraph may belong to
    for match in PARAGRAPH.finditer(text):
        start, end = match.start(), match.start() + len(match.group().rstrip())
        indent = start - (text.rfind("\n", 0, start) + 1)
        if 0 <= skip_below < indent:
            continue
        skip_below = -1
        if COMMENT.match(text, start) and not _is_heading(text[start:end].split("\n")):
            skip_below = indent
            continue
        if 0 <= literal_below < indent:
            yield Block(start - indent, end, "code")
            continue
        literal_below = -1
        yield from _paragraph(text, start, end, indent, levels)
        literal = text.endswith("::", start, end) and not DIRECTIVE.match(text, start)
        if literal or CODE.match(text, start):
            literal_below = indent


def _paragraph(text: str, start: int, end: int, indent: int, levels: list[str]) -> Iterator[Block]:
    while start < end and not indent:
        lines = text[start:end].split("\n", 3)
        used = _is_heading(lines)
        if not used:
            break
        style = lines[used - 1].strip()[:1] + ("over" if used == 3 else "")
        if style not in levels:
            levels.append(style)
        stop = start + len("\n".join(lines[:used]).rstrip())
        title = plain(lines[used - 2])
        yield Block(start, stop, "heading", min(levels.index(style) + 1, 6), title)
        start = start + len("\n".join(lines[:used])) + 1
    if start < end and text[start:end].strip():
        is_code = CODE.match(text, start) is not None
        yield Block(start - indent if is_code else start, end, "code" if is_code else "text")


def _is_heading(lines: list[str]) -> int:
    """How many lines the section title takes: 2, or 3 with a rule above it; 0 for no title."""
    ruled = len(lines) >= 3 and len(lines[0].strip()) > 2 and RULE.match(lines[0])
    if ruled and lines[0].strip() == lines[2].strip() and lines[1].strip():
        return 3
    if len(lines) >= 2 and RULE.match(lines[1]) and not RULE.match(lines[0]) and lines[0].strip():
        wide = len(lines[1].strip()) >= len(lines[0].rstrip()) or len(lines[1].strip()) > 3
        return 2 if wide and not lines[0].startswith(" ") else 0
    return 0


def plain(words: str) -> str:
    """Words without inline markup."""
    shown = MARKUP.sub(lambda m: next((group for group in m.groups() if group), ""), words)
    return " ".join(shown.replace("\\", "").split())
