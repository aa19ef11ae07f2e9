"""Folders and files that are complete or absent, whatever ends the process. Knows nothing of what they hold.

OUT/adapter/                  what was written, and
            complete.json     bytes and SHA-256 of every file, more facts, the time; the last file written
OUT/.adapter.1f0c2a.part/     one that is being written or removed; held by a lock while its process lives
OUT/.adapter.1f0c2a.old/      one that is being replaced; goes back to its place if its process dies meanwhile
"""

import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from index.generation import flush, sha256

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed runs stay
    fcntl = None  # type: ignore[assignment]

COMPLETE = "complete.json"
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{6}\.(part|old)")
_SYSTEM_ERROR = re.compile(r"\(os error ([0-9]+)\)")
"""How libraries in Rust tell what the system said."""


@contextmanager
def staged(folder: Path, **facts: Any) -> Iterator[Path]:
    """Gives an empty folder beside `folder` that takes its place at the end, whole, or vanishes if an error ends it.

    A `folder` that is there is replaced. Of several processes, one may do this, once all have written.

    Args:
        folder: what shall be there in the end.
        facts: what stands in `complete.json` beside the files, such as the step.

    Raises:
        OSError: the disk is full or cannot be written to; whatever was there before is still there.
    """
    folder = Path(os.path.realpath(folder))  # a link keeps leading to it
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore(folder.parent)
    part = beside(folder, "part")
    try:
        part.mkdir()
        with held(part):
            try:
                yield part
                _seal(part, facts)
                _publish(part, folder)
            except Exception as error:
                _tell_of_the_disk(part, error)
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def whole(folder: Path) -> str:
    """Nothing, if a folder is, byte for byte, what was written; else what is wrong: 'x.bin is 12 of 4,096 bytes'."""
    return lack(folder, hashed=True)


def restore(parent: Path) -> None:
    """In this folder, removes what killed processes were writing, and puts back what they were replacing."""
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        if (found := _LEFTOVER.fullmatch(path.name)) and path.is_dir():
            with suppress(OSError), held(path) as free:
                place = path.with_name(found[1])
                if free and found[2] == "old" and not place.exists():
                    path.rename(place)
                elif free:
                    shutil.rmtree(path, ignore_errors=True)


def beside(folder: Path, kind: str) -> Path:
    """A name that `restore` clears away when its process is gone."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(3)}.{kind}")


@contextmanager
def held(folder: Path) -> Iterator[bool | None]:
    """Marks a folder as in use until the end or the process's death; gives if it was free, None where nobody knows."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool | None:
    if not fcntl:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _seal(part: Path, facts: dict[str, Any]) -> None:
    """Puts all files on disk, and then the file that vouches for them."""
    found = sorted(part.rglob("*"))
    files = [path for path in found if path.is_file()]
    for path in files:
        flush(path)
    held = {path.relative_to(part).as_posix(): [path.stat().st_size, sha256(path)] for path in files}
    content = {**facts, "saved": time.time(), "files": held}
    (part / COMPLETE).write_text(json.dumps(content, indent=1), "utf-8")
    for path in (part / COMPLETE, *(path for path in found if path.is_dir()), part):
        flush(path)


def _publish(part: Path, folder: Path) -> None:
    if not folder.is_dir():
        part.rename(folder)
        return flush(folder.parent)
    old = beside(folder, "old")  # no system call of Python's replaces a folder that is not empty
    with held(folder):
        try:
            folder.rename(old)
            part.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def _tell_of_the_disk(part: Path, error: Exception) -> None:
    """Libraries that write files raise errors of their own on a full disk; writing once more tells the true one.

    Raises:
        OSError: nothing can be written.
    """
    if isinstance(error, OSError):
        return
    if found := _SYSTEM_ERROR.search(str(error)):
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(part)) from error
    try:
        with (part / ".probe").open("wb") as stream:
            stream.write(bytes(1 << 16))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as true:
        raise true from error


def read(folder: Path) -> dict[str, Any]:
    """What `complete.json` says.

    Raises:
        OSError, ValueError: it is not there or cannot be read.
    """
    file = folder / COMPLETE
    if file.exists() and not file.is_file():  # a pipe would make the reader wait
        raise ValueError
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise ValueError
    return content


def lack(folder: Path, hashed: bool) -> str:
    """As `whole`; by the sizes alone where the contents shall not be `hashed`."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        files = {name: (int(size), str(digest)) for name, (size, digest) in read(folder)["files"].items()}
    except FileNotFoundError:
        return f"it is not finished (it has no {COMPLETE})"
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{COMPLETE} cannot be read"
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            found = path.stat()
        except (OSError, ValueError):  # a name that no file can have
            return f"{name[:100]} is missing"
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is missing"
        if found.st_size != size:
            return f"{name} is {found.st_size:,} of {size:,} bytes"
        if hashed and sha256(path) != digest:
            return f"{name} has changed since it was written"
    return ""
