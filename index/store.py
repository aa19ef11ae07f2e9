"""The table of documents, passages and places: chunks.sqlite3. Knows no vectors, no formats and no rankings.

A passage is a text that was encoded, with a row number that vectors and postings share. A chunk is a place where a
passage stands: one passage has as many chunks as there are copies of it.
"""

import hashlib
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from index.chunker import Chunk
from index.document import Word
from index.generation import damaged

CHUNKS = "chunks.sqlite3"
TABLES = """
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,      -- absolute
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    title TEXT NOT NULL,
    chunks INTEGER NOT NULL,
    error TEXT NOT NULL,            -- why it could not be read; such a row has no chunks
    again INTEGER NOT NULL          -- to be read by the next build even if size and time stay
);
CREATE TABLE passages (
    row INTEGER PRIMARY KEY,        -- in vectors.faiss and in the postings; no gaps
    key BLOB NOT NULL,              -- SHA-256 of context and text, which is what was encoded
    context TEXT NOT NULL,          -- the end of the heading path
    text TEXT NOT NULL
);
CREATE UNIQUE INDEX passages_key ON passages (key);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    chunk_id TEXT NOT NULL,
    row INTEGER NOT NULL,           -- its passage
    file INTEGER NOT NULL,
    record TEXT NOT NULL,           -- name within a file of several documents, else empty
    page INTEGER,
    heading TEXT NOT NULL,
    start INTEGER NOT NULL,         -- characters in the document's extracted text
    end INTEGER NOT NULL
);
CREATE UNIQUE INDEX chunks_chunk_id ON chunks (chunk_id);
CREATE INDEX chunks_row ON chunks (row);
CREATE INDEX chunks_place ON chunks (file, record, start);
CREATE TABLE words (                -- where words stand on pages, for formats that have them
    file INTEGER NOT NULL,
    record TEXT NOT NULL,
    page INTEGER NOT NULL,
    boxes BLOB NOT NULL,
    PRIMARY KEY (file, record, page)
) WITHOUT ROWID;
CREATE TABLE terms (term TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
"""
WORD = struct.Struct("<II4H")
"""A word's first and last character and its box in tenths of a point."""


@dataclass
class FileRow:
    """What the index knows of one file."""

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    title: str = ""
    chunks: int = 0
    error: str = ""
    again: bool = False


FILE_COLUMNS = ", ".join(field.name for field in fields(FileRow))


@dataclass(frozen=True, slots=True)
class Placed:
    """A chunk on its way into the table."""

    chunk: Chunk
    record: str
    context: str
    """The part of the heading path that is encoded with the text."""
    heading: str
    """The heading path that is shown."""


def clamped(number: int) -> int:
    """A time that SQLite can hold: some file systems keep years far beyond 64 bits of nanoseconds."""
    return max(-(2**63), min(number, 2**63 - 1))


def encoded(context: str, text: str) -> str:
    """What the encoder sees of a passage."""
    return f"{context}\n{text}" if context else text


def source_of(path: str, record: str) -> str:
    """How a document is named: the path of its file, and its name within it where the file holds several."""
    return f"{path}#{record}" if record else path


def chunk_name(path: str, record: str, start: int, text: str) -> str:
    """A chunk's id: the same text at the same place has the same in every generation."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    # NUL stands in no path, as `#` may.
    return hashlib.sha256(f"{path}\0{record}\0{start}\0{digest}".encode()).hexdigest()[:16]


def open_read_only(generation: Path) -> sqlite3.Connection:
    """The tables of a generation; may be shared by threads."""
    uri = (generation / CHUNKS).resolve().as_uri()
    try:
        db = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise damaged(generation.parent, f"{generation.name}/{CHUNKS} cannot be opened") from error
    db.create_function("casefold", 1, str.casefold, deterministic=True)  # SQLite's own LIKE folds only ASCII
    return db


def read_files(db: sqlite3.Connection) -> dict[str, FileRow]:
    """All files, by path."""
    return {row[0]: FileRow(*row) for row in db.execute(f"SELECT {FILE_COLUMNS} FROM files")}


class Draft:
    """The tables of a generation in the making. What is not touched stays as it is in the old one."""

    def __init__(self, folder: Path, old: Path | None) -> None:
        """Begins with a copy of the old generation's tables, or with empty ones."""
        if old:
            shutil.copyfile(old / CHUNKS, folder / CHUNKS)
        # No journal: a draft that is interrupted is thrown away.
        self.db = sqlite3.connect(folder / CHUNKS, isolation_level=None)
        try:
            self.db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;")
            if not old:
                self.db.executescript(TABLES)
            self.db.execute("BEGIN")
            self.old_rows = self._count()
        except sqlite3.Error:  # an open file keeps its room on a full disk when it is removed
            self.db.close()
            raise
        self._rows = self.old_rows
        self._touched: set[int] = set()

    def _count(self) -> int:
        (last,) = self.db.execute("SELECT max(row) FROM passages").fetchone()
        return 0 if last is None else int(last) + 1

    def remove(self, path: str) -> None:
        """Takes a file out, with its chunks."""
        found = self.db.execute("SELECT id FROM files WHERE path = ?", (path,)).fetchone()
        if found:
            self._touched.update(row for (row,) in self.db.execute("SELECT row FROM chunks WHERE file = ?", found))
            for table in ("chunks", "words"):
                self.db.execute(f"DELETE FROM {table} WHERE file = ?", found)
            self.db.execute("DELETE FROM files WHERE id = ?", found)

    def add(self, file: FileRow, placed: Iterable[Placed], words: Iterable[tuple[str, Sequence[Word]]] = ()) -> None:
        """Puts a file in, with its chunks in reading order, and the words of each of its records."""
        values = [getattr(file, field.name) for field in fields(FileRow)]
        marks = ", ".join("?" * len(values))
        number = self.db.execute(f"INSERT INTO files ({FILE_COLUMNS}) VALUES ({marks})", values).lastrowid
        chunks = [self._chunk(file.path, number, one) for one in placed]
        self.db.executemany(
            "INSERT INTO chunks (chunk_id, row, file, record, page, heading, start, end) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            chunks,
        )
        file.chunks = len(chunks)
        self.db.execute("UPDATE files SET chunks = ? WHERE id = ?", (file.chunks, number))
        for record, pages in words:
            self._words(number, record, pages)

    def touch(self, file: FileRow) -> None:
        """Notes another time of a file whose content is the same, so that it is not looked into for it again."""
        self.db.execute("UPDATE files SET mtime_ns = ? WHERE path = ?", (file.mtime_ns, file.path))

    def _chunk(self, path: str, file: int | None, placed: Placed) -> tuple[Any, ...]:
        chunk = placed.chunk
        chunk_id = chunk_name(path, placed.record, chunk.start, chunk.text)
        row = self._passage(placed.context, chunk.text)
        return chunk_id, row, file, placed.record, chunk.page, placed.heading, chunk.start, chunk.end

    def _passage(self, context: str, text: str) -> int:
        key = hashlib.sha256(encoded(context, text).encode()).digest()
        found = self.db.execute("SELECT row FROM passages WHERE key = ?", (key,)).fetchone()
        if found:
            return int(found[0])
        self.db.execute("INSERT INTO passages VALUES (?, ?, ?, ?)", (self._rows, key, context, text))
        self._rows += 1
        return self._rows - 1

    def _words(self, file: int | None, record: str, words: Sequence[Word]) -> None:
        pages: dict[int, list[bytes]] = {}
        for word in words:
            box = (min(65535, max(0, round(10 * edge))) for edge in word.box)
            pages.setdefault(word.page, []).append(WORD.pack(word.start, word.end, *box))
        rows = [(file, record, page, zlib.compress(b"".join(packed), 1)) for page, packed in pages.items()]
        self.db.executemany("INSERT OR REPLACE INTO words VALUES (?, ?, ?, ?)", rows)

    def compact(self) -> dict[int, int]:
        """Gives the rows of passages that stand nowhere any more to the last ones; returns the moves, new to old."""
        dead = sorted(row for row in self._touched if not self._stands(row))
        self.db.executemany("DELETE FROM passages WHERE row = ?", ((row,) for row in dead))
        left, gone = self._rows - len(dead), set(dead)
        movable = (row for row in range(self._rows - 1, left - 1, -1) if row not in gone)
        moves = {hole: next(movable) for hole in dead if hole < left}
        for new, old in moves.items():
            for table in ("passages", "chunks"):
                self.db.execute(f"UPDATE {table} SET row = ? WHERE row = ?", (new, old))
        self._rows = left
        return moves

    def _stands(self, row: int) -> bool:
        return bool(self.db.execute("SELECT 1 FROM chunks WHERE row = ? LIMIT 1", (row,)).fetchone())

    @property
    def passages(self) -> int:
        """How many passages there are."""
        return self._rows

    def keys(self, rows: Iterable[int]) -> Iterator[bytes]:
        """The keys of some passages."""
        for row in rows:
            yield self.db.execute("SELECT key FROM passages WHERE row = ?", (row,)).fetchone()[0]

    def text(self, row: int) -> str:
        """What is encoded of a passage."""
        context, text = self.db.execute("SELECT context, text FROM passages WHERE row = ?", (row,)).fetchone()
        return encoded(context, text)

    def counts(self) -> tuple[int, int, int]:
        """Files, files that could not be read, chunks."""
        sql = "SELECT count(*), coalesce(sum(error != ''), 0), coalesce(sum(chunks), 0) FROM files"
        files, failed, chunks = self.db.execute(sql).fetchone()
        return files, failed, chunks

    def close(self) -> None:
        """Writes what is open and closes."""
        try:
            if self.db.in_transaction:
                self.db.execute("COMMIT")
        finally:  # on a full disk too, as above
            self.db.close()


def unpacked(boxes: bytes) -> list[tuple[int, ...]] | None:
    """First and last character and box of a page's words, as they were packed; None if they are not what was."""
    try:
        return list(WORD.iter_unpack(zlib.decompress(boxes)))
    except (zlib.error, struct.error, TypeError):
        return None


def words_between(db: sqlite3.Connection, file: int, record: str, page: int, start: int, end: int) -> list[Word]:
    """The words of a page that stand, with any of their characters, in `start` to `end` of the document's text."""
    sql = "SELECT boxes FROM words WHERE file = ? AND record = ? AND page = ?"
    found = db.execute(sql, (file, record, page)).fetchone()
    if not found:
        return []
    every = unpacked(found[0])
    if every is None:
        raise sqlite3.DatabaseError("the words of a page are no list")
    return [
        Word(first, last, page, (left / 10, top / 10, right / 10, bottom / 10))
        for first, last, left, top, right, bottom in every
        if first < end and last > start
    ]
