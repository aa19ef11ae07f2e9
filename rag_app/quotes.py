"""Takes quote marks away from what is no quotation, as an answer is written. Text in, text out; no model.

For engines that cannot be kept from inventing quotations while they write: text between quote marks that stands in no
passage, word for word, keeps its words and loses its marks, and so does a mark without its other half. What remains
outside fenced code are the marks round what a passage says. A mark of inches becomes ″, one in a Hebrew abbreviation ״.
"""

import re
from collections.abc import Sequence

from rag_app.marks import AFTER_INCH, HEBREW, INCH, MARKS, NUMBER, PAIRS, Line, is_hebrew, kind

ANY_MARK = re.compile(f"[{''.join(sorted(MARKS))}]")
BLANK = re.compile(r"\s+")
BREAK = re.compile(r"[\s(\[{<>|/=:*_~'‘“„«—–-]")
"""What stands before a mark that surely opens a quotation, even where one is open already."""
FENCE = "```"
TRAILING = ",.;:!?"


class QuoteCheck:
    """Passes an answer on, quotation by quotation: each is held back until it closes or is seen to be none."""

    def __init__(self, passages: Sequence[str], also: Sequence[str] = ()) -> None:
        """`also`: more texts that may be quoted, such as the question."""
        self.dropped = 0
        """Quotations that have lost their marks."""
        self._sources = [f" {_spaced(text).strip()} " for text in (*passages, *also)]
        self._left = ""
        self._line = Line()
        self._blank = True  # nothing but blanks stands in the line
        self._before = ""
        self._kind = ""
        self._mark = ""  # what opened the quotation at hand
        self._quote: str | None = None  # what is held back of it; None where it has been found out

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown of it."""
        self._left += text
        return self._release(final=False)

    def finish(self) -> str:
        """The rest, when the answer has ended; a quotation left open loses its mark."""
        return self._release(final=True) + self._drop(over=True)

    def _release(self, *, final: bool) -> str:
        shown, at = [], 0
        while at < len(self._left):
            character, following = self._left[at], self._left[at + 1 : at + 3]
            if not final and character in MARKS and len(following) < 1 + (self._kind == HEBREW):
                break  # what follows tells what the mark is
            shown.append(self._take(character, following))
            at += 1
        self._left = self._left[at:]
        return "".join(shown)

    def _take(self, character: str, following: str) -> str:
        shown = character if self._line.fence else self._outside_code(character, following)
        for one in shown:  # taken as it is shown: without a mark before it, a fence begins its line
            self._line = self._line.after(one)
        if self._line.fence:
            self._mark = ""
        return shown

    def _outside_code(self, character: str, following: str) -> str:
        before, kind_before = self._before, self._kind
        self._before, self._kind = character, kind(kind_before, character)
        if character == "\n":
            ends, self._blank = self._blank, True
            if ends:  # a paragraph, and no quotation goes over its end
                return self._drop(over=True) + character
        self._blank = self._blank and character.isspace()
        if character in MARKS:
            return self._at_mark(character, before, kind_before, following)
        if self._quote is None:
            return character
        self._quote += character
        return "" if self._may_stand(self._quote) else self._drop()

    def _at_mark(self, mark: str, before: str, kind_before: str, following: str) -> str:
        if self._mark and mark in PAIRS[self._mark]:
            return self._close(mark, before, following)
        if self._quote and self._may_stand(self._quote + mark):
            self._quote += mark
            return ""
        if sign := _sign(mark, kind_before, following):
            return self._drop() + sign
        return self._open(mark) if mark in PAIRS else self._drop()

    def _open(self, mark: str) -> str:
        released = self._drop()  # the one before was never closed
        self._mark, self._quote = mark, ""
        return released

    def _close(self, closing: str, before: str, following: str) -> str:
        opening, quote = self._mark, self._quote
        if quote is not None:
            if not quote.strip():
                self._quote = ""  # ""a doubled mark"" opens once
                return quote
            bare = quote.rstrip()
            own = bare[-1] if bare[-1] in TRAILING and not self._stands(quote) else ""
            if own:  # "so," they said: the comma is not the passage's
                quote = bare[:-1]
            if self._stands(quote):
                self._mark, self._quote = "", None
                return opening + quote + closing + own
        if closing in PAIRS and BREAK.match(before) and following[:1].isalnum():
            return self._open(closing)
        return self._drop(over=True)

    def _drop(self, *, over: bool = False) -> str:
        """What is held back, without marks; the closing mark is awaited still, unless it is `over`."""
        quote, self._quote = self._quote or "", None
        self.dropped += bool(quote.strip())
        if over:
            self._mark = ""
        return ANY_MARK.sub("", quote)

    def _may_stand(self, quote: str) -> bool:
        """Whether the quotation so far stands in a source; a last full stop or comma may be the answer's own."""
        text = _spaced(quote).lstrip()
        if FENCE in quote:
            return False
        return any(text in source or (text[-1] in TRAILING and text[:-1] in source) for source in self._sources)

    def _stands(self, quote: str) -> bool:
        """Whether it stands in a source as whole words."""
        text = _spaced(quote).strip()
        before, after = (edge.isascii() and edge.isalnum() for edge in (text[:1], text[-1:]))
        whole = ("(?<![a-zA-Z0-9])" if before else "") + re.escape(text) + ("(?![a-zA-Z0-9])" if after else "")
        says = any(map(str.isalnum, text))
        return says and any(re.search(whole, source) for source in self._sources if text in source)


def _sign(mark: str, kind_before: str, following: str) -> str:
    """What a mark is that is no quotation mark; nothing for one that is."""
    if mark in INCH and NUMBER.fullmatch(kind_before) and (not following or following[0] in AFTER_INCH):
        return "″"
    if mark == '"' and kind_before == HEBREW and list(map(is_hebrew, following)) in ([True], [True, False]):
        return "״"
    return ""


def _spaced(text: str) -> str:
    return BLANK.sub(" ", text)
