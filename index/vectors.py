"""Passage vectors on disk, by FAISS: exact while there are few, a coarse scan and an exact second look beyond.

vectors.faiss   IndexScalarQuantizer of 16-bit floats, memory-mapped: row i is passage i
coarse.faiss    beyond EXACT_UP_TO rows: 4-bit product quantisation, one code for two dimensions, scanned whole

Measured on 2 cores with 384 dimensions: a scan of these codes costs 0.25 ms per 100,000 rows, an exact one 2.3 ms, and
1,000 candidates of it hold 0.996 of the true ten best of a million uniformly random vectors, the worst case for any
approximation (bench/scale.py); it trains in 0.1 s, so that a small change costs a small build.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.generation import damaged

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Rows = npt.NDArray[np.int64]

VECTORS, COARSE = "vectors.faiss", "coarse.faiss"
EXACT_UP_TO = 100_000
"""Rows up to which all are compared exactly: about 2.5 ms."""
CANDIDATES = 1000
"""Rows of the coarse scan that are looked at again, at least; ten for each that is asked for."""
TRAINED_ON = 8192
"""Rows that the codebooks are learnt from; 16 centroids in two dimensions need no more."""
BLOCK = 1 << 16
"""Rows converted at a time, to bound memory."""
HEADER = 81
"""Bytes before the codes in FAISS's file of a 16-bit scalar quantizer."""


def write_vectors(folder: Path, blocks: Iterator["Floats"], dimension: int) -> str:
    """Writes unit vectors, given in blocks of (n, dimension) float32, for inner products; returns FAISS's type."""
    import faiss

    exact = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for block in blocks:
        exact.add(block)
    _write(exact, folder / VECTORS)
    if exact.ntotal <= EXACT_UP_TO:
        return "SQfp16"
    _write(_coarse(exact), folder / COARSE)
    return "SQfp16 + IVF1,PQx4fs"


def merged(old: "Vectors | None", origin: "Rows", fresh: "Floats") -> Iterator["Floats"]:
    """The vectors of a new generation, in blocks.

    Args:
        old: the vectors of the generation before.
        origin: (n,) row in `old` of each new row, -1 where it is new.
        fresh: the vectors of the new ones, in order.
    """
    import numpy as np

    place = np.cumsum(origin < 0) - 1  # (n,) row in `fresh`
    for first in range(0, len(origin), BLOCK):
        part = origin[first : first + BLOCK]
        new = part < 0
        dimension = old.dimension if old else fresh.shape[1]
        block = np.empty((len(part), dimension), np.float32)
        if old:
            block[~new] = _codes(old.exact)[part[~new]]
        if new.any():
            block[new] = fresh[place[first : first + BLOCK][new]]
        yield block


def _coarse(exact: Any) -> Any:
    import faiss
    import numpy as np

    codes = _codes(exact)
    # One inverted list holds all: a flat fast scan, but one that takes an IDSelector and can be memory-mapped.
    subquantizers = exact.d // 2 if exact.d % 2 == 0 else exact.d
    coarse = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(exact.d), exact.d, 1, subquantizers, 4, faiss.METRIC_INNER_PRODUCT
    )
    coarse.by_residual = False
    coarse.pq.cp.niter = 8
    sample = np.linspace(0, exact.ntotal - 1, TRAINED_ON).astype(np.int64)
    coarse.train(codes[sample].astype(np.float32))
    for first in range(0, exact.ntotal, BLOCK):
        coarse.add(codes[first : first + BLOCK].astype(np.float32))
    return coarse


def _write(index: Any, path: Path) -> None:
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS reports a full disk as a RuntimeError
        raise OSError(f"cannot write {path}: the disk may be full") from error


def _codes(exact: Any) -> "npt.NDArray[np.float16]":
    """The vectors of a 16-bit index, (n, dimension); a view that lives as long as the index."""
    import faiss
    import numpy as np

    if exact.ntotal == 0:
        return np.empty((0, exact.d), np.float16)
    raw = faiss.rev_swig_ptr(exact.codes.data(), exact.ntotal * exact.d * 2)
    view: npt.NDArray[np.float16] = raw.view(np.float16).reshape(exact.ntotal, exact.d)
    return view


class Vectors:
    """The vectors of one generation, opened for searching; memory-mapped. Threads may share it."""

    def __init__(self, generation: Path) -> None:
        import faiss

        try:
            self.exact = faiss.read_index(str(generation / VECTORS), faiss.IO_FLAG_MMAP_IFC)
            has_coarse = (generation / COARSE).exists()
            self.coarse = faiss.read_index(str(generation / COARSE), faiss.IO_FLAG_MMAP_IFC) if has_coarse else None
            self._file = (generation / VECTORS).open("rb")
        except (RuntimeError, MemoryError, OSError) as error:
            raise damaged(generation.parent, f"{generation.name}/{VECTORS} is not a FAISS index") from error
        self.count, self.dimension = int(self.exact.ntotal), int(self.exact.d)
        self._generation = generation

    def get(self, rows: "Rows") -> "Floats":
        """The vectors of some rows, (len(rows), dimension) float32."""
        import numpy as np

        width = 2 * self.dimension
        # Read, not mapped: a mapping would keep 64 KiB around every row resident.
        data = b"".join(self._pread(width, HEADER + width * row) for row in rows.tolist())
        return np.frombuffer(data, np.float16).reshape(len(rows), self.dimension).astype(np.float32)

    def _pread(self, size: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)[offset : offset + size]

    def search(
        self, query: "Floats", k: int, allowed: "npt.NDArray[np.bool_] | None" = None
    ) -> tuple["Rows", "Floats"]:
        """The `k` nearest rows, best first, and their cosines.

        Args:
            query: (dimension,) float32, of unit norm.
            k: how many.
            allowed: (count,) rows that may be found; None allows all.
        """
        import faiss
        import numpy as np

        # One query is one thread's work: a second one costs a barrier of up to 16 ms where cores are busy.
        faiss.omp_set_num_threads(1)
        k = min(k, self.count if allowed is None else int(allowed.sum()))
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        few = allowed is not None and allowed.sum() <= EXACT_UP_TO
        if self.coarse is None or few:
            given = {} if selector is None else {"params": faiss.SearchParameters(sel=selector)}
            scores, rows = self.exact.search(query[None], k, **given)  # (1, k) each, best first
            return rows[0], scores[0]
        wanted = min(max(CANDIDATES, 10 * k), self.count)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=1)
        candidates = np.sort(self.coarse.search(query[None], wanted, params=parameters)[1][0])
        candidates = candidates[candidates >= 0]  # -1 where there are fewer
        if len(candidates) and candidates[-1] >= self.count:
            raise damaged(self._generation.parent, f"{self._generation.name}/{COARSE} names rows that are not there")
        cosines = self.get(candidates) @ query
        best = np.argsort(-cosines, kind="stable")[:k]
        return candidates[best], cosines[best]

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
