"""Scores of generated text, and how sure they are. Texts and numbers in, numbers out; no model, no files.

Every score of a single text is a plain function; a set's score is a ratio of sums, and so has one bootstrap interval.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")

Interval = tuple[float, float]


def normalised(text: str) -> str:
    """As SQuAD's official script compares answers: lower case, without ASCII punctuation, articles and extra blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """SQuAD's EM: 1 where the answer equals a gold one after `normalised`, else 0.

    SQuAD 2.0's rule: gold answers that are empty after it do not count, and without any left the gold answer is "".
    """
    return _best(lambda gold: float(normalised(answer) == normalised(gold)), golds)


def f1(answer: str, golds: Sequence[str]) -> float:
    """SQuAD's F1: of the words that answer and gold answer share, 0 to 1, the best over the gold ones; else as EM."""
    return _best(lambda gold: _overlap(normalised(answer).split(), normalised(gold).split()), golds)


def _best(score: Callable[[str], float], golds: Sequence[str]) -> float:
    return max(score(gold) for gold in [gold for gold in golds if normalised(gold)] or [""])


def _overlap(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    same = sum((Counter(answer) & Counter(gold)).values())
    return 2 * same / (len(answer) + len(gold))  # the harmonic mean of same/answer and same/gold


def holds(text: str, golds: Sequence[str]) -> bool:
    """Whether a gold answer's words stand in `text` as a run, both `normalised`."""
    padded = f" {normalised(text)} "
    return any(f" {gold} " in padded for gold in map(normalised, golds) if gold)


def bleu(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU by sacrebleu (13a tokens, exponential smoothing), 0 to 100; each text has one gold text or more."""
    from sacrebleu.metrics.bleu import BLEU

    return float(BLEU().corpus_score(texts, _columns(golds)).score)


def chrf(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Corpus chrF2 by sacrebleu, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score(texts, _columns(golds)).score)


def _columns(golds: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Sacrebleu's form: the first gold text of every text, then the second ones, None where there is none."""
    most = max(map(len, golds), default=0)
    return [[row[n] if n < len(row) else None for row in golds] for n in range(most)]


def rouge(text: str, golds: Sequence[str]) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score (stemmed), 0 to 1, each the best over the gold texts."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    kinds = ("rouge1", "rouge2", "rougeL")
    found = RougeScorer(list(kinds), use_stemmer=True).score_multi(golds, text)
    return {kind: float(found[kind].fmeasure) for kind in kinds}


def ratio(parts: Sequence[float], wholes: Sequence[float] | None = None) -> float:
    """The sum of `parts` over that of `wholes` (1 each by default: the mean); 0 where that is 0."""
    whole = len(parts) if wholes is None else sum(wholes)
    return sum(parts) / whole if whole else 0.0


def interval(
    parts: Sequence[float], wholes: Sequence[float] | None = None, *, seed: int = 0, rounds: int = 1000
) -> Interval | None:
    """95% percentile bootstrap interval of `ratio` (Efron 1979): questions are drawn with replacement.

    Args:
        parts: one number a question.
        wholes: one number a question, 1 by default; draws whose wholes add up to 0 are left out.
        seed: the same one gives the same interval.
        rounds: number of draws.

    Returns:
        Low and high; None where nothing counts, since nothing is known then.
    """
    import numpy as np

    above = np.asarray(parts, np.float64)
    below = np.ones_like(above) if wholes is None else np.asarray(wholes, np.float64)
    if not below.any():
        return None
    draws = np.random.default_rng(seed)
    drawn = []
    for _ in range(rounds):  # one draw in memory at a time: there may be 100,000 questions
        rows = draws.integers(len(above), size=len(above))
        if whole := below[rows].sum():
            drawn.append(above[rows].sum() / whole)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


Ratio = tuple[list[float], list[float]]
"""A part and a whole of every question, for `ratio` and `interval`."""


def refusal(abstained: Sequence[bool], unanswerable: Sequence[bool]) -> dict[str, Ratio]:
    """Precision, recall and F1 of abstaining, as ratios: what is to be found are the unanswerable questions."""
    both = [float(a and u) for a, u in zip(abstained, unanswerable, strict=True)]
    said, true = list(map(float, abstained)), list(map(float, unanswerable))
    either = [a + u for a, u in zip(said, true, strict=True)]
    return {"precision": (both, said), "recall": (both, true), "f1": ([2 * b for b in both], either)}
