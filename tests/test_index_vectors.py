"""Vectors on disk, against plain numpy: exact and coarse, narrowed, merged, moved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import IndexDamaged
from index.vectors import BLOCK, COARSE, EXACT_UP_TO, HEADER, VECTORS, Vectors, merged, write_vectors

COUNT, FEW = 25_000, 20_000
assert COUNT < EXACT_UP_TO


@pytest.fixture(scope="module", autouse=True)
def fewer_are_compared_exactly() -> Iterator[None]:
    """As many rows as take the coarse scan in earnest would make these tests slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.vectors.EXACT_UP_TO", FEW)
        yield


def unit(count: int, dimension: int, seed: int = 1) -> Any:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def opened(folder: Path, vectors: Any) -> Vectors:
    folder.mkdir(exist_ok=True)
    write_vectors(folder, iter(np.array_split(vectors, 3)), vectors.shape[1])
    return Vectors(folder)


@pytest.fixture(scope="module", params=[64, 384])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vectors, Any]]:
    vectors = unit(COUNT, request.param)
    index = opened(tmp_path_factory.mktemp("large"), vectors)
    assert index.coarse is not None
    yield index, vectors
    index.close()


def recall(index: Vectors, vectors: Any, queries: Any, k: int, allowed: Any = None) -> float:
    """Share of the true best that are found; asserts that what is told of each is true."""
    hit = 0
    for query in queries:
        rows, cosines = index.search(query, k, allowed)
        truth = vectors @ query
        assert len(rows) == len(set(rows.tolist())) == min(k, len(vectors) if allowed is None else int(allowed.sum()))
        assert np.allclose(cosines, truth[rows], atol=1e-3)
        assert (np.diff(cosines) <= 0).all()
        if allowed is not None:
            assert allowed[rows].all()
            truth = np.where(allowed, truth, -2)
        hit += len(set(rows.tolist()) & set(np.argsort(-truth)[: len(rows)].tolist()))
    return hit / (len(queries) * min(k, len(rows)))


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_coarse_scan_finds_the_true_best(large: tuple[Vectors, Any], k: int) -> None:
    index, vectors = large
    assert recall(index, vectors, unit(20, vectors.shape[1], seed=2), k) >= 0.97


@pytest.mark.parametrize("share", [0.95, 0.5, 0.01, 0.0002])
def test_narrowed_it_finds_the_best_of_those_allowed(large: tuple[Vectors, Any], share: float) -> None:
    index, vectors = large
    allowed = np.random.default_rng(3).random(COUNT) < share
    assert recall(index, vectors, unit(10, vectors.shape[1], seed=4), 10, allowed) >= 0.97


def test_nothing_allowed_finds_nothing_and_all_allowed_is_no_limit(large: tuple[Vectors, Any]) -> None:
    index, vectors = large
    rows, cosines = index.search(vectors[0], 10, np.zeros(COUNT, bool))
    assert len(rows) == len(cosines) == 0
    everything, none = index.search(vectors[7], 10, np.ones(COUNT, bool)), index.search(vectors[7], 10)
    assert (everything[0] == none[0]).all() and none[0][0] == 7


def test_all_rows_may_be_asked_for(large: tuple[Vectors, Any]) -> None:
    index, vectors = large
    rows, _ = index.search(vectors[0], COUNT + 1)
    assert len(set(rows.tolist())) == COUNT
    allowed = np.arange(COUNT) % 1000 == 0
    rows, _ = index.search(vectors[0], 10**6, allowed)
    assert sorted(rows.tolist()) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize("dimension", [1, 3, 7, 64, 65, 384])
@pytest.mark.parametrize("count", [1, 2, 9, 1000])
def test_few_are_compared_exactly(tmp_path: Path, dimension: int, count: int) -> None:
    vectors = unit(count, dimension)
    index = opened(tmp_path / "index", vectors)
    assert index.coarse is None and (index.count, index.dimension) == (count, dimension)
    narrowed = np.arange(count) % 3 == 0
    for query in unit(5, dimension, seed=5):
        for allowed in (None, narrowed):
            truth = vectors.astype(np.float16).astype(np.float32) @ query
            rows, cosines = index.search(query, 4, allowed)
            possible = np.arange(count) if allowed is None else np.flatnonzero(allowed)
            assert len(rows) == min(4, len(possible)) and set(rows.tolist()) <= set(possible.tolist())
            assert np.allclose(cosines, np.sort(truth[possible])[::-1][:4], atol=1e-5)
    index.close()


def test_an_odd_dimension_has_a_coarse_scan_too(tmp_path: Path) -> None:
    vectors = unit(FEW + 1, 33)
    index = opened(tmp_path / "index", vectors)
    assert index.coarse is not None
    assert recall(index, vectors, unit(10, 33, seed=6), 10) >= 0.97


def test_any_rows_are_read_as_they_were_written(large: tuple[Vectors, Any]) -> None:
    index, vectors = large
    rows = np.random.default_rng(7).integers(0, COUNT, 500)
    assert np.allclose(index.get(rows), vectors[rows], rtol=1e-3, atol=1e-6)  # FAISS and numpy round ties otherwise
    assert index.get(np.empty(0, np.int64)).shape == (0, vectors.shape[1])


@pytest.mark.parametrize("seed", range(6))
def test_merged_is_what_numpy_would_put_together(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(BLOCK + 500 if seed == 0 else 300, 8, seed)
    old = opened(tmp_path / "old", vectors)
    count = int(rng.integers(1, 2 * len(vectors)))
    origin = np.where(rng.random(count) < 0.3, -1, rng.integers(0, len(vectors), count)).astype(np.int64)
    fresh = unit(max(1, int((origin < 0).sum())), 8, seed + 100)[: (origin < 0).sum()]
    expected = old.get(np.arange(len(vectors)))[origin]
    expected[origin < 0] = fresh
    assert (np.concatenate(list(merged(old, origin, fresh))) == expected).all()
    assert (np.concatenate(list(merged(None, np.full(count, -1), expected))) == expected).all()
    old.close()


def test_rows_that_moved_keep_their_vectors_over_many_generations(tmp_path: Path) -> None:
    rng, vectors = np.random.default_rng(9), unit(200, 16)
    index = opened(tmp_path / "0", vectors)
    for generation in range(1, 8):
        origin = rng.permutation(index.count)[: index.count - 5].astype(np.int64)
        folder = tmp_path / str(generation)
        folder.mkdir()
        write_vectors(folder, merged(index, origin, np.empty((0, 16), np.float32)), 16)
        before, index = index.get(origin), Vectors(folder)
        vectors = vectors[origin]
        assert (index.get(np.arange(index.count)) == before).all()  # written again, they lose nothing more
        assert np.allclose(before, vectors, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [VECTORS, COARSE])
@pytest.mark.parametrize("data", [b"", b"x", b"IxSQ" + b"\xff" * HEADER])
def test_what_is_no_faiss_index_is_damage(tmp_path: Path, name: str, data: bytes) -> None:
    opened(tmp_path / "gen-000001", unit(3, 4)).close()
    (tmp_path / "gen-000001" / name).write_bytes(data)
    with pytest.raises(IndexDamaged, match="is not a FAISS index"):
        Vectors(tmp_path / "gen-000001")
