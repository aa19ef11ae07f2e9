"""New passages to vectors: those of generations on disk, those of an unfinished build, and the rest encoded now."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from index import generation as disk
from index.encoder import Encoder
from index.lock import PENDING
from index.pending import Pending
from index.store import Draft, open_read_only
from index.vectors import Vectors

Progress = Callable[[str, int, int], None]
"""Called with the stage ('reading', 'encoding' or 'writing'), the number done and the number in all."""

ENCODED_AT_ONCE = 256
"""Passages between two saves of finished vectors."""


def embed(
    draft: Draft, rows: list[int], encoder: Encoder, directory: Path, old: Path | None, progress: Progress
) -> tuple[Any, int]:
    """The vectors of some passages of a draft.

    Args:
        draft: the tables of the generation in the making.
        rows: the passages.
        encoder: what encodes those that are not found.
        directory: the index; vectors are kept there until a build succeeds.
        old: the current generation. It and those beside it are searched for the same passages.
        progress: told how far encoding is.

    Returns:
        (len(rows), dimension) 16-bit floats of unit length, and how many had to be encoded.
    """
    import numpy as np

    result = np.empty((len(rows), encoder.identity.dimension), np.float16)
    identity = encoder.identity.as_dict()
    places = {key: i for i, key in enumerate(draft.keys(rows))}
    for generation in [old, *disk.others(old)] if old else []:
        for key, vector in _found(generation, places, identity):
            result[places.pop(key)] = vector
    salt = repr(sorted(identity.items())).encode()
    saved_as = {hashlib.sha256(salt + key).digest(): i for key, i in places.items()}
    pending = Pending(directory / PENDING)
    try:
        for key, vector in pending.get(list(saved_as), encoder.identity.dimension).items():
            result[saved_as.pop(key)] = vector
        texts = [(key, i, draft.text(rows[i])) for key, i in saved_as.items()]
        for keys, at, vectors in _encoded(texts, encoder, progress):
            pending.put(keys, vectors)
            result[at] = vectors
    finally:
        pending.close()
    return result, len(saved_as)


def _found(generation: Path, keys: dict[bytes, int], identity: dict[str, Any]) -> list[tuple[bytes, Any]]:
    """Key and vector of the passages that a generation has of the same encoder."""
    import numpy as np

    with suppress(Exception):  # an old one that is damaged or was just removed is no help, and no harm
        manifest = disk.read_manifest(generation, disk.sha256(generation / disk.MANIFEST))
        if manifest.encoder == identity:
            db = open_read_only(generation)
            sql = "SELECT row FROM passages WHERE key = ?"
            rows = {key: row[0] for key in keys for row in db.execute(sql, (key,))}
            db.close()
            vectors = Vectors(generation)
            found = vectors.get(np.array(list(rows.values()), np.int64))
            vectors.close()
            return list(zip(rows, found, strict=True))
    return []


def _encoded(
    texts: list[tuple[bytes, int, str]], encoder: Encoder, progress: Progress
) -> Iterator[tuple[list[bytes], list[int], Any]]:
    """Keys, places and vectors, (n, dimension) float32, a batch at a time; the longest texts first."""
    import numpy as np

    texts.sort(key=lambda item: -len(item[2]))
    choose = getattr(encoder, "choose_precision", None)
    if choose and len(texts) >= ENCODED_AT_ONCE:
        choose()
    for first in range(0, len(texts), ENCODED_AT_ONCE):
        progress("encoding", first, len(texts))
        keys, places, batch = zip(*texts[first : first + ENCODED_AT_ONCE], strict=True)
        told = lambda done, first=first: progress("encoding", first + done, len(texts))  # noqa: E731
        yield list(keys), list(places), np.asarray(encoder.encode(batch, told), np.float32)
