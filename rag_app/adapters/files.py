"""Files that a home's adapters share: replaced at once, by one process at a time. Knows nothing of what they say."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from index import folders
from index.generation import flush
from rag_app.errors import AdapterInvalid

SCORES = "scores.json"
FIELDS = ("at", "adapter", "against", "f1", "against_f1", "n", "questions", "taken")
"""Of a result."""
MEASURED = 20
"""Results of the gate that are kept of each adapter."""
PATIENCE = 60.0
"""Seconds to wait for another process that changes something."""


class Files:
    """A folder, and the lock of who changes something in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: Any = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes and threads out until the end; who has the lock may take it again.

        Raises:
            AdapterInvalid: another process has it for long.
        """
        from filelock import FileLock, Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or FileLock(self.root / ".lock")
        try:
            self._lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise AdapterInvalid("another process is changing adapters: wait for its end, then run it again") from error
        try:
            folders.restore(self.root)
            yield
        finally:
            self._lock.release()

    def mend(self) -> None:
        """Puts back what a killed process was replacing; waits for one that lives."""
        if any(self.root.glob(".*.old")):
            with suppress(OSError), self.locked():  # which restores
                pass

    def write(self, name: str, text: str) -> None:
        """In place of the old file at once; by whoever has the lock."""
        file, part = self.root / name, self.root / f".{name}.part"
        part.write_text(text, "utf-8")
        then = file.stat().st_mtime_ns if file.exists() else 0
        later = max(time.time_ns(), then + 1)  # clocks tick slowly: readers tell states apart by it
        os.utime(part, ns=(later, later))
        flush(part)
        part.replace(file)
        flush(self.root)


class Results:
    """What the gate measured, by adapter, the latest last."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self) -> dict[str, list[Any]]:
        """All of them.

        Raises:
            AdapterInvalid: the file is damaged.
        """
        file = self._files.root / SCORES
        try:
            if file.exists() and not file.is_file():  # a pipe would make the reader wait
                raise ValueError
            stored = json.loads(file.read_text("utf-8"))["gate"]
            if not all({*FIELDS} <= {**row}.keys() for rows in stored.values() for row in rows):
                raise ValueError
            return {name: list(rows) for name, rows in stored.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AdapterInvalid(f"'{file}' is damaged: remove it; no more than earlier results are lost") from error

    def without(self, name: str) -> dict[str, list[Any]]:
        """Those of the other adapters; raises as `read` does."""
        return {other: rows for other, rows in self.read().items() if other != name}

    def write(self, results: Mapping[str, list[Any]]) -> None:
        """In place of the old ones, if they differ; by whoever has the lock."""
        if results != self.read():
            self._files.write(SCORES, json.dumps({"version": 1, "gate": results}, indent=1) + "\n")

    def add(self, names: Sequence[str], result: Mapping[str, Any]) -> None:
        """Keeps one more of each of these adapters; raises as `read` does."""
        with self._files.locked():
            results = self.read()
            for name in names:
                results[name] = [*results.get(name, []), dict(result)][-MEASURED:]
            self.write(results)
