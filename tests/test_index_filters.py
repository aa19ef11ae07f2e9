"""Filters: each key, alternatives, and values that mean to break out of them."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index import QueryInvalid
from index.chunker import Chunk
from index.filters import parse, where
from index.store import Draft, FileRow, Placed, open_read_only

FILES = {
    "/docs/guides/a.md": ("Guide to A", "Guides > Ä first", 1),
    "/docs/guides/deep/b.PDF": ("Guide to B", "Guides > Second", 2),
    "/docs/guides/deep/c.pdf": ("100% cotton_wool", "Appendix", 12),
    "/docs/guides2/d.md": ("It's [draft] d*", "x_y", None),
    "/docs/line\nbreak 'quoted' [1].txt": ("line\nbreak", "Back\\slash", None),
    "/other/a.md": ("", "", 3),
}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    folder = tmp_path_factory.mktemp("tables")
    draft = Draft(folder, None)
    for path, (title, heading, page) in FILES.items():
        placed = Placed(Chunk(0, len(path), path, heading, page), "", heading, heading)
        draft.add(FileRow(path, 1, 1, title=title), [placed])
    draft.close()
    db = open_read_only(folder)
    yield db
    db.close()


def found(db: sqlite3.Connection, **filters: Any) -> str:
    """The files that remain, by the letters that tell them apart."""
    condition, parameters = where(filters, db)
    sql = f"SELECT path FROM chunks JOIN files ON files.id = chunks.file WHERE {condition} ORDER BY path"
    names = dict(zip(FILES, "abcdlo", strict=True))
    return "".join(sorted(names[path] for (path,) in db.execute(sql, parameters)))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "abcdlo"),
        ({"source": "/docs/guides"}, "abc"),
        ({"source": "/docs/guides/"}, "abc"),
        ({"source": "/docs/guides/deep/../a.md"}, "a"),
        ({"source": "/docs/guides/a.md"}, "a"),
        ({"source": "a.md"}, "ao"),
        ({"source": "guides/a.md"}, "a"),
        ({"source": "*.md"}, "ado"),
        ({"source": "guides/*.md"}, "a"),
        ({"source": "guides*/*.md"}, "ad"),
        ({"source": "A.md"}, ""),
        ({"source": ["a.md", "d.md"]}, "ado"),
        ({"source": Path("/other")}, "o"),
        ({"source": "/"}, "abcdlo"),
        ({"source": "line\nbreak 'quoted' [1].txt"}, "l"),
        ({"source": "/docs/line\nbreak 'quoted' [1].txt"}, "l"),
        ({"source": "line*"}, "l"),
        ({"source": []}, ""),
        ({"format": "pdf"}, "bc"),
        ({"format": ".PDF"}, "bc"),
        ({"format": ("md", "txt")}, "adlo"),
        ({"format": "%"}, ""),
        ({"title": "guide to ?"}, "ab"),
        ({"title": "GUIDE*"}, "ab"),
        ({"title": "*'s*"}, "d"),
        ({"title": "100% cotton_wool"}, "c"),
        ({"title": "It's [draft] d*"}, "d"),
        ({"heading": "guides"}, "ab"),
        ({"heading": "Guides > sec"}, "b"),
        ({"heading": "ä FIRST"}, "a"),
        ({"heading": "%"}, ""),
        ({"heading": "_"}, "d"),
        ({"heading": "x_y"}, "d"),
        ({"heading": "\\"}, "l"),
        ({"heading": "') OR 1=1 --"}, ""),
        ({"heading": ["appendix", "slash"]}, "cl"),
        ({"heading": []}, ""),
        ({"page": 2}, "b"),
        ({"page": "2-12"}, "bco"),
        ({"page": [1, "12"]}, "ac"),
        ({"page": "12-2"}, ""),
        ({"page": []}, ""),
        ({"page": "9" * 40}, ""),
        ({"page": "0-" + "9" * 40}, "abco"),
        ({"page": " 2 - 12 "}, "bco"),
        ({"page": [*range(9_988), "12", *range(100_000, 100_011)]}, "abco"),
        ({"heading": [*(f"no{n}" for n in range(9_999)), "appendix"]}, "c"),
        ({"source": [*(f"/no/{n}#r" for n in range(1_200)), "a.md"], "heading": ["guides"] * 9_000}, "a"),
        ({"format": "md", "page": "1-2"}, "a"),
        ({"source": "'); DROP TABLE chunks; --"}, ""),
        ({"source": "[!a"}, ""),
        ({"source": "\0"}, ""),
        ({"heading": "\ud800"}, ""),
        ({"source": "\udcff"}, ""),
    ],
)
def test_what_remains(db: sqlite3.Connection, filters: dict[str, Any], expected: str) -> None:
    assert found(db, **filters) == expected


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"colour": "red"}, "there is no filter 'colour': use source, format, title, heading, page"),
        ({"page": "two"}, "'two' is no page: give a number or a range, as in page=2-5"),
        ({"page": "2-"}, "'2-' is no page"),
        ({"page": "-2"}, "'-2' is no page"),
        ({"page": 2.5}, "'2.5' is no page"),
        ({"page": "1--99999999999999999999"}, "'1--99999999999999999999' is no page"),
        ({"page": "--1"}, "'--1' is no page"),
        ({"page": "-"}, "'-' is no page"),
        ({"page": "1-2-3"}, "'1-2-3' is no page"),
        ({"page": "+1"}, "'+1' is no page"),
        ({"page": "1_0"}, "'1_0' is no page"),
        ({"page": "²"}, "'²' is no page"),
        ({"page": ""}, "'' is no page"),
        ({"page": True}, "'True' is no page"),
        ({"page": "1-" + "9" * 5000}, "is no page"),
        ({"page": list(range(10_001))}, "the filter 'page' has 10,001 values: give at most 10,000"),
        ({"heading": ["a"] * 10_001}, "the filter 'heading' has 10,001 values"),
        ({"page": None}, "'None' is no page"),
        ({"page": "9" * 5000}, "is no page"),
    ],
)
def test_what_is_refused(db: sqlite3.Connection, filters: dict[str, Any], told: str) -> None:
    with pytest.raises(QueryInvalid) as raised:
        where(filters, db)
    assert told in str(raised.value) and len(str(raised.value)) < 300


def test_on_a_command_line() -> None:
    assert parse([]) == {}
    assert parse(["source=a", "source=b=c", "page=2"]) == {"source": ["a", "b=c"], "page": ["2"]}
    for pair in ("source", "source=", "=", ""):
        with pytest.raises(QueryInvalid, match="is not of the form key=value"):
            parse([pair])


def test_a_record_of_a_file_of_several(tmp_path: Path) -> None:
    draft = Draft(tmp_path, None)
    for path in ("/d/a.jsonl", "/d/c#1/a.jsonl", "/d/b.jsonl"):
        chunks = [Chunk(0, 4, f"{path} {record}", "", None) for record in ("r1", "r#2")]
        placed = [Placed(one, record, "", "") for one, record in zip(chunks, ("r1", "r#2"), strict=True)]
        draft.add(FileRow(path, 1, 1), placed)
    draft.close()
    db = open_read_only(tmp_path)

    def sources(*values: str, **others: Any) -> list[str]:
        condition, parameters = where({"source": values, **others}, db)
        sql = f"SELECT path, record FROM chunks JOIN files ON files.id = chunks.file WHERE {condition} ORDER BY 1, 2"
        return [f"{path}#{record}" for path, record in db.execute(sql, parameters)]

    for source in ("/d/a.jsonl#r1", "/d/a.jsonl#r#2", "/d/c#1/a.jsonl#r1", "/d/c#1/a.jsonl#r#2", "/d/b.jsonl#r1"):
        assert sources(source) == [source]
    assert sources("b.jsonl#r1", "/d/c#1/a.jsonl") == ["/d/b.jsonl#r1", "/d/c#1/a.jsonl#r#2", "/d/c#1/a.jsonl#r1"]
    assert sources("b.jsonl#r1", heading=["x", ""]) == ["/d/b.jsonl#r1"]
    for value in ("/d/a.jsonl#", "/d/a.jsonl#r3", "#r1", "/d/none#r1"):
        assert sources(value) == []
    db.close()
