"""Ties what an answer says to the passages it was given. Text in, text with markers and quotes out; no model.

Every quote is a stretch of a passage, character for character, so a citation cannot be invented. A sentence of the
answer gets a marker `[n]` when a sentence of passage n holds most of its words; the markers that a model writes by
itself only name the passage to look at first, and vanish when that passage does not bear them out.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from index import Hit

SUPPORT = 0.5
"""Least share of a sentence's words, weighted by rarity, that its quote must hold."""
QUESTION_WEIGHT = 0.3
"""How much the question's words count in choosing between quotes that support a sentence equally."""
SENTENCE_COST = 0.15
"""How much more support a quote of two sentences must give than one of a single sentence."""

WORD = re.compile(r"[^\W_]+(?:[.'_-][^\W_]+)*")
MARKER = re.compile(r" ?\[\d{1,3}(?:, ?\d{1,3})*\](?!\()")
MARKER_BEGUN = re.compile(r" ?(\[(\d{1,3}(, ?\d{0,3})*\]?)?)?\Z")
FENCE = re.compile(r"[\s>*+\d.-]*```[^`]*$")
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]|Dr|Mrs?|Ms|Prof|St|[Ff]ig|al|approx|cf|vs)\.$|^\W*\d{1,3}\.$"
)
ADDRESS = re.compile(r"\]\([^)\s]*\)|https?://\S+")
HEADING = re.compile(r"#{1,6} ")
SENTENCE = re.compile(r"[^\n]+?(?:[.!?]+[\"')\]]*(?=\s|$)|(?=\n)|$)|\n")
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about all also an and any are as at be been but by can could did do does for from had has have how i if in
        into is it its may more most must no not of on one only or other our should so some such than that the their
        them then there these they this those to up use used using was we were what when where which who will with
        would you your""",
    )
)


@dataclass(frozen=True, slots=True)
class Citation:
    """A place in the documents that bears out a sentence of the answer."""

    n: int
    """Number of the passage, as in the marker `[n]`; from 1."""
    source: str
    page: int | None
    start: int
    """First character of the quote in the document's extracted text."""
    end: int
    quote: str
    """The document's own words, verbatim."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Quote:
    n: int
    start: int
    end: int
    words: frozenset[str]
    sentences: int


class Citer:
    """Takes an answer as it is written and gives it back with markers after the sentences that a passage supports."""

    def __init__(self, question: str, passages: Sequence[Hit]) -> None:
        self.citations: list[Citation] = []
        self._passages = passages
        self._question = _words(question)
        self._quotes = list(_quotes(passages))
        self._weights = _rarity(self._quotes)
        self._held = ""
        self._sentence = ""
        self._named: list[int] = []
        self._line = ""
        self._fenced = False

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown of it. What might become a marker is held back."""
        self._held += text
        return "".join(self._release(final=False))

    def finish(self) -> str:
        """The rest, when the answer has ended."""
        return "".join(self._release(final=True))

    def _release(self, *, final: bool) -> Iterator[str]:
        while self._held:
            begun = None if self._in_code() else MARKER_BEGUN.match(self._held)
            if begun and not final:
                return
            if not self._in_code() and (marker := MARKER.match(self._held)):
                self._named += [int(number) for number in re.findall(r"\d+", marker.group())]
                self._held = self._held[marker.end() :]
            elif begun and "[" in self._held:
                self._held = ""  # the answer was cut in the middle of a marker
            else:
                yield from self._next_character()
        if final:
            yield self._close()

    def _next_character(self) -> Iterator[str]:
        character, self._held = self._held[0], self._held[1:]
        if character == "\n" or (character.isspace() and not self._in_code() and self._is_whole()):
            yield self._close()
        self._sentence += character
        self._line += character
        if character == "\n":
            self._fenced ^= bool(FENCE.match(self._line))
            self._line = ""
        yield character

    def _is_whole(self) -> bool:
        """Whether the sentence at hand has come to its full stop."""
        ends = self._sentence.rstrip("\"')]")[-1:] in tuple(".!?")
        return ends and not ABBREVIATION.search(self._sentence)

    def _in_block(self) -> bool:
        return self._fenced or bool(FENCE.match(self._line))

    def _in_code(self) -> bool:
        """Whether the next character belongs to code, where brackets are no markers and stops end no sentence."""
        return self._in_block() or self._line.count("`") % 2 == 1

    def _close(self) -> str:
        """Ends the sentence at hand; gives its marker, or nothing."""
        sentence, named, code = self._sentence, self._named, self._in_block()
        if not code and not _words(sentence):
            return ""  # a bullet or a row of dots: the sentence goes on
        self._sentence, self._named = "", []
        quote = (
            None
            if code or HEADING.match(sentence.lstrip())
            else self._best(_words(sentence), _figures(sentence), named)
        )
        if quote is None:
            return ""
        hit = self._passages[quote.n - 1]
        text = hit.text[quote.start : quote.end]
        citation = Citation(quote.n, hit.source, hit.page, hit.start + quote.start, hit.start + quote.end, text)
        if citation not in self.citations:
            self.citations.append(citation)
        return f" [{quote.n}]"

    def _best(self, words: frozenset[str], figures: frozenset[str], named: list[int]) -> _Quote | None:
        pools = [[q for q in self._quotes if q.n in named], self._quotes]
        for pool in pools:
            ranked = [(self._support(words, q), -q.n, q.start - q.end, q) for q in pool]
            supported = [
                entry
                for entry in ranked
                if self._share(words, entry[3].words) >= SUPPORT and figures <= entry[3].words | self._question
            ]
            if supported:
                return max(supported, key=lambda entry: entry[:3])[3]
        return None

    def _support(self, words: frozenset[str], quote: _Quote) -> float:
        support = self._share(words, quote.words) + QUESTION_WEIGHT * self._share(self._question, quote.words)
        return support - SENTENCE_COST * (quote.sentences - 1)

    def _share(self, words: frozenset[str], of: frozenset[str]) -> float:
        """Share of `words`, weighted by rarity, that `of` holds."""
        total = sum(self._weights.get(word, 1.0) for word in words)
        return sum(self._weights.get(word, 1.0) for word in words & of) / total if total else 0.0


def _words(text: str) -> frozenset[str]:
    """Content words, lower-case, without a plural s."""
    found = (word.lower() for word in WORD.findall(text))
    return frozenset(w[:-1] if len(w) > 3 and w.endswith("s") else w for w in found if w not in STOP_WORDS)


def _figures(text: str) -> frozenset[str]:
    """Numbers and codes, addresses left out: what the quote has to have, however alike the other words are."""
    words = _words(ADDRESS.sub(" ", text))
    return frozenset(word for word in words if len(word) > 1 and any(c.isdigit() for c in word))


def _quotes(passages: Sequence[Hit]) -> Iterator[_Quote]:
    """Every sentence of every passage, and every two that follow each other; no headings, which say nothing."""
    for n, passage in enumerate(passages, 1):
        spans = [_trimmed(passage.text, *match.span()) for match in SENTENCE.finditer(passage.text)]
        spans = [
            span for span in spans if _words(passage.text[slice(*span)]) and not HEADING.match(passage.text, *span)
        ]
        pairs = [(first[0], second[1]) for first, second in pairwise(spans)]
        for sentences, found in enumerate((spans, pairs), 1):
            yield from (_Quote(n, start, end, _words(passage.text[start:end]), sentences) for start, end in found)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    stretch = text[start:end]
    return start + len(stretch) - len(stretch.lstrip()), start + len(stretch.rstrip())


def _rarity(quotes: Sequence[_Quote]) -> dict[str, float]:
    """A weight of 1/sqrt(count) for each word: one that stands everywhere says little about where it comes from."""
    counts: dict[str, int] = {}
    for quote in quotes:
        for word in quote.words:
            counts[word] = counts.get(word, 0) + 1
    return {word: float(count) ** -0.5 for word, count in counts.items()}
