"""Measures of ranked retrieval, as BEIR and trec_eval compute them. Pure functions; know nothing of files or searches.

Judgements (`qrels`) and results (`run`) map a query's id to documents' ids with their grades and scores. A measure is
the mean over the judged queries: one without results counts 0, one without judgements is left out. A grade of 1 or more
is relevant; 0 and negative ones are not, and gain nothing.
"""

import math
import struct
from collections.abc import Callable, Mapping

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Documents, best first, in trec_eval's order: ties by document id, the greater first.

    Scores are compared as 32-bit floats, as trec_eval stores them: a difference beyond that is a tie.
    """
    return sorted(scores, key=lambda document: (_float32(scores[document]), document), reverse=True)


def _float32(score: float) -> float:
    if math.isnan(score):
        raise ValueError("a score is not a number (NaN): it has no rank")
    try:
        return float(struct.unpack("f", struct.pack("f", score))[0])
    except OverflowError:
        return math.copysign(math.inf, score)


def ndcg(qrels: Qrels, run: Run, k: int = 10) -> float:
    """nDCG@k with trec_eval's linear gain: the sum of grade / log2(rank + 1), over that of the ideal ranking.

    Burges' variant with the gain 2**grade - 1 gives other values wherever grades exceed 1.
    """
    return _mean(lambda gains, ideal: _dcg(gains) / _dcg(ideal[:k]), qrels, run, k)


def recall(qrels: Qrels, run: Run, k: int = 100) -> float:
    """Recall@k: the share of a query's relevant documents that are among its first k."""
    return _mean(lambda gains, ideal: sum(g > 0 for g in gains) / len(ideal), qrels, run, k)


def precision(qrels: Qrels, run: Run, k: int = 10) -> float:
    """Precision@k: the share of relevant documents among the first k; k stays the divisor where fewer were found."""
    return _mean(lambda gains, _: sum(g > 0 for g in gains) / k, qrels, run, k)


def mrr(qrels: Qrels, run: Run, k: int = 10) -> float:
    """MRR@k: 1 / the rank of the first relevant document, 0 where it is not among the first k."""
    return _mean(lambda gains, _: next((1 / rank for rank, g in enumerate(gains, 1) if g > 0), 0.0), qrels, run, k)


def mean_average_precision(qrels: Qrels, run: Run, k: int = 100) -> float:
    """MAP over the first k: the precision at the rank of each relevant document found, summed, over all relevant ones.

    trec_eval's `map_cut_k`; the same as its `map` where no more than k documents were retrieved.
    """
    return _mean(_average_precision, qrels, run, k)


def _mean(measure: Callable[[list[int], list[int]], float], qrels: Qrels, run: Run, k: int) -> float:
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    values = []
    for query, grades in qrels.items():
        if not grades:
            continue
        ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
        gains = [max(grades.get(document, 0), 0) for document in ranking(run.get(query, {}))[:k]]
        values.append(measure(gains, ideal) if ideal else 0.0)
    return math.fsum(values) / len(values) if values else 0.0


def _dcg(gains: list[int]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _average_precision(gains: list[int], ideal: list[int]) -> float:
    found, total = 0, 0.0
    for rank, gain in enumerate(gains, 1):
        if gain > 0:
            found += 1
            total += found / rank
    return total / len(ideal)
