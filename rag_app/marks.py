"""What counts as a quotation mark, and what as code, wherever text is written or checked. Characters in; no state kept.

The mask that a model writes under (`engines.quoting`) and the check afterwards (`quotes`) both go by this. A quotation
runs from an opening mark to the next mark that closes it; other marks in it are plain characters. Single marks are
apostrophes.
"""

import re
from typing import NamedTuple

PAIRS = {
    '"': '"',
    "＂": "＂",
    "“": "”",
    "”": "”",
    "„": '“”"',
    "‟": "”",
    "«": "»",
    "»": "«»",
    "‹": "›",
    "›": "‹›",
    "「": "」",
    "『": "』",
    "｢": "｣",
    "〝": "〞〟",
    "❝": "❞",
}
"""Opening marks, and the marks that close each. In Swedish ”this” and »this» are quotations, in German „this“ and
»this«; „this" is what many a model writes."""
MARKS = frozenset(PAIRS).union(*PAIRS.values())
INCH = frozenset('"”')
"""Marks that after a number of inches are none."""
AFTER_INCH = frozenset(" \t\r\n.,;:!?)]}")
"""What may follow an inch mark."""

NUMBER = re.compile(r"0{1,3}(?:\.0{1,3})?")
"""The `kind` of what may be inches: 15, 5.5, 3/4; no years."""
HEBREW = "hebrew"
"""The `kind` of a Hebrew letter: before its last letter an abbreviation has a straight mark."""
WORD = "word"
_FRACTIONS = frozenset("¼½¾⅛⅜⅝⅞")
_OTHER = "-----"
"""The head of a line that no fence can stand in."""
_HEAD = re.compile(r" ?(?:(?:>|[-*+]|0{1,9}[.)]) ?)*")
_LONGEST = 24


def kind(before: str, character: str) -> str:
    """What a straight mark would stand after: a number's shape (each digit as 0), HEBREW, WORD or "".

    Args:
        before: the kind up to the character before.
    """
    number = before if before[:1] == "0" else ""
    if character in "0123456789" or character in _FRACTIONS:
        return WORD if before in (WORD, HEBREW) or len(number) > 7 else number + "0"
    if number and character in ".,/":
        return number + "."
    if is_hebrew(character):
        return HEBREW
    return WORD if character.isalnum() else ""


def is_hebrew(character: str) -> bool:
    """Whether it is a letter of the Hebrew alphabet."""
    return "\u05d0" <= character <= "\u05ea"


class Line(NamedTuple):
    """Where a text stands among its lines and blocks of code. Code is what stands between fences of three backticks or
    more that begin a line, after blanks and the marks of lists; not `this`, and not the fence's own line."""

    fence: int = 0
    """How many backticks opened the block of code that the line is in."""
    head: str = ""
    """What stands in the line before the fence that may come."""
    ticks: int = 0
    """Backticks after it."""
    info: bool = False
    """Whether something follows them."""

    def after(self, character: str) -> "Line":
        """The place after one more character."""
        if character == "\n":
            return Line(self._fence_after())
        if self.head == _OTHER:
            return self
        if character == "`":
            fits = not self.info and (self.ticks or _HEAD.fullmatch(self.head))
            return self._replace(ticks=self.ticks + 1) if fits else Line(self.fence, _OTHER)
        if self.ticks:
            fits = character.isspace() if self.fence else self.ticks >= 3
            return self._replace(info=True) if fits else Line(self.fence, _OTHER)
        return Line(self.fence, self._headed(character))

    def _headed(self, character: str) -> str:
        if character.isspace():
            return self.head if self.head.endswith(" ") else self.head + " "
        sign = "0" if character in "0123456789" else character
        return self.head + sign if sign in ">-*+0.)" and len(self.head) < _LONGEST else _OTHER

    def _fence_after(self) -> int:
        if self.ticks < 3:
            return self.fence
        if not self.fence:
            return self.ticks
        return 0 if self.ticks >= self.fence else self.fence


TEXT = Line(0, _OTHER)
"""In the middle of a line of text."""
