"""Reads a query together with each passage, by a cross-encoder, and scores how well it answers. Knows no index."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from index.errors import EncoderNotFound


class Reranker(Protocol):
    """What searching needs of a reranker."""

    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """How well each text answers the query; higher is better."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder from a folder or the Hub."""

    def __init__(self, name_or_path: str) -> None:
        from sentence_transformers import CrossEncoder

        try:
            self._model = CrossEncoder(name_or_path, local_files_only=Path(name_or_path).is_dir())
        except Exception as error:  # a damaged folder or a missing network fails in many ways
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise EncoderNotFound(
                f"the reranker '{name_or_path}' cannot be loaded ({reason}): give a cross-encoder's folder or Hub id"
            ) from error

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query."""
        found: list[float] = self._model.predict([(query, text) for text in texts], show_progress_bar=False).tolist()
        return found


def as_reranker(wanted: Reranker | str | bool | None) -> Reranker | None:
    """The reranker that is asked for: an object, a folder, a Hub id, or True for `$RAG_RERANKER`.

    Raises:
        EncoderNotFound: True is asked for and the variable is not set, or the model cannot be loaded.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        wanted = os.environ.get("RAG_RERANKER", "")
        if not wanted:
            raise EncoderNotFound("no reranker is named: give a cross-encoder's folder or Hub id, or set RAG_RERANKER")
    return _loaded(wanted) if isinstance(wanted, str) else wanted


@lru_cache(2)
def _loaded(name_or_path: str) -> CrossEncoderReranker:
    return CrossEncoderReranker(name_or_path)
