"""Files that a command writes where `--out` says: looked at before the work, written through links. Knows no rows."""

import argparse
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from index.console import words
from index.errors import RagError


def named(text: str) -> str:
    """For argparse: a path that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: name a file")
    return text


def checked(out: str, force: bool, read: Iterable[Path] = ()) -> Path:
    """The place to write to: what a link leads to, and a device, pipe or other irregular file as it is named.

    Args:
        out: what a person named.
        force: whether a file that is there may be overwritten.
        read: what the command reads, which may never be.

    Raises:
        RagError: it is a folder or in none, is there already, is what is read, or has a name that cannot be.
    """
    try:
        return _place(Path(out), force, read)
    except OSError as error:  # a name that is too long
        raise unwritable(Path(out), error) from error


def _place(path: Path, force: bool, read: Iterable[Path]) -> Path:
    name = words(str(path))
    if path.is_dir():
        raise RagError(f"'{name}' is a folder: name a file in it")
    if irregular(path):
        return path
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise RagError(f"there is no folder '{words(str(place.parent))}' for '{name}': make it, or name another file")
    if not place.exists():
        return place
    if any(one.exists() and one.samefile(place) for one in read):
        raise RagError(f"'{name}' is what is read, and would be lost: name another file")
    if not force:
        raise RagError(f"'{name}' is there already: name another file, or overwrite it with --force")
    return place


def irregular(path: Path) -> bool:
    """Whether a path is a device, a pipe or one of this program's own streams, which nothing may replace."""
    streams = os.path.abspath(path).startswith(("/dev/", "/proc/"))  # noqa: PTH100  (/dev/stdout, not what it leads to)
    return path.exists() and (streams or not path.is_file())


def unwritable(path: Path, error: OSError) -> RagError:
    """A line for a file that cannot be written."""
    reason = error.strerror or type(error).__name__
    return RagError(f"'{words(str(path))}' cannot be written ({reason}): make room, or name another file")


def write(path: Path, lines: Iterable[str]) -> int:
    """Puts ASCII lines into a file that appears when it is whole, or through an irregular one; returns how many.

    Raises:
        RagError: it cannot be written.
    """
    try:
        if irregular(path):
            with path.open("a", encoding="ascii", newline="\n") as stream:
                return _put(stream, lines)
        draft = path.with_name(f".rows-{secrets.token_hex(4)}")
        try:
            with draft.open("x", encoding="ascii", newline="\n") as stream:
                count = _put(stream, lines)
                os.fsync(stream.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error
    return count


def _put(stream: TextIO, lines: Iterable[str]) -> int:
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007  (the last one counts)
        stream.write(line + "\n")
    stream.flush()
    return count
