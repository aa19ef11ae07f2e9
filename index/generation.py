"""One generation of an index on disk: its files, how they become current, how they are opened. Knows no documents.

DIR/CURRENT                 name of the generation that readers open; replaced atomically
DIR/lock                    held while a build runs
DIR/pending.sqlite3         vectors of an unfinished build; gone when one succeeds
DIR/gen-000007/manifest.json    schema, encoder, chunk settings, roots, a row per file, sizes of the other two
               vectors.faiss    row i is chunk i
               chunks.sqlite3   text and provenance
"""

import json
import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import IndexDamaged, NoIndex

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SCHEMA = 1
POINTER, MANIFEST, VECTORS, CHUNKS = "CURRENT", "manifest.json", "vectors.faiss", "chunks.sqlite3"
NAME = re.compile(r"gen-(\d{6,})")
FLAT_HEADER = 45
"""Bytes before the vectors in FAISS's file of a flat index; the last 8 are the number of floats that follow."""
KEPT = 2
"""Generations left on disk after a build: the current one, and the one that a reader may just be opening."""

TABLES = """
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,         -- row in the FAISS index
    chunk_id TEXT NOT NULL,
    source TEXT NOT NULL,           -- absolute path of the document
    page INTEGER,
    heading TEXT NOT NULL,
    start INTEGER NOT NULL,         -- characters in the document's extracted text
    end INTEGER NOT NULL,
    text TEXT NOT NULL,
    hash TEXT NOT NULL,             -- SHA-256 of the text
    key BLOB NOT NULL               -- SHA-256 of what was encoded
);
CREATE INDEX chunks_source ON chunks (source);
CREATE UNIQUE INDEX chunks_chunk_id ON chunks (chunk_id);
"""


@dataclass
class FileRow:
    """What the manifest says of one document."""

    size: int
    mtime_ns: int
    sha256: str
    chunks: int
    title: str = ""
    error: str = ""
    """Why the file could not be read; such a row has no chunks."""


@dataclass
class Manifest:
    """What a generation is made of, and from what."""

    encoder: dict[str, Any]
    precision: str
    chunker: dict[str, int]
    roots: list[str]
    """The paths given to the build, absolute."""
    built_at: float
    """Unix time at which the build began to look at files."""
    chunks: int = 0
    files: dict[str, FileRow] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    """Size of every other file of the generation."""
    faiss: str = "Flat"
    schema: int = SCHEMA


def current(directory: Path) -> Path:
    """Folder of the generation that the pointer names.

    Raises:
        NoIndex: there is no pointer.
        IndexDamaged: the pointer names nothing.
    """
    name = _pointed_to(directory)
    while not NAME.fullmatch(name) or not (directory / name).is_dir():
        before, name = name, _pointed_to(directory)
        if name == before:  # else builds have replaced it between the two looks
            raise damaged(directory, f"its pointer names {name[:40]!r}, which is not there")
    return directory / name


def _pointed_to(directory: Path) -> str:
    try:
        return (directory / POINTER).read_text("utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise NoIndex(
            f"there is no index at '{directory}'. Run: rag-index build FOLDER" + _index_option(directory)
        ) from None
    except OSError as error:
        raise IndexDamaged(
            f"the index at '{directory}' cannot be read ({error.strerror}): check its permissions"
        ) from None


def damaged(directory: Path, what: str) -> IndexDamaged:
    """The error for a broken index, with the command that repairs it."""
    return IndexDamaged(
        f"the index at '{directory}' is damaged: {what}. Run: rag-index build --rebuild FOLDER"
        + _index_option(directory)
    )


def _index_option(directory: Path) -> str:
    from index.paths import default_index

    return "" if directory == default_index() else f" --index {directory}"


def read_manifest(generation: Path) -> Manifest:
    """The generation's manifest, after checking that every file it names has the size it had.

    Raises:
        IndexDamaged: a file is missing, cut or not what it should be, or the schema is newer than this program.
    """
    directory = generation.parent
    try:
        raw = json.loads((generation / MANIFEST).read_text("utf-8"))
        schema = raw["schema"]
        if schema != SCHEMA:
            raise IndexDamaged(
                f"the index at '{directory}' has schema {schema}, this program reads {SCHEMA}: update the program, or "
                f"run: rag-index build --rebuild FOLDER{_index_option(directory)}"
            )
        files = {source: FileRow(**row) for source, row in raw.pop("files").items()}
        manifest = Manifest(files=files, **raw)
        sizes = {name: int(size) for name, size in manifest.bytes.items()}
        _check_types(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise damaged(directory, f"{generation.name}/{MANIFEST} cannot be read ({type(error).__name__})") from error
    for name in (VECTORS, CHUNKS):
        path = generation / name
        if not path.is_file() or path.stat().st_size != sizes.get(name):
            raise damaged(directory, f"{generation.name}/{name} is missing or cut")
    return manifest


def _check_types(manifest: Manifest) -> None:
    """Raises a TypeError where a hand or a flipped bit has changed a value into another kind."""
    fine = (
        isinstance(manifest.encoder, dict)
        and isinstance(manifest.encoder["dimension"], int)
        and isinstance(manifest.precision, str)
        and isinstance(manifest.chunker, dict)
        and all(isinstance(root, str) for root in manifest.roots)
        and isinstance(manifest.chunks, int)
        and 0 <= manifest.built_at < 1e11
    )
    if not fine:
        raise TypeError("a value is of the wrong kind")


def open_chunks(generation: Path) -> sqlite3.Connection:
    """The chunk table, read-only; may be shared by threads."""
    uri = (generation / CHUNKS).resolve().as_uri()
    try:
        return sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise damaged(generation.parent, f"{generation.name}/{CHUNKS} cannot be opened") from error


def read_vectors(generation: Path) -> Any:
    """The FAISS index."""
    import faiss

    path = generation / VECTORS
    try:
        with path.open("rb") as stream:
            (floats,) = struct.unpack_from("<Q", stream.read(FLAT_HEADER), FLAT_HEADER - 8)
        # FAISS allocates what the header tells before it misses the bytes: gigabytes, where that is damaged.
        if path.stat().st_size != FLAT_HEADER + 4 * floats:
            raise RuntimeError("the header tells another size")
        faiss_index = faiss.read_index(str(path))
    except (OSError, RuntimeError, struct.error) as error:
        raise damaged(generation.parent, f"{generation.name}/{VECTORS} is not a FAISS index") from error
    if faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise damaged(generation.parent, f"{generation.name}/{VECTORS} does not measure by inner product")
    return faiss_index


def flat_vectors(faiss_index: Any) -> "npt.NDArray[np.float32]":
    """All vectors of a flat index, (n_chunks, dimension) float32; a view that lives as long as the index."""
    import faiss
    import numpy as np

    if faiss_index.ntotal == 0:
        return np.empty((0, faiss_index.d), np.float32)
    view: npt.NDArray[np.float32] = faiss.rev_swig_ptr(faiss_index.get_xb(), faiss_index.ntotal * faiss_index.d)
    return view.reshape(faiss_index.ntotal, faiss_index.d)


def write_vectors(generation: Path, vectors: "npt.NDArray[np.float32]") -> None:
    """Writes an exact inner-product index of unit vectors, (n_chunks, dimension) float32."""
    import faiss

    faiss_index = faiss.IndexFlatIP(vectors.shape[1])
    faiss_index.add(vectors)
    try:
        faiss.write_index(faiss_index, str(generation / VECTORS))
    except RuntimeError as error:  # FAISS reports a full disk as a RuntimeError
        raise OSError(f"cannot write {generation / VECTORS}: the disk may be full") from error


def publish(draft: Path, manifest: Manifest) -> Path:
    """Flushes a finished draft, gives it the next number and makes it current; older generations are removed."""
    directory = draft.parent
    manifest.bytes = {name: (draft / name).stat().st_size for name in (VECTORS, CHUNKS)}
    (draft / MANIFEST).write_text(json.dumps(asdict(manifest), ensure_ascii=False, indent=1), "utf-8")
    for name in (VECTORS, CHUNKS, MANIFEST):
        _flush(draft / name)
    _flush(draft)
    numbers = [number for number, _ in _generations(directory)]
    final = directory / f"gen-{max(numbers, default=0) + 1:06d}"
    pointer = directory / f"{POINTER}.new"
    pointer.write_text(final.name + "\n", "utf-8")
    _flush(pointer)
    draft.rename(final)  # only now: nothing that needs room follows, so a full disk leaves no orphan
    pointer.replace(directory / POINTER)
    _flush(directory)
    for _, old in sorted(_generations(directory))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _generations(directory: Path) -> Iterator[tuple[int, Path]]:
    for path in directory.iterdir():
        if match := NAME.fullmatch(path.name):
            yield int(match[1]), path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
