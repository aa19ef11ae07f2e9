"""Care of an index on disk: verify every byte and count, free what nobody needs, export the passages."""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from index import generation as disk
from index.errors import IndexDamaged, RagError
from index.generation import Manifest
from index.lock import PENDING, BuildLock
from index.paths import default_index
from index.store import chunk_name, encoded, open_read_only, source_of, unpacked

Fault = dict[str, str]
"""`part` of the index and `fault`, a line."""


def verify(directory: str | Path | None = None) -> tuple[str, list[Fault]]:
    """Checks the current generation: every file's hash, every count, every reference and every vector.

    Returns:
        The generation's name, and its faults; none means that all is as it was written.

    Raises:
        NoIndex: there is no index.
    """
    try:
        generation, manifest, use = disk.opened(Path(directory or default_index()))
    except IndexDamaged as error:
        return "", [{"part": disk.POINTER, "fault": str(error)}]
    try:
        faults = [{"part": part, "fault": fault} for part, fault in disk.verify_parts(generation, manifest)]
        if not faults:  # bytes that are as they were written can still have been written wrongly
            faults = [{"part": part, "fault": fault} for part, fault in _logical(generation, manifest)]
    finally:
        if use:
            use.close()
    return generation.name, faults


def _logical(generation: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    try:
        db = open_read_only(generation)
        try:
            yield from _tables(db, manifest)
            yield from _postings(generation, db, manifest)
        finally:
            db.close()
        yield from _vectors(generation, manifest)
    except (RagError, sqlite3.DatabaseError, OSError, EOFError, ValueError, TypeError) as error:
        yield generation.name, f"cannot be read ({' '.join(str(error).split())[:200]})"


def _tables(db: sqlite3.Connection, manifest: Manifest) -> Iterator[tuple[str, str]]:
    part = "chunks.sqlite3"
    (state,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if state != "ok":
        yield part, state
        return
    counts = {
        "SELECT count(*) FROM files": manifest.files,
        "SELECT count(*) FROM files WHERE error != ''": manifest.files_failed,
        "SELECT count(*) FROM chunks": manifest.chunks,
        "SELECT coalesce(sum(chunks), 0) FROM files": manifest.chunks,
        "SELECT count(*) FROM passages": manifest.passages,
        "SELECT coalesce(max(row) + 1, 0) FROM passages": manifest.passages,
        "SELECT count(DISTINCT row) FROM chunks": manifest.passages,
        "SELECT count(*) FROM chunks WHERE row NOT IN (SELECT row FROM passages)": 0,
        "SELECT count(*) FROM chunks WHERE file NOT IN (SELECT id FROM files)": 0,
        "SELECT count(*) FROM words WHERE file NOT IN (SELECT id FROM files)": 0,
        "SELECT count(*) FROM files WHERE chunks != (SELECT count(*) FROM chunks WHERE file = files.id)": 0,
        "SELECT count(*) FROM files WHERE (error != '') != (chunks = 0)": 0,
        "SELECT count(*) - count(DISTINCT id) FROM terms": 0,
        "SELECT count(*) - coalesce(max(id) + 1, 0) FROM terms": 0,
    }
    for sql, expected in counts.items():
        (found,) = db.execute(sql).fetchone()
        if found != expected:
            yield part, f"{sql} gives {found}, not {expected}"
    for row, key, context, text in db.execute("SELECT row, key, context, text FROM passages"):
        if hashlib.sha256(encoded(context, text).encode()).digest() != key:
            yield part, f"the text of passage {row} is not the one that was encoded"
    yield from _places(db)


def _places(db: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    sql = (
        "SELECT chunk_id, path, record, start, end, text FROM chunks "
        "JOIN files ON files.id = chunks.file JOIN passages USING (row)"
    )
    for name, path, record, start, end, text in db.execute(sql):
        if end - start != len(text) or chunk_name(path, record, start, text) != name:
            yield "chunks.sqlite3", f"the chunk {name} does not stand where it was found"
    for file, record, page, boxes in db.execute("SELECT file, record, page, boxes FROM words"):
        if not unpacked(boxes):
            yield "chunks.sqlite3", f"the words of page {page} of file {file}{record and '#' + record} are no list"


def _postings(generation: Path, db: sqlite3.Connection, manifest: Manifest) -> Iterator[tuple[str, str]]:
    import numpy as np

    from index.lexical import FOLDER, weights

    names = ("lengths", "tf", "indices.csc.index", "indptr.csc.index", "data.csc.index")
    lengths, tf, indices, indptr, data = (
        np.load(generation / FOLDER / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
    )
    (vocabulary,) = db.execute("SELECT count(*) FROM terms").fetchone()
    if len(lengths) != manifest.passages or len(indptr) != vocabulary + 1:
        yield FOLDER, f"it has {len(lengths)} passages and {len(indptr) - 1} terms, not what the tables have"
    elif not (len(tf) == len(indices) == len(data) == indptr[-1]) or (np.diff(indptr) < 0).any():
        yield FOLDER, "its arrays do not belong together"
    elif len(indices) and (indices.min() < 0 or indices.max() >= manifest.passages):
        yield FOLDER, "a posting names a passage that is not there"
    elif not np.isfinite(data).all() or (np.bincount(indices, tf, manifest.passages) != lengths).any():
        yield FOLDER, "its counts are not those of the passages"
    else:
        df = np.diff(indptr)
        expected = weights(df, np.repeat(np.arange(vocabulary), df), indices, tf, lengths)
        if not np.allclose(data, expected, rtol=1e-5):
            yield FOLDER, "its scores are not those of its counts"


def _vectors(generation: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    import numpy as np

    from index.vectors import COARSE, VECTORS, Vectors, merged

    vectors = Vectors(generation)
    if vectors.count != manifest.passages or vectors.dimension != manifest.encoder["dimension"]:
        yield VECTORS, f"it holds {vectors.count} vectors of {vectors.dimension} dimensions"
    if vectors.coarse is not None and vectors.coarse.ntotal != vectors.count:
        yield COARSE, f"it holds {vectors.coarse.ntotal} codes for {vectors.count} vectors"
    every = np.arange(vectors.count, dtype=np.int64)
    first = 0
    for block in merged(vectors, every, np.empty((0, vectors.dimension), np.float32)):
        norms = np.linalg.norm(block, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) < 0.01))  # not a number is wrong, too
        if len(wrong):
            yield VECTORS, f"vector {first + int(wrong[0])} has length {norms[wrong[0]]:.3g}, not 1"
        first += len(block)
    vectors.close()


def collect_garbage(directory: str | Path | None = None) -> int:
    """Removes older generations that nobody reads, abandoned drafts and vectors of unfinished builds.

    Returns:
        The bytes freed.

    Raises:
        NoIndex: there is no index.
        IndexBusy: a build is running.
    """
    directory = Path(directory or default_index())
    disk.current(directory)
    with BuildLock(directory):
        freed = disk.remove_old(directory, kept=1)
        for path in (directory / PENDING, directory / f"{PENDING}-journal", directory / f"{disk.POINTER}.new"):
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
        for draft in directory.glob("draft-*"):
            if draft.name[6:].isdigit():
                freed += sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
                shutil.rmtree(draft, ignore_errors=True)
    return freed


def passages(directory: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Every chunk of the current generation as a row of BEIR's corpus: `_id`, `title`, `text`, and its place.

    Raises:
        NoIndex: there is no index.
        IndexDamaged: it is damaged.
    """
    return _chunks(*disk.opened(Path(directory or default_index())))


def _chunks(generation: Path, _: Manifest, use: IO[bytes] | None) -> Iterator[dict[str, Any]]:
    db = open_read_only(generation)
    sql = (
        "SELECT chunk_id, heading, text, path, record, page, start, end FROM chunks "
        "JOIN files ON files.id = chunks.file JOIN passages USING (row) ORDER BY path, chunks.id"
    )
    try:
        for chunk_id, title, text, path, record, page, start, end in db.execute(sql):
            source = source_of(path, record)
            yield {"_id": chunk_id, "title": title, "text": text, "source": source, "page": page} | {
                "start": start,
                "end": end,
            }
    except sqlite3.DatabaseError as error:
        raise disk.damaged(generation.parent, f"{generation.name} cannot be read") from error
    finally:
        db.close()
        if use:
            use.close()
