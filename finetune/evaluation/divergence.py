"""How far a model's distributions are from a reference's, token by token, which are kept in a file. Knows no models.

A file holds a row for each position that is judged: the log-probability of every token as float16.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from finetune.evaluation.subjects import Subject

Floats = npt.NDArray[np.float32]
LEAST = np.float32(-60_000)
"""Log-probability that float16 still holds."""
SPARE = 1 << 28
"""Bytes of the disk that are left to others."""


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of windows of tokens."""

    positions: int
    """Tokens that were judged: all but the first of each window."""
    nll: float
    """Mean negative log-likelihood of those tokens, nats."""
    divergence: float | None
    """Mean KL(reference || model), nats; None without a reference."""

    @property
    def perplexity(self) -> float:
        """inf where it is too large for a float."""
        with np.errstate(over="ignore"):
            return float(np.exp(np.float64(self.nll)))


class Kept:
    """A reference's distributions in a file, from its beginning on.

    Args:
        file: open for reading and writing.
        vocabulary: tokens of a distribution.
    """

    def __init__(self, file: BinaryIO, vocabulary: int) -> None:
        self._file, self._vocabulary = file, vocabulary
        file.seek(0)

    def check_room(self, positions: int) -> None:
        """Raises OSError where the disk does not hold so many distributions."""
        needed, disk = 2 * positions * self._vocabulary, os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize < needed + SPARE:
            raise OSError(errno.ENOSPC, f"the reference's probabilities take {needed / 1e9:.1f} GB of the disk")

    def write(self, log_probs: Floats) -> None:
        """Adds distributions, (positions, vocabulary)."""
        self._file.write(log_probs.astype(np.float16).tobytes())

    def divergence(self, log_probs: Floats) -> float:
        """Sum over the next positions, (positions, vocabulary), of KL(kept || given)."""
        kept = np.fromfile(self._file, np.float16, log_probs.size).reshape(log_probs.shape).astype(np.float32)
        probs = np.exp(kept)
        # With -p + q beside p (log p - log q), rounding to float16 counts by its square alone.
        kept -= log_probs
        kept -= 1
        kept *= probs
        return max(0.0, float(kept.sum(dtype=np.float64)) + len(kept))


def judge(
    subject: Subject, windows: Sequence[Sequence[int]], written: Kept | None = None, compared: Kept | None = None
) -> Iterator[Likelihood]:
    """How likely a model finds each token behind those before it in its window.

    Args:
        subject: the model.
        windows: of two tokens or more, one at a time in memory.
        written: takes the distributions.
        compared: a reference's distributions at the same places.

    Yields:
        the mean so far, behind each window.
    """
    positions, nll, divergence = 0, 0.0, 0.0
    for window in windows:
        at = 0
        for logits in subject.logits(window):
            found = log_softmax(logits[: len(window) - 1 - at])  # nothing is known of what follows the last token
            nll -= float(found[np.arange(len(found)), window[at + 1 : at + 1 + len(found)]].sum(dtype=np.float64))
            at += len(logits)
            if written:
                written.write(found)
            if compared:
                divergence += compared.divergence(found)
        positions += len(window) - 1
        yield Likelihood(positions, nll / positions, divergence / positions if compared else None)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities, (positions, vocabulary), of at least LEAST."""
    found: Floats = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
    return np.maximum(found, LEAST, out=found)


def windows(rows: Iterable[Sequence[int]], length: int, positions: int) -> list[list[int]]:
    """The beginnings of rows, each of at most `length` tokens, until so many `positions` can be judged."""
    found, left = list[list[int]](), positions
    for row in rows:
        if left < 1:
            break
        if len(row) > 1:
            found.append(list(row[: min(length, left + 1)]))
            left -= len(found[-1]) - 1
    return found
