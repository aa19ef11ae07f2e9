"""Keeps what people and documents write from being read as a model's own marks. Knows no engine."""

import re
from collections.abc import Callable
from itertools import pairwise

HALF = re.compile("[\ud800-\udfff]")
MARK = re.compile(r"[<>\[\]|｜‹›«»【】《》].*\w.*[<>\[\]|｜‹›«»【】《》]")
"""What a token that parts turns, or calls tools, looks like: in brackets of some kind, whichever way they open."""


def whole(text: str) -> str:
    """The text without halves of characters (lone surrogates), which no encoding can carry: they become U+FFFD."""
    return HALF.sub("\ufffd", text)


def unmarked(text: str, encode: Callable[[str], list[int]], mark: Callable[[int], str]) -> list[int]:
    """Tokens of a text that is to be read as letters, even where a tokenizer insists on a mark of its own.

    Tokenizers pass over their control tokens if told to, but not over other tokens that were added to the vocabulary,
    and some models have their `<|im_start|>` among these. A text with one is cut behind the mark's first character.

    Args:
        text: of a document or a person.
        encode: the tokenizer.
        mark: the text of a token that must not come out; '' for others.
    """
    tokens = encode(text)
    found = {mark(token) for token in tokens} - {""}
    if not found or len(text) < 2:
        return tokens
    # Looked for at every place, for one may begin within another.
    starts = re.finditer(f"(?={'|'.join(re.escape(one) for one in found)})", text)
    cuts = sorted({0, len(text), *(start.start() + 1 for start in starts)})
    if len(cuts) == 2:  # the tokenizer has made the mark of other letters, of wide ones for example
        cuts = list(range(len(text) + 1))
    parts = (text[begin:end] for begin, end in pairwise(cuts))
    return [token for part in parts for token in unmarked(part, encode, mark)]
