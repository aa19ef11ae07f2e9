"""An opened index: a query in, ranked passages out. Never writes."""

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from index import generation as disk
from index.encoder import Encoder, SentenceEncoder, mismatch
from index.errors import IndexDamaged, QueryInvalid
from index.paths import default_index

DUPLICATES_ALLOWED_FOR = 4
"""Candidates fetched per hit that is asked for, so that copies of one passage do not crowd out the others."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, with all that is needed to open it at its place."""

    rank: int
    """From 1."""
    score: float
    """Cosine similarity of query and passage, -1 to 1."""
    chunk_id: str
    source: str
    """Absolute path of the document."""
    page: int | None
    """From 1; None for formats without pages."""
    heading: str
    """The headings above the passage, outermost first, joined by ' > '; the document's title where it has none."""
    start: int
    """First character of the passage in the document's extracted text."""
    end: int
    text: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class Index:
    """One generation, opened for searching. Threads may share it."""

    def __init__(self, generation: Path, encoder: Encoder | Callable[[], Encoder] = SentenceEncoder) -> None:
        self.directory, self.name = generation.parent, generation.name
        self.manifest = disk.read_manifest(generation)
        self._make_encoder = encoder
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()
        self._db = disk.open_chunks(generation)
        self._vectors = disk.read_vectors(generation)
        self._check(generation)

    @classmethod
    def open(
        cls, directory: str | Path | None = None, encoder: Encoder | Callable[[], Encoder] = SentenceEncoder
    ) -> "Index":
        """Opens the current generation.

        Args:
            directory: the index; `./.rag/index` by default.
            encoder: an encoder, or what makes one at the first query.

        Raises:
            NoIndex: there is none.
            IndexDamaged: a part is missing, cut, or newer than this program.
        """
        directory = Path(directory or default_index())
        while True:  # builds may remove the generation between reading the pointer and opening the files
            generation = disk.current(directory)
            try:
                return cls(generation, encoder)
            except IndexDamaged:
                if disk.current(directory) == generation:
                    raise

    def is_current(self) -> bool:
        """Whether no newer generation has been published; costs one small file read."""
        return disk.current(self.directory).name == self.name

    def load_encoder(self) -> Encoder:
        """The encoder, loaded once (a few seconds).

        Raises:
            IndexMismatch: it is not the one that the index was built with.
        """
        with self._lock:
            if self._encoder is None:
                encoder = self._make_encoder() if callable(self._make_encoder) else self._make_encoder
                if encoder.identity.as_dict() != self.manifest.encoder:
                    raise mismatch(self.manifest.encoder, encoder)
                self._encoder = encoder
            return self._encoder

    def search(self, query: str, k: int = 4) -> list[Hit]:
        """The `k` passages nearest to the query, best first; the same text from two files counts once.

        Raises:
            QueryInvalid: the query is empty or too long, or `k` is below 1.
            IndexMismatch: the encoder is not the one that the index was built with.
        """
        if k < 1:
            raise QueryInvalid(f"{k} passages are asked for: ask for at least 1")
        if not query.strip():
            raise QueryInvalid("the question is empty: write one")
        vector = self.load_encoder().encode_query(query)
        wanted = min(k * DUPLICATES_ALLOWED_FOR, self.manifest.chunks)
        hits = self._distinct(vector, wanted, k)
        while len(hits) < k and wanted < self.manifest.chunks:  # more copies than allowed for
            wanted = min(wanted * DUPLICATES_ALLOWED_FOR, self.manifest.chunks)
            hits = self._distinct(vector, wanted, k)
        return hits

    def _distinct(self, vector: Any, wanted: int, k: int) -> list[Hit]:
        """The best `k` different passages among the `wanted` best."""
        scores, rows = self._vectors.search(vector[None, :], wanted)  # (1, wanted) each, best first
        hits: list[Hit] = []
        seen: set[str] = set()
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            digest, hit = self._hit(row, len(hits) + 1, score)
            if digest not in seen:
                seen.add(digest)
                hits.append(hit)
            if len(hits) == k:
                break
        return hits

    def around(self, hit: Hit, characters: int = 600) -> tuple[str, str]:
        """What stands before and after a passage in its document, from the neighbouring passages."""
        sql = "SELECT start, end, text FROM chunks WHERE source = ? AND start < ? AND end > ? ORDER BY start"
        first, last = max(0, hit.start - characters), hit.end + characters
        with self._lock:
            rows = self._db.execute(sql, (hit.source, last, first)).fetchall()
        return _stitched(rows, first, hit.start), _stitched(rows, hit.end, last)

    def status(self) -> dict[str, Any]:
        """What the index holds; the JSON form of `rag-index status`."""
        failed = [{"path": s, "error": row.error} for s, row in self.manifest.files.items() if row.error]
        return {
            "index": str(self.directory),
            "generation": self.name,
            "files": len(self.manifest.files) - len(failed),
            "files_failed": failed,
            "chunks": self.manifest.chunks,
            "roots": self.manifest.roots,
            "encoder": {**self.manifest.encoder, "precision": self.manifest.precision},
            "chunker": self.manifest.chunker,
            "faiss": self.manifest.faiss,
            "bytes": sum(self.manifest.bytes.values()),
            "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.manifest.built_at)),
        }

    def close(self) -> None:
        """Closes the files."""
        self._db.close()

    def _check(self, generation: Path) -> None:
        try:
            (chunks,) = self._db.execute("SELECT count(*) FROM chunks").fetchone()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise disk.damaged(self.directory, f"{generation.name}/{disk.CHUNKS} is not a database") from error
        rows = {chunks, self._vectors.ntotal, self.manifest.chunks}
        if len(rows) > 1 or self._vectors.d != self.manifest.encoder.get("dimension"):
            raise disk.damaged(self.directory, f"the parts of {generation.name} do not belong together")

    def _hit(self, row: int, rank: int, score: float) -> tuple[str, Hit]:
        sql = "SELECT hash, chunk_id, source, page, heading, start, end, text FROM chunks WHERE id = ?"
        try:
            with self._lock:
                digest, *rest = self._db.execute(sql, (row,)).fetchone()
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            raise disk.damaged(self.directory, f"{self.name}/{disk.CHUNKS} cannot be read") from error
        return digest, Hit(rank, round(score, 6), *rest)


def _stitched(rows: list[tuple[int, int, str]], first: int, last: int) -> str:
    """The text of `first` to `last` from passages that may overlap or leave blanks between them."""
    pieces: list[str] = []
    for start, end, text in rows:
        low, high = max(start, first), min(end, last)
        if low < high:
            pieces.append(text[low - start : high - start])
            first = high
    return "\n".join(pieces)
