"""How sure retrieval is that the passages have to do with the question, and below what that is too little."""

import json
import os
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from index import Hit, Index
from index.beir import DatasetInvalid
from index.embedding import Progress
from index.errors import RagError
from index.lexical import terms
from rag_app.citations import STOP_WORDS
from rag_app.questions import Question
from rag_app.scores import ratio, refusal

VERSION = 1
"""Raised when the same hits would give another confidence: thresholds calibrated before do not count any more."""

WEIGHT = 0.3
"""Share of the common words, against that of the cosine. On SQuAD's training part (4,451 questions about the documents,
6,463 about others; bench/refusal.py) the two are told apart with an AUC of 0.979 by the cosine alone, 0.9935 with this
weight. 0.4 gains nothing more, and costs more where people use other words than the documents: with half of the common
words gone, the default threshold turns away 2% of the questions about the documents with 0.3, 4% with 0.5."""

PASSAGES = 4
"""Hits that count, from the first, so that one threshold serves whatever number is asked for."""

DEFAULT = 0.28
"""Threshold without a calibration: it turns away 0.3% of the questions about the documents and 70% of the others; the
cosine alone, at the same cost, 36%. Questions on a subject that the documents treat, whose answer they do not hold,
cannot be told apart by retrieval (SQuAD 2.0's: AUC 0.62): they are the model's to refuse."""

FILE = "calibration.json"
"""Beside the index's pointer; builds leave it alone."""
MOST_BYTES = 1 << 16
FEWEST = 10
"""Questions of either kind that a threshold is chosen from."""


def confidence(query: str, hits: Sequence[Hit]) -> float:
    """The best passage's cosine and share of the query's content words, weighted; 0 to 1, and 0 without hits."""
    words = frozenset(terms(query)) - _stop_terms()
    return max((_sure(words, hit) for hit in hits[:PASSAGES]), default=0.0)


def _sure(words: frozenset[str], hit: Hit) -> float:
    cosine = min(max(hit.cosine or 0.0, 0.0), 1.0)
    return (1 - WEIGHT) * cosine + WEIGHT * common(words, hit) if words else cosine


def common(words: frozenset[str], hit: Hit) -> float:
    """Share of `words`, folded and stemmed as `index.lexical.terms`, that stand in a passage or the headings above."""
    return len(words.intersection(terms(f"{hit.heading}\n{hit.text}"))) / len(words) if words else 0.0


@lru_cache(1)
def _stop_terms() -> frozenset[str]:
    return frozenset(terms(" ".join(STOP_WORDS)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and where it comes from."""

    threshold: float = DEFAULT
    """Answers are refused where `confidence` is below this."""
    counts: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    note: str = ""
    """Why a stored calibration does not count, for a person; empty where there is none or where it counts."""


def threshold(index: Index) -> float:
    """The calibrated threshold of an index, else DEFAULT."""
    return calibration(index).threshold


def calibration(index: Index) -> Calibration:
    """What `calibrate` stored with an index; the default, with a note, where that is damaged or of another encoder."""
    path = index.directory / FILE
    try:
        if not path.exists():
            return Calibration()
        if not path.is_file() or path.stat().st_size > MOST_BYTES:  # a pipe would make the reader wait
            return _ignored("cannot be read")
        return _checked(json.loads(path.read_text("utf-8")), index.manifest.encoder)
    except (OSError, ValueError, RecursionError):
        return _ignored("cannot be read")


def _checked(stored: Any, encoder: dict[str, Any]) -> Calibration:
    value = stored.get("threshold") if isinstance(stored, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # or NaN
        return _ignored("cannot be read")
    if stored.get("encoder") != encoder:
        return _ignored("is of another encoder")
    if stored.get("version") != VERSION:
        return _ignored("is of another version of this program")
    counts, scores = (one if isinstance(one, dict) else {} for one in map(stored.get, ("counts", "scores")))
    return Calibration(float(value), counts, scores)


def _ignored(why: str) -> Calibration:
    return Calibration(note=f"the index's calibration {why} and does not count: run rag-app calibrate again")


def place(index: Index) -> Path:
    """Where the calibration of an index is kept.

    Raises:
        RagError: a folder is there.
    """
    path = index.directory / FILE
    if path.is_dir():
        raise RagError(f"'{path}' is a folder, and the calibration belongs there: move it away")
    return path


def keep(index: Index, made: Calibration) -> Path:
    """Writes a calibration beside the index's pointer, in place of an earlier one, all or nothing; returns its path.

    Raises:
        RagError: a folder is in its place.
    """
    stored = {name: value for name, value in asdict(made).items() if name != "note"}
    text = json.dumps({**stored, "version": VERSION, "encoder": index.manifest.encoder}, indent=1)
    path = place(index)
    draft = path.with_name(f".{FILE}.{secrets.token_hex(4)}")
    try:
        with draft.open("x", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    return path


def calibrate(
    index: Index, questions: Sequence[Question], lost: float = 0.02, progress: Progress | None = None
) -> Calibration:
    """Finds the threshold for an index from questions that its documents answer and questions that they do not.

    Args:
        index: what is searched.
        questions: labelled; those that say nothing of `answerable` are left out.
        lost: most that may be refused of the answerable ones, as a share.
        progress: told how far it is, as 'searching'.

    Raises:
        DatasetInvalid: there are fewer than FEWEST questions of a kind.
    """
    sure: dict[bool, list[float]] = {True: [], False: []}
    asked = [(one.question, one.answerable) for one in questions if one.answerable is not None]
    few = {kind: sum(answerable is kind for _, answerable in asked) for kind in sure}
    if min(few.values()) < FEWEST:
        raise DatasetInvalid(
            f"{few[True]} questions are answerable and {few[False]} are not: give at least {FEWEST} of each kind, "
            "told apart by 'answerable': true or false"
        )
    for number, (question, answerable) in enumerate(asked):
        if progress:
            progress("searching", number, len(asked))
        sure[answerable].append(confidence(question, index.search(question, PASSAGES)))
    value = choose(sure[True], sure[False], lost)
    return Calibration(value, *judged(sure[True], sure[False], value))


def choose(answerable: Sequence[float], unanswerable: Sequence[float], lost: float) -> float:
    """A threshold that refuses as many unanswerable questions as it can, and at most `lost` of the answerable ones.

    Half way between the surest unanswerable question that the highest such threshold refuses (0 where it refuses none)
    and that threshold itself: where the two kinds lie far apart, it keeps away from both.

    Args:
        answerable: confidences, at least one.
        unanswerable: confidences.
        lost: a share, 0 or more and below 1.
    """
    highest = sorted(answerable)[int(lost * len(answerable))]
    refused = [value for value in unanswerable if value < highest]
    return (max(refused, default=0.0) + highest) / 2


def judged(
    answerable: Sequence[float], unanswerable: Sequence[float], value: float
) -> tuple[dict[str, int], dict[str, float]]:
    """Counts and scores of refusing below `value`."""
    lost, refused = (sum(one < value for one in kind) for kind in (answerable, unanswerable))
    counts = {"answerable": len(answerable), "unanswerable": len(unanswerable), "lost": lost, "refused": refused}
    abstained = [one < value for one in (*answerable, *unanswerable)]
    scores = refusal(abstained, [False] * len(answerable) + [True] * len(unanswerable))
    return counts, {
        **{name: round(ratio(*score), 6) for name, score in scores.items()},
        "lost": round(lost / len(answerable), 6),
        "auc": round(auc(answerable, unanswerable), 6),
    }


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """Chance that one of the first is greater than one of the second, ties half: 0.5 says nothing, 1 says all."""
    ordered = sorted(below)
    ranks = (bisect_left(ordered, one) + bisect_right(ordered, one) for one in above)
    return sum(ranks) / 2 / len(above) / len(below)
