"""The opened index: ranking, copies, context, new generations, every kind of damage, and threads beside builds."""

import ast
import json
import os
import random
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import pytest

from index import (
    ChunkSettings,
    Hit,
    Index,
    IndexClosed,
    IndexDamaged,
    IndexMismatch,
    NoIndex,
    QueryInvalid,
    RagError,
    build,
)
from index import generation as disk
from index.engine import Mode
from index.loaders import load
from index.maintain import collect_garbage
from index.store import encoded, open_read_only
from index.vectors import HEADER, Vectors
from tests.conftest import ROOT, WordEncoder, copy_of, point, sign

PARTS = [disk.MANIFEST, "vectors.faiss", "chunks.sqlite3", "bm25/data.csc.index.npy", "bm25/lengths.npy"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def built(facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the three small documents. Not to be written to."""
    directory = tmp_path_factory.mktemp("words") / "index"
    build([facts], directory, encoder=WordEncoder())
    return directory


@pytest.fixture
def where(built: Path, tmp_path: Path) -> Path:
    """A copy of that index, to be harmed."""
    return copy_of(built, tmp_path / "index")


@pytest.fixture
def long_document(tmp_path: Path, encoder: WordEncoder) -> tuple[Index, str]:
    """An index of one document of many passages, and its text."""
    sentences = (f"Sentence number {n} speaks of subject{n % 17} and of thing{n}." for n in range(300))
    path = write(tmp_path / "docs" / "long.txt", "\n\n".join(sentences))
    write(tmp_path / "docs" / "other.txt", "\n\n".join(f"Another{n} text about otherwise{n}." for n in range(300)))
    build([path.parent], tmp_path / "long", encoder=encoder)
    return Index.open(tmp_path / "long", encoder), path.read_text()


# --- ranking


def test_the_best_passage_comes_first(built: Path, encoder: WordEncoder) -> None:
    index = Index.open(built, encoder)
    for query, source in [
        ("okapi tongue", "animals.md"),
        ("lunch allowance", "lunch.txt"),
        ("engine oil", "engine.html"),
    ]:
        assert Path(index.search(query, 1)[0].source).name == source


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_ranks_count_from_one_and_scores_are_in_order(built: Path, encoder: WordEncoder, mode: Any) -> None:
    index, query = Index.open(built, encoder), "the okapi and the lunch"
    hits = index.search(query, 10, mode)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert len(hits) == (2 if mode == "lexical" else index.manifest.chunks)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    with closing(open_read_only(disk.current(built))) as db:
        sql = "SELECT chunk_id, context, text FROM chunks JOIN passages USING (row)"
        texts = {name: encoded(context, text) for name, context, text in db.execute(sql)}
    for hit in hits:
        cosine = float(encoder.encode([texts[hit.chunk_id]])[0] @ encoder.encode_query(query))
        if mode == "lexical":
            assert hit.cosine is None and hit.score == hit.bm25 and hit.score > 0
        else:
            assert hit.cosine == pytest.approx(cosine, abs=1e-3)
        if mode == "dense":
            assert hit.bm25 is None and hit.score == hit.cosine
        if mode == "hybrid":
            assert 0 <= hit.score <= 1 and hit.bm25 is not None and hit.bm25 >= 0


def test_a_hit_says_where_it_stands(built: Path, facts: Path, encoder: WordEncoder) -> None:
    index = Index.open(built, encoder)
    hit = index.search("axolotl gills", 1)[0]
    path = facts / "animals.md"
    assert (hit.source, hit.page) == (str(path), None)
    assert hit.heading == "Animals"  # the passage holds the section on the okapi too
    assert path.read_text()[hit.start : hit.end] == hit.text
    assert index.search("lunch", 1)[0].heading == "lunch"  # no heading and no title: the file's name
    assert index.search("engine oil", 1)[0].heading == "Engine > Oil"
    assert set(hit.as_dict()) == {
        *("rank", "score", "chunk_id", "source", "page", "heading", "start", "end", "text", "cosine", "bm25", "also")
    }
    assert Hit(**hit.as_dict()) == hit


def test_passage_ids_differ_and_stay(long_document: tuple[Index, str], encoder: WordEncoder) -> None:
    index, _ = long_document
    ids = {hit.chunk_id: hit.text for hit in index.search("subject1", 1000)}
    assert len(ids) == index.manifest.chunks
    build([root["path"] for root in index.manifest.roots], index.directory, encoder=encoder, rebuild=True)
    again = Index.open(index.directory, encoder)
    assert not index.is_current()
    assert {hit.chunk_id: hit.text for hit in again.search("subject1", 1000)} == ids


def test_the_same_query_gives_the_same_hits(built: Path) -> None:
    first = Index.open(built, WordEncoder()).search("the", 3)
    assert first == Index.open(built, WordEncoder()).search("the", 3)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 1_000, 10**12])
def test_k_limits_and_may_exceed_the_index(built: Path, encoder: WordEncoder, k: int) -> None:
    index = Index.open(built, encoder)
    assert len(index.search("okapi", k)) == min(k, index.manifest.chunks)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(built: Path, encoder: WordEncoder, k: int) -> None:
    with pytest.raises(QueryInvalid, match=f"^{k} passages are asked for: ask for at least 1$"):
        Index.open(built, encoder).search("okapi", k)


@pytest.mark.parametrize("query", ["", " ", "\n\t", "\u3000"])
def test_an_empty_query_is_refused(built: Path, encoder: WordEncoder, query: str) -> None:
    with pytest.raises(QueryInvalid, match="the question is empty"):
        Index.open(built, encoder).search(query)


@pytest.mark.parametrize("query", ["?", "' OR 1=1 --", "\x00", "🦓", "a" * 100_000, "'; DROP TABLE chunks; --"])
def test_odd_queries_are_answered(built: Path, encoder: WordEncoder, query: str) -> None:
    assert len(Index.open(built, encoder).search(query, 3)) == 3


@pytest.mark.parametrize("copies", [2, 5, 60])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_copies_of_a_passage_count_once_and_hide_no_other(
    tmp_path: Path, encoder: WordEncoder, copies: int, k: int
) -> None:
    for number in range(copies):
        write(tmp_path / "docs" / f"copy{number}.md", "# Licence\n\nThe same licence of every file.\n")
    write(tmp_path / "docs" / "other.md", "# Other\n\nOne licence of its own.\n")
    write(tmp_path / "docs" / "far.md", "# Far\n\nNothing in common.\n")
    build([tmp_path / "docs"], tmp_path / "index", encoder=encoder)
    texts = [
        hit.text.splitlines()[0] for hit in Index.open(tmp_path / "index", encoder).search("licence of every file", k)
    ]
    assert texts == ["# Licence", "# Other", "# Far"][:k]


# --- around a passage


def test_around_gives_the_text_before_and_after(long_document: tuple[Index, str]) -> None:
    index, text = long_document
    hits = [hit for hit in index.search("subject3 thing3", 1000) if hit.source.endswith("long.txt")]
    assert len(hits) > 20
    for hit in hits:
        for characters in (1, 80, 600, 10**6):
            before, after = index.around(hit, characters)
            assert before.split() == text[max(0, hit.start - characters) : hit.start].split()
            assert after.split() == text[hit.end : hit.end + characters].split()


def test_around_a_document_of_one_passage_is_empty(built: Path, encoder: WordEncoder) -> None:
    index = Index.open(built, encoder)
    assert index.around(index.search("lunch", 1)[0]) == ("", "")


# --- the encoder


def test_the_encoder_is_made_at_the_first_query_and_once(built: Path) -> None:
    made: list[WordEncoder] = []
    second = threading.Barrier(2)

    def make() -> WordEncoder:
        made.append(WordEncoder())
        with pytest.raises(threading.BrokenBarrierError):  # nobody else makes one meanwhile
            second.wait(0.2)
        return made[-1]

    index = Index.open(built, make)
    assert index.status()["chunks"] and not made
    start = threading.Barrier(8)

    def query(_: int) -> list[Hit]:
        start.wait(30)
        return index.search("okapi")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(query, range(8)))
    assert len(made) == 1 and all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("other", [WordEncoder("letters", 64), WordEncoder("words", 32)])
def test_another_encoder_is_refused(built: Path, other: WordEncoder) -> None:
    for encoder in (other, lambda: other):
        index = Index.open(built, encoder)
        with pytest.raises(IndexMismatch, match=r"built with 'words' \(64\).* Run: rag-index build --rebuild FOLDER"):
            index.search("okapi")
    assert other.encoded == []


def test_status(built: Path, facts: Path) -> None:
    status = Index.open(built).status()
    files = [path for path in (built / "gen-000001").rglob("*") if path.is_file()]
    assert {
        key: status[key] for key in ("index", "generation", "files", "files_failed", "chunks", "roots", "faiss")
    } == {
        "index": str(built),
        "generation": "gen-000001",
        "files": 3,
        "files_failed": [],
        "chunks": Index.open(built).manifest.chunks,
        "roots": [str(facts)],
        "faiss": "SQfp16",
    }
    assert status["encoder"] == {"name": "words", "dimension": 64, "fingerprint": "words", "precision": "fp32"}
    assert status["bytes"] == sum(path.stat().st_size for path in files if path.name != disk.MANIFEST)
    assert json.loads(json.dumps(status)) == status


# --- new generations


def test_a_new_generation_is_noticed_and_the_old_one_goes_on(tmp_path: Path, encoder: WordEncoder) -> None:
    directory = tmp_path / "index"
    path = write(tmp_path / "docs" / "a.txt", "version one")
    build([path.parent], directory, encoder=encoder)
    first = Index.open(directory, encoder)
    assert (first.name, first.is_current()) == ("gen-000001", True)
    for version in ("two", "three", "four"):
        write(path, f"version {version}")
        build([path.parent], directory, encoder=encoder)
        assert not first.is_current()
    assert generations(directory) == {"gen-000001", "gen-000003", "gen-000004"}  # one is in use, and stays
    collect_garbage(directory)
    assert generations(directory) == {"gen-000001", "gen-000004"}
    for mode in ("hybrid", "dense", "lexical"):
        assert [hit.text for hit in first.search("version", mode=mode)] == ["version one"]
    last = Index.open(directory, encoder)
    assert (last.name, last.is_current()) == ("gen-000004", True)
    assert [hit.text for hit in last.search("version")] == ["version four"]
    first.close()
    assert collect_garbage(directory) > 0
    assert generations(directory) == {"gen-000004"}


def generations(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name.startswith("gen-")}


@pytest.mark.slow
def test_threads_that_search_while_builds_publish_never_fail(tmp_path: Path) -> None:
    docs, directory, done = tmp_path / "docs", tmp_path / "index", threading.Event()

    def publish(version: int) -> None:
        for number in range(3):
            write(docs / f"{number}.txt", f"Text {number} of version{version}.")
        build([docs], directory, encoder=WordEncoder())

    def reads() -> tuple[int, set[str]]:
        """Searches on and on, and opens each new generation as the chat page does."""
        index, opened, searches = Index.open(directory, WordEncoder()), set[str](), 0
        while True:
            last = done.is_set()
            if not index.is_current():
                index.close()
                index = Index.open(directory, WordEncoder())
            hits = index.search("text of a version", 3)
            assert len(hits) == 3 and len({hit.text.split()[-1] for hit in hits}) == 1  # all of one generation
            assert all(index.around(hit) == ("", "") for hit in hits)
            opened.add(index.name)
            searches += 1
            if last:
                return searches, opened

    publish(0)
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(reads) for _ in range(4)]
        try:
            for version in range(1, 16):
                publish(version)
        finally:
            done.set()
        results = [reader.result(60) for reader in readers]
    assert all(searches >= 1 and "gen-000016" in opened for searches, opened in results)


@pytest.mark.parametrize("late", ["_pointer", "in_use", "sha256", "read_manifest", "read_index"])
def test_a_generation_that_builds_remove_while_it_is_opened_is_no_damage(
    where: Path, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(where.parent / "docs" / "new.txt", "The wombat digs.")
    build([where.parent / "docs"], where, encoder=WordEncoder(), rebuild=True)
    newest = (where / disk.POINTER).read_bytes()
    write(where / disk.POINTER, f"gen-000001 {disk.sha256(where / 'gen-000001' / disk.MANIFEST)}\n")
    module: Any = faiss if late == "read_index" else disk
    real = getattr(module, late)

    def removed_meanwhile(*arguments: Any) -> Any:
        if late == "sha256":
            remove()
        found = real(*arguments)
        remove()
        return found

    def remove() -> None:
        if (where / "gen-000001").exists():  # a build publishes and removes just now
            (where / disk.POINTER).write_bytes(newest)
            shutil.rmtree(where / "gen-000001")

    monkeypatch.setattr(module, late, removed_meanwhile)
    with Index.open(where, WordEncoder()) as index:
        assert (index.name, index.is_current()) == ("gen-000002", True)
        assert index.search("wombat", 1)[0].text == "The wombat digs."


@pytest.mark.skipif(disk.fcntl is None, reason="no such locks here")
def test_a_generation_that_a_build_is_about_to_remove_is_not_opened(where: Path) -> None:
    generation = disk.current(where)
    with (generation / disk.MANIFEST).open("rb") as stream:
        disk.fcntl.flock(stream, disk.fcntl.LOCK_EX)
        with pytest.raises(FileNotFoundError):
            disk.in_use(generation)
    held = disk.in_use(generation)
    assert held
    held.close()


# --- no index, and damage


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_no_index(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "index"
    if kind == "empty":
        directory.mkdir()
    if kind == "a file":
        directory.write_text("x")
    with pytest.raises(NoIndex) as raised:
        Index.open(directory)
    assert str(raised.value) == f"there is no index at '{directory}'. Run: rag-index build FOLDER --index {directory}"


def test_no_index_at_the_default_place(tmp_path: Path) -> None:
    with pytest.raises(NoIndex, match=r"Run: rag-index build FOLDER$"):
        Index.open()


def expect_damage(directory: Path, what: str) -> None:
    """Asserts that opening the index says what is wrong, and how to repair it, in one line."""
    with pytest.raises(IndexDamaged, match=what) as raised:
        Index.open(directory, WordEncoder())
    message = str(raised.value)
    assert f"rag-index build --rebuild FOLDER --index {directory}" in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("name", ["gen-000009", "", "../gen-000001", "nonsense\n\nmore", "\0", "x" * 5000, "gen-1"])
def test_a_pointer_to_nothing(where: Path, name: str) -> None:
    (where / disk.POINTER).write_text(name)
    expect_damage(where, "its pointer names")


def test_a_pointer_of_random_bytes(where: Path) -> None:
    (where / disk.POINTER).write_bytes(random.Random(1).randbytes(100))
    expect_damage(where, "its pointer names")


def test_a_generation_that_is_gone(where: Path) -> None:
    (where / "gen-000001").rename(where / "elsewhere")
    expect_damage(where, "its pointer names 'gen-000001', which is not there")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "grown", "garbage", "zeros", "a folder"])
def test_a_harmed_part(where: Path, name: str, harm: str) -> None:
    path = where / "gen-000001" / name
    data = path.read_bytes()
    path.unlink()
    harmed = {
        "empty": b"",
        "cut": data[:-1],
        "grown": data + b"x",
        "garbage": random.Random(1).randbytes(len(data)),
        "zeros": bytes(len(data)),
    }
    if harm == "a folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes(harmed[harm])
    expect_damage(where, f"gen-000001/{name}")


@pytest.mark.parametrize("name", ["vectors.faiss", "chunks.sqlite3"])
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_of_a_header_is_damage(where: Path, name: str, mask: int) -> None:
    headers = {"vectors.faiss": HEADER, "chunks.sqlite3": 100}
    path = where / "gen-000001" / name
    data = path.read_bytes()

    for position in range(headers[name]):
        path.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        expect_damage(where, f"gen-000001/{name} has changed since it was written")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the size of this process")
def test_a_header_that_tells_of_gigabytes_takes_no_memory(where: Path) -> None:
    path = where / "gen-000001" / "vectors.faiss"
    data = path.read_bytes()
    at = HEADER - 8  # the number of bytes that follow
    assert int.from_bytes(data[at:HEADER], "little") == len(data) - HEADER
    path.write_bytes(data[:at] + (1 << 31).to_bytes(8, "little") + data[HEADER:])
    sign(where)  # believed to be what was written
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), limits[1]))
    try:
        expect_damage(where, "gen-000001/vectors.faiss is not a FAISS index")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    "change",
    [
        {"passages": 99},
        {"encoder": {"name": "words", "dimension": 65}},
        {"parts": []},
        {"parts": {"vectors.faiss": "many"}},
        {"parts": {"vectors.faiss": {"bytes": "many", "sha256": 1, "head": None}}},
        {"surprise": 1},
        {"encoder": None},
    ],
)
def test_a_manifest_that_does_not_fit(where: Path, change: dict[str, Any]) -> None:
    path = where / "gen-000001" / disk.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    expect_damage(where, f"gen-000001/{disk.MANIFEST} is not the one that was written")
    point(where)
    expect_damage(where, "gen-000001")


@pytest.mark.parametrize("text", ["[]", "null", "{}", "", '{"schema": 1', '"x"', "[" * 100_000])
def test_a_manifest_that_is_none(where: Path, text: str) -> None:
    (where / "gen-000001" / disk.MANIFEST).write_text(text)
    expect_damage(where, f"gen-000001/{disk.MANIFEST} cannot be read")


@pytest.mark.parametrize(
    ("schema", "told"),
    [(3, "has schema 3, this program reads 2: update the program, or run"), (1, "schema 1.*: run: ")],
)
def test_another_schema_says_what_to_do(where: Path, schema: int, told: str) -> None:
    path = where / "gen-000001" / disk.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema, "what is new": True}))
    expect_damage(where, told)


def test_parts_of_another_index_do_not_fit(where: Path, long_document: tuple[Index, str]) -> None:
    other = long_document[0].directory / "gen-000001"
    for name in ("vectors.faiss", "chunks.sqlite3", "bm25"):
        whole = copy_of(where, where.with_name(f"of {name}".replace("/", "-")))
        if name == "bm25":
            shutil.rmtree(whole / "gen-000001" / name)
            shutil.copytree(other / name, whole / "gen-000001" / name)
        else:
            shutil.copy(other / name, whole / "gen-000001" / name)
        expect_damage(whole, f"gen-000001/{name}.* (is cut|has changed)")
        sign(whole)
        expect_damage(whole, "the parts of gen-000001 do not belong together")
    assert Index.open(where, WordEncoder()).search("okapi")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", PARTS)
def test_a_part_without_read_permission(where: Path, name: str) -> None:
    (where / "gen-000001" / name).chmod(0)
    expect_damage(where, f"gen-000001/{name}")


def test_an_index_may_be_moved_and_be_read_only(built: Path, tmp_path: Path, encoder: WordEncoder) -> None:
    moved = copy_of(built, tmp_path / "else where #1?%20")
    for path in [*moved.rglob("*"), moved]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert Index.open(moved, encoder).search("okapi") == Index.open(built, encoder).search("okapi")
    finally:
        for path in [moved, *moved.rglob("*")]:
            path.chmod(0o755)


# --- what must never be there


def test_every_error_is_one_of_the_package() -> None:
    from index import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) == 10 and all(issubclass(value, RagError) for value in classes)
    assert all(value.__name__ in (errors.__doc__ or "") and value.__doc__ for value in classes)


def test_nothing_is_unpickled() -> None:
    unsafe = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in sorted((ROOT / "index").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & unsafe, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in unsafe, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called != "torch.load", path
                if called in {"np.load", "numpy.load"}:
                    assert "allow_pickle=False" in ast.unparse(node), path


def test_vectors_are_unit_and_in_the_order_of_the_passages(built: Path) -> None:
    with closing(open_read_only(disk.current(built))) as db:
        rows = db.execute("SELECT row, context, text FROM passages ORDER BY row").fetchall()
    vectors = Vectors(disk.current(built)).get(np.arange(len(rows)))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert [row for row, _, _ in rows] == list(range(len(vectors)))
    expected = WordEncoder().encode([encoded(context, text) for _, context, text in rows])
    assert np.allclose(vectors, expected, atol=1e-3)


def test_spans_lead_back_to_the_text_of_the_loaded_file(built: Path, facts: Path) -> None:
    hits = Index.open(built, WordEncoder()).search("the", 100, "dense")
    assert {Path(hit.source).name for hit in hits} == {path.name for path in facts.iterdir()}
    for hit in hits:
        path = Path(hit.source)
        assert load(path, path.read_bytes())[0].text[hit.start : hit.end] == hit.text


# --- damage where no opening looks


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose vectors and postings are longer than the 64 KiB that are checked at opening."""
    folder = tmp_path_factory.mktemp("large")
    words = (" ".join(f"w{n}x{i}" for i in range(12)) for n in range(1500))
    write(folder / "docs" / "a.txt", "\n\n".join(words))
    build([folder / "docs"], folder / "index", encoder=WordEncoder(), settings=ChunkSettings.of(16))
    return folder / "index"


LATE = "w1499x11 w1499x10"
INFINITE, HUGE, NOT_A_NUMBER = b"\x00\x7c", b"\xff\x7b", b"\x00\x7e"  # as 16-bit floats


@pytest.mark.parametrize(
    ("name", "bits", "modes"),
    [
        ("bm25/indices.csc.index.npy", b"\xff\xff\xff\x7f", ["lexical", "hybrid"]),
        ("bm25/data.csc.index.npy", np.float32(np.inf).tobytes(), ["lexical", "hybrid"]),
        ("bm25/data.csc.index.npy", np.float32(-np.inf).tobytes(), ["lexical", "hybrid"]),
        ("bm25/data.csc.index.npy", np.float32(np.nan).tobytes(), ["lexical", "hybrid"]),
        ("bm25/data.csc.index.npy", np.float32(1e30).tobytes(), ["lexical", "hybrid"]),
        ("vectors.faiss", INFINITE, ["dense", "hybrid"]),
        ("vectors.faiss", HUGE, ["dense", "hybrid"]),
        ("vectors.faiss", NOT_A_NUMBER, ["hybrid"]),
    ],
)
def test_damage_that_only_a_search_meets_is_told(
    large: Path, tmp_path: Path, name: str, bits: bytes, modes: list[Any]
) -> None:
    where = copy_of(large, tmp_path / "index")
    path = disk.current(where) / name
    length = path.stat().st_size
    assert length > 70_000
    first = disk.HEAD + (length - disk.HEAD) % len(bits)
    with Index.open(where, WordEncoder()) as index:  # which hashes small files whole, as it cannot large ones
        with path.open("r+b") as file:
            file.seek(first)
            file.write(bits * ((length - first) // len(bits)))
        for mode in modes:
            with pytest.raises(IndexDamaged, match=r"is damaged: .* cannot be read\. Run: rag-index build --rebuild"):
                index.search(LATE, mode=mode)


def test_what_large_holds_is_found(large: Path) -> None:
    with Index.open(large, WordEncoder()) as index:
        assert "w1499x11" in index.search(LATE, 1, "lexical")[0].text
        assert index.search(LATE, 1, "hybrid") and index.search(LATE, 1, "dense")


# --- closing, and what no query is


def test_an_index_that_is_closed_says_so(where: Path, encoder: WordEncoder) -> None:
    index = Index.open(where, encoder)
    hit = index.search("okapi", 1)[0]
    index.close()
    index.close()
    uses: list[Any] = [lambda mode=mode: index.search("okapi", mode=mode) for mode in get_args(Mode)]
    for use in [*uses, lambda: index.around(hit), lambda: index.boxes(hit), index.status]:
        with pytest.raises(IndexClosed, match="the index is closed: open it again"):
            use()


def test_a_search_in_flight_ends_well_before_the_files_are_closed(where: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow(WordEncoder):
        def encode_query(self, query: str) -> Any:
            asked.set()
            assert go_on.wait(60)
            return super().encode_query(query)

    index = Index.open(where, Slow())
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(index.search, "okapi tongue", 1, expand=1)
        try:
            assert asked.wait(60)
            index.close()
            with pytest.raises(IndexClosed):
                index.search("okapi", mode="lexical")
            assert opened_below(where)
        finally:
            go_on.set()
        assert "okapi" in searching.result(60)[0].text
    assert not opened_below(where)


def opened_below(directory: Path) -> list[str]:
    files = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):
            files.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
    parts = ("chunks.sqlite3", "vectors.faiss")  # a mapping's own descriptor is freed with its arrays
    return [name for name in files if name.startswith(str(directory)) and name.endswith(parts)]


@pytest.mark.parametrize("k", [2.5, 2.0, "3", None, float("nan"), [1]])
def test_k_is_a_whole_number(built: Path, encoder: WordEncoder, k: Any) -> None:
    with Index.open(built, encoder) as index, pytest.raises(QueryInvalid, match="ask for a whole number"):
        index.search("okapi", k)


def test_k_may_be_a_number_of_numpy(built: Path, encoder: WordEncoder) -> None:
    with Index.open(built, encoder) as index:
        number: Any = np.int64(2)
        assert index.search("okapi", number) == index.search("okapi", 2)


@pytest.mark.parametrize("query", [None, 3, b"okapi", ["okapi"]])
def test_a_query_is_text(built: Path, encoder: WordEncoder, query: Any) -> None:
    with Index.open(built, encoder) as index, pytest.raises(QueryInvalid, match="the question is no text"):
        index.search(query)
