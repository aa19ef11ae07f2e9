"""Archives (.zip, .tar, .tar.gz, .tgz) to folders. Writes only files of known names, and none outside of its folder.

No archive is extracted by its library: each member is looked at, refused or read, and written under a name of ours.
"""

import gzip
import io
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from index import folders
from index.errors import RagError
from rag_app.errors import AdapterInvalid

ENDS = (".zip", ".tar", ".tar.gz", ".tgz")
FILES = 1000
"""Most members."""
BYTES = 4 << 30
"""Most bytes of all members together, unpacked."""
DEPTH, LENGTH = 8, 200
"""Most folders around a file, and most bytes of a part of its path."""
DIRECTORY = 1 << 20
"""Most bytes of a zip file's directory, which is read into memory at once."""
STEP = 1 << 20


@contextmanager
def unpacked(archive: Path, within: Path, wanted: frozenset[str]) -> Iterator[Path]:
    """Gives the folder that an archive holds, until the end.

    Args:
        archive: of one of the kinds in ENDS.
        within: a folder that is made where it is not there; what a killed process leaves in it, the next one removes.
        wanted: names of the files that are unpacked; the others are looked at, and left out.

    Raises:
        AdapterInvalid: the archive is damaged, too large, or holds what could do harm; names the member.
        OSError: the disk is full, or a file cannot be read or written.
    """
    within.mkdir(parents=True, exist_ok=True)
    folders.restore(within)
    part = folders.beside(within / "archive", "part")
    part.mkdir()
    try:
        with folders.held(part):
            _unpack(archive, part, wanted)
            found = list(part.iterdir())
            yield found[0] if len(found) == 1 and found[0].is_dir() else part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(archive: Path, part: Path, wanted: frozenset[str]) -> None:
    seen, total = set[str](), 0
    with archive.open("rb") as stream:
        members = _zipped(stream) if archive.name.lower().endswith(".zip") else _tarred(stream)
        for member in _careful(members):
            path = _path(member.name)
            if member.fault:
                raise _refused(member.name, member.fault)
            if member.folder:
                continue
            if (same := str(path).casefold()) in seen:
                raise _refused(member.name, "is there twice")
            seen.add(same)
            total += member.size
            if total > BYTES:
                raise AdapterInvalid(f"the archive holds more than {BYTES >> 30} GiB: no adapter is as large")
            if path.name in wanted:
                _write(member, part / path)


def _write(member: "_Member", path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            for block in _careful(member.blocks()):
                out.write(block)
    except (FileExistsError, NotADirectoryError) as error:
        raise _refused(member.name, "is a file and a folder at once") from error


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    folder: bool
    fault: str
    """Why it is refused."""
    read: Callable[[], Any]
    """Gives a stream of its bytes."""

    def blocks(self) -> Iterator[bytes]:
        """Its bytes; as many as it says that it has."""
        left = self.size
        with self.read() as stream:
            while block := stream.read(STEP):
                left -= len(block)
                if left < 0:
                    break
                yield block
        if left:
            raise _refused(self.name, "is not as long as the archive says")


def _zipped(stream: IO[bytes]) -> Iterator[_Member]:
    _check_directory(stream)
    with zipfile.ZipFile(stream) as file:
        for number, one in enumerate(file.infolist()):
            _check_count(number)
            kind = stat.S_IFMT(one.external_attr >> 16)
            fault = ""
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                fault = "is a link or a device"
            elif one.flag_bits & 1:
                fault = "is encrypted"
            elif one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = "is packed in a way that is not read"
            # the other name is cut where a NUL is
            yield _Member(one.orig_filename, one.file_size, one.is_dir(), fault, partial(file.open, one))


def _check_directory(stream: IO[bytes]) -> None:
    """Looks how large the directory at the end is, as `zipfile` does."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - 22 - (1 << 16), 0))
    tail = stream.read()
    at = len(tail) - 22
    if at >= 0 and not (tail[at : at + 4] == b"PK\5\6" and tail.endswith(b"\0\0")):
        at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile("it has no directory")
    (length,) = struct.unpack_from("<L", tail, at + 12)
    if length > DIRECTORY or tail[max(at - 20, 0) : at].startswith(b"PK\6\7"):
        raise AdapterInvalid(f"the archive holds more than {FILES:,} files: no adapter has as many")


def _tarred(stream: IO[bytes]) -> Iterator[_Member]:
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    plain = gzip.GzipFile(fileobj=stream) if zipped else stream
    with tarfile.open(fileobj=cast("IO[bytes]", _Bounded(plain)), mode="r:") as file:
        for number, one in enumerate(file):
            _check_count(number)
            plain_file = one.isreg() and not one.issparse() and one.size >= 0
            fault = "" if plain_file or one.isdir() else "is a link or a device, or of another odd kind"
            yield _Member(one.name, one.size, one.isdir(), fault, partial(file.extractfile, one))
        left = BYTES
        while zipped and (block := plain.read(STEP)):  # to its end, where its sum is
            left -= len(block)
            if left < 0:
                raise tarfile.ReadError("it does not come to an end")


class _Bounded:
    """A stream from which little can be read at a time: a tar file's header says how much of it is to be a name."""

    def __init__(self, stream: Any) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int) -> bytes:
        """As of any stream."""
        if not 0 <= size <= STEP:
            raise tarfile.ReadError("a name is too long")
        return bytes(self._stream.read(size))


def _check_count(number: int) -> None:
    if number >= FILES:
        raise AdapterInvalid(f"the archive holds more than {FILES:,} files: no adapter has as many")


def _careful(source: Iterator[Any]) -> Iterator[Any]:
    """The same; whatever the libraries raise because of what an archive holds comes as one line."""
    while True:
        try:
            item = next(source)
        except StopIteration:
            return
        except (RagError, MemoryError):
            raise
        except Exception as error:  # of five libraries
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise AdapterInvalid(f"the archive is damaged ({reason}): take it anew") from error
        yield item


def _path(name: str) -> PurePosixPath:
    """The member's place below the folder."""
    parts = [part for part in name.removesuffix("/").split("/") if part != "."]
    if name.startswith("/") or ".." in parts:
        raise _refused(name, "lies outside of it")
    if "" in parts or not name.isprintable() or set('\\:*?"<>|') & set(name):
        raise _refused(name, "has a name with characters that file systems take otherwise")
    if len(parts) > DEPTH or any(len(part.encode()) > LENGTH for part in parts):
        raise _refused(name, "has too long a name")
    return PurePosixPath(*parts)


def _refused(name: str, fault: str) -> AdapterInvalid:
    return AdapterInvalid(f"the archive is not taken: '{name[:100]}' {fault}. Pack the adapter's own files")
