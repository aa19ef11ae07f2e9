"""Fuses two rankings of the same passages into one. Knows nothing of text, files or models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

DENSE_WEIGHT = 0.6
"""Share of the dense score: the best of 0.3 to 0.7 on 1,484 questions of SQuAD's training part (bench/ranking.py)."""


def convex(dense: "Floats", lexical: "Floats", weight: float = DENSE_WEIGHT) -> "Floats":
    """Convex combination of min-max-normalised scores (Bruch et al. 2023, "An Analysis of Fusion Functions").

    Args:
        dense: (n,) cosines of all candidates.
        lexical: (n,) BM25 of the same candidates, 0 where no term of the query stands.
        weight: share of the dense score, 0 to 1.

    Returns:
        (n,) scores from 0 to 1.
    """
    return weight * _min_max(dense) + (1 - weight) * _min_max(lexical)


def _min_max(scores: "Floats") -> "Floats":
    low, high = scores.min(), scores.max()
    if high > low:
        stretched: Floats = (scores - low) / (high - low)
    else:  # one candidate, or no word of the query in any
        stretched = (scores > 0).astype(scores.dtype)
    return stretched
