"""One generation of an index on disk: its parts, how it becomes current, how long it stays. Knows no documents.

DIR/CURRENT                 name of the generation that readers open and its manifest's SHA-256; replaced atomically
DIR/lock                    held while a build runs
DIR/pending.sqlite3         vectors of an unfinished build; gone when one succeeds
DIR/gen-000007/manifest.json    schema, encoder, settings, roots, counts; size and hashes of every part
               chunks.sqlite3   files, passages, their places, terms (store.py)
               vectors.faiss    row i is passage i; coarse.faiss beside it where there are many (vectors.py)
               bm25/            the lexical index, in bm25s' form (lexical.py)
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from index.errors import IndexDamaged, NoIndex

try:
    import fcntl
except ImportError:  # Windows: what keeps an old generation there is that open files cannot be deleted
    fcntl = None  # type: ignore[assignment]

SCHEMA = 2
POINTER, MANIFEST = "CURRENT", "manifest.json"
NAME = re.compile(r"gen-([0-9]{6,})")
POINTED = re.compile(r"(gen-[0-9]{6,})(?: ([0-9a-f]{64}))?\n")
"""Without a hash in schema 1."""
KEPT = 2
"""Generations left on disk after a build: the current one, and the last, whose vectors a change of mind can use."""
HEAD = 1 << 16
"""Bytes at the start of a part that are hashed at every opening: a header that lies is never acted upon."""
MANIFEST_BYTES = 64 << 20
"""A longer manifest is none that a build wrote."""
HASHED_AT_OPENING = 64 << 20
"""Generations of at most this many bytes (0.05 s) are hashed whole at every opening; larger ones by `verify`."""


@dataclass(frozen=True)
class Part:
    """What the manifest says of a file of the generation."""

    bytes: int
    sha256: str
    head: str
    """SHA-256 of the first 64 KiB."""


@dataclass
class Manifest:
    """What a generation is made of, and from what. The row per document stands in chunks.sqlite3, table `files`."""

    encoder: dict[str, Any]
    precision: str
    chunker: dict[str, int]
    lexical: dict[str, Any]
    roots: list[dict[str, Any]]
    """The paths given to the build, absolute, with their patterns."""
    built_at: float
    """Unix time at which the build began to look at files."""
    removed: list[str] = field(default_factory=list)
    """Paths below the roots that `rm` took out; builds pass over them."""
    ocr: bool = False
    files: int = 0
    files_failed: int = 0
    chunks: int = 0
    passages: int = 0
    """Different texts among the chunks; each has one vector."""
    faiss: str = ""
    parts: dict[str, Part] = field(default_factory=dict)
    schema: int = SCHEMA


def current(directory: Path) -> Path:
    """Folder of the generation that the pointer names.

    Raises:
        NoIndex: there is no pointer.
        IndexDamaged: the pointer names nothing.
    """
    return pointed_to(directory)[0]


def pointed_to(directory: Path) -> tuple[Path, str]:
    """The generation that the pointer names, and its manifest's SHA-256."""
    line = _pointer(directory)
    while True:
        found = POINTED.fullmatch(line)
        if found and (directory / found[1]).is_dir():
            return directory / found[1], found[2] or ""
        before, line = line, _pointer(directory)
        if line == before:  # else builds have replaced it between the two looks
            raise damaged(directory, f"its pointer names {(found[1] if found else line[:40])!r}, which is not there")


def _pointer(directory: Path) -> str:
    try:
        return _small(directory / POINTER, HEAD).decode("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        raise NoIndex(
            f"there is no index at '{directory}'. Run: rag-index build FOLDER" + _index_option(directory)
        ) from None
    except OSError as error:
        raise IndexDamaged(
            f"the index at '{directory}' cannot be read ({error.strerror}): check its permissions"
        ) from None


def _opened(path: Path) -> BufferedReader:
    """A regular file, opened; a pipe or a device in its place would make whoever opens it wait, or never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    stream = open(descriptor, "rb")  # noqa: PTH123, SIM115  (a descriptor, closed by the caller)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a file of the index")
    return stream


def _small(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes."""
    with _opened(path) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise OSError(errno.EFBIG, "not a file of the index")
        return stream.read(most)


def damaged(directory: Path, what: str) -> IndexDamaged:
    """The error for a broken index, with the command that repairs it."""
    return IndexDamaged(
        f"the index at '{directory}' is damaged: {what}. Run: rag-index build --rebuild FOLDER"
        + _index_option(directory)
    )


def _index_option(directory: Path) -> str:
    from index.paths import default_index

    return "" if directory == default_index() else f" --index {directory}"


def read_manifest(generation: Path, digest: str) -> Manifest:
    """The generation's manifest, after checking it against the pointer and the parts against it.

    Args:
        generation: the folder.
        digest: the manifest's SHA-256, as the pointer tells it.

    Raises:
        IndexDamaged: a part is missing, cut or changed, or the schema is not this program's.
    """
    directory, where = generation.parent, f"{generation.name}/{MANIFEST}"
    try:
        data = _small(generation / MANIFEST, MANIFEST_BYTES)
        raw = json.loads(data)
        schema = raw["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(directory, f"{where} cannot be read ({type(error).__name__})") from error
    if schema != SCHEMA:
        raise IndexDamaged(
            f"the index at '{directory}' has schema {schema}, this program reads {SCHEMA}: "
            + ("update the program, or " if isinstance(schema, int) and schema > SCHEMA else "")
            + f"run: rag-index build --rebuild FOLDER{_index_option(directory)}"
        )
    if hashlib.sha256(data).hexdigest() != digest:
        raise damaged(directory, f"{where} is not the one that was written")
    try:
        parts = {name: Part(**part) for name, part in raw.pop("parts").items()}
        manifest = Manifest(parts=parts, **raw)
        whole = sum(part.bytes for part in parts.values()) <= HASHED_AT_OPENING
        int(manifest.encoder["dimension"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(directory, f"{where} does not have its form ({type(error).__name__})") from error
    for name, part in parts.items():
        if fault := _wrong(generation / name, part, whole):
            raise damaged(directory, f"{generation.name}/{name} {fault}")
    return manifest


def _wrong(path: Path, part: Part, whole: bool) -> str:
    try:
        if path.stat().st_size != part.bytes:
            return "is cut"
        with _opened(path) as stream:
            if hashlib.sha256(stream.read(HEAD)).hexdigest() != part.head:
                return "has changed since it was written"
        return "has changed since it was written" if whole and sha256(path) != part.sha256 else ""
    except OSError:
        return "is missing"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with _opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_whole(generation: Path, manifest: Manifest) -> None:
    """Hashes every part, so that a build copies no damage into the next generation.

    Raises:
        IndexDamaged: a part is not, byte for byte, what was written.
    """
    for name, part in manifest.parts.items():
        if fault := _wrong(generation / name, part, whole=True):
            raise damaged(generation.parent, f"{generation.name}/{name} {fault}")


def verify_parts(generation: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Name and fault of every part that is not, byte for byte, what was written, and of every file that is no part."""
    for name, part in manifest.parts.items():
        if error := _wrong(generation / name, part, whole=True):
            yield name, error
    known = {MANIFEST, *manifest.parts}
    for path in sorted(generation.rglob("*")):
        if path.is_file() and path.relative_to(generation).as_posix() not in known:
            yield path.relative_to(generation).as_posix(), "does not belong to the index"


def opened(directory: Path) -> tuple[Path, Manifest, BufferedReader | None]:
    """The current generation, its manifest, and what keeps it on disk until it is closed (see `in_use`).

    Raises:
        NoIndex: there is none.
        IndexDamaged: it is damaged.
    """
    while True:  # builds may remove it between reading the pointer and opening it
        generation, digest = pointed_to(directory)
        use = None
        try:
            use = in_use(generation)
            return generation, read_manifest(generation, digest), use
        except (OSError, IndexDamaged) as error:
            if use:
                use.close()
            if pointed_to(directory) == (generation, digest):
                if isinstance(error, IndexDamaged):
                    raise
                raise damaged(directory, f"{generation.name}/{MANIFEST} is missing") from error


def in_use(generation: Path) -> BufferedReader | None:
    """Marks a generation as read by this process until what is returned is closed; it is not removed before.

    Raises:
        FileNotFoundError: a build has just removed it.
    """
    stream = _opened(generation / MANIFEST)
    if fcntl:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # held by a build that is about to remove it, maybe not yet begun to
            stream.close()
            raise FileNotFoundError(generation) from None
        except OSError:  # a file system without locks
            stream.close()
            return None
    return stream


def publish(draft: Path, manifest: Manifest) -> Path:
    """Flushes a finished draft, gives it the next number and makes it current; older generations are removed."""
    directory = draft.parent
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    manifest.parts = {path.relative_to(draft).as_posix(): _part(path) for path in files}
    text = json.dumps(asdict(manifest), ensure_ascii=False, indent=1)
    (draft / MANIFEST).write_text(text, "utf-8")
    for path in (*files, draft / MANIFEST, *(path for path in draft.rglob("*") if path.is_dir()), draft):
        flush(path)
    numbers = [number for number, _ in _generations(directory)]
    final = directory / f"gen-{max(numbers, default=0) + 1:06d}"
    pointer = directory / f"{POINTER}.new"
    pointer.unlink(missing_ok=True)  # a link in its place would be written through
    pointer.write_text(f"{final.name} {hashlib.sha256(text.encode()).hexdigest()}\n", "utf-8")
    flush(pointer)
    draft.rename(final)  # only now: nothing that needs room follows, so a full disk leaves no orphan
    pointer.replace(directory / POINTER)
    flush(directory)
    remove_old(directory, KEPT)
    return final


def _part(path: Path) -> Part:
    with path.open("rb") as stream:
        head = hashlib.sha256(stream.read(HEAD)).hexdigest()
    return Part(path.stat().st_size, sha256(path), head)


def remove_old(directory: Path, kept: int) -> int:
    """Removes all but the newest `kept` generations, and none that somebody reads; returns the bytes freed."""
    freed = 0
    older = others(current(directory))  # also newer ones, of builds that were killed before they moved the pointer
    for old in older[kept - 1 :]:
        size = sum(path.stat().st_size for path in old.rglob("*") if path.is_file())
        if _lock_to_remove(old):
            freed += size
            shutil.rmtree(old, ignore_errors=True)
    return freed


def _lock_to_remove(generation: Path) -> bool:
    """Whether nobody reads it. A reader that opens it from now on finds its files gone and looks at the pointer."""
    if not fcntl:
        return True
    with suppress(OSError):
        with _opened(generation / MANIFEST) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (generation / MANIFEST).unlink()
        return True
    return not (generation / MANIFEST).exists()  # the rest of one whose removal was interrupted


def _generations(directory: Path) -> Iterator[tuple[int, Path]]:
    for path in directory.iterdir():
        if (match := NAME.fullmatch(path.name)) and not path.is_symlink():
            yield int(match[1]), path


def others(generation: Path) -> list[Path]:
    """Generations beside this one, newest first."""
    return [path for _, path in sorted(_generations(generation.parent), reverse=True) if path != generation]


def flush(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
