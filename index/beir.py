"""BEIR's files in and out, and a search measured on them. Knows nothing of indexes: a search is a function.

corpus.jsonl     {"_id": "d1", "title": "...", "text": "...", "metadata": {}}
queries.jsonl    {"_id": "q1", "text": "..."}
qrels/test.tsv   query-id <tab> corpus-id <tab> score, below that header; or TREC's `query 0 document grade`
"""

import gzip
import json
import math
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from index.errors import RagError
from index.metrics import Qrels, mean_average_precision, mrr, ndcg, recall

Progress = Callable[[str, int, int], None]
"""Called with the stage ('searching'), the number done and the number in all."""


class DatasetInvalid(RagError):
    """A file of a data set is missing or does not have its form; the text names the file and the line."""


def read_queries(path: str | Path) -> dict[str, str]:
    """Queries by their ids, in the file's order.

    Raises:
        DatasetInvalid: the file cannot be read, or a line is no query or has the id of an earlier one.
    """
    queries: dict[str, str] = {}
    for number, row in read_rows(Path(path)):
        name, text = _id(Path(path), number, row), row.get("text")
        if name in queries:
            raise invalid(path, number, f"the query '{name}' is there twice: remove one of them")
        if not isinstance(text, str) or not text.strip():
            raise invalid(path, number, f"the query '{name}' has no words in 'text': write it there")
        queries[name] = text
    return queries


def read_corpus(path: str | Path) -> Iterator[dict[str, Any]]:
    """Documents in the file's order, each with `_id`, `title` and `text` as strings, and what else stands in its line.

    Raises:
        DatasetInvalid: the file cannot be read, or a line is no document or has the id of an earlier one.
    """
    seen: set[str] = set()
    for number, row in read_rows(Path(path)):
        name = _id(Path(path), number, row)
        if name in seen:
            raise invalid(path, number, f"the document '{name}' is there twice: remove one of them")
        seen.add(name)
        row = {**row, "_id": name, "title": row.get("title") or "", "text": row.get("text")}
        for key in ("title", "text"):
            if not isinstance(row[key], str):
                raise invalid(
                    path, number, f"the document '{name}' has no string in '{key}': write one, if an empty one"
                )
        yield row


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Grades by query and document, of either form. The same judgement may stand there twice, as in some data sets.

    Raises:
        DatasetInvalid: the file cannot be read, a line is no judgement, or two contradict each other.
    """
    qrels: dict[str, dict[str, int]] = {}
    first = True
    for number, line in _lines(Path(path)):
        fields = _judgement(line)
        header, first = first and len(fields) == 3 and fields[0].strip().lower() == "query-id", False
        if header:
            continue
        if len(fields) != 3 or not fields[0] or not fields[1]:
            raise invalid(path, number, "no judgement: write query, document and grade with tabs between them")
        query, document, grade = fields[0], fields[1], _grade(path, number, fields[2])
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise invalid(path, number, f"'{query}' with '{document}' has another grade further up: remove one of them")
    return qrels


def _judgement(line: str) -> list[str]:
    fields = line.split()
    if len(fields) == 4 and line.count("\t") != 2:  # TREC's second field says nothing
        return [fields[0], *fields[2:]]
    return [field.strip() for field in line.split("\t")] if "\t" in line else fields


def _grade(path: str | Path, number: int, field: str) -> int:
    try:
        return int(field)
    except ValueError:
        raise invalid(path, number, f"the grade '{field}' is no whole number: write 0, 1, 2, ...") from None


def write_corpus(rows: Iterable[dict[str, Any]], path: str | Path) -> int:
    """Writes documents as JSON lines, all or nothing, compressed where the name ends in .gz; returns their number.

    Raises:
        DatasetInvalid: a row has no id or that of an earlier one, or no text; what was at `path` stays as it is.
    """
    path, seen = Path(path), set[str]()
    draft = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")  # beside it: a rename stays on one disk
    try:
        with draft.open("xb") as file:
            with _packed(file, path) as stream:
                for number, row in enumerate(rows, 1):
                    stream.write(_line(path, number, row, seen))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename too shall outlive a power cut
    finally:
        os.close(folder)
    return len(seen)


def _packed(file: IO[bytes], path: Path) -> AbstractContextManager[Any]:
    if path.suffix == ".gz":
        return gzip.GzipFile("", "wb", fileobj=file, mtime=0)  # no time in it: same rows, same bytes
    return nullcontext(file)


def _line(path: Path, number: int, row: dict[str, Any], seen: set[str]) -> bytes:
    name = _id(path, number, row)
    if name in seen:
        raise invalid(path, number, f"the document '{name}' is there twice: remove one of them")
    seen.add(name)
    if not isinstance(row.get("text"), str):
        raise invalid(path, number, f"the document '{name}' has no string in 'text': write one, if an empty one")
    try:
        return json.dumps({**row, "_id": name}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: JSON can say it in ASCII alone
        return json.dumps({**row, "_id": name}, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise invalid(path, number, f"the document '{name}' does not fit into JSON ({error}): change it") from None


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file of lines, plain or compressed, with their line numbers.

    Raises:
        DatasetInvalid: the file cannot be read, or a line is no JSON object.
    """
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise invalid(path, number, f"no JSON ({error}): write one JSON object a line") from None
        if not isinstance(row, dict):
            raise invalid(path, number, "no JSON object: write one a line")
        yield number, row


def _id(path: Path, number: int, row: dict[str, Any]) -> str:
    name = row.get("_id")
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)  # the judgements know it as text
    if not isinstance(name, str) or not name.strip():
        raise invalid(path, number, "no '_id': give each line one, as a string")
    return name


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, of a plain or compressed file."""
    number = 0
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            for number, line in enumerate(gzip.GzipFile(fileobj=file) if packed else file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError:
        raise invalid(path, number, "not UTF-8: convert the file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise invalid(path, number + 1, "the compressed file is damaged: fetch it again") from None
    except OSError as error:
        raise DatasetInvalid(f"'{path}' cannot be read ({error.strerror}): check the path") from None


def invalid(path: str | Path, number: int, problem: str) -> DatasetInvalid:
    """The error for a line of a data set."""
    return DatasetInvalid(" ".join(f"'{path}', line {number}: {problem}".split()))


def documents(hits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Passages' documents and scores, best first, to documents: each where its best passage stood, with its score."""
    best: dict[str, float] = {}
    for document, score in hits:
        best.setdefault(document, score)
    return list(best.items())


def evaluate(
    search: Callable[[str, int], list[tuple[str, float]]],
    queries: dict[str, str],
    qrels: Qrels,
    k: int = 100,
    progress: Progress | None = None,
) -> dict[str, float | int]:
    """Searches for every judged query, and measures what is found and how fast.

    Args:
        search: a query's text and a number to documents' ids with scores, best first; asked for one more than `k`,
            since BEIR leaves out the document that has the query's own id (in ArguAna, the query itself).
        queries: texts by id.
        qrels: grades by query and document.
        k: how many documents count: the cut of `recall@100` and of `map`, so below 100 these are lower bounds.
        progress: told how far it is.

    Raises:
        DatasetInvalid: no query is judged, or a judged one has no text.
    """
    judged = [query for query, grades in qrels.items() if grades]
    missing = [query for query in judged if query not in queries]
    if not judged or missing:
        problem = f"the query '{missing[0]}' is judged, but has no text" if missing else "no query is judged"
        raise DatasetInvalid(f"{problem}: give queries and judgements of the same data set")
    run, seconds = {}, []
    for done, query in enumerate(judged):
        if progress:
            progress("searching", done, len(judged))
        began = time.perf_counter()
        found = search(queries[query], k + 1)
        seconds.append(time.perf_counter() - began)
        run[query] = dict([hit for hit in documents(found) if hit[0] != query][:k])
    if progress:
        progress("searching", len(judged), len(judged))
    return {
        "ndcg@10": ndcg(qrels, run, 10),
        "recall@10": recall(qrels, run, 10),
        "recall@100": recall(qrels, run, 100),
        "mrr@10": mrr(qrels, run, 10),
        "map": mean_average_precision(qrels, run, k),
        "queries": len(judged),
        "queries_per_second": len(judged) / max(sum(seconds), 1e-9),
        "p50_ms": 1000 * _percentile(seconds, 0.50),
        "p95_ms": 1000 * _percentile(seconds, 0.95),
    }


def _percentile(values: list[float], share: float) -> float:
    """Nearest rank: the smallest value that at least this share of all does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
