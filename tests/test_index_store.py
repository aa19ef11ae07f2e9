"""The tables: rows without gaps whatever comes and goes, places, words, files."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from index.chunker import Chunk
from index.document import Word
from index.store import (
    Draft,
    FileRow,
    Placed,
    chunk_name,
    encoded,
    open_read_only,
    read_files,
    source_of,
    words_between,
)


def placed(text: str, start: int = 0, context: str = "", record: str = "") -> Placed:
    return Placed(Chunk(start, start + len(text), text, context, None), record, context, context or "name")


@pytest.mark.parametrize("seed", range(12))
def test_after_any_builds_every_text_has_one_row_and_every_row_its_text(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    model: dict[str, list[str]] = {}  # path to texts, what the tables have to hold
    rows: dict[int, str] = {}  # row to text in the generation before
    old = None
    for generation in range(12):
        folder = tmp_path / f"gen-{generation}"
        folder.mkdir()
        draft = Draft(folder, old)
        assert draft.old_rows == len(rows)
        for path in rng.sample([f"/{n}" for n in range(12)], rng.randrange(0, 8)):
            draft.remove(path)
            model.pop(path, None)
            if rng.random() < 0.7:
                texts = [f"text {rng.randrange(30)}" for _ in range(rng.randrange(5))]
                draft.add(FileRow(path, 1, 1), [placed(text, 100 * i) for i, text in enumerate(texts)])
                model[path] = texts
        fresh = range(draft.old_rows, draft.passages)
        moves = draft.compact()
        assert draft.passages == len({text for texts in model.values() for text in texts})
        origin = {row: row for row in range(draft.passages)} | moves
        now = {row: draft.text(row) for row in range(draft.passages)}
        for row, text in now.items():  # what is told of moves leads back to the old row of the same text
            assert origin[row] in fresh or rows[origin[row]] == text
        draft.close()
        with closing(open_read_only(folder)) as db:
            passages = dict(db.execute("SELECT row, text FROM passages ORDER BY row"))
            assert passages == now and list(passages) == list(range(len(passages)))
            assert len(set(passages.values())) == len(passages)
            found: dict[str, list[str]] = {path: [] for path in read_files(db)}
            sql = "SELECT path, text FROM chunks JOIN files ON file = files.id JOIN passages USING (row) ORDER BY start"
            for path, text in db.execute(sql):
                found[path].append(text)
            assert found == model
            assert {path: row.chunks for path, row in read_files(db).items()} == {p: len(t) for p, t in model.items()}
        rows, old = now, folder


def test_context_is_part_of_what_a_passage_is(tmp_path: Path) -> None:
    draft = Draft(tmp_path, None)
    draft.add(FileRow("/a", 1, 1), [placed("text", 0, "One"), placed("text", 9, "Two"), placed("text", 20)])
    draft.add(FileRow("/b", 1, 1), [placed("One\ntext", 0)])  # encoded, it is the same as the first
    assert draft.passages == 3
    assert [draft.text(row) for row in range(3)] == ["One\ntext", "Two\ntext", "text"]
    assert encoded("", "text") == "text"
    assert len(set(draft.keys(range(3)))) == 3
    assert draft.counts() == (2, 0, 4)
    draft.close()


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    files = [
        FileRow("/bad \udcff".encode("utf-8", "replace").decode(), 1, 2**62, "", error="cannot be opened", again=True),
        FileRow("/naïve 日本 'q\" \n.md", 3, -5, "ab" * 32, "A title", 0),
    ]
    draft = Draft(tmp_path, None)
    for file in files:
        draft.add(file, [])
    draft.touch(FileRow(files[1].path, 3, 77))
    files[1].mtime_ns = 77
    draft.remove("/not there")
    draft.close()
    with closing(open_read_only(tmp_path)) as db:
        assert list(read_files(db).values()) == files


def test_words_come_back_to_a_tenth_of_a_point(tmp_path: Path) -> None:
    rng = random.Random(3)
    words = [
        Word(10 * n, 10 * n + 7, 1 + n // 100, tuple(round(rng.uniform(0, 2000), 1) for _ in range(4)))  # type: ignore[arg-type]
        for n in range(300)
    ]
    words.append(Word(2**32 - 9, 2**32 - 1, 9, (-5.0, 0.04, 99999.0, 6553.5)))
    draft = Draft(tmp_path, None)
    draft.add(FileRow("/a.pdf", 1, 1), [], [("", words), ("part", words[:1])])
    draft.add(FileRow("/b.pdf", 1, 1), [], [("", words[5:6])])
    draft.remove("/b.pdf")
    draft.close()
    with closing(open_read_only(tmp_path)) as db:
        assert [word for page in (1, 2, 3) for word in words_between(db, 1, "", page, 0, 10**6)] == words[:300]
        assert words_between(db, 1, "", 1, 17, 30) == words[2:3]  # between two words, and up to the next
        assert words_between(db, 1, "", 1, 16, 31) == words[1:4]
        assert words_between(db, 1, "", 9, 0, 2**33)[0].box == (0.0, 0.0, 6553.5, 6553.5)  # what has no place is cut
        assert words_between(db, 1, "part", 1, 0, 10**6) == words[:1]
        assert words_between(db, 1, "", 4, 0, 10**6) == words_between(db, 2, "", 1, 0, 10**6) == []


def test_names_of_chunks_differ_by_each_of_their_parts() -> None:
    names = {
        chunk_name(*place)  # type: ignore[arg-type]
        for place in [
            ("/a", "", 0, "x"),
            ("/b", "", 0, "x"),
            ("/a", "r", 0, "x"),
            ("/a", "", 1, "x"),
            ("/a", "", 0, "y"),
        ]
    }
    assert len(names) == 5 and all(len(name) == 16 for name in names)
    assert (source_of("/a", ""), source_of("/a", "d1")) == ("/a", "/a#d1")


def test_an_opened_table_cannot_be_written(tmp_path: Path) -> None:
    Draft(tmp_path, None).close()
    with closing(open_read_only(tmp_path)) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM files")
