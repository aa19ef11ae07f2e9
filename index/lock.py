"""One build at a time: who holds an index, and what is left behind when a build makes nothing."""

import os
import time
from contextlib import suppress
from pathlib import Path

from index.errors import IndexBusy
from index.generation import POINTER

LOCK, OWNER, PENDING = "lock", "builder", "pending.sqlite3"


class BuildLock:
    """Held while a build runs. Removes the index folder again if the build left nothing in it.

    Raises:
        IndexBusy: another process holds it; the message says which, and since when.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        from filelock import FileLock, Timeout

        self._made = [p for p in (self._directory, *self._directory.parents) if not p.exists()]
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._directory / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise IndexBusy(f"{self._owner()} of '{self._directory}' is running: wait for it to end") from None
        with suppress(OSError):  # a full disk: the name of the holder is a courtesy
            (self._directory / OWNER).unlink(missing_ok=True)  # a link in its place would be written through
            (self._directory / OWNER).write_text(f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}", "utf-8")

    def _owner(self) -> str:
        with suppress(OSError):
            return f"another build ({(self._directory / OWNER).read_text('utf-8')[:80]})"
        return "another build"

    def __exit__(self, *_: object) -> None:
        (self._directory / OWNER).unlink(missing_ok=True)
        kept = (self._directory / POINTER, self._directory / PENDING)
        if self._made and not any(path.exists() for path in kept):
            with suppress(OSError):  # what somebody else put there meanwhile stays, and the folder with it
                (self._directory / LOCK).unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()
        self._lock.release()
