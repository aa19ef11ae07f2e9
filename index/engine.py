"""An opened index: a query in, ranked passages out. Never writes."""

import math
import operator
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from index import filters as narrowing
from index import generation as disk
from index.encoder import Encoder, SentenceEncoder, mismatch
from index.errors import IndexClosed, IndexDamaged, QueryInvalid
from index.fusion import convex
from index.hit import FARTHEST, Box, Hit, around, boxes, expanded
from index.lexical import Lexical, terms
from index.paths import default_index
from index.rerank import Reranker, as_reranker
from index.store import open_read_only, source_of
from index.vectors import Vectors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from index.retriever import IndexRetriever

    Rows = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float32]
    Allowed = npt.NDArray[np.bool_]

Mode = Literal["hybrid", "dense", "lexical"]
CANDIDATES = 100
"""Passages of each ranking that are fused, at least."""
RERANKED = 50
"""Passages that a reranker reads, or as many as are asked for."""
COPY = 0.9
"""Share of their terms that two passages have in common when one is a copy of the other (Jaccard), and all numbers."""
READ_BY_PEOPLE = 20
"""In longer lists, which programs read, only equal texts count as copies: telling near ones costs time."""
FILTERS_KEPT = 8
FARTHEST_COSINE = 1.01
"""Between unit vectors of 16-bit floats; what lies beyond was never written."""


@dataclass(slots=True)
class _Ranked:
    """Candidates, best first."""

    rows: "Rows"
    scores: "Floats"
    cosines: "Floats | None"
    bm25: "Floats | None"


class Index:
    """One generation, opened for searching. Threads may share it; it stays on disk while it is open."""

    def __init__(
        self, generation: Path, digest: str, encoder: Encoder | Callable[[], Encoder] = SentenceEncoder
    ) -> None:
        self.directory, self.name = generation.parent, generation.name
        self._make_encoder = encoder
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()
        self._gate = threading.Lock()  # of the two below
        self._users, self._closed = 0, False
        self._allowed: dict[str, tuple[str, list[Any], Allowed]] = {}
        with ExitStack() as files:
            try:
                files.enter_context(disk.in_use(generation) or nullcontext())
            except OSError as error:
                raise disk.damaged(self.directory, f"{self.name}/{disk.MANIFEST} is missing") from error
            self.manifest = disk.read_manifest(generation, digest)
            self._db = files.enter_context(closing(open_read_only(generation)))
            self._vectors = files.enter_context(closing(Vectors(generation)))
            self._lexical = Lexical(generation, self._db)
            self._check()
            self._files = files.pop_all()

    @classmethod
    def open(
        cls, directory: str | Path | None = None, encoder: Encoder | Callable[[], Encoder] = SentenceEncoder
    ) -> "Index":
        """Opens the current generation.

        Args:
            directory: the index; `./.rag/index` by default.
            encoder: an encoder, or what makes one at the first query that needs it.

        Raises:
            NoIndex: there is none.
            IndexDamaged: a part is missing, cut, changed, or of another schema.
        """
        directory = Path(directory or default_index())
        while True:  # builds may remove the generation between reading the pointer and opening the files
            generation, digest = disk.pointed_to(directory)
            try:
                return cls(generation, digest, encoder)
            except IndexDamaged:
                if disk.pointed_to(directory) == (generation, digest):
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

    def search(
        self,
        query: str,
        k: int = 4,
        mode: Mode = "hybrid",
        *,
        filters: Mapping[str, narrowing.Value] | None = None,
        rerank: Reranker | str | bool | None = None,
        expand: int = 0,
    ) -> list[Hit]:
        """The `k` passages that answer the query best, best first; copies of one passage count once.

        Args:
            query: a question or keywords.
            k: how many.
            mode: `dense` by meaning, `lexical` by words (needs no encoder), `hybrid` by both.
            filters: `source`, `format`, `title`, `heading`, `page`; see filters.py.
            rerank: a cross-encoder that orders the best passages anew: a folder or Hub id, True for `$RAG_RERANKER`,
                or anything with `scores(query, texts)`.
            expand: neighbouring passages to join to each hit on either side.

        Raises:
            QueryInvalid: the query is empty or too long, `k` is no whole number from 1 on, or a mode or filter is
                unknown.
            IndexMismatch: the encoder is not the one that the index was built with.
            IndexDamaged: what a part says cannot be.
            IndexClosed: `close` was called.
        """
        k = _whole(k)
        if k < 1:
            raise QueryInvalid(f"{k} passages are asked for: ask for at least 1")
        if not isinstance(query, str):
            raise QueryInvalid(f"the question is no text, but {type(query).__name__}: write one")
        if not query.strip():
            raise QueryInvalid("the question is empty: write one")
        if mode not in get_args(Mode):
            raise QueryInvalid(f"there is no mode '{mode}': use {', '.join(get_args(Mode))}")
        with self._use():
            return self._search(query, k, mode, filters or {}, as_reranker(rerank), expand)

    def _search(
        self,
        query: str,
        k: int,
        mode: Mode,
        filters: Mapping[str, narrowing.Value],
        reranker: Reranker | None,
        expand: int,
    ) -> list[Hit]:
        condition, parameters, allowed = self._narrowed(filters)
        vector = None if mode == "lexical" else self.load_encoder().encode_query(query)
        possible = self.manifest.passages if allowed is None else int(allowed.sum())
        wanted = min(max(CANDIDATES, 4 * k, RERANKED if reranker else 0), possible)
        while True:
            ranked = self._ranked(query, vector, mode, wanted, allowed)
            if reranker:
                ranked = self._reranked(query, ranked, reranker, max(RERANKED, k))
            hits = self._distinct(ranked, k, condition, parameters)
            if len(hits) == k or wanted >= possible or len(ranked.rows) < wanted:
                break
            wanted = min(4 * wanted, possible)  # more copies than allowed for
        return [self._expanded(hit, expand) for hit in hits] if expand > 0 else hits

    def _narrowed(self, filters: Mapping[str, narrowing.Value]) -> "tuple[str, list[Any], Allowed | None]":
        """The filters as SQL, and the passages that they allow; None for all."""
        import numpy as np

        if not filters:
            return "1", [], None
        key = repr((Path.cwd(), *filters.items()))  # paths may be relative
        with self._read():
            if key not in self._allowed:
                condition, parameters = narrowing.where(filters, self._db)
                rows = self._db.execute(f"SELECT row FROM chunks WHERE {condition}", parameters).fetchall()
                allowed = np.zeros(self.manifest.passages, bool)
                allowed[np.fromiter((row for (row,) in rows), np.int64, len(rows))] = True
                while len(self._allowed) >= FILTERS_KEPT:
                    del self._allowed[next(iter(self._allowed))]
                self._allowed[key] = condition, parameters, allowed
            return self._allowed[key]

    def _ranked(
        self, query: str, vector: "Floats | None", mode: Mode, wanted: int, allowed: "Allowed | None"
    ) -> _Ranked:
        import numpy as np

        if mode == "dense" and vector is not None:
            rows, cosines = self._nearest(vector, wanted, allowed)
            return _Ranked(rows, cosines, cosines, None)
        with self._read():
            term_ids = self._lexical.term_ids(query)
        bm25 = self._bm25(term_ids)
        if allowed is not None:
            bm25 *= allowed
        best = _top(bm25, wanted)
        if vector is None:
            return _Ranked(best, bm25[best], None, bm25[best])
        near, _ = self._nearest(vector, wanted, allowed)
        rows = np.union1d(near, best)
        cosines = self._cosines(rows, vector)
        fused = convex(cosines, bm25[rows]) if len(rows) else cosines
        order = np.argsort(-fused, kind="stable")  # ties keep the order of rows
        rows = rows[order]
        return _Ranked(rows, fused[order], cosines[order], bm25[rows])

    def _bm25(self, term_ids: list[int]) -> "Floats":
        with self._sound("bm25"):
            scores = self._lexical.scores(term_ids)
            # No term's weight exceeds its idf, and none of those this; NaN fails every comparison.
            most = len(term_ids) * math.log1p(len(scores)) + 1e-3
            if len(scores) and not (scores.min() >= 0 and scores.max() <= most):
                raise ValueError("scores that cannot be")
            return scores

    def _nearest(self, vector: "Floats", wanted: int, allowed: "Allowed | None") -> "tuple[Rows, Floats]":
        with self._sound("vectors.faiss"):
            rows, cosines = self._vectors.search(vector, wanted, allowed)
            if len(rows) and not (rows.min() >= 0 and rows.max() < self._vectors.count):
                raise ValueError("rows that are not there")
            return rows, _possible(cosines)

    def _cosines(self, rows: "Rows", vector: "Floats") -> "Floats":
        with self._sound("vectors.faiss"):
            return _possible(self._vectors.get(rows) @ vector)

    @contextmanager
    def _sound(self, part: str) -> Iterator[None]:
        """Calls a damaged index what only harmed files lead to; all of a file is too much to check at each opening."""
        import numpy as np

        try:
            with np.errstate(all="ignore"):  # infinite numbers are told of below
                yield
        except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise disk.damaged(self.directory, f"{self.name}/{part} cannot be read") from error

    def _reranked(self, query: str, ranked: _Ranked, reranker: Reranker, count: int) -> _Ranked:
        import numpy as np

        rows = ranked.rows[:count]
        texts = [self._passage(int(row)) for row in rows]
        scores = np.asarray(reranker.scores(query, texts), np.float32) if texts else ranked.scores[:0]
        order = np.argsort(-scores, kind="stable")
        cosines = None if ranked.cosines is None else ranked.cosines[:count][order]
        bm25 = None if ranked.bm25 is None else ranked.bm25[:count][order]
        return _Ranked(rows[order], scores[order], cosines, bm25)

    def _distinct(self, ranked: _Ranked, k: int, condition: str, parameters: list[Any]) -> list[Hit]:
        """The best `k` different passages."""
        hits: list[Hit] = []
        words: list[set[str]] = []
        places: dict[str, int] = {}  # text to its place in `hits`
        for i, row in enumerate(ranked.rows.tolist()):
            hit = self._hit(row, condition, parameters)
            these = set(terms(hit.text)) if k <= READ_BY_PEOPLE else set()
            alike = (n for n, those in enumerate(words) if _alike(these, those))
            original = places[hit.text] if hit.text in places else next(alike, None)
            if original is not None:
                sources = dict.fromkeys((*hits[original].also, hit.source, *hit.also))
                sources.pop(hits[original].source, None)
                hits[original] = replace(hits[original], also=list(sources))
                continue
            if len(hits) == k:
                break
            words.append(these)
            places[hit.text] = len(hits)
            cosine = None if ranked.cosines is None else round(float(ranked.cosines[i]), 6)
            bm25 = None if ranked.bm25 is None else round(float(ranked.bm25[i]), 6)
            score = round(float(ranked.scores[i]), 6)
            hits.append(replace(hit, rank=len(hits) + 1, score=score, cosine=cosine, bm25=bm25))
        return hits

    def around(self, hit: Hit, characters: int = 600) -> tuple[str, str]:
        """What stands before and after a passage in its document, from the neighbouring passages."""
        with self._use(), self._read():
            return around(self._db, hit, characters)

    def boxes(self, hit: Hit, start: int | None = None, end: int | None = None) -> list[Box]:
        """Where a passage, or `start` to `end` of its document's text, stands on its page: a box a line.

        Empty for formats whose pages have no fixed layout.
        """
        with self._use(), self._read():
            return boxes(self._db, hit, hit.start if start is None else start, hit.end if end is None else end)

    def as_retriever(self, **settings: Any) -> "IndexRetriever":
        """This index as a LangChain retriever; settings are those of `search`, such as `k=8` or `mode="lexical"`."""
        from index.retriever import IndexRetriever

        return IndexRetriever(index=self, settings=settings)

    def status(self) -> dict[str, Any]:
        """What the index holds; the JSON form of `rag-index status`."""
        manifest = self.manifest
        with self._use(), self._read():
            rows = self._db.execute("SELECT path, error FROM files WHERE error != '' ORDER BY path").fetchall()
        failed = [{"path": path, "error": error} for path, error in rows]
        return {
            "index": str(self.directory),
            "generation": self.name,
            "files": manifest.files - len(failed),
            "files_failed": failed,
            "chunks": manifest.chunks,
            "passages": manifest.passages,
            "roots": [root["path"] for root in manifest.roots],
            "patterns": {
                root["path"]: {kind: root[kind] for kind in ("include", "exclude") if root[kind]}
                for root in manifest.roots
                if root["include"] or root["exclude"]
            },
            "removed": manifest.removed,
            "encoder": {**manifest.encoder, "precision": manifest.precision},
            "chunker": manifest.chunker,
            "lexical": manifest.lexical,
            "faiss": manifest.faiss,
            "bytes": sum(part.bytes for part in manifest.parts.values()),
            "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(manifest.built_at)),
        }

    def close(self) -> None:
        """Closes the files, once the searches of other threads have ended; the generation may be removed from then on.

        Whatever is asked for later raises `IndexClosed`.
        """
        with self._gate:
            last = not self._closed and not self._users
            self._closed = True
        if last:
            self._files.close()

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Keeps the files open: one that is closed under a reader may be another one by its number."""
        with self._gate:
            if self._closed:
                raise IndexClosed("the index is closed: open it again")
            self._users += 1
        try:
            yield
        finally:
            with self._gate:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._files.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        with self._read():
            (last,) = self._db.execute("SELECT max(row) FROM passages").fetchone()
        passages = 0 if last is None else last + 1
        rows = {passages, self._vectors.count, self._lexical.count, self.manifest.passages}
        if len(rows) > 1 or self._vectors.dimension != self.manifest.encoder.get("dimension"):
            raise disk.damaged(self.directory, f"the parts of {self.name} do not belong together")

    @contextmanager
    def _read(self) -> Iterator[None]:
        """Holds the lock on the tables, and calls what SQLite cannot read a damaged index."""
        with self._lock:
            try:
                yield
            except sqlite3.ProgrammingError:  # our own fault
                raise
            except (sqlite3.DatabaseError, TypeError, IndexError, ValueError) as error:
                raise disk.damaged(self.directory, f"{self.name} cannot be read") from error

    def _passage(self, row: int) -> str:
        with self._read():
            text: str = self._db.execute("SELECT text FROM passages WHERE row = ?", (row,)).fetchone()[0]
        return text

    def _hit(self, row: int, condition: str, parameters: list[Any]) -> Hit:
        sql = (
            "SELECT chunk_id, path, record, page, heading, start, end, text FROM chunks "
            "JOIN files ON files.id = chunks.file JOIN passages USING (row) "
            f"WHERE row = ? AND {condition} ORDER BY path, record, start"
        )
        with self._read():
            places = self._db.execute(sql, (row, *parameters)).fetchall()
            chunk_id, _, _, page, heading, start, end, text = places[0]
        sources = dict.fromkeys(source_of(place[1], place[2]) for place in places)
        source, *also = sources
        return Hit(0, 0.0, chunk_id, source, page, heading, start, end, text, also=also)

    def _expanded(self, hit: Hit, neighbours: int) -> Hit:
        with self._read():
            return expanded(self._db, hit, min(neighbours, FARTHEST))


def _whole(k: object) -> int:
    try:
        return operator.index(k)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise QueryInvalid(f"{str(k)[:40]!r} passages are asked for: ask for a whole number") from None


def _possible(cosines: "Floats") -> "Floats":
    if len(cosines) and not (cosines.min() >= -FARTHEST_COSINE and cosines.max() <= FARTHEST_COSINE):  # or NaN
        raise ValueError("cosines that cannot be")
    return cosines


def _top(scores: "Floats", wanted: int) -> "Rows":
    """Rows of the best scores above 0, best first; ties keep the order of rows."""
    import numpy as np

    rows = np.flatnonzero(scores > 0)
    if len(rows) > wanted:
        floor = np.partition(scores[rows], len(rows) - wanted)[len(rows) - wanted]
        rows = rows[scores[rows] >= floor]
    best: Rows = rows[np.argsort(-scores[rows], kind="stable")][:wanted]
    return best


def _alike(these: set[str], those: set[str]) -> bool:
    # What tells two versions of a contract apart is often one number.
    differ = any(c.isdigit() for word in these ^ those for c in word)
    return bool(these) and not differ and len(these & those) >= COPY * len(these | those)
