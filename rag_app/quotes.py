"""Takes quote marks away from what is no quotation, as an answer is written. Text in, text out; no model.

For engines that cannot be kept from inventing quotations while they write: text between quote marks that stands in no
passage, word for word, keeps its words and loses its marks. Code, inch marks and apostrophes are left alone.
"""

import re
from collections.abc import Iterator, Sequence

CLOSERS = {'"': '"', "“": '”"', "„": "“”", "«": "»"}
"""Opening marks with what may close them."""
MARK = re.compile(r'["“”„«»\n]')
BLANK = re.compile(r"\s+")
BREAK = re.compile(r"[\s(\[{<>|/=:*_~'‘“„«—–-]")
"""What stands before a straight mark that surely opens a quotation, even where one is open already."""
FENCE = re.compile(r"[\s>*+\d.-]*```[^`]*$")
TRAILING = ",.;:!?"


class QuoteCheck:
    """Passes an answer on, quotation by quotation: each is held back until it closes or is seen to be none."""

    def __init__(self, passages: Sequence[str], also: Sequence[str] = ()) -> None:
        """`also`: more texts that may be quoted, such as the question."""
        self.dropped = 0
        """Quotations that have lost their marks."""
        self._sources = [_spaced(text).strip() for text in (*passages, *also)]
        self._left = ""
        self._line = ""
        self._before = ""
        self._fenced = False
        self._mark = ""  # what opened the quotation at hand
        self._quote: str | None = None  # what is held back of it; None where it has been found out

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown of it."""
        self._left += text
        return "".join(self._release(final=False))

    def finish(self) -> str:
        """The rest, when the answer has ended; a quotation left open loses its mark."""
        return "".join(self._release(final=True)) + self._drop()

    def _release(self, *, final: bool) -> Iterator[str]:
        while self._left:
            if self._quote is None:  # nothing is held: on to the next mark
                found = MARK.search(self._left)
                plain = self._left[: found.start() if found else None]
                self._note(plain)
                yield plain
                if not found:
                    self._left = ""
                    return
                self._left = self._left[found.start() :]
            character, following = self._left[0], self._left[1:2]
            if character == '"' and not following and not final:
                return  # what follows tells whether it opens or closes
            self._left = self._left[1:]
            yield self._take(character, following)

    def _take(self, character: str, following: str) -> str:
        marks = MARK.match(character) and not self._in_code()
        before = self._before
        ends = character == "\n" and not self._line.strip()
        self._note(character)
        if marks and self._mark and self._closes(character, before, following):
            return self._close(character)
        if marks and _opens(character, before, following, within=bool(self._mark)):
            released = self._drop()  # the one before was never closed
            self._mark, self._quote = character, ""
            return released
        if ends or (self._mark and self._fenced):  # a quotation goes neither over a paragraph's end nor into code
            return self._drop(over=True) + character
        if self._quote is None:
            return character
        self._quote += character
        return "" if self._may_stand(self._quote) else self._drop()

    def _closes(self, character: str, before: str, following: str) -> bool:
        if character not in CLOSERS[self._mark]:
            return False
        if self._quote and before.isdigit() and self._may_stand(self._quote + character):
            return False  # inches, in the passage too
        return not (character == '"' and _opens(character, before, following, within=True))

    def _close(self, closing: str) -> str:
        opening, quote = self._mark, self._quote
        if quote is None:
            self._mark = ""
            return ""
        if self._stands(quote):
            self._mark, self._quote = "", None
            return opening + quote + closing
        bare = quote.rstrip()
        if bare[-1:] in TRAILING and self._stands(bare[:-1]):  # "so," they said: the comma is not the passage's
            self._mark, self._quote = "", None
            return opening + bare[:-1] + closing + bare[-1]
        return self._drop(over=True)

    def _drop(self, *, over: bool = False) -> str:
        """What is held back, without its mark; the closing mark is awaited still, unless it is `over`."""
        quote, self._quote = self._quote, None
        self.dropped += quote is not None
        if over:
            self._mark = ""
        return quote or ""

    def _may_stand(self, quote: str) -> bool:
        """Whether the quotation so far stands in a source; a last full stop or comma may be the answer's own."""
        text = _spaced(quote).lstrip()
        return any(text in source or (text[-1] in TRAILING and text[:-1] in source) for source in self._sources)

    def _stands(self, quote: str) -> bool:
        """Whether it stands in a source as whole words."""
        text = _spaced(quote).strip()
        before, after = (edge.isascii() and edge.isalnum() for edge in (text[:1], text[-1:]))
        whole = ("(?<![a-zA-Z0-9])" if before else "") + re.escape(text) + ("(?![a-zA-Z0-9])" if after else "")
        return text != "" and any(re.search(whole, source) for source in self._sources if text in source)

    def _note(self, text: str) -> None:
        """Keeps count of lines and code."""
        if not text:
            return
        self._before = text[-1]
        if text == "\n":
            self._fenced ^= bool(FENCE.match(self._line))
            self._line = ""
        else:
            self._line += text

    def _in_code(self) -> bool:
        return self._fenced or bool(FENCE.match(self._line)) or self._line.count("`") % 2 == 1


def _opens(character: str, before: str, following: str, *, within: bool) -> bool:
    """Whether a mark opens a quotation, judged by its neighbours; `within` another one there must be no doubt."""
    if character != '"':
        return character in CLOSERS
    if following.isspace() or following == '"' or before.isdigit():
        return False  # inches, or nothing to quote
    after_break = not before or bool(BREAK.match(before))
    return after_break or not (within or following in TRAILING)


def _spaced(text: str) -> str:
    return BLANK.sub(" ", text)
