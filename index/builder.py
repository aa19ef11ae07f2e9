"""Documents to a new generation of an index, reading and encoding only what changed. Searching stands in engine.py."""

import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index import generation as disk
from index import lexical, vectors
from index.chunker import ChunkSettings
from index.embedding import Progress, embed
from index.encoder import Encoder, SentenceEncoder, mismatch
from index.errors import NoDocuments, NoIndex, RagError
from index.generation import Manifest
from index.loaders import is_known
from index.lock import LOCK, PENDING, BuildLock
from index.paths import default_index, shown
from index.placing import named_apart, place
from index.plan import Plan, Wish, make_plan, nothing_found
from index.reader import Limits, Read, Reader
from index.scan import Root, Scan
from index.store import Draft, FileRow, Placed, clamped, open_read_only, read_files


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
    warnings: list[dict[str, str]] = field(default_factory=list)
    """`path` and `warning` of each thing in a document that was passed over, such as a bad line."""
    chunks: int = 0
    """In the whole index after the build."""
    chunks_encoded: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def build(
    paths: str | Path | Iterable[str | Path],
    directory: str | Path | None = None,
    *,
    encoder: Encoder | Callable[[], Encoder] = SentenceEncoder,
    settings: ChunkSettings | None = None,
    rebuild: bool = False,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    ignore_files: bool | None = None,
    ocr: bool | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Brings the index up to date with the documents below `paths`; others that are in it stay.

    Args:
        paths: files and folders. None given: the paths of earlier builds.
        directory: the index; `./.rag/index` by default.
        encoder: an encoder, or what makes one (it is called only once there is something to read).
        settings: chunk sizes; those of the index by default.
        rebuild: starts from nothing and keeps only the documents below `paths`.
        include: patterns as in .gitignore; a file in a folder must match one. As in earlier builds by default.
        exclude: patterns of what is left out.
        ignore_files: whether .gitignore and .ragignore files count; they do by default.
        ocr: reads the text in pages that are only images (the extra `ocr`). As in earlier builds by default.
        limits: what one document may cost in time and memory.
        progress: told how far the build is.

    Raises:
        NoDocuments: a path does not exist, or no document below the paths can be read; nothing is changed.
        IndexMismatch: the index was built with another encoder.
        IndexDamaged: the index is damaged and `rebuild` is not set.
        IndexBusy: another build of the same index is running.
    """
    directory = Path(directory or default_index())
    given = (paths,) if isinstance(paths, str | Path) else tuple(paths)
    wish = Wish(
        tuple(map(Path, given)),
        None if include is None else tuple(include),
        None if exclude is None else tuple(exclude),
        ignore_files,
        lambda path: is_known(path.name),
    )
    _check_places(directory, wish.paths)
    run = _Build(directory, wish, encoder, progress or (lambda *_: None))
    run.ocr, run.limits = ocr, limits
    with run.lock():
        return run.update(rebuild, settings)


def remove(paths: Iterable[str | Path], directory: str | Path | None = None) -> BuildReport:
    """Takes the documents at or below `paths` out of the index, and keeps them out until a build names one of them.

    Raises:
        NoDocuments: the index holds none below one of the paths.
        NoIndex: there is no index.
    """
    directory = Path(directory or default_index())
    disk.current(directory)
    run = _Build(directory, Wish(tuple(map(Path, paths))), SentenceEncoder, lambda *_: None)
    with run.lock():
        return run.remove()


def _check_places(directory: Path, paths: Iterable[Path]) -> None:
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
        if names and not names & {disk.POINTER, PENDING, LOCK}:
            raise NoDocuments(f"'{directory}' holds other files and no index: name a new or an empty folder by --index")


class _Build:
    """One run of `build` or `remove`."""

    ocr: bool | None = None
    limits: Limits | None = None

    def __init__(
        self, directory: Path, wish: Wish, encoder: Encoder | Callable[[], Encoder], progress: Progress
    ) -> None:
        self.directory, self.wish, self.progress = directory, wish, progress
        self._make_encoder = encoder
        self._encoder: Encoder | None = None
        self.began = time.time()
        self.report = BuildReport("", 0)
        self.old: Path | None = None
        self.manifest: Manifest | None = None
        self.files: dict[str, FileRow] = {}
        self._drafts: list[Path] = []

    def lock(self) -> BuildLock:
        """The lock to hold while this runs."""
        return BuildLock(self.directory)

    # Planning

    def update(self, rebuild: bool, settings: ChunkSettings | None) -> BuildReport:
        """Reads what changed, and publishes a generation if anything did."""
        self._open_old(rebuild)
        before = ChunkSettings(**self.manifest.chunker) if self.manifest else ChunkSettings()
        self._choose_ocr()
        self.settings = settings or before
        anew = self.manifest is not None and (self.settings != before or self.manifest.lexical != lexical.SETTINGS)
        plan = make_plan(self.wish, self.manifest or self._before(), self.files, anew, self.directory, rebuild)
        self.report.files_seen = len(plan.found.files)
        self.report.files_skipped = [{"path": _readable(p), "reason": reason} for p, reason in plan.found.skipped]
        if not plan.found.files and not plan.gone and not plan.found.unreadable:
            raise nothing_found(plan.found)
        if anew:
            plan.read, plan.unchanged = list(plan.found.files), []
        with Reader(self.limits, ocr=bool(self.ocr)) as reader:
            reads = self._told(plan, reader.read(plan.read), anew)
            for row in plan.unchanged:
                self._count_unchanged(row)
            first = next(reads, None)
            if first is None and not plan.gone and self._roots_stay(plan):
                assert self.old and self.manifest
                return self._finish(self.old.name, self.manifest.chunks)
            reads = _chain(first, reads)
            return self._publish(plan, lambda draft: self._read(draft, plan, reads), anew)

    def remove(self) -> BuildReport:
        """Publishes a generation without the documents below the wish's paths."""
        self._open_old(rebuild=False)
        assert self.manifest
        self.settings = ChunkSettings(**self.manifest.chunker)
        self._choose_ocr()
        paths = [str(path) for path in map(_absolute, self.wish.paths)]
        gone = {path: [source for source in self.files if _at_or_below(source, [path])] for path in paths}
        roots = [row for row in self.manifest.roots if not _at_or_below(row["path"], paths)]
        for path in paths:
            if not gone[path] and len(roots) == len(self.manifest.roots):
                raise NoDocuments(f"the index holds nothing at '{shown(path)}'. What it holds: rag-index status --json")
        plan = Plan([], sorted({*self.manifest.removed, *paths}), found=Scan([]))
        plan.gone = sorted({source for below in gone.values() for source in below})
        return self._publish(plan, lambda draft: self._take_out(draft, plan), anew=False, roots=roots)

    def _open_old(self, rebuild: bool) -> None:
        for abandoned in self.directory.glob("draft-*"):
            if abandoned.name[6:].isdigit():
                shutil.rmtree(abandoned, ignore_errors=True)
        if rebuild:
            return
        try:
            self.old, digest = disk.pointed_to(self.directory)
        except NoIndex:
            return
        self.manifest = disk.read_manifest(self.old, digest)
        db = open_read_only(self.old)
        try:
            self.files = read_files(db)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise disk.damaged(self.directory, f"{self.old.name} cannot be read") from error
        finally:
            db.close()

    def _before(self) -> Manifest | None:
        """For a rebuild: what the last one, if it can be read, was asked for."""
        with suppress(RagError):
            return disk.read_manifest(*disk.pointed_to(self.directory))
        return None

    def _choose_ocr(self) -> None:
        """OCR as asked for, else as before; where it is new, what could not be read is tried again."""
        before = self.manifest is not None and self.manifest.ocr
        if self.ocr is None:
            self.ocr = before
        if self.ocr and not before:
            for row in self.files.values():
                row.again = row.again or bool(row.error)

    def _roots_stay(self, plan: Plan) -> bool:
        wanted = _listed(plan), plan.removed, bool(self.ocr)
        manifest = self.manifest
        return manifest is not None and (manifest.roots, manifest.removed, manifest.ocr) == wanted

    def _told(self, plan: Plan, reads: Iterator[Read], anew: bool) -> Iterator[Read]:
        """What was read, without the documents that cannot be opened: what cannot today may tomorrow."""
        total = len(plan.read)
        for number, read in enumerate(reads):
            self.progress("reading", number, total)
            old = self.files.get(str(read.path))
            if not (old and read.error and read.again and old.error in ("", read.error)):
                yield read
            elif anew and old.chunks:  # it cannot be cut anew, and would be lost
                remedy = "make it readable, or take it out by rag-index rm"
                raise NoDocuments(f"'{shown(old.path)}' {read.error}: {remedy}")
            elif anew:
                yield read
            else:
                self.report.files_failed.append({"path": old.path, "error": read.error})
        self.progress("reading", total, total)

    def _count_unchanged(self, row: FileRow) -> None:
        if row.error:
            self.report.files_failed.append({"path": row.path, "error": row.error})
        else:
            self.report.files_unchanged += 1

    # Writing

    def _publish(
        self, plan: Plan, fill: Callable[[Draft], None], anew: bool, roots: list[dict[str, Any]] | None = None
    ) -> BuildReport:
        if self.old and self.manifest:
            disk.check_whole(self.old, self.manifest)  # what is copied is signed anew
        folder = self.directory / f"draft-{time.time_ns()}"
        try:
            folder.mkdir()  # within: Ctrl-C may come while it is made
            draft = Draft(folder, None if anew else self.old)
            try:
                fill(draft)
                manifest = self._write(folder, draft, plan, anew)
            finally:
                draft.close()
            manifest.roots = _listed(plan) if roots is None else roots
            final = disk.publish(folder, manifest)
            self.progress("writing", 1, 1)
        except sqlite3.OperationalError as error:  # SQLite's word for a full disk
            raise OSError(f"the index at '{self.directory}' cannot be written ({error})") from error
        except sqlite3.DatabaseError as error:
            if not self.old:
                raise
            raise disk.damaged(self.directory, f"{self.old.name} cannot be read") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        (self.directory / PENDING).unlink(missing_ok=True)
        return self._finish(final.name, manifest.chunks)

    def _finish(self, generation: str, chunks: int) -> BuildReport:
        self.report.generation, self.report.chunks = generation, chunks
        self.report.files_failed.sort(key=lambda failed: failed["path"])
        self.report.seconds = round(time.time() - self.began, 3)
        return self.report

    def _take_out(self, draft: Draft, plan: Plan) -> None:
        for source in plan.gone:
            draft.remove(source)
        self.report.files_removed = len(plan.gone)

    def _read(self, draft: Draft, plan: Plan, reads: Iterator[Read]) -> None:
        self._warm_up()
        self._take_out(draft, plan)
        for row in plan.touched:
            draft.touch(row)
        for read in reads:
            draft.remove(str(read.path))
            self._add(draft, read)
        if not (self.report.files_indexed or self.report.files_unchanged or plan.gone):
            raise NoDocuments(self._all_failed(plan))

    def _warm_up(self) -> None:
        """Makes the encoder, checks it, and has it load its model while documents are read."""
        encoder = self.encoder
        if self.manifest and self.manifest.encoder != encoder.identity.as_dict():
            raise mismatch(self.manifest.encoder, encoder)
        load = getattr(encoder, "load", None)
        if load:

            def quietly() -> None:
                with suppress(Exception):  # told where the encoder is used
                    load()

            threading.Thread(target=quietly, daemon=True).start()

    @property
    def encoder(self) -> Encoder:
        """The encoder, made when it is first needed."""
        if self._encoder is None:
            self._encoder = self._make_encoder() if callable(self._make_encoder) else self._make_encoder
        return self._encoder

    def _add(self, draft: Draft, read: Read) -> None:
        source = str(read.path)
        row = FileRow(source, read.size, clamped(read.mtime_ns), read.sha256, error=read.error, again=read.again)
        placed: list[Placed] = []
        documents = named_apart(read.documents)
        if not read.error:
            settings = self.settings.fitted(getattr(self.encoder, "window", None))
            placed = [one for d in documents for one in place(d, read.path.stem, self.encoder.tokenize, settings)]
            row.title = next((document.title for document in documents if document.title), "")
            if not placed:
                row.error = "the file holds no text"
        self.report.warnings += ({"path": source, "warning": warning} for warning in read.warnings)
        if row.error:
            self.report.files_failed.append({"path": source, "error": row.error})
        else:
            self.report.files_indexed += 1
        draft.add(row, placed, [(document.record, document.words) for document in documents if placed])

    def _all_failed(self, plan: Plan) -> str:
        failed = self.report.files_failed
        where = ", ".join(f"'{shown(str(root.path))}'" for root in plan.found.roots)
        first = f"{shown(failed[0]['path'])}: {failed[0]['error']}" if failed else "it is empty"
        return f"no document under {where} can be read ({len(failed)} failed; the first: {first})"

    def _write(self, folder: Path, draft: Draft, plan: Plan, anew: bool) -> Manifest:
        import numpy as np

        added = range(draft.old_rows, draft.passages)
        moves = draft.compact()
        if not draft.passages:
            raise NoDocuments(
                f"nothing would be left in the index{_passed_over(plan)}: remove its folder instead, or index others"
            )
        # (passages,) old row of each, -1 if new
        origin: Any = np.arange(max(draft.passages, added.stop), dtype=np.int64)
        origin[added.start :] = -1
        for new, last in moves.items():
            origin[new] = origin[last]
        origin = origin[: draft.passages].copy()
        rows = np.flatnonzero(origin < 0).tolist()
        old = None if anew else self.old
        lexical.update(folder, old, origin, ((row, draft.text(row)) for row in rows), draft.db)
        fresh: Any = np.empty((0, 0), np.float16)
        if rows:
            fresh, self.report.chunks_encoded = embed(
                draft, rows, self.encoder, self.directory, self.old, self.progress
            )
        self.progress("writing", 0, 1)
        identity = self.manifest.encoder if self.manifest and self._encoder is None else self.encoder.identity.as_dict()
        dimension = int(identity["dimension"])
        kept = vectors.Vectors(old) if old else None
        faiss = vectors.write_vectors(folder, vectors.merged(kept, origin, fresh), dimension)
        files, failed, chunks = draft.counts()
        return Manifest(
            encoder=identity,
            precision=self._encoder.precision if self._encoder and rows else self._old_precision(),
            chunker=self.settings.as_dict(),
            lexical=lexical.SETTINGS,
            roots=[],
            built_at=self.began,
            removed=plan.removed,
            ocr=bool(self.ocr),
            files=files,
            files_failed=failed,
            chunks=chunks,
            passages=draft.passages,
            faiss=faiss,
        )

    def _old_precision(self) -> str:
        return self.manifest.precision if self.manifest else "fp32"


def _listed(plan: Plan) -> list[dict[str, Any]]:
    return [{**row, "include": list(row["include"]), "exclude": list(row["exclude"])} for row in plan.roots_as_json()]


def _passed_over(plan: Plan) -> str:
    reasons = Counter(reason for _, reason in plan.found.skipped).most_common(1)
    return f" ({reasons[0][1]} files were passed over: {reasons[0][0]})" if reasons else ""


def _absolute(path: Path) -> Path:
    return Root(path).path


def _at_or_below(source: str, paths: list[str]) -> bool:
    return any(source == path or source.startswith(path.rstrip("/") + "/") for path in paths)


def _chain(first: Read | None, rest: Iterator[Read]) -> Iterator[Read]:
    if first is not None:
        yield first
    yield from rest


def _readable(path: Path) -> str:
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
