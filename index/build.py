"""Documents to a new generation of an index, reading and encoding only what changed. Searching stands in engine.py."""

import hashlib
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index import generation as disk
from index.chunker import Chunk, ChunkSettings, chunk
from index.encoder import Encoder, SentenceEncoder, mismatch
from index.errors import IndexBusy, LoadError, NoDocuments, NoIndex
from index.generation import FileRow, Manifest
from index.loaders import LOADERS, load
from index.paths import default_index, shown
from index.pending import Pending
from index.scan import Scan, scan

Progress = Callable[[str, int, int], None]
"""Called with the stage ('reading' or 'encoding'), the number done and the number in all."""

PENDING = "pending.sqlite3"
DRAFT = re.compile(r"draft-\d{10,}")
ENCODED_AT_ONCE = 256
"""Chunks between two saves of finished vectors."""
RACY_NS = 2_000_000_000
"""A file changed this shortly before it was read may have changed again within its clock tick: its hash decides."""


@dataclass
class BuildReport:
    """What a build did; the JSON form of `rag-index build`."""

    generation: str
    files_seen: int
    """Documents of a known format below the given paths."""
    files_indexed: int = 0
    """Read anew by this build."""
    files_unchanged: int = 0
    files_removed: int = 0
    files_failed: list[dict[str, str]] = field(default_factory=list)
    """`path` and `error` of each document that could not be read."""
    files_skipped: list[dict[str, str]] = field(default_factory=list)
    """`path` and `reason` of what was passed over: unknown formats, hidden files, links that lead out."""
    chunks: int = 0
    """In the whole index after the build."""
    chunks_encoded: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def build(
    paths: Iterable[str | Path],
    directory: str | Path | None = None,
    *,
    encoder: Encoder | Callable[[], Encoder] = SentenceEncoder,
    settings: ChunkSettings | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Brings the index up to date with the documents below `paths`; others that are in it stay.

    Args:
        paths: files and folders. None given: the paths of earlier builds.
        directory: the index; `./.rag/index` by default.
        encoder: an encoder, or what makes one (it is called only once there is something to read).
        settings: chunk sizes.
        rebuild: starts from nothing and keeps only the documents below `paths`.
        progress: told how far the build is.

    Raises:
        NoDocuments: a path does not exist, or no document below the paths can be read; nothing is changed.
        IndexMismatch: the index was built with another encoder.
        IndexDamaged: the index is damaged and `rebuild` is not set.
        IndexBusy: another build of the same index is running.
    """
    began = time.time()
    directory, settings = Path(directory or default_index()), settings or ChunkSettings()
    given = [Path(path) for path in paths]
    _check_places(directory, given)
    before = None if rebuild else _before(directory)
    earlier = [Path(root) for root in (before[1].roots if before else [])]
    roots = given or earlier
    if not roots:
        raise NoDocuments("no folder to index is given. Run: rag-index build FOLDER")
    if before and before[1].chunker != settings.as_dict():  # every document is cut anew, not only those below `paths`
        roots += [root for root in earlier if root.exists() and root not in roots]
    found = scan(roots, LOADERS, directory)
    if not found.files and not (before and _gone(before[1], found)):
        raise NoDocuments(_nothing(found))
    build_ = _Build(directory, found, settings, began, progress or (lambda *_: None))
    with _Lock(directory):
        # Read again: another build may have finished while this one looked for files.
        return build_.run(None if rebuild else _before(directory), encoder)


def _check_places(directory: Path, paths: list[Path]) -> None:
    """Refuses an index folder with somebody else's files in it, since builds remove what looks like old generations."""
    for path in (directory, *paths):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise NoDocuments(f"the name of '{shown(str(path))}' is not valid UTF-8: rename it") from None
    if directory.exists() and not directory.is_dir():
        raise NoDocuments(f"'{directory}' is a file: name a folder for the index (--index, RAG_HOME)")
    if directory.is_dir():
        names = {path.name for path in directory.iterdir()}
        if names and not names & {disk.POINTER, PENDING, "lock"}:
            raise NoDocuments(f"'{directory}' holds other files and no index: name a new or an empty folder by --index")


def _before(directory: Path) -> tuple[Path, Manifest] | None:
    try:
        generation = disk.current(directory)
    except NoIndex:
        return None
    return generation, disk.read_manifest(generation)


def _below(source: str, roots: list[Path]) -> bool:
    return any(Path(source).is_relative_to(root) for root in roots)


def _gone(manifest: Manifest, found: Scan) -> list[str]:
    """Documents of earlier builds that lie below the given paths and are there no more."""
    return [s for s in manifest.files if _below(s, found.roots) and Path(s) not in found.files]


def _nothing(found: Scan) -> str:
    where = ", ".join(f"'{shown(str(root))}'" for root in found.roots)
    passed = f" ({len(found.skipped)} files of other kinds were passed over)" if found.skipped else ""
    return f"no document under {where}{passed}: give a folder with {' '.join(sorted(LOADERS))} files"


def _readable(path: Path) -> str:
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _Lock:
    """Held while a build runs. Removes the index folder again if the build left nothing in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        from filelock import FileLock, Timeout

        self._made = [p for p in (self._directory, *self._directory.parents) if not p.exists()]
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._directory / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise IndexBusy(f"another build of '{self._directory}' is running: wait for it to end") from None

    def __exit__(self, *_: object) -> None:
        kept = (self._directory / disk.POINTER, self._directory / PENDING)
        if self._made and not any(path.exists() for path in kept):
            shutil.rmtree(self._directory, ignore_errors=True)  # with the lock held: nobody has begun a build in it
            with suppress(OSError):  # somebody else put something there meanwhile
                for parent in self._made[1:]:
                    parent.rmdir()
        self._lock.release()


class _Build:
    """One run of `build`, with the lock held."""

    def __init__(self, directory: Path, found: Scan, settings: ChunkSettings, began: float, progress: Progress) -> None:
        self.directory, self.found, self.settings, self.began = directory, found, settings, began
        self.progress = progress
        self.report = BuildReport("", len(found.files))
        self.report.files_skipped = [{"path": _readable(path), "reason": reason} for path, reason in found.skipped]
        self.old: tuple[Path, Manifest] | None = None

    def run(self, before: tuple[Path, Manifest] | None, encoder: Encoder | Callable[[], Encoder]) -> BuildReport:
        self.old = before
        for abandoned in self.directory.glob("draft-*"):
            if DRAFT.fullmatch(abandoned.name):
                shutil.rmtree(abandoned, ignore_errors=True)
        if before and self._same(before[1]):
            return self._finish(before[0].name, before[1].chunks)
        self.encoder = encoder() if callable(encoder) else encoder
        self._check_encoder()
        draft = self.directory / f"draft-{time.time_ns()}"
        draft.mkdir()
        try:
            return self._write(draft)
        except sqlite3.OperationalError as error:  # SQLite's word for a full disk
            raise OSError(f"the index at '{self.directory}' cannot be written ({error})") from error
        except sqlite3.DatabaseError as error:
            if not self.old:
                raise
            raise disk.damaged(self.directory, f"{self.old[0].name}/{disk.CHUNKS} cannot be read") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _same(self, old: Manifest) -> bool:
        """Whether nothing below the roots differs from the last build; reads only files whose clock is in doubt."""
        if old.chunker != self.settings.as_dict() or set(map(str, self.found.roots)) - set(old.roots):
            return False
        if _gone(old, self.found) or any(not self._unchanged(path) for path in self.found.files):
            return False
        for path in self.found.files:
            self._count_unchanged(str(path), old.files[str(path)])
        return True

    def _count_unchanged(self, source: str, row: FileRow) -> None:
        if row.error:
            self.report.files_failed.append({"path": source, "error": row.error})
        else:
            self.report.files_unchanged += 1

    def _unchanged(self, path: Path) -> bool:
        row = self.old[1].files.get(str(path)) if self.old else None
        if self.old is None or row is None:
            return False
        stat = self.found.files[path]
        if stat.st_size != row.size:
            return False
        racy = stat.st_mtime_ns > self.old[1].built_at * 1e9 - RACY_NS
        if stat.st_mtime_ns == row.mtime_ns and not racy:
            return True
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == row.sha256
        except OSError:
            return False

    def _check_encoder(self) -> None:
        identity = self.encoder.identity.as_dict()
        if self.old and self.old[1].encoder != identity:
            raise mismatch(self.old[1].encoder, self.encoder)

    def _write(self, draft: Path) -> BuildReport:
        manifest = Manifest(
            encoder=self.encoder.identity.as_dict(),
            precision=self.encoder.precision,
            chunker=self.settings.as_dict(),
            roots=sorted({*map(str, self.found.roots), *(self.old[1].roots if self.old else [])}),
            built_at=self.began,
        )
        db = sqlite3.connect(draft / disk.CHUNKS)
        db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + disk.TABLES)
        try:
            self._collect(db, manifest)
            if not manifest.chunks:
                raise NoDocuments(self._all_failed())
            keys = [row[0] for row in db.execute("SELECT key FROM chunks ORDER BY id")]
            disk.write_vectors(draft, self._vectors(db, keys))
            db.commit()
        finally:
            db.close()
        final = disk.publish(draft, manifest)
        (self.directory / PENDING).unlink(missing_ok=True)
        return self._finish(final.name, manifest.chunks)

    def _finish(self, generation: str, chunks: int) -> BuildReport:
        self.report.generation, self.report.chunks = generation, chunks
        self.report.seconds = round(time.time() - self.began, 3)
        return self.report

    def _all_failed(self) -> str:
        failed = self.report.files_failed
        if not failed:
            return _nothing(self.found)
        where = ", ".join(f"'{shown(str(root))}'" for root in self.found.roots)
        first = f"{shown(failed[0]['path'])}: {failed[0]['error']}"
        return f"no document under {where} can be read ({len(failed)} failed; the first: {first})"

    def _collect(self, db: sqlite3.Connection, manifest: Manifest) -> None:
        """Fills the chunk table and the manifest's file rows, document by document."""
        old_rows = self.old[1].files if self.old else {}
        kept = {s: row for s, row in old_rows.items() if not _below(s, self.found.roots)}
        self.report.files_removed = len(_gone(self.old[1], self.found)) if self.old else 0
        rechunk = bool(self.old) and self.old[1].chunker != self.settings.as_dict()  # type: ignore[index]
        if self.old:
            db.execute("ATTACH ? AS old", (str(self.old[0] / disk.CHUNKS),))
        for source, row in kept.items():
            self._copy(db, manifest, source, row)
        for number, path in enumerate(self.found.files):
            self.progress("reading", number, len(self.found.files))
            if not rechunk and self._unchanged(path):
                self._copy(db, manifest, str(path), old_rows[str(path)])
                self._count_unchanged(str(path), old_rows[str(path)])
            else:
                self._read(db, manifest, path)
        self.progress("reading", len(self.found.files), len(self.found.files))
        read = self.report.files_indexed + self.report.files_unchanged + self.report.files_removed
        if not read and not any(old_rows[str(path)].chunks for path in self.found.files if str(path) in old_rows):
            raise NoDocuments(self._all_failed())
        db.commit()

    def _copy(self, db: sqlite3.Connection, manifest: Manifest, source: str, row: FileRow) -> None:
        columns = "chunk_id, source, page, heading, start, end, text, hash, key"
        db.execute(
            f"INSERT INTO chunks (id, {columns}) SELECT ? + row_number() OVER (ORDER BY id) - 1, {columns} "
            "FROM old.chunks WHERE source = ? ORDER BY id",
            (manifest.chunks, source),
        )
        if Path(source) in self.found.files:
            row = FileRow(**{**asdict(row), "mtime_ns": self.found.files[Path(source)].st_mtime_ns})
        manifest.files[source] = row
        manifest.chunks += row.chunks

    def _read(self, db: sqlite3.Connection, manifest: Manifest, path: Path) -> None:
        stat, source = self.found.files[path], str(path)
        row = manifest.files[source] = FileRow(stat.st_size, stat.st_mtime_ns, "", 0)
        try:
            data = path.read_bytes()
            row.sha256 = hashlib.sha256(data).hexdigest()
            document = load(path, data)
            chunks = chunk(document, self.encoder.tokenize, self.settings)
            if not chunks:
                raise LoadError("the file holds no text")
            title = document.title or path.stem
            rows = [self._row(manifest.chunks + i, source, c, title) for i, c in enumerate(chunks)]
        except OSError as error:
            row.error = f"cannot be opened ({error.strerror})"
            row.mtime_ns = 0  # tried again by the next build: a permission leaves no trace in size or time
        except LoadError as error:
            row.error = str(error)
        except Exception as error:  # whatever a parser stumbles over, one document never stops the build
            row.error = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        if row.error:
            self.report.files_failed.append({"path": source, "error": row.error})
            return
        row.title, row.chunks = document.title, len(chunks)
        db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        manifest.chunks += len(chunks)
        self.report.files_indexed += 1

    def _row(self, number: int, source: str, c: Chunk, title: str) -> tuple[Any, ...]:
        digest = hashlib.sha256(c.text.encode()).hexdigest()
        chunk_id = hashlib.sha256(f"{source}\0{c.start}\0{digest}".encode()).hexdigest()[:16]
        key = hashlib.sha256(self._encoded(c.heading or title, c.text).encode()).digest()
        return (number, chunk_id, source, c.page, c.heading or title, c.start, c.end, c.text, digest, key)

    def _encoded(self, heading: str, text: str) -> str:
        """What the encoder sees of a chunk: the end of its heading path, which is the most specific, and its text."""
        spans = self.encoder.tokenize(heading)
        if len(spans) > self.settings.heading_tokens:
            heading = heading[spans[-self.settings.heading_tokens][0] :]
        return f"{heading}\n{text}"

    def _vectors(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> Any:
        """A vector for every chunk, in order: from the last generation, from an unfinished build, or encoded now."""
        import numpy as np

        vectors = np.empty((len(keys), self.encoder.identity.dimension), np.float32)
        known = self._old_rows(db)
        if known and self.old:
            old_index = disk.read_vectors(self.old[0])
            old_vectors = disk.flat_vectors(old_index)
            for i, key in enumerate(keys):
                if key in known:
                    vectors[i] = old_vectors[known[key]]
        rows: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            if key not in known:
                rows.setdefault(key, []).append(i)
        for key, vector in self._encode(db, {key: at[0] for key, at in rows.items()}).items():
            vectors[rows[key]] = vector
        return vectors

    def _old_rows(self, db: sqlite3.Connection) -> dict[bytes, int]:
        return dict(db.execute("SELECT key, id FROM old.chunks")) if self.old else {}

    def _encode(self, db: sqlite3.Connection, wanted: dict[bytes, int]) -> dict[bytes, Any]:
        """Vectors of the chunks `wanted` (key to row), each batch saved as soon as it is finished."""
        import numpy as np

        if not wanted:
            return {}
        salt = repr(sorted(self.encoder.identity.as_dict().items())).encode()
        saved_as = {key: hashlib.sha256(salt + key).digest() for key in wanted}
        pending = Pending(self.directory / PENDING)
        try:
            saved = pending.get(list(saved_as.values()), self.encoder.identity.dimension)
            result = {key: saved[saved_as[key]] for key in wanted if saved_as[key] in saved}
            texts = [(key, self._text(db, row)) for key, row in wanted.items() if key not in result]
            texts.sort(key=lambda pair: -len(pair[1]))
            for first in range(0, len(texts), ENCODED_AT_ONCE):
                self.progress("encoding", first, len(texts))
                batch = texts[first : first + ENCODED_AT_ONCE]
                step = first  # bound now: the encoder calls back within this round
                vectors = self.encoder.encode(
                    [text for _, text in batch],
                    lambda done, step=step: self.progress("encoding", step + done, len(texts)),  # type: ignore[misc]
                )
                pending.put([saved_as[key] for key, _ in batch], np.asarray(vectors, np.float32))
                result.update(zip((key for key, _ in batch), vectors, strict=True))
            self.report.chunks_encoded = len(texts)
        finally:
            pending.close()
        return result

    def _text(self, db: sqlite3.Connection, row: int) -> str:
        heading, text = db.execute("SELECT heading, text FROM chunks WHERE id = ?", (row,)).fetchone()
        return self._encoded(heading, text)
