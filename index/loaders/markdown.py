"""Markdown to documents. The text stays as written, so spans are spans of the file."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from index.document import Block, BlockKind, Document
from index.loaders.source import Source
from index.loaders.text import decode

FRONT_MATTER = re.compile(r"---\n(?=---\n|(?:#.*\n)*[\w\"'].*:)(?:.*\n)*?---\n")
MARKS = re.compile(r"`+|<!--")
KINDS: dict[str, BlockKind] = {"fence": "code", "code_block": "code", "table_open": "table"}


def load_markdown(source: Source) -> list[Document]:
    """CommonMark with tables. The text stays as written, so spans are spans of the file; comments are left out."""
    return [parse_markdown(decode(source.data))]


def parse_markdown(text: str) -> Document:
    """The same for a text."""
    from markdown_it import MarkdownIt

    line_starts = [0, *(m.end() for m in re.finditer("\n", text)), len(text)]
    front = FRONT_MATTER.match(text)
    # Empty lines in its place keep the line numbers, and nothing left open in it swallows what follows.
    body = "\n" * front.group().count("\n") + text[front.end() :] if front else text
    blocks: list[Block] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    fences = [_span(token, line_starts) for token in tokens if token.level and token.type in KINDS]
    for position, token in enumerate(tokens):
        if token.level or not token.map or token.nesting < 0:
            continue
        start, end = _span(token, line_starts)
        block = _markdown_block(text, token, tokens[position + 1 : position + 2], start, end)
        if block:
            blocks += _without_comments(text, block, fences)
    title = next((b.title for b in blocks if b.kind == "heading"), "")
    return Document(text, tuple(blocks), title)


def _markdown_block(text: str, token: Any, following: list[Any], start: int, end: int) -> Block | None:
    end = start + len(text[start:end].rstrip())
    start += len(text[start:end]) - len(text[start:end].lstrip("\n"))
    if start >= end or token.type == "hr":
        return None
    if token.type == "heading_open":
        return Block(start, end, "heading", int(token.tag[1]), _words(following))
    return Block(start, end, KINDS.get(token.type, "text"))


def _span(token: Any, line_starts: list[int]) -> tuple[int, int]:
    return line_starts[token.map[0]], line_starts[min(token.map[1], len(line_starts) - 1)]


def _without_comments(text: str, block: Block, fences: list[tuple[int, int]]) -> Iterator[Block]:
    """The block, or what its comments leave of it."""
    if block.kind in ("code", "heading") or "<!--" not in text[block.start : block.end]:
        yield block
        return
    start = block.start
    for first, last in _comments(text, block, fences):
        yield from _trimmed(text, replace(block, start=start, end=first))
        start = last
    yield from _trimmed(text, replace(block, start=start))


def _comments(text: str, block: Block, fences: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Where comments stand that are not within code. One that is not closed is none: it would hide all the rest."""
    marks = list(MARKS.finditer(text, block.start, block.end))
    last_of_length = {len(mark[0]): mark.start() for mark in marks if mark[0] != "<!--"}
    position, ticks = block.start, 0
    fenced = iter(fences)
    fence = next(fenced, None)
    for mark in marks:
        while fence and fence[1] <= mark.start():
            fence = next(fenced, None)
        if mark.start() < position or (fence and fence[0] <= mark.start()):
            continue
        if mark[0] != "<!--":
            if ticks == len(mark[0]):
                ticks = 0
            elif not ticks and last_of_length[len(mark[0])] > mark.start():
                ticks = len(mark[0])
        elif not ticks:
            end = text.find("-->", mark.end(), block.end)
            if end < 0:
                return
            yield mark.start(), end + 3
            position = end + 3


def _trimmed(text: str, block: Block) -> Iterator[Block]:
    piece = text[block.start : block.end]
    start = block.start + len(piece) - len(piece.lstrip())
    end = block.start + len(piece.rstrip())
    if re.search(r"\w", piece):
        yield replace(block, start=start, end=end)


def _words(inline: list[Any]) -> str:
    """A heading's words without markup: the text of its inline tokens."""
    children = inline[0].children or [] if inline else []
    words = [
        " " if token.type.endswith("break") else token.content for token in children if token.type != "html_inline"
    ]
    return " ".join("".join(words).split())
