"""The process that runs the loaders. It may be killed, or die of a hostile file, at any time; see index/reader.py.

Requests come in on stdin, a JSON object a line: {"path", "ocr"}. Frames go out on stdout, each led by its kind and its
length. When stdin closes, the process ends at once.

    R   ready: the most memory that was in use so far, in KiB
    F   the file was read: {"size", "mtime_ns", "sha256"}
    D   the documents, as in wire.py, with {"error", "again", "warnings", "retire"}
"""

import hashlib
import json
import os
import queue
import resource
import signal
import stat
import struct
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from index.document import Document
from index.errors import LoadError
from index.loaders import load, wire

FRAME = struct.Struct("<cQ")
GRACE = 5.0
"""Seconds after its limit at which a process that was not killed from outside ends by itself."""


def main() -> None:
    """Serves requests until stdin closes. The limits come as a JSON object in the first argument."""
    limits = json.loads(sys.argv[1])
    out = _silence()
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    baseline = _data_size()
    _confine(baseline + limits["memory"])
    _send(out, b"R", json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
    while True:
        request = requests.get()
        # A loader that holds the interpreter's lock keeps the listener from seeing that the program is gone.
        signal.setitimer(signal.ITIMER_REAL, limits["seconds"] + GRACE)
        _serve(request, limits, baseline, out)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _silence() -> BinaryIO:
    """The pipe to the program; whatever libraries print goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return out


def _listen(requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)


def _confine(memory: int) -> None:
    """Neither more memory than that, nor a byte written to any file, nor a core dumped."""
    for kind, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _data_size() -> int:
    """Bytes of private memory as the limit counts them; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _send(out: BinaryIO, kind: bytes, data: bytes) -> None:
    for piece in (FRAME.pack(kind, len(data)), data):
        rest = memoryview(piece)
        while rest:
            rest = rest[out.write(rest) :]


def _serve(request: dict[str, Any], limits: dict[str, Any], baseline: int, out: BinaryIO) -> None:
    path, warnings = Path(request["path"]), list[str]()
    documents, error, again = list[Document](), "", False
    try:
        data, about, again = _content(path, limits["bytes"])
        _send(out, b"F", json.dumps(about).encode())
    except OSError as problem:
        error, again = f"cannot be opened ({problem.strerror})", True
    except Exception as problem:
        error = _reason(problem, limits)
    else:
        try:
            documents = load(path, data, ocr=request["ocr"], warnings=warnings)
            _check_length(documents, limits["text"])
        except Exception as problem:  # whatever a parser stumbles over, one document never stops the build
            documents, error = [], _reason(problem, limits)
        del data
    # What one file leaves behind must not count against the next one's limit.
    retire = _data_size() - baseline > limits["memory"] // 4
    header = {"error": error, "again": again, "warnings": warnings, "retire": retire}
    _send(out, b"D", wire.pack(header, documents))


def _reason(error: Exception, limits: dict[str, Any]) -> str:
    if isinstance(error, LoadError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"needs more than the {size(limits['memory'])} of memory that a file may"
    if isinstance(error, RecursionError):
        return "is nested too deep"
    return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _content(path: Path, most: int) -> tuple[bytes, dict[str, Any], bool]:
    """The file's bytes, what is known of these very bytes, and whether it changed meanwhile."""
    # Non-blocking, because a pipe would wait for a writer; no controlling terminal, in case it is one.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise LoadError("is not a regular file")
        if before.st_size > most:
            raise LoadError(f"is larger ({size(before.st_size)}) than the {size(most)} that a file may be")
        data = file.read(before.st_size + 1)  # the buffer is as large as the number
        after = os.fstat(file.fileno())
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != before.st_size
    digest = hashlib.sha256(data).hexdigest()
    return data, {"size": before.st_size, "mtime_ns": before.st_mtime_ns, "sha256": digest}, changed


def _check_length(documents: list[Document], most: int) -> None:
    if sum(len(document.text) for document in documents) > most:
        raise LoadError(f"holds more than the {most:,} characters of text that a file may")


def size(number: int) -> str:
    """Bytes for a person: `2 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number} bytes"


if __name__ == "__main__":
    main()
