"""Data sets in BEIR's form: what is read, what is refused with file and line, and a search measured on them."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.beir import DatasetInvalid, documents, evaluate, read_corpus, read_qrels, read_queries, write_corpus
from index.errors import RagError


def lines(path: Path, *rows: Any, end: str = "\n", bom: bytes = b"") -> Path:
    text = end.join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(bom + text.encode())
    return path


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(DatasetInvalid) as raised:
        read()
    assert isinstance(raised.value, RagError)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- reading

FORMS: list[dict[str, Any]] = [{}, {"end": "\r\n"}, {"bom": b"\xef\xbb\xbf"}, {"end": "\r\n\r\n \n"}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_in_whatever_way_they_were_saved(tmp_path: Path, form: dict[str, Any], packed: bool) -> None:
    def saved(*rows: Any) -> Path:
        path = lines(tmp_path / "file", *rows, **form)
        if packed:
            path.write_bytes(gzip.compress(path.read_bytes()))
        return path

    queries = saved({"_id": "q2", "text": "Où?", "metadata": {}}, {"_id": 1, "text": "one\u2028line\x0b\x1c"})
    assert list(read_queries(queries).items()) == [("q2", "Où?"), ("1", "one\u2028line\x0b\x1c")]
    corpus = saved({"_id": "d1", "title": "T", "text": "", "metadata": {"a": [1]}}, {"_id": "d2", "text": "x"})
    assert list(read_corpus(corpus)) == [
        {"_id": "d1", "title": "T", "text": "", "metadata": {"a": [1]}},
        {"_id": "d2", "title": "", "text": "x"},
    ]
    expected = {"q1": {"d 1": 2, "d2": 0}, "q2": {"d1": -1}}
    assert read_qrels(saved("query-id\tcorpus-id\tscore", "q1\td 1\t2", "q1\td2\t0", "q2\td1\t-1")) == expected
    assert read_qrels(saved("q1\td 1\t2", "q1\td2\t0", "q2\td1\t-1")) == expected
    trec = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}
    assert read_qrels(saved("q1 0 d1 2", "q1\t0\td2\t0", "q2   Q0 d1 1 ")) == trec


def test_a_judgement_may_stand_there_twice_unless_it_contradicts(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    assert read_qrels(lines(path, "q\td\t1", "q\td\t1")) == {"q": {"d": 1}}
    assert refused(lambda: read_qrels(lines(path, "q\td\t1", "", "q\td\t2"))) == (
        f"'{path}', line 3: 'q' with 'd' has another grade further up: remove one of them"
    )


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"_id": "a", "text": "x"}, {"_id": "a", "text": "y"}], "line 2: the query 'a' is there twice: remove"),
        ([{"_id": "1", "text": "x"}, {"_id": 1, "text": "y"}], "line 2: the query '1' is there twice: remove"),
        ([{"_id": "a", "text": "x"}, "", "{"], "line 3: no JSON ("),
        (["[1]"], "line 1: no JSON object: write one a line"),
        (["[" * 100_000], "line 1: no JSON ("),
        ([{"text": "x"}], "line 1: no '_id': give each line one"),
        ([{"_id": " ", "text": "x"}], "line 1: no '_id'"),
        ([{"_id": True, "text": "x"}], "line 1: no '_id'"),
        ([{"_id": "a\n\x1f", "text": " "}], "has no words in 'text': write it there"),
        ([{"_id": "a", "text": None}], "line 1: the query 'a' has no words"),
    ],
)
def test_what_is_no_query_is_refused_by_file_and_line(tmp_path: Path, rows: list[Any], told: str) -> None:
    path = lines(tmp_path / "queries.jsonl", *rows)
    message = refused(lambda: read_queries(path))
    assert message.startswith(f"'{path}', ") and told in message


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"_id": "a", "text": "x"}, {"_id": "a", "text": "y"}], "line 2: the document 'a' is there twice: remove"),
        ([{"_id": "a", "title": "x"}], "line 1: the document 'a' has no string in 'text'"),
        ([{"_id": "a", "title": 5, "text": "x"}], "line 1: the document 'a' has no string in 'title'"),
    ],
)
def test_what_is_no_document_is_refused_by_file_and_line(tmp_path: Path, rows: list[Any], told: str) -> None:
    path = lines(tmp_path / "corpus.jsonl", *rows)
    assert f"'{path}', {told}" in refused(lambda: list(read_corpus(path)))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["query-id\tcorpus-id\tscore", "q\td"], "line 2: no judgement: write query, document and grade"),
        (["q\td\t1.5"], "line 1: the grade '1.5' is no whole number"),
        (["q\td\tscore"], "line 1: the grade 'score' is no whole number"),
        (["\td\t1"], "line 1: no judgement"),
        (["q 0 d 1 5"], "line 1: no judgement"),
        (["q\td\t1", "query-id\tcorpus-id\tscore"], "line 2: the grade 'score'"),
    ],
)
def test_what_is_no_judgement_is_refused_by_file_and_line(tmp_path: Path, rows: list[Any], told: str) -> None:
    path = lines(tmp_path / "test.tsv", *rows)
    assert f"'{path}', {told}" in refused(lambda: read_qrels(path))


@pytest.mark.parametrize("read", [read_queries, read_qrels, lambda path: list(read_corpus(path))])
def test_files_that_cannot_be_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    assert refused(lambda: read(path)) == f"'{path}' cannot be read (No such file or directory): check the path"
    assert "Is a directory" in refused(lambda: read(tmp_path))
    path.write_bytes(b'{"_id": "a", "text": "x"}\n\xff\n')
    assert "UTF-8" in refused(lambda: read(path)) or read is read_qrels
    whole = gzip.compress(os.urandom(5000))
    for damaged in (whole[:50], whole[:-4], whole[:20] + b"\xff" * 50 + whole[70:], b"\x1f\x8b"):
        path.write_bytes(damaged)
        assert f"'{path}', line " in refused(lambda: read(path))
    path.write_bytes(b"")
    assert not read(path)


# --- writing

ROWS: list[dict[str, Any]] = [
    {"_id": "d1", "title": "T", "text": "line\nbreak\u2028\x85 日本 🦓", "metadata": {"page": 1}},
    {"_id": "d/2 é", "title": "", "text": ""},
    {"_id": "d3", "title": "half a pair", "text": "\ud800"},
]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "x" * 250])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_corpus(iter(ROWS), path) == 3
    assert list(read_corpus(path)) == ROWS
    first = path.read_bytes()
    assert write_corpus(read_corpus(path), path) == 3  # from a file onto itself
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"_id": "d1", "text": "x"}, "line 4: the document 'd1' is there twice"),
        ({"text": "x"}, "line 4: no '_id'"),
        ({"_id": "d4"}, "line 4: the document 'd4' has no string in 'text'"),
        ({"_id": "d4", "text": "x", "metadata": float("nan")}, "line 4: the document 'd4' does not fit into JSON"),
        ({"_id": "d4", "text": "x", "metadata": {1, 2}}, "line 4: the document 'd4' does not fit into JSON"),
    ],
)
def test_a_bad_row_leaves_the_file_as_it_was(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = lines(tmp_path / "corpus.jsonl", {"_id": "old", "text": "old"})
    assert told in refused(lambda: write_corpus([*ROWS, row], path))
    assert [row["_id"] for row in read_corpus(path)] == ["old"]
    assert os.listdir(tmp_path) == ["corpus.jsonl"]  # noqa: PTH208


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def rows() -> Any:
        yield from ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(rows(), tmp_path / "corpus.jsonl")
    assert os.listdir(tmp_path) == []  # noqa: PTH208


# --- measuring


def test_documents_stand_where_their_best_passage_stood() -> None:
    assert documents([("b", 0.9), ("a", 0.8), ("b", 0.7), ("c", 0.7), ("a", 0.1)]) == [
        ("b", 0.9),
        ("a", 0.8),
        ("c", 0.7),
    ]
    assert documents([]) == []


def test_a_search_is_measured_on_every_judged_query() -> None:
    found = {
        "first": [("d1", 0.9), ("d1", 0.8), ("d2", 0.5)],
        "second": [("q2", 1.0), ("d9", 0.9), ("d2", 0.8)],  # the query itself, as in ArguAna
        "third": [],
    }
    asked: list[tuple[str, int]] = []
    told: list[tuple[str, int, int]] = []

    def search(query: str, k: int) -> list[tuple[str, float]]:
        asked.append((query, k))
        return found[query]

    queries = {"q1": "first", "q2": "second", "q3": "third", "q4": "never asked", "q5": "not judged"}
    qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}, "q4": {}}
    result = evaluate(search, queries, qrels, progress=lambda *step: told.append(step))
    assert asked == [("first", 101), ("second", 101), ("third", 101)]
    assert told == [("searching", done, 3) for done in range(4)]
    assert list(result) == [
        *("ndcg@10", "recall@10", "recall@100", "mrr@10", "map"),
        *("queries", "queries_per_second", "p50_ms", "p95_ms"),
    ]
    assert result["queries"] == 3
    assert result["recall@10"] == result["recall@100"] == pytest.approx(2 / 3)
    assert result["mrr@10"] == result["map"] == pytest.approx((1 + 1 / 2) / 3)
    assert 0 <= result["p50_ms"] <= result["p95_ms"]
    assert result["queries_per_second"] > 0


def test_only_k_documents_count() -> None:
    result = evaluate(lambda _, k: [(f"d{i}", -i) for i in range(k)], {"q": "x"}, {"q": {"d5": 1}}, k=5)
    assert (result["recall@10"], result["map"]) == (0.0, 0.0)


def test_queries_and_judgements_of_different_sets_are_refused() -> None:
    assert "no query is judged" in refused(lambda: evaluate(lambda *_: [], {"q": "x"}, {"q": {}}))
    assert "the query 'p' is judged, but has no text" in refused(
        lambda: evaluate(lambda *_: [], {"q": "x"}, {"p": {"d": 1}})
    )
