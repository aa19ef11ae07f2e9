"""Paths to the documents below them. Looks at names and sizes only; reads no content."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from index.errors import NoDocuments


@dataclass
class Scan:
    """What stands below the given paths."""

    roots: list[Path]
    """The given paths, absolute."""
    files: dict[Path, os.stat_result] = field(default_factory=dict)
    """Documents of a known format, in order of their paths."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """What was passed over, with the reason."""


def scan(paths: Iterable[Path], suffixes: Iterable[str], leave_out: Path) -> Scan:
    """Finds the documents.

    Args:
        paths: files and folders; folders are searched through. A file named here is taken whatever its format.
        suffixes: lower-case suffixes of the known formats.
        leave_out: a folder that is never entered (the index itself).

    Raises:
        NoDocuments: a path does not exist.
    """
    known = frozenset(suffixes)
    result = Scan([Path(os.path.abspath(path)) for path in paths])  # noqa: PTH100  (keeps symlinks as they are named)
    for root in result.roots:
        if not root.exists():
            raise NoDocuments(f"'{root}' does not exist: check the path")
        candidates = [root] if root.is_file() else _walk(root, _real(leave_out), result)
        for path in candidates:
            if path == root or path.suffix.lower() in known:
                _take(path, result)
            else:
                result.skipped.append((path, f"files of type '{path.suffix or path.name}' are not read"))
    result.files = dict(sorted(result.files.items()))
    return result


def _take(path: Path, result: Scan) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        result.skipped.append((path, "its name is not valid UTF-8: rename it"))
        return
    try:
        result.files[path] = path.stat()
    except OSError as error:
        result.skipped.append((path, f"cannot be opened ({error.strerror})"))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve fails on a link to itself


def _walk(root: Path, leave_out: Path, result: Scan) -> Iterator[Path]:
    real_root = _real(root)

    def unreadable(error: OSError) -> None:
        result.skipped.append((Path(error.filename), f"cannot be opened ({error.strerror})"))

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        here = Path(folder)
        hidden = [here / name for name in [*subfolders, *names] if name.startswith(".")]
        result.skipped += [(path, "hidden") for path in hidden if _real(path) != leave_out]
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".") and _real(here / s) != leave_out)
        result.skipped += [(here / s, "a link to a folder") for s in subfolders if (here / s).is_symlink()]
        for name in sorted(names):
            path = here / name
            if name.startswith("."):
                continue
            if path.is_symlink() and not _real(path).is_relative_to(real_root):
                result.skipped.append((path, "a link that leads out of the folder"))
            elif path.is_symlink() and not path.exists():
                result.skipped.append((path, "a link that leads nowhere"))
            elif path.is_file():
                yield path
            else:
                result.skipped.append((path, "not a regular file"))
