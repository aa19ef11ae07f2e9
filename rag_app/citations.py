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
from rag_app.marks import Line
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
"""A marker of ours."""
OPENS, CLOSES = "[［【〔⟦", "]］】〕⟧"
HIDDEN = "\u00ad\u200b-\u200f\u2060\ufeff"
WRITTEN = re.compile(rf" ?\\?(?:\(\\?)?[{re.escape(OPENS)}]")
"""How what a model writes as a marker begins: [1], [ 1–3 ], [**1**], 【1】, [^1], [[1]], ([1])."""
WRITTEN_BEGUN = re.compile(r" ?\\?\(?\\?\Z")
INSIDE = re.compile(rf"[\d\s*_^,;.&+~\\–—−{HIDDEN}{re.escape(OPENS + CLOSES)}-]*")
FIRST_NUMBER = re.compile(rf"[\s(*_^,;.\\{HIDDEN}{re.escape(OPENS)}]*\d")
LINK = re.compile(r"\([^()\n]{0,300}(\)|\Z)")
CODE = re.compile(r"(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")
LONGEST = 400
"""Characters for which inline code, or a marker, is waited for."""
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]|Dr|Mrs?|Ms|Prof|St|[Ff]ig|al|approx|cf|vs)\.$|^\W*\d{1,3}\.$"
)
ADDRESS = re.compile(r"\]\([^)\s]*\)|https?://\S+|(?<=\w)\[\d+\]")
"""Where figures are no statement: links, and places in code such as `list[1]`."""
HEADING = re.compile(r"#{1,6} ")
LABEL = re.compile(r"[\s>*_-]*(?:\[!?[A-Z]+\]|</?[A-Za-z][^<>]*>)\s*$")
"""A line that is part of the layout: `> [!TIP]`, `<br>`."""
BOLD = re.compile(r"\s*\*\*[^*]+\*\*:?\s*$")
"""A line that is a heading in an answer: `**Usage**`."""
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
PLAIN = re.compile(rf"[^\s(\\`{re.escape(OPENS)}]+")
FIGURE = re.compile(
    r"(?:(?<![\w.,/:)-])[-−])?[^\W_]*\d[^\W_]*(?:[.,:/_'][^\W_]*\d[^\W_]*)*"
    r"(?:\s(?:hundred|thousand|million|billion|trillion)\b)?"
)
"""A number, as far as it goes: -14, 14,5, 14:30, 3/4, 14 million; or a code."""
ITEM = re.compile(r"\s*\d{1,3}[.)]\s")
"""The number of a list's item."""
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SENTENCE = re.compile(r"[^\n]+?(?:[.!?]+[\"')\]]*(?=\s|$)|(?=\n)|$)|\n")
NEGATION = re.compile(r"\b(?:not|no|never|none|neither|nor|nobody|nothing|cannot|without)\b|n['’]t\b", re.IGNORECASE)
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
        self._asked = _figures(question)
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
        self._line = Line()

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
                yield self._pass_on(plain.end())
                continue
            length, more = (0, False) if self._line.fence else self._code() or _written(self._held[:LONGEST])
            if more and not final:
                return
            if self._held[0] == "`":
                yield self._pass_on(length or 1)
            elif length:
                self._named += [int(number) for number in re.findall(r"\d+", self._held[:length])]
                self._held = self._held[length:]
            elif more and any(bracket in self._held for bracket in OPENS):
                self._held = ""  # the answer was cut in the middle of a marker
            else:
                yield self._next_character()
        if final:
            yield self._close(end=True)

    def _code(self) -> tuple[int, bool] | None:
        """Length of the inline code that is held, 0 where it does not close in its line, and whether it still may."""
        if self._held[0] != "`":
            return None
        if self._sentence.endswith("\\"):
            return 1, False
        line, rest, _ = self._held.partition("\n")
        if code := CODE.match(self._held[:LONGEST]):
            return code.end(), code.end() == len(self._held) < LONGEST
        ticks = len(line) - len(line.lstrip("`"))
        return ticks, not rest and len(line) < LONGEST

    def _pass_on(self, length: int) -> str:
        """What is no marker and ends no sentence."""
        text, self._held = self._held[:length], self._held[length:]
        self._sentence += text
        for character in text:
            self._line = self._line.after(character)
        return text

    def _next_character(self) -> str:
        character, block = self._held[0], self._in_block()
        ended = character == "\n" or (character.isspace() and not block and self._is_whole())
        marker = self._close() if ended else ""
        return marker + self._pass_on(1)

    def _in_block(self) -> bool:
        """Whether the line is one of a block of code, its fences included."""
        return bool(self._line.fence or self._line.after("\n").fence)

    def _is_whole(self) -> bool:
        """Whether the sentence at hand has come to its full stop."""
        ends = self._sentence.rstrip("\"')]")[-1:] in tuple(".!?")
        return ends and not ABBREVIATION.search(self._sentence)

    def _close(self, *, end: bool = False) -> str:
        """Ends the sentence at hand, the answer's last where it is the `end`; gives its marker, or nothing."""
        sentence, named, block = self._sentence, self._named, self._in_block()
        if not block and not _words(sentence):
            return ""  # a bullet or a row of dots: the sentence goes on
        self._sentence, self._named = "", []
        if sentence.rstrip().endswith("?") and _words(sentence) <= self._question:
            return ""  # the question over again, as small models like to write it
        if block or not _says(sentence.lstrip()) or (BOLD.match(sentence) and not end):
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
        figures = _figures(ITEM.sub("", sentence, count=1) if ITEM.match(sentence) else sentence)
        shares, fresh = self._shares(words), self._shares(news)
        told, denies = words & self._question, bool(NEGATION.search(sentence))
        supported = [
            place
            for place, share in shares.items()
            if self._bears_out(self._quotes[place], share, fresh.get(place, 0.0) if news else None, told)
            and (not figures or self._has(self._quotes[place], figures))
            and (not denies or self._denies(self._quotes[place]))
        ]
        for pool in ([place for place in supported if self._quotes[place].n in named], supported):
            if pool:
                return self._quotes[max(pool, key=lambda place: self._rank(place, shares[place]))]
        return None

    def _has(self, quote: _Quote, figures: frozenset[str]) -> bool:
        """Whether it has all figures of a sentence; the question's may lack where it has none in their stead."""
        own = _figures(self._passages[quote.n - 1].text[quote.start : quote.end])
        lacking = {figure for figure in figures - own if not _spelt(figure) & quote.words}
        return not lacking or (lacking <= self._asked and own <= figures)

    def _denies(self, quote: _Quote) -> bool:
        """Whether it says that something is not so: nothing else bears out a sentence that does."""
        return bool(NEGATION.search(self._passages[quote.n - 1].text, quote.start, quote.end))

    def _bears_out(self, quote: _Quote, share: float, news: float | None, told: frozenset[str]) -> bool:
        """`share` of the sentence's words in the quote, and of those that are `news` to the question, if any are.

        Of what the sentence has of the question, `told`, something has to be there, too.
        """
        if news is not None and news > 1 - 1e-9 and quote.about and (not told or told & quote.words):
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
    found = FIGURE.findall(THOUSANDS.sub("", ADDRESS.sub(" ", text)).lower())
    return frozenset(figure[:-1] if len(figure) > 3 and figure.endswith("s") else figure for figure in found)


def _spelt(figure: str) -> frozenset[str]:
    """The word for a small number."""
    small = figure.isascii() and figure.isdigit() and int(figure) < len(NUMBERS)
    return frozenset([NUMBERS[int(figure)]] if small else [])


def _written(text: str) -> tuple[int, bool]:
    """Length of what a model wrote as a marker at the text's beginning, 0 for none, and whether more may change it."""
    begun = WRITTEN.match(text)
    if not begun:
        return 0, bool(WRITTEN_BEGUN.match(text))
    opened = "(" in begun.group()
    inside = INSIDE.match(text, begun.end())
    reached = inside.end() if inside else begun.end()
    depth, end = 1, 0
    for at in range(begun.end(), reached):
        depth += (text[at] in OPENS) - (text[at] in CLOSES)
        if not depth and not opened:
            end = at + 1
            break
    if opened and not depth and text[reached : reached + 1] == ")":
        end = reached + 1
    if not end:
        return 0, reached == len(text) < LONGEST
    numbers = re.findall(r"\d+", text[:end])
    if not FIRST_NUMBER.match(text) or re.search(r"\d\.\d", text[:end]) or max(map(int, numbers)) > 999:
        return 0, False
    link = LINK.match(text, end)
    return (link.end() if link and link[1] else end), len(text) < LONGEST and (
        end == len(text) or bool(link and not link[1])
    )


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
