"""Documents to chunks: by structure first, then by the encoder's tokens. Knows no files and no models.

Every chunk is one contiguous stretch of its document's text, `text[start:end]`, crosses no page and no text that is not
to be indexed, and keeps the path of headings above it. It starts at a heading or a block where that gives it a useful
size; longer blocks are cut between sentences or lines, and only a sentence longer than a chunk is cut between tokens.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise, takewhile

from index.document import Block, Document

Offsets = Sequence[tuple[int, int]]
"""Character spans of a text's tokens, ascending."""

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[`*])|(?<=[。！？])|\n[^\S\n]*(?=[-*+•] |\d+[.)] )")

HEADING_CHARS = 300
"""Most characters that are kept of a heading path: it is stored with every chunk below it."""
WINDOW = 200_000
"""Characters that are tokenised at a time: a tokenizer takes up to 300 bytes for each."""


@dataclass(frozen=True)
class ChunkSettings:
    """Sizes in tokens of the encoder; saved with the index."""

    max_tokens: int = 128
    """Most tokens in a chunk; with the heading it must stay below the encoder's window."""
    min_tokens: int = 32
    """A section shorter than this is joined with the one that follows."""
    overlap_tokens: int = 24
    """Whole sentences of at most this many tokens are repeated where a section is cut."""
    heading_tokens: int = 40
    """Most tokens of the heading path that are encoded with a chunk."""
    max_chars: int = 1500
    """Most characters in a chunk: words that the encoder does not know are one token at any length."""
    version: int = 1
    """Raised when the same settings would cut differently than before."""

    @classmethod
    def of(cls, tokens: int) -> "ChunkSettings":
        """Sizes in the usual proportions for chunks of at most `tokens` tokens."""
        return cls(tokens, tokens // 4, tokens * 3 // 16, max_chars=max(1500, 12 * tokens))

    def as_dict(self) -> dict[str, int]:
        """For the manifest."""
        return asdict(self)

    def fitted(self, window: int | None) -> "ChunkSettings":
        """These sizes, or smaller ones with which a chunk and its heading fit the encoder's window, in tokens.

        Two tokens are kept for `[CLS]` and `[SEP]`; an encoder without a window fits everything.
        """
        if window is None or self.max_tokens + self.heading_tokens + 2 <= window:
            return self
        room = max(window - 2, 8)
        heading = min(self.heading_tokens, room // 4)
        most = min(self.max_tokens, room - heading)
        overlap, least = min(self.overlap_tokens, most // 5), min(self.min_tokens, most // 4)
        return replace(self, max_tokens=most, heading_tokens=heading, overlap_tokens=overlap, min_tokens=least)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document, `document.text[start:end]`."""

    start: int
    end: int
    text: str
    heading: str
    """Titles of the headings that the whole chunk stands under, outermost first, joined by ' > '; may be empty."""
    page: int | None


@dataclass(frozen=True, slots=True)
class _Unit:
    start: int
    end: int
    tokens: int
    path: tuple[str, ...]
    page: int | None
    in_heading: bool
    opens_section: bool
    apart: bool
    """Words that belong to no block, a comment for one, stand before it: no chunk may hold them."""


def chunk(document: Document, tokenize: Callable[[str], Offsets], settings: ChunkSettings) -> list[Chunk]:
    """Cuts a document into chunks, in reading order.

    Args:
        document: the loaded document.
        tokenize: the encoder's tokenizer; gives the character span of every token, special tokens left out.
        settings: the sizes.
    """
    starts = _token_starts(document.text, tokenize)
    units = list(_units(document, starts, settings))
    chunks: list[Chunk] = []
    for _, page in groupby(units, key=lambda unit: unit.page):
        for packed in _pack(list(page), settings):
            start, end = packed[0].start, packed[-1].end
            chunks.append(Chunk(start, end, document.text[start:end], _heading(packed), packed[0].page))
    return chunks


def ending(path: str) -> str:
    """A heading path, or the end of one that is too long to be kept: the most specific of it, from a whole word on."""
    if len(path) <= HEADING_CHARS:
        return path
    end = path[-HEADING_CHARS:]
    return end.partition(" ")[2].removeprefix("> ").strip() or end


def _token_starts(text: str, tokenize: Callable[[str], Offsets]) -> Sequence[int]:
    """Where the tokens start; a long text is read in windows, cut after a line or a blank."""
    starts = array("i")
    first = 0
    while first < len(text):
        end = first + WINDOW
        if end < len(text):
            end = max(text.rfind("\n", first, end), text.rfind(" ", end - WINDOW // 8, end)) + 1 or end
        starts.extend(first + start for start, _ in tokenize(text[first:end]))
        first = end
    return starts


def _heading(units: list[_Unit]) -> str:
    """What all of a chunk stands under: the headings that its sections share."""
    paths = [unit.path for unit in units if not unit.in_heading] or [units[-1].path]
    shared = takewhile(lambda titles: len(set(titles)) == 1, zip(*paths, strict=False))
    return ending(" > ".join(titles[0] for titles in shared))


def _units(document: Document, starts: Sequence[int], settings: ChunkSettings) -> Iterator[_Unit]:
    path: list[Block] = []
    position = 0
    for block in document.blocks:
        if block.kind == "heading":
            path = [above for above in path if above.level < block.level] + [block]
        # One character more than is kept: `ending` sees that it is too long.
        titles = tuple(above.title[-HEADING_CHARS - 1 :] for above in path if above.title)
        for number, (start, end) in enumerate(_split(document.text, block, starts, settings)):
            in_heading = block.kind == "heading"
            opens = in_heading and number == 0
            apart = bool(re.search(r"\w", document.text[position:start]))
            # A rule between paragraphs is no block either, and costs its tokens.
            tokens = _count(starts, start if apart else position, end)
            yield _Unit(start, end, tokens, titles, block.page, in_heading, opens, apart)
            position = end


def _count(starts: Sequence[int], start: int, end: int) -> int:
    return bisect_left(starts, end) - bisect_left(starts, start)


def _split(text: str, block: Block, starts: Sequence[int], settings: ChunkSettings) -> Iterator[tuple[int, int]]:
    """The block's sentences (of code and tables: its lines), each short enough for a chunk of its own."""
    if block.kind in ("code", "table"):
        cuts = [match.end() for match in re.finditer("\n", text[block.start : block.end])]
    elif _count(starts, block.start, block.end) <= settings.overlap_tokens:
        cuts = []
    else:
        cuts = [match.end() for match in SENTENCE_END.finditer(text[block.start : block.end])]
    edges = [block.start, *(block.start + cut for cut in cuts), block.end]
    for start, end in pairwise(edges):
        for piece_start, piece_end in _cut(start, end, starts, settings):
            stripped = text[piece_start:piece_end].rstrip()
            # Leading blanks stay: they are the indentation of code.
            if stripped.strip():
                yield piece_start, piece_start + len(stripped)


def _cut(start: int, end: int, starts: Sequence[int], settings: ChunkSettings) -> Iterator[tuple[int, int]]:
    """Cuts what is longer than a chunk at token boundaries."""
    while start < end:
        over = bisect_left(starts, start) + settings.max_tokens
        stop = min(end, starts[over] if over < len(starts) else end, start + settings.max_chars)
        yield start, stop
        start = stop


def _pack(units: list[_Unit], settings: ChunkSettings) -> Iterator[list[_Unit]]:
    """Joins units, greedily, into chunks."""
    first = 0
    while first < len(units):
        last, tokens = first, units[first].tokens
        while last + 1 < len(units):
            unit = units[last + 1]
            if unit.apart or (unit.opens_section and tokens >= settings.min_tokens):
                break
            too_long = unit.end - units[first].start > settings.max_chars
            if tokens + unit.tokens > settings.max_tokens or too_long:
                break
            last, tokens = last + 1, tokens + unit.tokens
        yield units[first : last + 1]
        first = _next_first(units, first, last, settings)


def _next_first(units: list[_Unit], first: int, last: int, settings: ChunkSettings) -> int:
    """Where the next chunk starts: just after the last, or some whole units earlier within one section."""
    following = last + 1
    if following == len(units):
        return following
    repeated, tokens, unit = following, 0, units[following]
    while repeated - 1 > first and not (units[repeated].opens_section or units[repeated].apart):
        tokens += units[repeated - 1].tokens
        if tokens > settings.overlap_tokens or tokens + unit.tokens > settings.max_tokens:
            break
        if unit.end - units[repeated - 1].start > settings.max_chars:
            break
        repeated -= 1
    return repeated
