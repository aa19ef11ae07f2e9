"""Vectors of an unfinished build, kept so that an interrupted one does not encode them again. Knows no documents."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Pending:
    """A small store of vectors by key (a hash of the encoder and of what was encoded)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._open()
        except sqlite3.OperationalError:
            raise  # locked, or no room for it: nothing is wrong with what it holds
        except sqlite3.DatabaseError:
            self._start_again()

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path)
        try:
            self._db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
            self._db.commit()
        except sqlite3.Error:
            self._db.close()
            raise

    def _start_again(self) -> None:
        """Throws a damaged file away; it is only a cache."""
        with suppress(AttributeError):
            self._db.close()
        self._path.unlink(missing_ok=True)
        self._open()

    def get(self, keys: Sequence[bytes], dimension: int) -> dict[bytes, "npt.NDArray[np.float32]"]:
        """Those of the keys that are here, each with its vector, (dimension,) float32; damaged ones are not."""
        import numpy as np

        found = {}
        with suppress(sqlite3.DatabaseError):
            for key in keys:
                row = self._db.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
                if row and isinstance(row[0], bytes) and len(row[0]) == 4 * dimension:
                    vector = np.frombuffer(row[0], np.float32)
                    if abs(float(vector @ vector) - 1) < 1e-3:
                        found[key] = vector
            return found
        self._start_again()
        return {}

    def put(self, keys: Sequence[bytes], vectors: "npt.NDArray[np.float32]") -> None:
        """Adds vectors, (len(keys), dimension) float32; on disk when this returns."""
        rows = [(key, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True)]
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.OperationalError:
            raise  # a full disk, not a damaged file
        except sqlite3.DatabaseError:
            self._start_again()

    def close(self) -> None:
        """Closes the store; the file stays until a build succeeds."""
        self._db.close()
