"""Fuses two rankings of the same passages into one. Knows nothing of text, files or models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

DENSE_WEIGHT = 0.6
"""Share of the dense score: of 0.3 to 0.7 the best recall@4 on SQuAD's training part (bench/ranking.py)."""


def convex(dense: "Floats", lexical: "Floats", weight: float = DENSE_WEIGHT) -> "Floats":
    """Convex combination of both scores over their maximum (Bruch et al. 2023, "An Analysis of Fusion Functions").

    Stretching each from its minimum to its maximum, which is usual, ranks as well where both know something, but makes
    a lot of nothing: where all cosines are 0.25, their noise then outvotes the words.

    Args:
        dense: (n,) cosines of all candidates.
        lexical: (n,) BM25 of the same candidates, 0 where no term of the query stands.
        weight: share of the dense score, 0 to 1.

    Returns:
        (n,) scores from 0 to 1.
    """
    return weight * _over_maximum(dense) + (1 - weight) * _over_maximum(lexical)


def _over_maximum(scores: "Floats") -> "Floats":
    best = scores.max()
    shares: Floats = scores.clip(min=0) / best if best > 0 else scores * 0
    return shares
