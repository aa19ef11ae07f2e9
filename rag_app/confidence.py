"""How sure retrieval is that the passages have to do with the question, and below what that is too little."""

import json
import math
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index import Hit, Index

VERSION = 1
"""Raised when the same hits would give another confidence: thresholds calibrated before do not count any more."""

DEFAULT = 0.25
"""Threshold without a calibration."""

FILE = "calibration.json"
"""Beside the index's pointer; builds leave it alone."""


def confidence(query: str, hits: Sequence[Hit]) -> float:
    """0 to 1; 0 without hits."""
    return min(1.0, max((hit.cosine or 0.0 for hit in hits), default=0.0))


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
        stored = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Calibration()
    except (OSError, ValueError, RecursionError):
        return _ignored("cannot be read")
    return _checked(stored, index.manifest.encoder)


def _checked(stored: Any, encoder: dict[str, Any]) -> Calibration:
    value = stored.get("threshold") if isinstance(stored, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # or NaN
        return _ignored("cannot be read")
    if stored.get("encoder") != encoder:
        return _ignored("is of another encoder")
    if stored.get("version") != VERSION:
        return _ignored("is of another version of this program")
    return Calibration(float(value), stored.get("counts") or {}, stored.get("scores") or {})


def _ignored(why: str) -> Calibration:
    return Calibration(note=f"the index's calibration {why} and does not count: run rag-app calibrate again")


def store(index: Index, made: Calibration) -> Path:
    """Keeps a calibration beside the index's pointer, replacing an earlier one atomically.

    Raises:
        ValueError: the threshold is not from 0 to 1.
    """
    if not (0 <= made.threshold <= 1 and math.isfinite(made.threshold)):
        raise ValueError(f"the threshold is {made.threshold!r}: give a number from 0 to 1")
    kept = {name: value for name, value in asdict(made).items() if name != "note"}
    text = json.dumps({**kept, "version": VERSION, "encoder": index.manifest.encoder}, indent=1)
    path = index.directory / FILE
    draft = path.with_name(f".{FILE}.{secrets.token_hex(4)}")
    try:
        with draft.open("x", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return path
