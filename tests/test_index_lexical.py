"""BM25, against bm25s itself: built at once, or in any sequence of small updates; and what a term is."""

import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest

from index import IndexDamaged, lexical
from index.lexical import K1, B, Lexical, terms

TABLE = "CREATE TABLE terms (term TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID"


@contextmanager
def tables() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as db:
        db.execute(TABLE)
        yield db


def corpus(rng: random.Random, count: int) -> list[str]:
    """Texts of made-up words by Zipf's law, some of them empty."""
    vocabulary = [f"w{number}" for number in range(200)]
    weights = [1 / (rank + 1) for rank in range(200)]
    return [" ".join(rng.choices(vocabulary, weights, k=rng.choice([0, 1, 5, 30, 60]))) for _ in range(count)]


def reference(texts: list[str], query: str) -> Any:
    """The scores of an index of bm25s' own, by the same terms."""
    known = {term for text in texts for term in terms(text)}
    words = [term for term in terms(query) if term in known]
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index([terms(text) for text in texts], show_progress=False)
    return index.get_scores(words) if words else np.zeros(len(texts), np.float32)


def scores(folder: Path, db: sqlite3.Connection, query: str) -> Any:
    index = Lexical(folder, db)
    return index.scores(index.term_ids(query))


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_bm25s(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = corpus(rng, rng.choice([20, 30, 300]))
    with tables() as db:
        lexical.update(tmp_path, None, np.full(len(texts), -1), enumerate(texts), db)
        for query in ("w0", "w3 w5 w150", "w1 w1 w1", "unknown", "w2 unknown", "the", ""):
            found = scores(tmp_path, db, query)
            assert found.dtype == np.float32 and found.shape == (len(texts),)
            assert np.allclose(found, reference(texts, query), atol=1e-5), query


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_updates_ends_where_one_build_does(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with tables() as db:
        texts = corpus(rng, 60)
        old = tmp_path / "0"
        lexical.update(old, None, np.full(60, -1), enumerate(texts), db)
        for generation in range(1, 8):
            origin = rng.sample(range(len(texts)), rng.randrange(len(texts) // 2, len(texts) + 1))
            origin += [-1] * rng.choice([0, 1, 20])
            rng.shuffle(origin)
            fresh = iter(corpus(rng, len(origin)))
            texts = [texts[row] if row >= 0 else next(fresh) for row in origin]
            new = [(row, texts[row]) for row, was in enumerate(origin) if was < 0]
            folder = tmp_path / str(generation)
            lexical.update(folder, old, np.array(origin), new, db)
            old = folder
            for query in ("w0 w7", "w199", "w1 w1 w20"):
                assert np.allclose(scores(folder, db, query), reference(texts, query), atol=1e-5)


def test_an_index_of_nothing_finds_nothing(tmp_path: Path) -> None:
    with tables() as db:
        lexical.update(tmp_path / "a", None, np.full(2, -1), enumerate(["", "..."]), db)
        assert scores(tmp_path / "a", db, "anything").tolist() == [0, 0]


def test_threads_share_an_index(tmp_path: Path) -> None:
    texts = corpus(random.Random(1), 500)
    with tables() as db:
        lexical.update(tmp_path, None, np.full(len(texts), -1), enumerate(texts), db)
        index = Lexical(tmp_path, db)
        queries = {query: index.term_ids(query) for query in (f"w{n} w{n + 1} w0" for n in range(40))}
        expected = {query: index.scores(ids) for query, ids in queries.items()}

        def same(query: str) -> bool:
            return bool((index.scores(queries[query]) == expected[query]).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(same, list(queries) * 10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("The cats are running", ["cat", "run"]),
        ("lora_alpha", ["lora_alpha", "lora", "alpha"]),
        ("LoraConfig", ["loraconfig", "lora", "config"]),
        ("getHTTPResponse", ["gethttprespons", "get", "http", "respons"]),
        ("_private __init__", ["privat", "init"]),
        ("PEFT GPU", ["peft", "gpu"]),
        ("v1.2 7500", ["v1", "2", "7500"]),
        ("東京都", ["東京", "京都"]),
        ("猫", ["猫"]),
        ("ラーメンtext", ["text", "ラー", "ーメ", "メン"]),
        ("Größe STRASSE straße", ["grösse", "strass", "strass"]),
        ("ﬁle Ｆｕｌｌ", ["file", "full"]),
        ("naïve café", ["naïv", "café"]),
        ("'; DROP TABLE terms; --", ["drop", "tabl", "term"]),
        ("don't", ["don", "t"]),
        ("a" * 1000, ["a" * 64]),
        ("… — ?!", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_accents_composed_or_not_are_the_same() -> None:
    assert terms("cafe\u0301 nai\u0308ve") == terms("café naïve")


def test_terms_are_the_same_in_every_thread() -> None:
    words = [f"running{n} cats{n} lora_alpha{n} 東京{n}" for n in range(500)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(terms, words * 4))
    lexical._terms.cache_clear()
    assert found == [terms(word) for word in words * 4]


@pytest.mark.parametrize("name", ["params.index.json", "data.csc.index.npy", "indptr.csc.index.npy"])
@pytest.mark.parametrize("data", [None, b"", b"nonsense", b"[]"])
def test_what_is_no_index_is_damage(tmp_path: Path, name: str, data: bytes | None) -> None:
    with tables() as db:
        lexical.update(tmp_path / "gen-000001", None, np.full(2, -1), enumerate(["a word", "two words"]), db)
        path = tmp_path / "gen-000001" / lexical.FOLDER / name
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(IndexDamaged, match="gen-000001/bm25 cannot be read"):
            Lexical(tmp_path / "gen-000001", db)
