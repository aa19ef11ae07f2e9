"""What a build has to do: which roots, which files are new, changed or gone. Reads no document but those in doubt."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index.errors import NoDocuments
from index.generation import Manifest
from index.paths import shown
from index.scan import Root, Scan, scan
from index.store import FileRow, clamped

RACY_NS = 2_000_000_000
"""A file changed this shortly before it was read may have changed again within its clock tick: its hash decides."""


@dataclass(frozen=True)
class Wish:
    """What the caller of a build asked for."""

    paths: tuple[Path, ...] = ()
    include: tuple[str, ...] | None = None
    """None: as in earlier builds."""
    exclude: tuple[str, ...] | None = None
    ignore_files: bool | None = None
    known: Callable[[Path], bool] = bool

    def root(self, path: Path, earlier: Root | None) -> Root:
        """A path with its patterns: those given now, else those of earlier builds."""
        before = earlier or Root(path)
        return Root(
            path,
            before.include if self.include is None else self.include,
            before.exclude if self.exclude is None else self.exclude,
            before.ignore_files if self.ignore_files is None else self.ignore_files,
        )


@dataclass
class Plan:
    """What there is to do."""

    roots: list[Root]
    """All roots of the index after the build."""
    removed: list[str]
    """Paths that `rm` took out and that stay out."""
    found: Scan
    read: list[Path] = field(default_factory=list)
    """Documents that are new, changed, or to be tried again."""
    gone: list[str] = field(default_factory=list)
    """Documents of the index that are there no more."""
    unchanged: list[FileRow] = field(default_factory=list)
    touched: list[FileRow] = field(default_factory=list)
    """Those of the unchanged ones that have another time than when they were read, which stands in the row now."""

    def roots_as_json(self) -> list[dict[str, Any]]:
        """For the manifest."""
        return [{**asdict(root), "path": str(root.path)} for root in self.roots]


def roots_of(manifest: Manifest | None) -> dict[Path, Root]:
    """The roots of a generation, by path."""
    rows = manifest.roots if manifest else []
    return {Path(row["path"]): Root(**{**row, "path": Path(row["path"])}) for row in rows}


def make_plan(
    wish: Wish,
    manifest: Manifest | None,
    old: dict[str, FileRow],
    everything: bool,
    leave_out: Path,
    rebuild: bool = False,
) -> Plan:
    """Looks at the files and compares them with the index.

    Args:
        wish: what to index.
        manifest: the current generation's, if there is one to build on.
        old: its files, by path.
        everything: whether all of its roots are looked through, not only those that are asked for.
        leave_out: the index's own folder.
        rebuild: whether only what is asked for stays; of the manifest, patterns and what `rm` took out still count.

    Raises:
        NoDocuments: no path is known, or one does not exist.
    """
    earlier = roots_of(manifest)
    given = {
        root.path: root for path in wish.paths for root in [wish.root(_absolute(path), earlier.get(_absolute(path)))]
    }
    if not given:
        given = {path: wish.root(path, root) for path, root in earlier.items()}
        _drop_vanished(given, old)
    if not given and not earlier:
        raise NoDocuments("no folder to index is given. Run: rag-index build FOLDER")
    looked_at = dict(given)
    for path, root in earlier.items():
        if rebuild:
            break
        if path not in given and everything and not path.exists():
            raise _vanished(path)  # what cannot be cut anew would be lost
        if path not in given and (everything or _below(path, given)) and path.exists():
            looked_at[path] = root
    found = scan(looked_at.values(), wish.known, leave_out)
    if everything and found.unreadable:
        raise NoDocuments(f"'{shown(str(found.unreadable[0]))}' cannot be listed: check its permissions")
    named = {str(_absolute(path)) for path in wish.paths}
    removed = [path for path in (manifest.removed if manifest else []) if path not in named]
    _pass_over(found, removed)
    kept = {path: root for path, root in earlier.items() if path not in looked_at and wish.paths and not rebuild}
    plan = Plan([*kept.values(), *looked_at.values()], removed, found)
    plan.roots.sort(key=lambda root: str(root.path))
    if rebuild:
        plan.removed = [path for path in removed if _starts(path, [str(root.path) for root in plan.roots])]
    _compare(plan, manifest, old)
    return plan


def _absolute(path: Path) -> Path:
    return Root(path).path


def _drop_vanished(given: dict[Path, Root], old: dict[str, FileRow]) -> None:
    """Forgets files that were named themselves and are gone; a folder that is gone may only be unmounted."""
    for path in [path for path in given if not path.exists()]:
        if str(path) not in old:
            raise _vanished(path)
        del given[path]


def _vanished(root: Path) -> NoDocuments:
    return NoDocuments(
        f"'{root}' does not exist: mount it, or take it out of the index by: rag-index rm {shown(str(root))}"
    )


def _pass_over(found: Scan, removed: Sequence[str]) -> None:
    """Leaves out what lies below a removed path, but for what has been named since: a root at or below that path."""
    for out in removed:
        named_since = [str(root.path) for root in found.roots if _starts(str(root.path), [out])]
        for path in [path for path in found.files if _starts(str(path), [out])]:
            if not _starts(str(path), named_since):
                del found.files[path]
                found.skipped.append((path, "taken out by rm"))


def _below(path: Path, roots: Iterable[Path]) -> bool:
    return any(path == root or path.is_relative_to(root) for root in roots)


def _compare(plan: Plan, manifest: Manifest | None, old: dict[str, FileRow]) -> None:
    roots = [str(root.path) for root in plan.found.roots]
    unknown = [str(path) for path in plan.found.unreadable]
    here = {str(path) for path in plan.found.files}
    kept = {str(root.path) for root in plan.roots}
    for source in old:
        if source in here or _starts(source, unknown):
            continue
        if _starts(source, roots) or not _starts(source, kept):
            plan.gone.append(source)
    built_at = manifest.built_at if manifest else 0.0
    for path in plan.found.files:
        row = old.get(str(path))
        if row and _unchanged(path, row, plan.found, built_at):
            plan.unchanged.append(row)
            if row.mtime_ns != clamped(plan.found.files[path].st_mtime_ns):
                row.mtime_ns = clamped(plan.found.files[path].st_mtime_ns)
                plan.touched.append(row)
        else:
            plan.read.append(path)


def _starts(source: str, folders: Iterable[str]) -> bool:
    return any(source == folder or source.startswith(folder.rstrip("/\\") + "/") for folder in folders)


def _unchanged(path: Path, row: FileRow, found: Scan, built_at: float) -> bool:
    status = found.files[path]
    if row.again or status.st_size != row.size:
        return False
    racy = status.st_mtime_ns > built_at * 1e9 - RACY_NS
    if clamped(status.st_mtime_ns) == row.mtime_ns and not racy:
        return True
    if not row.sha256:  # too large to be read, and still as large
        return True
    return _sha256(path) == row.sha256


def _sha256(path: Path) -> str | None:
    """Hex digest of a regular file; None of what cannot be opened or has become a pipe or a device meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as stream:  # noqa: PTH123  (a descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def nothing_found(found: Scan) -> NoDocuments:
    """The error for roots without a single document."""
    where = ", ".join(f"'{shown(str(root.path))}'" for root in found.roots)
    passed = f" ({len(found.skipped)} files of other kinds were passed over)" if found.skipped else ""
    return NoDocuments(f"no document under {where}{passed}: give a folder with texts, PDF, Office or HTML files")
