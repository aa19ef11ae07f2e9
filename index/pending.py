"""Vectors of an unfinished build, kept so that an interrupted one does not encode them again. Knows no documents."""

import sqlite3
from collections.abc import Sequence
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
        except sqlite3.DatabaseError:  # cut or overwritten: it is only a cache
            path.unlink()
            self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path)
        self._db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        self._db.commit()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, "npt.NDArray[np.float32]"]:
        """Those of the keys that are here, each with its vector, (dimension,) float32."""
        import numpy as np

        found = {}
        for key in keys:
            row = self._db.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
            if row:
                found[key] = np.frombuffer(row[0], np.float32)
        return found

    def put(self, keys: Sequence[bytes], vectors: "npt.NDArray[np.float32]") -> None:
        """Adds vectors, (len(keys), dimension) float32; on disk when this returns."""
        rows = [(key, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True)]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def close(self) -> None:
        """Closes the store; the file stays until a build succeeds."""
        self._db.close()
