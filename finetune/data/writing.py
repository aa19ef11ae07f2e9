"""Questions written from passages by patterns, without a model: English, few, and fluent. Texts in, texts out.

A sentence gives a question only where a pattern fits all of what it asks about, and where that means something outside
its paragraph. The answer stands in the passage verbatim.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetune.data.answers import LAYOUT, answer_in, sentences
from finetune.data.english import CODE, POINTERS, at_head
from finetune.data.patterns import FACTS, Sentence, did, gap, when
from index.lexical import terms

Kind = Literal["fact", "section", "cloze", "model"]
KINDS: tuple[tuple[Kind, ...], ...] = (("fact",), ("section", "cloze"))
"""Those that patterns write, the best first."""
MOST_WORDS = 25
"""Of a question; a sentence with a gap may be longer."""
SENTENCE_WORDS = (4, 45)
LEADING = (
    r"(?:However|Also|In addition|For example|Moreover|Furthermore|Additionally|Today|Currently|Historically|Typically"
    r"|Generally|Usually|(?P<where>(?:In|At|On|Under|According to) [\w' -]{3,40})), "
)
"""What stands before the clause that a pattern is for."""
DATED = (when, did)
"""Patterns that ask for what may stand there."""
MARKUP = re.compile(r"\w\.\[|\[`|\]\(|\]\[|\[\[|\*\*|__|[|<>{}\\]|https?:|``|\.\.\.|…|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that questions are written from."""

    chunk_id: str
    document: str
    """As `index.Hit.source`."""
    text: str
    heading: str = ""
    """The headings above it, outermost first, joined by ' > '."""


@dataclass(frozen=True, slots=True)
class Written:
    """A question and its answer, which stands verbatim in the passage."""

    question: str
    answer: str
    kind: Kind
    by: str
    """The pattern or model that wrote it."""
    source: Source


def written(source: Source, kind: Kind) -> Iterator[Written]:
    """The questions of a passage that patterns of one kind write."""
    for sentence in _sentences(source.text):
        given = Sentence(sentence, source.heading, source.text)
        match kind:
            case "fact":
                pairs = list(_facts(given))
            case "section":
                pairs = [(q, a, "section") for q, a in _section(given)]
            case _:
                pairs = [(q, a, "gap") for q, a in gap(given)]
        for question, answer, by in pairs:
            question = question[:1].upper() + question[1:]
            if fluent(question, answer, kind) and answer_in(source.text, [answer]):
                yield Written(question, answer, kind, by, source)


def _facts(sentence: Sentence) -> Iterator[tuple[str, str, str]]:
    """Questions, answers and what wrote them, of a sentence; what stands before its clause comes last in a question."""
    found = re.match(LEADING, sentence.text)
    rest = sentence.text[found.end() :] if found else ""
    where = found["where"] if found else None
    tail = f" {where[0].lower()}{where[1:]}?" if where else "?"
    given = Sentence(at_head(rest) if rest else sentence.text, sentence.heading, sentence.passage)
    for pattern in FACTS:
        for question, answer in pattern(sentence) if pattern in DATED else pattern(given):
            yield question.removesuffix("?") + (tail if pattern not in DATED else "?"), answer, pattern.__name__


def fluent(question: str, answer: str, kind: Kind) -> bool:
    """Whether it reads as a question that somebody would ask who has not seen the passage."""
    words = question.split()
    return (
        (kind == "cloze" or (len(words) <= MOST_WORDS and not POINTERS.search(CODE.sub("", " ".join(words[1:])))))
        and question.endswith("?")
        and 0 < len(answer) <= 300
        and _news(question, answer)
        and all(text.count("(") == text.count(")") and text.count('"') % 2 == 0 for text in (question, answer))
    )


def _news(question: str, answer: str) -> bool:
    """Whether at least half of what an answer says is not in the question."""
    said, asked = set(terms(answer)), set(terms(question))
    return answer.lower() not in question.lower() and 2 * len(said & asked) <= len(said)


def _sentences(text: str) -> Iterator[str]:
    """Those with nothing in them but words, in one line each."""
    for start, end in sentences(text):
        raw = text[start:end]
        sentence = " ".join(raw.split())
        least, most = SENTENCE_WORDS
        if (
            least <= len(sentence.split()) <= most
            and not MARKUP.search(raw)
            and re.match(r"[A-Z`\d]", sentence)
            and sentence.endswith(".")
            and all(sentence.count(one) == sentence.count(other) for one, other in ("()", "[]", "“”"))
            and not sentence.count('"') % 2
            and not sentence.count("`") % 2
        ):
            yield sentence


def _section(sentence: Sentence) -> Iterator[tuple[str, str]]:
    """What a section begins with, if the passage begins the section."""
    titles = [re.sub(r"[`*_]", "", title).strip() for title in sentence.heading.split(" > ")]
    if len(titles) < 2 or not re.fullmatch(r"[\w ,'’/&-]{3,60}", titles[-1]):
        return
    opens = re.match(rf"[#\s=]*{re.escape(titles[-1])}[\s#=-]*\n", sentence.passage)
    below = " ".join(LAYOUT.sub("", sentence.passage[opens.end() :], count=1).split()) if opens else ""
    if below.startswith(sentence.text):
        yield f'what does the section "{titles[-1]}" of "{titles[0]}" say?', sentence.text
