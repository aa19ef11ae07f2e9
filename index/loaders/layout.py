"""Lines of words with boxes to text, blocks and headings. Knows pages, and nothing of PDF.

All by position and size: a gap makes a paragraph or a cell, larger letters make a heading, and what stands at the edge
of most pages is about the book and not about its subject.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from index.document import Block, Word

Box = tuple[float, float, float, float]
CELL_GAP = 1.6
"""Times the letters' height: a gap this wide in two lines one below the other parts cells."""
PARAGRAPH_GAP = 1.3
"""Times the usual distance of lines."""
LARGE = 1.15
"""Times the usual height of letters: a heading."""
EDGE = 0.12
"""Of the page's height: where running headers and footers stand."""
LETTERS = re.compile(r"[\W\d_]+")


@dataclass(slots=True)
class Line:
    """One line of a page."""

    words: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    ends_in_hyphen: bool = False
    """Its last word goes on in the next line; the hyphen itself is left out."""
    level: int = 0
    """1 to 6 for a heading."""
    title: str = ""
    running: bool = False
    """A header or footer that most pages have."""

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(self.words)

    @property
    def top(self) -> float:
        """Where it begins."""
        return self.boxes[0][1]

    @property
    def bottom(self) -> float:
        """Where it ends."""
        return self.boxes[0][3]

    @property
    def height(self) -> float:
        """That of its letters."""
        return max(self.boxes[0][3] - self.boxes[0][1], 0.1)


@dataclass(slots=True)
class Page:
    """One page."""

    number: int
    width: float
    height: float
    lines: list[Line] = field(default_factory=list)
    bad: bool = False
    """It could not be read."""


def mark_running_lines(pages: list[Page]) -> None:
    """Finds what most pages repeat at their edge, page numbers aside."""
    filled = [page for page in pages if page.lines]
    if len(filled) < 4:
        return
    seen = Counter(key for page in filled for key in {_running_key(line) for line in _edges(page)})
    often = {key for key, count in seen.items() if count >= max(3, 0.4 * len(filled))}
    for page in filled:
        for line in _edges(page):
            line.running = _running_key(line) in often


def _edges(page: Page) -> Iterator[Line]:
    for line in (*page.lines[:3], *page.lines[3:][-3:]):
        if line.bottom < EDGE * page.height or line.top > (1 - EDGE) * page.height:
            yield line


def _running_key(line: Line) -> str:
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", line.text.casefold())


def mark_headings(pages: list[Page], outline: dict[int, list[tuple[str, int]]]) -> None:
    """By the bookmarks where there are some that are found in the text, else by the size of letters."""
    found = [_mark_bookmarked(page, outline[page.number]) for page in pages if page.number in outline]
    if not sum(found):
        _mark_large(pages)


def _mark_bookmarked(page: Page, marks: list[tuple[str, int]]) -> int:
    count, position = 0, 0
    keys = [_letters(line.text) for line in page.lines]
    for title, level in marks:
        wanted = _letters(title)
        for at in [*range(position, len(keys)), *range(position)] if wanted else ():
            size = next((n for n in (1, 2, 3) if "".join(keys[at : at + n]) == wanted), 0)
            if size and keys[at] and not any(line.running or line.level for line in page.lines[at : at + size]):
                for line in page.lines[at : at + size]:
                    line.level, line.title = min(level, 6), ""
                page.lines[at].title = " ".join(line.text for line in page.lines[at : at + size])
                count, position = count + 1, at + size
                break
    return count


def _letters(text: str) -> str:
    return LETTERS.sub("", text).casefold()


def _mark_large(pages: list[Page]) -> None:
    lines = [line for page in pages for line in page.lines if not line.running]
    usual = _usual_height(lines)
    large = [line for line in lines if line.height > LARGE * usual and _may_be_heading(line)]
    if not usual or len(large) * 4 > len(lines):  # a poster or slides, where size says nothing
        return
    heights = sorted({round(line.height) for line in large}, reverse=True)
    for line in large:
        line.level = min(heights.index(round(line.height)) + 1, 6)
    for page in pages:
        _name_headings(page)


def _usual_height(lines: list[Line]) -> float:
    heights: Counter[float] = Counter()
    for line in lines:
        heights[round(line.height, 1)] += len(line.text)
    return heights.most_common(1)[0][0] if heights else 0.0


def _may_be_heading(line: Line) -> bool:
    return len(line.text) < 150 and len(LETTERS.sub("", line.text)) > 1 and not line.text.endswith((".", ",", ";"))


def _name_headings(page: Page) -> None:
    """Lines of the same level one below the other are one heading."""
    first: Line | None = None
    for line, before in zip(page.lines, [None, *page.lines], strict=False):
        if first and before and line.level == before.level and 0 < line.top - before.top < 2 * line.height:
            first.title += f" {line.text}"
        elif line.level:
            first = line
            line.title = line.text
        else:
            first = None


def write_page(page: Page, start: int, blocks: list[Block], words: list[Word]) -> str:
    """The page's text, which begins at `start` of the document's; adds its blocks and words."""
    pieces: list[str] = []
    for kind, lines in _groups(page.lines):
        if pieces:
            pieces.append("\n\n")
            start += 2
        begin = start
        for number, line in enumerate(lines):
            if number and not lines[number - 1].ends_in_hyphen:
                pieces.append("\n")
                start += 1
            text = _write_line(line, kind == "table", start, page.number, words)
            pieces.append(text)
            start += len(text)
        if kind == "heading":
            blocks.append(Block(begin, start, "heading", lines[0].level, lines[0].title, page.number))
        elif kind != "running":
            blocks.append(Block(begin, start, "table" if kind == "table" else "text", page=page.number))
    return "".join(pieces)


def _groups(lines: list[Line]) -> Iterator[tuple[str, list[Line]]]:
    """The lines of each block, with the block's kind."""
    wide = [False, *map(_has_gap, lines), False]
    usual = _usual_pitch(lines)
    group: list[Line] = []
    kind_before = ""
    for number, line in enumerate(lines, 1):
        # One line with a gap may be a numbered heading or badly set; two are rows.
        kind = _kind(line, wide[number] and (wide[number - 1] or wide[number + 1]))
        if group and (kind != kind_before or _is_apart(group[-1], line, usual)):
            yield kind_before, group
            group = []
        group.append(line)
        kind_before = kind
    if group:
        yield kind_before, group


def _kind(line: Line, tabular: bool) -> str:
    if line.running:
        return "running"
    return "heading" if line.level else "table" if tabular else "text"


def _has_gap(line: Line) -> bool:
    return any(after[0] - box[2] > CELL_GAP * line.height for box, after in pairwise(line.boxes))


def _usual_pitch(lines: list[Line]) -> float:
    pitches = [after.bottom - line.bottom for line, after in pairwise(lines)]
    down = [pitch for pitch, line in zip(pitches, lines, strict=False) if 0.5 * line.height < pitch < 4 * line.height]
    return median(down) if len(down) > 3 else 0.0


def _is_apart(before: Line, line: Line, usual: float) -> bool:
    """Whether a paragraph begins: by the distance, another column, or letters of another size."""
    if line.level:
        return line.title != ""
    pitch = line.bottom - before.bottom
    if pitch < -0.5 * line.height:
        return True
    if pitch > PARAGRAPH_GAP * (usual or 1.4 * before.height):
        return True
    return not 0.8 < line.height / before.height < 1.25


def _write_line(line: Line, tabular: bool, start: int, page: int, words: list[Word]) -> str:
    pieces, length = list[str](), start
    for number, (word, box) in enumerate(zip(line.words, line.boxes, strict=True)):
        if number:
            wide = tabular and box[0] - line.boxes[number - 1][2] > CELL_GAP * line.height
            pieces.append(" | " if wide else " ")
            length += len(pieces[-1])
        words.append(Word(length, length + len(word), page, box))
        pieces.append(word)
        length += len(word)
    return "".join(pieces)
