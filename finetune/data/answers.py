"""Where an answer stands in a passage, and the forms that it can be given in. Texts in, texts out; knows no index."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from index.chunker import SENTENCE_END
from rag_app.citations import ABBREVIATION
from rag_app.prompt import plain
from rag_app.quotes import QuoteCheck

Form = Literal["short", "sentence", "quoted"]
BLOCK = re.compile(r"\n\s*\n|\n(?=[^\S\n]*(?:[-*+•|>#]|\d+[.)]\s|```|~~~))|(?<=:)\n")
"""Where a sentence ends without a full stop: before a blank line, an item, a heading, a row of a table or code."""
LAYOUT = re.compile(r"[\s>|#*+•-]*(?:\d+[.)]\s+)?")
"""What stands before the first word of a line and is no part of its sentence."""


def answer_in(passage: str, golds: Sequence[str]) -> tuple[int, int] | None:
    """Where the first of the answers that the passage holds stands, as whole words, of any case and line breaks."""
    for gold in golds:
        words = bare(gold).split()
        if not words:
            continue
        before, after = (r"(?<!\w)" if _letter(words[0][0]) else ""), (r"(?!\w)" if _letter(words[-1][-1]) else "")
        found = re.search(before + r"\s+".join(map(re.escape, words)) + after, passage, re.IGNORECASE)
        if found:
            return found.span()
    return None


def bare(answer: str) -> str:
    """An answer without the full stop that ends a sentence; that of an abbreviation stays."""
    text = " ".join(answer.split())
    return text if ABBREVIATION.search(text) else text.rstrip(".")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence; headings, items and lines of tables or code count as such."""
    start = 0
    for cut in sorted({match.end() for match in BLOCK.finditer(text)} | set(_stops(text)) | {len(text)}):
        piece = text[start:cut]
        first = LAYOUT.match(piece)
        inner = first.end() if first else 0
        if piece[inner:].strip():
            yield start + inner, start + len(piece.rstrip())
        start = cut


def answered(form: Form, passage: str, span: tuple[int, int], number: int) -> str | None:
    """An answer in one of its forms; None where a quotation cannot be verified, or says no more.

    Args:
        form: `short` as it stands in the passage; `sentence` the sentence around it; `quoted` followed by that
            sentence, or what of it stands between quote marks, in quotation marks, and by the passage's marker.
        passage: its text.
        span: where in it the answer stands.
        number: the passage's number in the prompt, from 1.
    """
    short = bare(passage[slice(*span)])
    if form == "short":
        return short
    first, last = span
    around = [(start, end) for start, end in sentences(passage) if start < last and end > first]
    if not around:
        return None
    start, end = min(first, around[0][0]), max(last, around[-1][1])
    if form == "quoted":  # a quotation within would end it: what stands between two marks is enough
        start = max(start, passage.rfind('"', start, first) + 1)
        end = end if (mark := passage.find('"', last, end)) < 0 else mark
    sentence = " ".join(passage[start:end].split())
    if form == "sentence":
        return sentence
    quoted = f'{short}: "{sentence}" [{number}]'
    more = len(sentence.split()) > len(short.split()) and '"' not in sentence
    return quoted if more and verbatim(quoted, sentence, passage) else None


def verbatim(answer: str, quote: str, passage: str) -> bool:
    """Whether a quotation stands in the passage as the prompt shows it, and keeps its marks where quotes are checked.

    Any run of blanks counts as one.
    """
    shown = " ".join(plain(passage).split())
    check = QuoteCheck([shown])
    return quote in shown and check.feed(answer) + check.finish() == answer and not check.dropped


def _stops(text: str) -> Iterator[int]:
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[: match.start()].rpartition("\n")[2]):
            yield match.end()


def _letter(character: str) -> bool:
    return character.isalnum() or character == "_"
