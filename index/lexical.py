"""The lexical index: BM25 by bm25s, persisted, memory-mapped, and updated without reading unchanged passages again.

bm25/data|indices|indptr.csc.index.npy, params.index.json   bm25s' own files: a score per posting, by term
bm25/tf.npy, lengths.npy                                    what the scores are made of, for the next build

The vocabulary stands in chunks.sqlite3, table `terms`: bm25s would read all of its JSON at every opening.
"""

import mmap
import re
import sqlite3
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.generation import damaged

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]
    Array = npt.NDArray[Any]

FOLDER = "bm25"
K1, B = 1.2, 0.75
"""Robertson's usual values; scores are Lucene's variant (Kamphuis et al. 2020)."""
VERSION = 1
"""Raised when the same text would give other terms than before."""
SETTINGS = {"k1": K1, "b": B, "version": VERSION}
WORD = re.compile(r"\w+")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
PARTS = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}(?![a-z])|[^\W_a-zA-Z]+|[^\W\d_]+")
STOP_WORDS = frozenset(
    WORD.findall(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with"
    )
)


def terms(text: str) -> list[str]:
    """A text's terms in order: folded, stop words left out, English endings cut off (Snowball).

    Names of code count as a whole and in parts (`lora_alpha`: `lora_alpha`, `lora`, `alpha`); runs of Chinese or
    Japanese, which set no blanks between words, count as pairs of characters.
    """
    found: list[str] = []
    for word in WORD.findall(unicodedata.normalize("NFKC", text)):
        found += _terms(word)
    return found


@lru_cache(1 << 17)
def _terms(word: str) -> tuple[str, ...]:
    if CJK.search(word):
        return tuple(part for run in CJK.split(word) if run for part in _terms(run)) + tuple(
            pair for run in CJK.findall(word) for pair in _pairs(run)
        )
    parts = [word]
    if "_" in word.strip("_") or (word[1:] != word[1:].lower() and not word.isupper()):
        parts += [part for part in PARTS.findall(word) if 2 < len(part) < len(word)]
    folded = [part.strip("_").casefold() for part in parts]
    return tuple(_stem(part) for part in folded if part and part not in STOP_WORDS)


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


def _stem(word: str) -> str:
    # An own stemmer per call chain would be slow, one for all threads unsafe: the cache above calls it rarely.
    import Stemmer

    stemmed: str = Stemmer.Stemmer("english").stemWord(word[:64])
    return stemmed


def update(
    folder: Path, old: Path | None, origin: "Rows", new: Iterable[tuple[int, str]], db: sqlite3.Connection
) -> None:
    """Writes the lexical index of a generation.

    Args:
        folder: the generation in the making.
        old: the generation whose rows `origin` names; None where all are new.
        origin: (passages,) the old row that each row was, -1 for a new one.
        new: row and text of the new ones.
        db: the tables of the generation in the making; new terms are added.
    """
    import numpy as np

    term, row, tf, lengths = _kept(old, origin)
    fresh_term, fresh_row, fresh_tf = _postings(new, lengths, db)
    term = np.concatenate([term, fresh_term])
    order = np.argsort(term, kind="stable")  # two sorted runs, which a merge sort joins in one pass
    term = term[order]
    row = np.concatenate([row, fresh_row])[order]
    tf = np.concatenate([tf, fresh_tf])[order]
    (vocabulary,) = db.execute("SELECT coalesce(max(id) + 1, 0) FROM terms").fetchone()
    df = np.bincount(term, minlength=vocabulary)
    _write(folder / FOLDER, df, term, row, tf, lengths)


def _kept(old: Path | None, origin: "Rows") -> tuple["Array", "Array", "Array", "Array"]:
    """Term, new row and frequency of the postings that stay, sorted by term; and the length of every row."""
    import numpy as np

    lengths = np.zeros(len(origin), np.int32)
    if old is None:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint16), lengths
    old_lengths, tf, indices, indptr = (
        np.load(old / FOLDER / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("lengths", "tf", "indices.csc.index", "indptr.csc.index")
    )
    stays = origin >= 0
    lengths[stays] = old_lengths[origin[stays]]
    moved = np.full(len(old_lengths), -1, np.int32)  # old row to new row
    moved[origin[stays]] = np.flatnonzero(stays)
    row = moved[indices]
    term = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    kept = row >= 0
    if kept.all():
        return term, row, np.asarray(tf), lengths
    return term[kept], row[kept], tf[kept], lengths


def _postings(
    new: Iterable[tuple[int, str]], lengths: "Array", db: sqlite3.Connection
) -> tuple["Array", "Array", "Array"]:
    """Term, row and frequency of the postings of new passages, sorted by term; fills in their lengths."""
    import numpy as np

    vocabulary = _Vocabulary(db)
    term, row, tf = array("i"), array("i"), array("i")  # 12 bytes a posting; lists would take 80
    for number, text in new:
        words = terms(text)
        lengths[number] = len(words)
        counts = Counter(words)
        term.extend(map(vocabulary.id, counts))
        row.extend([number] * len(counts))
        tf.extend(counts.values())
    vocabulary.save()
    found = np.array(term, np.int32)
    order = np.argsort(found, kind="stable")
    frequencies = np.minimum(np.array(tf, np.int32), 65535).astype(np.uint16)
    return found[order], np.array(row, np.int32)[order], frequencies[order]


class _Vocabulary:
    """Numbers for terms: those that the table has, and the next ones."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        (self._next,) = db.execute("SELECT coalesce(max(id) + 1, 0) FROM terms").fetchone()
        self._known: dict[str, int] = {}
        self._new: list[tuple[str, int]] = []
        self._empty = self._next == 0

    def id(self, term: str) -> int:
        number = self._known.get(term)
        if number is None:
            found = None if self._empty else _term_id(self._db, term)
            if found is None:
                found = self._next
                self._next += 1
                self._new.append((term, found))
            number = self._known[term] = found
        return number

    def save(self) -> None:
        self._db.executemany("INSERT INTO terms VALUES (?, ?)", sorted(self._new))


def _term_id(db: sqlite3.Connection, term: str) -> int | None:
    found = db.execute("SELECT id FROM terms WHERE term = ?", (term,)).fetchone()
    return int(found[0]) if found else None


def _write(folder: Path, df: "Array", term: "Array", row: "Array", tf: "Array", lengths: "Array") -> None:
    import bm25s
    import numpy as np

    indptr = np.zeros(len(df) + 1, np.int64)
    np.cumsum(df, out=indptr[1:])
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    data = weights(df, term, row, tf, lengths)
    index.scores = {"data": data, "indices": row, "indptr": indptr, "num_docs": len(lengths)}
    index.vocab_dict, index.nonoccurrence_array = {}, None
    index.save(folder, show_progress=False)
    (folder / "vocab.index.json").unlink()
    np.save(folder / "tf.npy", tf)
    np.save(folder / "lengths.npy", lengths)


def weights(df: "Array", term: "Array", row: "Array", tf: "Array", lengths: "Array") -> "Array":
    """What each posting adds to its passage's score, (postings,) float32: Lucene's BM25 (Kamphuis et al. 2020).

    Args:
        df: (terms,) passages that hold the term.
        term: (postings,) term of each posting.
        row: (postings,) its passage.
        tf: (postings,) how often it stands there.
        lengths: (passages,) in terms.
    """
    import numpy as np

    count = len(lengths)
    # As bm25s has it: log(1 + (N - df + .5) / (df + .5)), never negative.
    idf = np.log1p((count - df + 0.5) / (df + 0.5)).astype(np.float32)
    average = max(float(lengths.mean()) if count else 0.0, 1e-9)
    norm = (K1 * (1 - B + B * lengths / average)).astype(np.float32)
    added: Array = (idf[term] * (tf / (norm[row] + tf))).astype(np.float32)
    return added


class Lexical:
    """The lexical index of one generation, memory-mapped. Threads may share it; `db` is used by one at a time."""

    def __init__(self, generation: Path, db: sqlite3.Connection) -> None:
        import bm25s

        try:
            self._bm25 = bm25s.BM25.load(generation / FOLDER, mmap=True, load_vocab=False, verbosity=0)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise damaged(generation.parent, f"{generation.name}/{FOLDER} cannot be read") from error
        self._db = db
        self.count = int(self._bm25.scores["num_docs"])

    def term_ids(self, query: str) -> list[int]:
        """Numbers of the query's terms that the index knows."""
        found = (_term_id(self._db, term) for term in terms(query))
        return [number for number in found if number is not None]

    def scores(self, term_ids: list[int]) -> "npt.NDArray[np.float32]":
        """BM25 of every passage, (count,) float32; 0 where no term stands."""
        import numpy as np

        if not term_ids:
            return np.zeros(self.count, np.float32)
        scores: npt.NDArray[np.float32] = self._bm25.get_scores_from_ids(term_ids)
        self._release()
        return scores

    def _release(self) -> None:
        """Gives pages that were read back to the system's cache, so that serving a large index stays small."""
        for name in ("data", "indices"):
            mapped = getattr(self._bm25.scores[name], "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED") and len(mapped) > 1 << 26:
                mapped.madvise(mmap.MADV_DONTNEED)
