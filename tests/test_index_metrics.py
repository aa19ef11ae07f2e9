"""Our measures against trec_eval's own code, on random runs and on what is easily got wrong."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from index.metrics import Qrels, Run, mean_average_precision, mrr, ndcg, precision, ranking, recall

OURS: dict[str, Callable[[Qrels, Run, int], float]] = {
    "ndcg_cut": ndcg,
    "recall": recall,
    "P": precision,
    "map_cut": mean_average_precision,
}
CUTS = (1, 3, 5, 10, 100)


def _theirs(qrels: Any, run: Any) -> dict[str, dict[str, float]]:
    import pytrec_eval

    # Negative grades as 0, which is how trec_eval means them: some make its library read beyond its arrays and crash.
    qrels = {query: {d: max(grade, 0) for d, grade in grades.items()} for query, grades in qrels.items()}
    names = {f"{name}.{','.join(map(str, CUTS))}" for name in OURS} | {"recip_rank", "map"}
    return dict(pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run))


def _compare(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> None:
    theirs = _theirs(qrels, run)
    judged = [query for query, grades in qrels.items() if grades]

    def mean(values: list[float]) -> float:
        return sum(values) / len(judged)  # trec_eval's program does so with -c; its library leaves out what is missing

    for name, measure in OURS.items():
        for k in CUTS:
            expected = mean([theirs[query][f"{name}_{k}"] for query in judged if query in theirs])
            assert measure(qrels, run, k) == pytest.approx(expected, abs=1e-9), (name, k)
    reciprocal = [theirs[query]["recip_rank"] for query in judged if query in theirs]
    for k in CUTS:
        expected = mean([value for value in reciprocal if value >= 1 / k - 1e-12])
        assert mrr(qrels, run, k) == pytest.approx(expected, abs=1e-9), k
    expected = mean([theirs[query]["map"] for query in judged if query in theirs])
    assert mean_average_precision(qrels, run, 10**9) == pytest.approx(expected, abs=1e-9)


def _random(rng: random.Random) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    documents = [rng.choice("abcdéΩz") + str(rng.randint(0, 99)) for _ in range(rng.choice([3, 30, 200]))]
    grades = rng.choice([[1], [0, 1], [0, 1, 2, 3], [-2, -1, 0, 1, 4], [0], [0, 0, 0, 1]])
    scores: list[Callable[[], float]] = [
        rng.random,
        lambda: float(rng.randint(0, 3)),  # ties everywhere
        lambda: rng.choice([0.0, -0.0, -1.5, 1e-40]),
        lambda: 1 + rng.randint(0, 3) * 1e-9,  # one number in 32 bits
        lambda: rng.uniform(-1e30, 1e30),
    ]
    score = rng.choice(scores)
    qrels, run = {}, {}
    for query in map(str, range(rng.randint(1, 8))):
        judged = rng.sample(sorted(set(documents)), min(len(set(documents)), rng.randint(1, 40)))
        qrels[query] = {document: rng.choice(grades) for document in judged}
        if rng.random() < 0.8:
            run[query] = {document: score() for document in documents if rng.random() < 0.7}
    run["not judged"] = {"a1": 1.0}
    return qrels, run


@pytest.mark.parametrize("seed", range(300))
def test_trec_eval_agrees_on_random_runs(seed: int) -> None:
    pytest.importorskip("pytrec_eval")
    _compare(*_random(random.Random(seed)))


def test_a_ranking_worked_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 2, "c": 0, "d": 1, "e": -1}}
    run = {"q": {"c": 0.9, "b": 0.8, "e": 0.7, "a": 0.6}}
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg(qrels, run, 10) == pytest.approx((2 / math.log2(3) + 3 / math.log2(5)) / ideal)
    assert ndcg(qrels, run, 2) == pytest.approx((2 / math.log2(3)) / (3 + 2 / math.log2(3)))
    assert recall(qrels, run, 2) == pytest.approx(1 / 3)
    assert recall(qrels, run, 100) == pytest.approx(2 / 3)
    assert precision(qrels, run, 10) == pytest.approx(0.2)
    assert (mrr(qrels, run, 10), mrr(qrels, run, 1)) == (0.5, 0.0)
    assert mean_average_precision(qrels, run) == pytest.approx((1 / 2 + 2 / 4) / 3)


def test_ties_go_by_document_id_the_greater_first() -> None:
    assert ranking({"a": 1.0, "c": 1.0, "b": 1.0, "d": 0.5, "10": 1.0, "9": 1.0}) == ["c", "b", "a", "9", "10", "d"]
    assert ranking({"a": 1.0 + 1e-9, "b": 1.0}) == ["b", "a"]
    assert ranking({"a": 1e300, "b": -1e300, "c": math.inf, "d": 1e38}) == ["c", "a", "d", "b"]
    assert ndcg({"q": {"a": 1}}, {"q": {"a": 0.5, "b": 0.5}}, 1) == 0.0


def test_who_counts() -> None:
    qrels = {"found": {"a": 1}, "without results": {"a": 1}, "empty results": {"a": 1}, "not judged": {}}
    run = {"found": {"a": 1.0}, "empty results": {}, "unknown": {"a": 1.0}}
    for measure in (ndcg, recall, mrr, mean_average_precision):
        assert measure(qrels, run, 10) == pytest.approx(1 / 3)
        assert measure({}, run, 10) == measure({"q": {}}, {"q": {"a": 1.0}}, 10) == 0.0
        assert measure({"q": {"a": 0, "b": -1}}, {"q": {"a": 1.0}}, 10) == 0.0  # judged, with nothing to be found


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        ndcg({"q": {"a": 1}}, {"q": {"a": 1.0}}, k)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="has no rank"):
        ndcg({"q": {"a": 1}}, {"q": {"a": math.nan}}, 10)
