"""Ties what an answer says to the passages it was given. Text in, text with markers and quotes out; no model.

Every quote is a stretch of a passage, character for character, so a citation cannot be invented. A sentence of the
answer gets a marker `[n]` when a sentence of passage n holds what it says beyond the question, and most of its words;
the markers that a model writes by itself only name the passage to look at first, and vanish when that passage does not
bear them out.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from index import Hit
from rag_app.prompt import NOT_FOUND

SUPPORT = 0.5
"""Least share of a sentence's words, weighted by rarity, that its quote must hold."""
NEWS = 0.5
"""Least share of the words that the question does not have. Where the quote holds all of them, and its passage any of
the question's, the others need not stand in the quote: a page on a policy seldom repeats its name."""
QUESTION_WEIGHT = 0.3
"""How much the question's words count in choosing between quotes that support a sentence equally."""
SENTENCE_COST = 0.15
"""How much more support a quote of two sentences must give than one of a single sentence."""

WORD = re.compile(r"[^\W_]+(?:[.'_][^\W_]+)*")
MARKER = re.compile(r" ?\[\d{1,3}(?:, ?\d{1,3})*\](?!\()")
MARKER_BEGUN = re.compile(r" ?(\[(\d{1,3}(, ?\d{0,3})*\]?)?)?\Z")
FENCE = re.compile(r"[\s>*+\d.-]*```[^`]*$")
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]|Dr|Mrs?|Ms|Prof|St|[Ff]ig|al|approx|cf|vs)\.$|^\W*\d{1,3}\.$"
)
ADDRESS = re.compile(r"\]\([^)\s]*\)|https?://\S+")
HEADING = re.compile(r"#{1,6} ")
LABEL = re.compile(r"[\s>*_-]*(?:\[!?[A-Z]+\]|</?[A-Za-z][^<>]*>)\s*$")
"""A line that is part of the layout: `> [!TIP]`, `<br>`."""
BOLD = re.compile(r"\s*\*\*[^*]+\*\*:?\s*$")
"""A line that is a heading in an answer: `**Usage**`."""
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
PLAIN = re.compile(r"[^\s\[`]+")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SENTENCE = re.compile(r"[^\n]+?(?:[.!?]+[\"')\]]*(?=\s|$)|(?=\n)|$)|\n")
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about all also an and any are as at be been but by can could did do does for from had has have how i if in
        into is it its may more most must no not of on one only or other our should so some such than that the their
        them then there these they this those to up use used using was we were what when where which who will with
        would yes you your""",
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
    topic: float
    """How well it fits the question."""
    about: bool
    """Whether its passage has to do with the question at all."""


class Citer:
    """Takes an answer as it is written and gives it back with markers after the sentences that a passage supports."""

    def __init__(self, question: str, passages: Sequence[Hit]) -> None:
        self.citations: list[Citation] = []
        self._passages = passages
        self._question = _words(question)
        spans = list(_spans(passages))
        self._weights = _rarity(words for *_, words in spans)
        self._quotes = [self._quote(*span) for span in spans]
        self._with: dict[str, list[int]] = {}
        for place, quote in enumerate(self._quotes):
            for word in quote.words:
                self._with.setdefault(word, []).append(place)
        self._held = ""
        self._sentence = ""
        self._named: list[int] = []
        self._line = ""
        self._fenced = False
        self._block = False
        self._code = False

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown of it. What might become a marker is held back."""
        self._held += text
        return "".join(self._release(final=False))

    def finish(self) -> str:
        """The rest, when the answer has ended."""
        return "".join(self._release(final=True))

    def cite(self, sentence: str) -> Citation | None:
        """The place that bears out a sentence, if any does; it counts among the `citations`."""
        quote = self._best(sentence, [])
        return self._cited(quote) if quote else None

    def evidence(self, literals: Sequence[str]) -> list[Citation]:
        """Places that hold what a program reckoned with, few that hold all that is found; they count as `citations`.

        Args:
            literals: its numbers and texts, such as '1200', '0.15' or 'Nordwind Mutual'. A passage may have 1,200,
                15 %, or the word for a number up to twelve.
        """
        holders = [self._holders(literal) for literal in dict.fromkeys(literals)]
        wanted = [places for places in holders if places]
        found = list[Citation]()
        while wanted:
            places = set[int]().union(*wanted)
            best = max(places, key=lambda p: (sum(p in w for w in wanted) + self._quotes[p].topic, -p))
            wanted = [places for places in wanted if best not in places]
            found.append(self._cited(self._quotes[best]))
        return found

    def _holders(self, literal: str) -> set[int]:
        """Numbers of the quotes that hold a number, however written, or all words of a text."""
        if forms := _forms(literal):
            return {place for form in forms for place in self._with.get(form, ())}
        words = _words(literal)
        return {place for place, quote in enumerate(self._quotes) if words and words <= quote.words}

    def _release(self, *, final: bool) -> Iterator[str]:
        while self._held:
            if plain := PLAIN.match(self._held):
                self._sentence += plain.group()
                self._line += plain.group()
                self._held = self._held[plain.end() :]
                yield plain.group()
                continue
            begun = None if self._code or self._held[0] == "`" else MARKER_BEGUN.match(self._held)
            if begun and not final:
                return
            if not self._code and (marker := MARKER.match(self._held)):
                self._named += [int(number) for number in re.findall(r"\d+", marker.group())]
                self._held = self._held[marker.end() :]
            elif begun and "[" in self._held:
                self._held = ""  # the answer was cut in the middle of a marker
            else:
                yield self._next_character()
        if final:
            yield self._close(end=True)

    def _next_character(self) -> str:
        character, self._held = self._held[0], self._held[1:]
        ended = character == "\n" or (character.isspace() and not self._code and self._is_whole())
        marker = self._close() if ended else ""
        self._sentence += character
        self._line += character
        if character == "\n":
            self._fenced ^= bool(FENCE.match(self._line))
            self._line = ""
        if character in "`\n":
            # Whether the next character belongs to code, where brackets are no markers and stops end no sentence.
            self._block = self._fenced or bool(FENCE.match(self._line))
            self._code = self._block or self._line.count("`") % 2 == 1
        return marker + character

    def _is_whole(self) -> bool:
        """Whether the sentence at hand has come to its full stop."""
        ends = self._sentence.rstrip("\"')]")[-1:] in tuple(".!?")
        return ends and not ABBREVIATION.search(self._sentence)

    def _close(self, *, end: bool = False) -> str:
        """Ends the sentence at hand, the answer's last where it is the `end`; gives its marker, or nothing."""
        sentence, named = self._sentence, self._named
        if not self._block and not _words(sentence):
            return ""  # a bullet or a row of dots: the sentence goes on
        self._sentence, self._named = "", []
        if self._block or not _says(sentence.lstrip()) or (BOLD.match(sentence) and not end):
            return ""
        quote = self._best(sentence, named)
        return f" [{self._cited(quote).n}]" if quote else ""

    def _cited(self, quote: _Quote) -> Citation:
        hit = self._passages[quote.n - 1]
        text = hit.text[quote.start : quote.end]
        citation = Citation(quote.n, hit.source, hit.page, hit.start + quote.start, hit.start + quote.end, text)
        if citation not in self.citations:
            self.citations.append(citation)
        return citation

    def _best(self, sentence: str, named: list[int]) -> _Quote | None:
        words = _words(sentence)
        if words == REFUSAL:
            return None
        news = words - self._question
        figures = _figures(sentence) - self._question
        shares, fresh = self._shares(words), self._shares(news)
        supported = [
            place
            for place, share in shares.items()
            if figures <= self._quotes[place].words
            and self._bears_out(self._quotes[place], share, fresh.get(place, 0.0) if news else None)
        ]
        for pool in ([place for place in supported if self._quotes[place].n in named], supported):
            if pool:
                return self._quotes[max(pool, key=lambda place: self._rank(place, shares[place]))]
        return None

    def _bears_out(self, quote: _Quote, share: float, news: float | None) -> bool:
        """`share` of the sentence's words in the quote, and of those that are `news` to the question, if any are."""
        if news is not None and news > 1 - 1e-9 and quote.about:
            return True
        return share >= SUPPORT and (news is None or news >= NEWS)

    def _rank(self, place: int, share: float) -> tuple[float, int, int]:
        quote = self._quotes[place]
        return share + quote.topic, -quote.n, quote.start - quote.end

    def _shares(self, words: frozenset[str]) -> dict[int, float]:
        """Share of `words`, weighted by rarity, that each quote holds; quotes without any are left out."""
        total = self._weight(words)
        held: dict[int, float] = {}
        for word in words:
            for place in self._with.get(word, ()):
                held[place] = held.get(place, 0.0) + self._weights[word] / total
        return held

    def _weight(self, words: frozenset[str]) -> float:
        return sum(self._weights.get(word, 1.0) for word in words)

    def _quote(
        self, n: int, start: int, end: int, sentences: int, around: frozenset[str], words: frozenset[str]
    ) -> _Quote:
        share = self._weight(self._question & words) / (self._weight(self._question) or 1.0)
        topic = QUESTION_WEIGHT * share - SENTENCE_COST * (sentences - 1)
        return _Quote(n, start, end, words, topic, not self._question.isdisjoint(around))


def _words(text: str) -> frozenset[str]:
    """Content words, lower-case, without a plural s; 1,200 is 1200."""
    found = (word.lower() for word in WORD.findall(THOUSANDS.sub("", text)))
    return frozenset(w[:-1] if len(w) > 3 and w.endswith("s") else w for w in found if w not in STOP_WORDS)


def _figures(text: str) -> frozenset[str]:
    """Numbers and codes, addresses left out: what the quote has to have, however alike the other words are."""
    words = _words(ADDRESS.sub(" ", text))
    return frozenset(word for word in words if len(word) > 1 and any(c.isdigit() for c in word))


def _spans(passages: Sequence[Hit]) -> Iterator[tuple[int, int, int, int, frozenset[str], frozenset[str]]]:
    """Every sentence of every passage, and every two that follow each other; no headings, which say nothing.

    Number of the passage, start, end, how many sentences, words of the passage with its heading, words of the stretch.
    """
    for n, passage in enumerate(passages, 1):
        around = _words(f"{passage.heading} {passage.text}")
        spans = [_trimmed(passage.text, *match.span()) for match in SENTENCE.finditer(passage.text)]
        found = [(start, end, _words(passage.text[start:end])) for start, end in spans]
        found = [(start, end, words) for start, end, words in found if words and _says(passage.text[start:end])]
        yield from ((n, start, end, 1, around, words) for start, end, words in found)
        yield from ((n, one[0], two[1], 2, around, one[2] | two[2]) for one, two in pairwise(found))


def _says(line: str) -> bool:
    return not (HEADING.match(line) or LABEL.match(line))


def _forms(literal: str) -> list[str]:
    """The words that a number may stand as in a passage; none for a text."""
    try:
        number = abs(float(literal.replace(",", "").replace("_", "")))  # a dash before it is no part of a word
    except ValueError:
        return []
    if not math.isfinite(number):
        return []
    values = [number, round(number * 100, 6)] if number < 1 else [number]  # 0.15 is 15 %
    word = [NUMBERS[int(number)]] if number in range(len(NUMBERS)) else []
    return [*(f"{value:{style}}" for value in values for style in (".12g", ".1f", ".2f")), *word]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    stretch = text[start:end]
    return start + len(stretch) - len(stretch.lstrip()), start + len(stretch.rstrip())


def _rarity(quotes: Iterable[frozenset[str]]) -> dict[str, float]:
    """A weight of 1/sqrt(count) for each word: one that stands everywhere says little about where it comes from."""
    counts: dict[str, int] = {}
    for words in quotes:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    return {word: float(count) ** -0.5 for word, count in counts.items()}


REFUSAL = _words(NOT_FOUND)
"""Words that must never be cited, though a passage may have them."""
