"""Files to documents in processes that may die: a file that crashes, hangs or swallows memory costs itself alone.

The processes (loaders/worker.py) open and parse; this module starts, limits and replaces them. Knows no formats, no
chunks and no index.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from index.document import Document
from index.loaders import wire
from index.loaders.worker import FRAME, size

START = 60.0
"""Seconds that a worker may take to start; a tenth of one is usual."""
AHEAD = 8
"""Files a worker that are read before the reader's user asks for them."""
AHEAD_CHARACTERS = 20_000_000
"""Nothing further is begun while finished files that nobody has asked for hold this much text."""


OCR_SECONDS = 900.0
"""The default for files that may need OCR, at a few seconds a page."""


@dataclass(frozen=True)
class Limits:
    """What one file may cost."""

    seconds: float = 60
    """From opening it to its last word."""
    memory: int = 2 * 2**30
    """Bytes beyond what a worker takes when idle."""
    bytes: int = 256 * 2**20
    """The largest file."""
    text: int = 50_000_000
    """Most characters of text in a file."""


@dataclass
class Read:
    """What became of one file."""

    path: Path
    size: int = 0
    """Size and time are those of the very bytes that were read."""
    mtime_ns: int = 0
    sha256: str = ""
    """Empty if the content was not read."""
    documents: list[Document] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What was left out, a line each."""
    error: str = ""
    """Why there are no documents, in one line."""
    again: bool = False
    """Worth another try though size and time stay: it could not be opened, or changed while it was read."""


class Reader:
    """Reads files in worker processes, several at a time. Threads may share it. Close it, or use it in `with`."""

    _program = ("-m", "index.loaders.worker")

    def __init__(self, limits: Limits | None = None, workers: int | None = None, ocr: bool = False) -> None:
        """Starts nothing yet: workers start as files come, and never more than there are files.

        Args:
            limits: what one file may cost.
            workers: most processes; as many as there are cores by default.
            ocr: reads the words in pictures of pages, see `load`.
        """
        self.limits = limits or Limits(seconds=OCR_SECONDS if ocr else Limits.seconds)
        self._ocr = ocr
        self._most = workers or _cores()
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="reader")
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, in the middle of a file if need be."""
        with self._lock:
            self._closed = True
            workers, self._idle = list(self._all), []
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        self._threads.shutdown()  # each thread now sees its worker's end
        for worker in workers:
            worker.close()

    def read(self, paths: Iterable[Path]) -> Iterator[Read]:
        """Each file's documents or the reason why it has none, in the order of `paths`; errors are never raised."""
        waiting, window = iter(paths), deque[Future[Read]]()
        try:
            while True:
                while len(window) < AHEAD * self._most and _characters(window) < AHEAD_CHARACTERS:
                    path = next(waiting, None)
                    if path is None:
                        break
                    window.append(self._threads.submit(self._read, path))
                if not window:
                    return
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()

    def _read(self, path: Path) -> Read:
        worker = self._take()
        result = Read(path)
        if worker is None:
            result.error, result.again = "the process that reads files could not be started", True
            return result
        usable = worker.read(result, self._ocr)
        with self._lock:
            if usable and not self._closed:
                self._idle.append(worker)
                return result
            self._all.discard(worker)
        worker.close()
        return result

    def _take(self) -> "_Worker | None":
        with self._lock:
            if self._closed:
                return None
            if self._idle:
                return self._idle.pop()
            try:
                worker = _Worker(self._program, self.limits)
            except OSError:  # no more processes or memory
                return None
            self._all.add(worker)
        if worker.starts():
            return worker
        with self._lock:
            self._all.discard(worker)
        worker.close()
        return None


def _characters(window: Iterable["Future[Read]"]) -> int:
    done = (future.result() for future in window if future.done() and not future.cancelled())
    return sum(len(document.text) for read in done for document in read.documents)


class _Lost(Exception):
    """The worker is gone or of no more use; the text is the reason."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class _Worker:
    """One process, and the pipes to and from it."""

    def __init__(self, program: tuple[str, ...], limits: Limits) -> None:
        self._limits = limits
        self._process = subprocess.Popen(
            # -P: "-m" alone would import what lies in the current folder, which may be anybody's documents.
            [sys.executable, "-P", *program, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the program alone
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._end, self._peak, self._first_peak = threading.Lock(), 0, 0

    def starts(self) -> bool:
        """Waits until it is ready; False if it does not get there."""
        try:
            kind, data = self._frame(time.monotonic() + START)
            # Linux counts from before the program was loaded, when it was a copy of ours, with all that we hold.
            self._first_peak = int(bytes(data)) * 1024
        except (_Lost, ValueError):
            return False
        return kind == b"R"

    def read(self, result: Read, ocr: bool) -> bool:
        """Fills in what is read; returns whether the worker can go on."""
        deadline = time.monotonic() + self._limits.seconds
        try:
            self._ask({"path": os.path.abspath(result.path), "ocr": ocr})  # noqa: PTH100  (keeps links as they are)
            return self._receive(result, deadline)
        except _Lost as lost:
            result.error, result.again = str(lost), lost.again
        except (ValueError, TypeError, KeyError):
            result.error = "the process that read it sent nonsense"
        result.documents = []
        # Before its content is known, it is the disk that hangs, which may be better next time.
        result.again = result.again or not result.sha256
        return False

    def _ask(self, request: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the answer will be missing, and that is looked into
            self._stdin.write(json.dumps(request).encode() + b"\n")

    def _receive(self, result: Read, deadline: float) -> bool:
        kind, data = self._frame(deadline)
        if kind == b"F":
            about = json.loads(bytes(data))
            result.size, result.mtime_ns, result.sha256 = int(about["size"]), int(about["mtime_ns"]), about["sha256"]
            kind, data = self._frame(deadline)
        else:
            result.size, result.mtime_ns = _stat(result.path)
        header, result.documents = wire.unpack(data)
        result.error, result.again = _line(header["error"]), bool(header["again"])
        result.warnings = [_line(warning) for warning in header["warnings"]]
        return not header["retire"]

    def _frame(self, deadline: float) -> tuple[bytes, memoryview]:
        kind, length = FRAME.unpack(self._bytes(FRAME.size, deadline))
        if length > self._limits.memory:
            raise ValueError("more than the worker can hold")
        return kind, memoryview(self._bytes(length, deadline))

    def _bytes(self, count: int, deadline: float) -> bytearray:
        data, filled = bytearray(count), 0
        view = memoryview(data)
        while filled < count:
            if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Lost(f"takes longer than the {self._limits.seconds:g} seconds that a file may")
            got = self._stdout.readinto(view[filled:])  # type: ignore[attr-defined]
            if not got:
                raise self._lost()
            filled += got
        view.release()
        return data

    def _lost(self) -> _Lost:
        """Why it died by itself."""
        status, peak = self._wait()
        if peak > max(self._first_peak, self._limits.memory * 0.8):
            return _Lost(f"needs more than the {size(self._limits.memory)} of memory that a file may")
        # Nothing that a file does sends SIGKILL: it was the system, short of memory, or a person.
        return _Lost(f"crashes the program that reads it ({_ending(status)})", again=status == -signal.SIGKILL)

    def _wait(self) -> tuple[int, int]:
        """Exit status, and the most memory that was in use."""
        with self._end:
            if self._process.returncode is None:
                _, status, usage = os.wait4(self._process.pid, 0)
                self._process.returncode, self._peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        return self._process.returncode, self._peak

    def kill(self) -> None:
        """Ends it now. Can be called twice and by any thread."""
        with suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.kill(self._process.pid, signal.SIGKILL)
        self._wait()

    def close(self) -> None:
        """Ends it and lets go of its pipes; no thread may use it any more."""
        self.kill()
        self._stdin.close()
        self._stdout.close()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _line(text: Any) -> str:
    """One line for a person, whatever a worker sent."""
    return " ".join(str(text).split())[:1000]
