"""Scores of a set that are functions of sums over its examples, and how sure they are. Knows no tasks and no texts.

BLEU and chrF are such functions, too, so every score has the same bootstrap, and needs no text to be looked at twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_app.scores import Interval

Floats = npt.NDArray[np.float64]
ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of a set of examples."""

    parts: Floats
    """(examples, statistics): what each example adds."""
    of: Callable[[Floats], float]
    """The score from the (statistics,) sums; not a number where nothing counts."""
    count: int
    """Examples that the score is of."""

    @property
    def value(self) -> float | None:
        """None where nothing counts."""
        return _number(self.of(self.parts.sum(0)))

    def interval(self, seed: int = 0) -> Interval | None:
        """95% percentile bootstrap interval, by the draws of `rag_app.scores.interval`; None where nothing counts."""
        return _between(self.of(drawn) for drawn in _drawn(self.parts, seed))

    def difference(self, other: "Metric", seed: int = 0) -> tuple[float, Interval] | None:
        """How much higher this score is than another of the same examples, and the interval of a paired bootstrap.

        Each draw of examples is scored for both, so that what makes examples easy or hard cancels out.
        """
        if self.value is None or other.value is None:
            return None
        width = self.parts.shape[1]
        both = _drawn(np.concatenate([self.parts, other.parts], 1), seed)
        bounds = _between(self.of(drawn[:width]) - other.of(drawn[width:]) for drawn in both)
        return None if bounds is None else (self.value - other.value, bounds)


def ratio(parts: Sequence[float], wholes: Sequence[float] | None = None) -> Metric:
    """The sum of `parts` over that of `wholes`, 1 each by default: the mean."""
    below = np.ones(len(parts)) if wholes is None else np.asarray(wholes, np.float64)
    return Metric(np.stack([np.asarray(parts, np.float64), below], 1), _divided, int(below.sum()))


def bleu(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> Metric:
    """Corpus BLEU by sacrebleu, as `rag_app.scores.bleu`, 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    return _corpus(BLEU(force=True), texts, golds)


def chrf(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> Metric:
    """Corpus chrF2 by sacrebleu, as `rag_app.scores.chrf`, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    return _corpus(CHRF(), texts, golds)


def _corpus(metric: Any, texts: Sequence[str], golds: Sequence[Sequence[str]]) -> Metric:
    """From the statistics that sacrebleu's own significance test resamples."""
    parts = [
        metric._extract_corpus_statistics([text], [[gold] for gold in several])[0]
        for text, several in zip(texts, golds, strict=True)
    ]
    return Metric(
        np.asarray(parts, np.float64), lambda sums: float(metric._compute_score_from_stats(sums).score), len(parts)
    )


def _divided(sums: Floats) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def _drawn(parts: Floats, seed: int) -> "list[Floats]":
    """The sums of each draw of examples with replacement."""
    draws, count = np.random.default_rng(seed), len(parts)
    # counted, not gathered: a product with the counts is faster, and takes no memory
    return [np.bincount(draws.integers(count, size=count), minlength=count) @ parts for _ in range(ROUNDS)]


def _between(scores: Any) -> Interval | None:
    kept = [one for one in scores if one == one]
    if not kept:
        return None
    low, high = np.percentile(kept, (2.5, 97.5))
    return float(low), float(high)


def _number(score: float) -> float | None:
    return score if score == score else None
