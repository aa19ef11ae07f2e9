"""Markdown to documents. The text stays as written, so spans are spans of the file."""

import re
from typing import Any

from index.document import Block, BlockKind, Document
from index.loaders.source import Source
from index.loaders.text import decode

FRONT_MATTER = re.compile(r"---\n(?=---\n|(?:#.*\n)*[\w\"'].*:)(?:.*\n)*?---\n")
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
    for position, token in enumerate(tokens):
        if token.level or not token.map or token.nesting < 0:
            continue
        start, end = line_starts[token.map[0]], line_starts[min(token.map[1], len(line_starts) - 1)]
        block = _markdown_block(text, token, tokens[position + 1 : position + 2], start, end)
        if block:
            blocks.append(block)
    title = next((b.title for b in blocks if b.kind == "heading"), "")
    return Document(text, tuple(blocks), title)


def _markdown_block(text: str, token: Any, following: list[Any], start: int, end: int) -> Block | None:
    end = start + len(text[start:end].rstrip())
    start += len(text[start:end]) - len(text[start:end].lstrip("\n"))
    if start >= end or token.type == "hr":
        return None
    if token.type == "html_block" and _is_comment(text[start:end]):
        return None
    if token.type == "heading_open":
        return Block(start, end, "heading", int(token.tag[1]), _words(following))
    return Block(start, end, KINDS.get(token.type, "text"))


def _is_comment(markup: str) -> bool:
    # One that is not closed is text: it would hide the rest of the document.
    return markup.endswith("-->") and not re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL).strip()


def _words(inline: list[Any]) -> str:
    """A heading's words without markup: the text of its inline tokens."""
    children = inline[0].children or [] if inline else []
    words = [
        " " if token.type.endswith("break") else token.content for token in children if token.type != "html_inline"
    ]
    return " ".join("".join(words).split())
