"""A question and what a search found for it: which passages settle it, and which it is shown with. Knows no files.

The passages are those of serving, with two differences that training needs: none is a copy of another, and none holds
the answer but those where the answer is evident.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from finetune.data.answers import answer_in
from finetune.data.asked import Asked
from finetune.example import Part
from index import Hit
from index.engine import READ_BY_PEOPLE
from index.lexical import terms
from rag_app.evaluate import is_evidence
from rag_app.scores import normalised

ALIKE = 0.8
"""Share of their words that two passages have in common (Jaccard) when one is nearly a copy of the other."""


@dataclass(slots=True)
class Found:
    """A question and its hits."""

    asked: Asked
    hits: tuple[Hit, ...]
    """More than are shown, best first."""
    prefix: str = ""
    """What stands before a document's id in `Hit.source`."""
    home: frozenset[str] = frozenset()
    """Ids of the hits that hold the answer where it is evident; of a question without one, of those it is about."""
    document: str = ""
    """What it is split by."""
    part: Part = "train"
    _held: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = frozenset(hit.chunk_id for hit in self.hits if self._is_home(hit))
        if not self.asked.golds and not self.asked.placed:
            self.home = frozenset(hit.chunk_id for hit in self.hits[:1])

    @property
    def located(self) -> bool:
        """Whether the answer is one that stands in a passage, as yes and no do not."""
        return bool({normalised(gold) for gold in self.asked.golds} - {"yes", "no"})

    def holds(self, hit: Hit) -> bool:
        """Whether a passage has the words of an answer."""
        if hit.chunk_id not in self._held:
            self._held[hit.chunk_id] = self.located and answer_in(hit.text, self.asked.golds) is not None
        return self._held[hit.chunk_id]

    def is_golden(self, hit: Hit) -> bool:
        """Whether a passage answers the question."""
        return bool(self.asked.golds) and (hit.chunk_id in self.home or self._is_home(hit))

    def is_about(self, hit: Hit) -> bool:
        """Whether a passage is of what the answer rests on."""
        if self.asked.given:
            own, text = (" ".join(one.split()) for one in (self.asked.given.passages[0], hit.text))
            return text in own or own in text
        return any(is_evidence(one, hit, self.prefix) for one in self.asked.evidence)

    def complete(self, passages: Sequence[Hit]) -> bool:
        """Whether everything that the answer rests on is among the passages."""
        several = self.asked.evidence if len(self.asked.evidence) > 1 else ()
        return all(any(is_evidence(one, hit, self.prefix) for hit in passages) for one in several)

    def settled_by(self, passages: Sequence[Hit]) -> bool:
        """Whether passages that were found for another question settle this one, either way, beyond doubt."""
        if not self.asked.golds:
            return any(hit.chunk_id in self.home for hit in passages)
        golden = list(map(self.is_golden, passages))
        stray = any(self.holds(hit) for hit, here in zip(passages, golden, strict=True) if not here)
        return any(golden) and not stray and self.complete(passages)

    def own(self, k: int, insert_golden: bool = False) -> tuple[Hit, ...]:
        """The first k hits, without copies, and without those that hold the answer but are not its home.

        Args:
            k: how many.
            insert_golden: puts a golden hit into the last place where none is among them.
        """
        golden = [hit for hit in self.hits if self.is_golden(hit)]
        kept: list[Hit] = []
        for hit in self.hits:
            others = kept if hit in golden else [*kept, *golden]
            if (hit in golden or not self.holds(hit)) and not any(alike(hit, other) for other in others):
                kept.append(hit)
        shown, missed = kept[:k], [hit for hit in kept[k:] if hit in golden]
        if insert_golden and missed and not any(hit in golden for hit in shown):
            shown[-1] = missed[0]
        return tuple(shown)

    def problem(self) -> str:
        """Why nothing can be learnt from it; '' where something can."""
        if not self.hits:
            return "the index found no passages for it"
        if not self.asked.golds or self.home:
            return ""
        if not self.asked.placed:
            return "its answer stands in no passage that was found"
        there = all(any(is_evidence(one, hit, self.prefix) for hit in self.hits) for one in self.asked.evidence)
        return "its answer stands in no passage of its document that was found" if there else ""

    def _is_home(self, hit: Hit) -> bool:
        if not self.asked.golds:
            return self.is_about(hit)
        if not self.located:
            return bool(self.asked.evidence) and is_evidence(self.asked.evidence[0], hit, self.prefix)
        return self.holds(hit) and (not self.asked.placed or self.is_about(hit))


def depth(k: int) -> int:
    """How many hits to search for where k are shown: some are replaced. The first k are those of a search for k."""
    return max(k, min(READ_BY_PEOPLE, 3 * k)) if k <= READ_BY_PEOPLE else 3 * k  # longer lists are made otherwise


def find(asked: Asked, search: Callable[[str], Sequence[Hit]], prefix: str = "") -> Found:
    """A question with its hits.

    Args:
        asked: the question.
        search: gives `depth(k)` hits.
        prefix: what stands before a document's id in `Hit.source`.
    """
    hits = search(asked.question)
    return Found(asked, tuple(replace(hit, text=sys.intern(hit.text)) for hit in hits), prefix)  # one copy of a text


@lru_cache(maxsize=1 << 16)
def _terms(text: str) -> frozenset[str]:
    return frozenset(terms(text))


def alike(one: Hit, other: Hit) -> bool:
    """Whether two passages are nearly the same."""
    if one.text == other.text:
        return True
    these, those = _terms(one.text), _terms(other.text)
    return len(these & those) >= ALIKE * len(these | those) > 0
