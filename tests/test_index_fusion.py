"""Fusion of two rankings, against the formula."""

import numpy as np
import pytest

from index.fusion import convex


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
def test_scores_are_the_weighted_mean_of_what_is_scaled_to_0_and_1(weight: float) -> None:
    rng = np.random.default_rng(1)
    dense, lexical = rng.uniform(-1, 1, 50).astype(np.float32), rng.uniform(0, 30, 50).astype(np.float32)
    scaled = [np.maximum(scores, 0) / scores.max() for scores in (dense, lexical)]
    fused = convex(dense, lexical, weight)
    assert np.allclose(fused, weight * scaled[0] + (1 - weight) * scaled[1], atol=1e-6)
    assert fused.min() >= 0 and fused.max() <= 1 and fused.dtype == np.float32


def test_the_scale_of_the_scores_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    dense, lexical = rng.random(20, np.float32), rng.random(20, np.float32)
    assert np.allclose(convex(dense, lexical), convex(dense * 0.1, lexical * 40), atol=1e-5)


def test_cosines_that_tell_nothing_do_not_outvote_words() -> None:
    dense, lexical = np.array([0.25, 0.26, 0.255], np.float32), np.array([6.6, 0.0, 4.5], np.float32)
    assert np.argmax(convex(dense, lexical)) == 0


def test_a_ranking_that_says_nothing_leaves_the_order_to_the_other() -> None:
    dense, flat = np.array([0.1, 0.9, 0.5], np.float32), np.zeros(3, np.float32)
    assert np.argsort(-convex(dense, flat)).tolist() == np.argsort(-convex(flat, dense)).tolist() == [1, 2, 0]
    assert np.isfinite(convex(flat, flat)).all()
