"""Care of an index: verify finds whatever is planted, gc frees what nobody needs, export writes every chunk."""

import json
import random
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import Index, IndexDamaged, NoIndex, build
from index import generation as disk
from index.maintain import collect_garbage, passages, verify
from index.vectors import HEADER
from tests.conftest import WordEncoder, copy_of, point, sign

FLIPS = 24


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two generations, with a PDF, a copy, and a file that cannot be read. Not to be written to."""
    from reportlab.pdfgen.canvas import Canvas

    folder = tmp_path_factory.mktemp("two")
    docs = folder / "docs"
    docs.mkdir()
    for number in range(6):
        (docs / f"{number}.md").write_text(f"# Part {number}\n\nWords of part {number}, and of animal{number}.\n")
    (docs / "copy.md").write_text("# Part 1\n\nWords of part 1, and of animal1.\n")
    (docs / "broken.pdf").write_text("no PDF")
    canvas = Canvas(str(docs / "page.pdf"))
    canvas.drawString(72, 700, "The okapi lives in the Ituri rainforest.")
    canvas.save()
    build([docs], folder / "index", encoder=WordEncoder())
    (docs / "0.md").write_text("# Part 0\n\nOther words than before.\n")
    build([docs], folder / "index", encoder=WordEncoder())
    return folder / "index"


@pytest.fixture
def where(two: Path, tmp_path: Path) -> Path:
    return copy_of(two, tmp_path / "index")


def parts(directory: Path) -> list[str]:
    generation = disk.current(directory)
    names = (path.relative_to(generation).as_posix() for path in generation.rglob("*") if path.is_file())
    return [disk.POINTER, *sorted(f"{generation.name}/{name}" for name in names)]


NAMES = [
    disk.POINTER,
    *(f"gen-000002/{name}" for name in ("manifest.json", "chunks.sqlite3", "vectors.faiss", "bm25/tf.npy")),
    *(f"gen-000002/bm25/{name}.csc.index.npy" for name in ("data", "indices", "indptr")),
    *("gen-000002/bm25/lengths.npy", "gen-000002/bm25/params.index.json"),
]


def test_a_whole_index_has_no_faults(where: Path) -> None:
    assert verify(where) == ("gen-000002", [])
    assert parts(where) == sorted(NAMES)  # so that nothing below is forgotten
    with pytest.raises(NoIndex):
        verify(where / "none")


@pytest.mark.parametrize("name", NAMES)
def test_verify_finds_every_flipped_byte(where: Path, name: str) -> None:
    path, rng = where / name, random.Random(name)
    data = path.read_bytes()
    positions = {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(FLIPS))}
    for position in positions:
        mask = rng.randrange(1, 256)
        path.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        assert verify(where)[1], f"byte {position} ^ {mask}"
    path.write_bytes(data)
    assert verify(where)[1] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("harm", ["cut", "emptied", "grown", "zeros", "deleted", "swapped", "a folder"])
def test_verify_finds_every_harmed_part(where: Path, name: str, harm: str) -> None:
    path = where / name
    data = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm == "swapped":
        older = where / name.replace("gen-000002", "gen-000001")
        other = b"gen-000001 " + data.split(b" ")[1] if name == disk.POINTER else older.read_bytes()
        if other == data:
            pytest.skip("both generations have the same")
        path.write_bytes(other)
    elif harm != "deleted":
        harmed = {"cut": data[:-1], "emptied": b"", "grown": data + b"\n", "zeros": bytes(len(data))}
        path.write_bytes(harmed[harm])
    if (name, harm) == (disk.POINTER, "deleted"):
        with pytest.raises(NoIndex):
            verify(where)
    else:
        faults = verify(where)[1]
        assert faults and all("\n" not in fault["fault"] for fault in faults)


def test_verify_finds_a_file_that_does_not_belong(where: Path) -> None:
    (where / "gen-000002" / "bm25" / "more.npy").write_text("x")
    assert verify(where)[1] == [{"part": "bm25/more.npy", "fault": "does not belong to the index"}]


# --- wrong, and well-hashed


STATEMENTS = [
    "DELETE FROM files WHERE path LIKE '%3.md'",
    "DELETE FROM files WHERE error != ''",
    "DELETE FROM chunks WHERE id = 3",
    "DELETE FROM passages WHERE row = (SELECT max(row) FROM passages)",
    "DELETE FROM passages WHERE row = 2",
    "DELETE FROM terms WHERE id = 3",
    "UPDATE terms SET id = id + 1",
    "UPDATE terms SET id = 3 WHERE id = 4",
    "UPDATE files SET chunks = chunks + 1 WHERE path LIKE '%3.md'",
    "UPDATE files SET chunks = chunks + CASE WHEN path LIKE '%3.md' THEN 1 ELSE -1 END "
    "WHERE path LIKE '%3.md' OR path LIKE '%4.md'",
    "UPDATE files SET error = 'bad' WHERE path LIKE '%3.md'",
    "UPDATE files SET error = '' WHERE path LIKE '%broken.pdf'",
    "UPDATE files SET path = path || 'x' WHERE path LIKE '%3.md'",
    "UPDATE files SET id = 999 WHERE path LIKE '%3.md'",
    "UPDATE passages SET text = text || ' more' WHERE row = 2",
    "UPDATE passages SET context = 'Elsewhere' WHERE row = 2",
    "UPDATE passages SET key = x'00' WHERE row = 2",
    "UPDATE passages SET row = 99 WHERE row = 2",
    "UPDATE chunks SET row = 99 WHERE id = 3",
    "UPDATE chunks SET row = -1 WHERE id = 3",
    "UPDATE chunks SET row = 0 WHERE id = 3",
    "UPDATE chunks SET file = 99 WHERE id = 3",
    "UPDATE chunks SET start = start + 1 WHERE id = 3",
    "UPDATE chunks SET end = end + 1 WHERE id = 3",
    "UPDATE chunks SET chunk_id = '0000' WHERE id = 3",
    "UPDATE words SET boxes = x'0011'",
    "UPDATE words SET file = 99",
    "DROP TABLE terms",
    "DROP TABLE words",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_verify_finds_wrong_rows(where: Path, statement: str) -> None:
    with closing(sqlite3.connect(where / "gen-000002" / "chunks.sqlite3")) as db, db:
        changes = db.total_changes
        db.execute(statement)
        assert db.total_changes > changes or statement.startswith("DROP")
    sign(where)
    assert verify(where)[1]


def vectors_become(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def harm(generation: Path) -> None:
        path = generation / "vectors.faiss"
        data = path.read_bytes()
        codes = np.frombuffer(data[HEADER:], np.float16).reshape(-1, 64).copy()
        change(codes)
        path.write_bytes(data[:HEADER] + codes.tobytes())

    return harm


def array_becomes(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def harm(generation: Path) -> None:
        path = generation / "bm25" / f"{name}.npy"
        array = np.load(path, allow_pickle=False)
        np.save(path, change(array.copy()))

    return harm


def at(position: int, value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[position] = value
        return array

    return change


HARMS = {
    "a vector is no number": vectors_become(lambda codes: codes[2].fill(np.nan)),
    "a vector is infinite": vectors_become(lambda codes: codes[2].fill(np.inf)),
    "a vector is nothing": vectors_become(lambda codes: codes[2].fill(0)),
    "a vector is too long": vectors_become(lambda codes: codes[2].__imul__(1.1)),
    "a posting is out of range": array_becomes("indices.csc.index", at(5, 1000)),
    "a posting is negative": array_becomes("indices.csc.index", at(5, -1)),
    "a posting is another's": array_becomes("indices.csc.index", lambda a: (a + 1) % (a.max() + 1)),
    "a score is off": array_becomes("data.csc.index", at(5, 99.0)),
    "a score is no number": array_becomes("data.csc.index", at(5, np.nan)),
    "a frequency is off": array_becomes("tf", at(5, 7)),
    "a length is off": array_becomes("lengths", at(2, 77)),
    "a length is missing": array_becomes("lengths", lambda a: a[:-1]),
    "a posting is missing": array_becomes("indices.csc.index", lambda a: a[:-1]),
    "terms overlap": array_becomes("indptr.csc.index", at(3, 0)),
    "terms end too early": array_becomes("indptr.csc.index", lambda a: a[:-1]),
    "an array is of strings": array_becomes("lengths", lambda a: a.astype("U9")),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_verify_finds_wrong_numbers(where: Path, harm: Callable[[Path], None]) -> None:
    harm(where / "gen-000002")
    sign(where)
    assert verify(where)[1]


@pytest.mark.parametrize("count", ["files", "files_failed", "chunks", "passages"])
@pytest.mark.parametrize("by", [-1, 1])
def test_verify_finds_wrong_counts(where: Path, count: str, by: int) -> None:
    path = where / "gen-000002" / disk.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, count: manifest[count] + by}))
    point(where)
    assert verify(where)[1]


def test_words_that_are_damaged_are_damage_to_a_reader_too(where: Path) -> None:
    index = Index.open(where, WordEncoder())
    hit = index.search("okapi Ituri", 1)[0]
    assert index.boxes(hit)
    index.close()
    for boxes in (b"", b"x", zlib.compress(b"abc")):
        with closing(sqlite3.connect(where / "gen-000002" / "chunks.sqlite3")) as db, db:
            db.execute("UPDATE words SET boxes = ?", (boxes,))
        sign(where)
        with Index.open(where, WordEncoder()) as index, pytest.raises(IndexDamaged):
            index.boxes(hit)


@pytest.mark.parametrize("seed", range(2))
def test_damage_that_opening_does_not_look_for_is_damage_or_a_worse_answer(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large generations are not hashed whole at every opening: whatever their parts hold, nothing else may happen."""
    monkeypatch.setattr(disk, "HASHED_AT_OPENING", 0)
    monkeypatch.setattr(disk, "HEAD", 1 << 12)
    monkeypatch.setattr("index.vectors.EXACT_UP_TO", 500)
    rng, docs, where = random.Random(seed), tmp_path / "docs", tmp_path / "index"
    docs.mkdir()
    for n in range(12):
        sections = (f"# S{i}\n\n{' '.join(f'w{n}x{i}x{j}' for j in range(40))}\n\n" for i in range(60))
        (docs / f"{n}.md").write_text("".join(sections))
    build([docs], where, encoder=WordEncoder())
    paths = [path for path in disk.current(where).rglob("*") if path.is_file() and path.stat().st_size > 1 << 12]
    assert len(paths) >= 6
    for path in paths * 3:
        data = path.read_bytes()
        first, length = rng.randrange(1 << 12, len(data)), rng.choice([1, 50, 2000])
        piece = data[first : first + length]
        path.write_bytes(data[:first] + rng.randbytes(len(piece)) + data[first + len(piece) :])
        with suppress(IndexDamaged), Index.open(where, WordEncoder()) as index:
            for mode in ("hybrid", "dense", "lexical"):
                hits = index.search("w3x4x5 w9x1x1", 5, mode=mode, filters={"heading": "S"}, expand=2)
                assert all(index.around(hit) and index.boxes(hit) == [] for hit in hits)
        path.write_bytes(data)
    assert verify(where)[1] == []


# --- free, export


def test_gc_keeps_the_current_generation_alone(where: Path) -> None:
    (where / "pending.sqlite3").write_bytes(b"x" * 100)
    (where / "draft-123").mkdir()
    (where / "draft-123" / "part").write_bytes(b"x" * 100)
    (where / "draft-mine").mkdir()
    shutil.copytree(where / "gen-000002", where / "gen-000003")  # of a build that was killed before it was current
    before = sum(path.stat().st_size for path in where.rglob("*") if path.is_file())
    freed = collect_garbage(where)
    left = {path.name for path in where.iterdir()} - {"lock", "builder"}
    assert left == {"CURRENT", "gen-000002", "draft-mine"}
    assert freed == before - sum(path.stat().st_size for path in where.rglob("*") if path.is_file())
    assert verify(where) == ("gen-000002", [])
    assert collect_garbage(where) == 0
    with pytest.raises(NoIndex):
        collect_garbage(where / "none")
    assert not (where / "none").exists()


def test_export_gives_every_chunk_at_its_place(where: Path) -> None:
    rows = list(passages(where))
    assert len(rows) == len({row["_id"] for row in rows}) == Index.open(where).status()["chunks"] == 8
    for row in rows:
        assert set(row) == {"_id", "title", "text", "source", "page", "start", "end"}
        if row["source"].endswith(".md"):
            assert Path(row["source"]).read_text()[row["start"] : row["end"]] == row["text"]
    assert [row["page"] for row in rows if row["source"].endswith("page.pdf")] == [1]
    (where / "gen-000002" / "chunks.sqlite3").write_bytes(b"x")
    with pytest.raises(IndexDamaged):
        list(passages(where))
