"""Search, measured on a labelled set in BEIR's formats: an index of its corpus, its queries, its judgements."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from index import beir
from index import generation as disk
from index.builder import build
from index.embedding import Progress
from index.engine import RERANKED, Index, Mode
from index.errors import LoadError, NoIndex, RagError
from index.hit import Hit
from index.metrics import Qrels
from index.paths import home
from index.rerank import Reranker, as_reranker

DEPTH = 100
"""Documents that are judged of each ranking."""
PASSAGES = 200
"""Passages that are found for them: a document may have several."""


def evaluate_corpus(
    corpus: Path,
    queries: Path,
    qrels: Path,
    *,
    directory: str | Path | None = None,
    encoder: Any = None,
    mode: Mode = "hybrid",
    rerank: Reranker | str | bool | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """nDCG@10, recall@k, MRR@10, MAP and queries per second of this engine; a document counts by its best passage.

    Args:
        corpus: JSONL, `{"_id", "title", "text"}` a line; its name ends in .jsonl or .ndjson.
        queries: JSONL, `{"_id", "text"}` a line.
        qrels: TSV of query, document and grade.
        directory: where the corpus is indexed; a folder of its own under the home by default, kept for the next time.
            An index of anything else is refused: the corpus would stay in it.
        encoder: an encoder or what makes one; the bundled one by default.
        mode: as in `Index.search`.
        rerank: as in `Index.search`.
        progress: told how far indexing and searching are.

    Raises:
        RagError: a file is missing or not of its format; the message names the line.
    """
    from index.encoder import SentenceEncoder

    encoder = encoder or SentenceEncoder
    judged = beir.read_qrels(qrels)
    asked = beir.read_queries(queries)
    _check_corpus(corpus, qrels, judged)
    reranker = as_reranker(rerank)
    file = os.path.abspath(corpus)  # noqa: PTH100  (as the index names it: links are kept)
    name = hashlib.sha256(os.fsencode(corpus.absolute())).hexdigest()[:12]
    directory = Path(directory or home() / "eval" / name)
    _check_directory(directory, file)
    report = build([corpus], directory, encoder=encoder, progress=progress)
    failed = [row["error"] for row in report.files_failed]
    if failed:
        raise LoadError(f"'{corpus}' cannot be read: {failed[0]}")
    with Index.open(directory, encoder) as index:
        if mode != "lexical":
            index.load_encoder().encode_query("warm up")

        def search(query: str, k: int) -> list[tuple[str, float]]:
            hits = index.search(query, RERANKED if reranker else max(k, PASSAGES), mode, rerank=reranker)
            return beir.documents(_records(hits, f"{file}#"))[:k]

        scores = beir.evaluate(search, asked, judged, DEPTH, progress)
        return {"mode": mode, **scores, "passages": index.manifest.passages}


def _records(hits: Iterable[Hit], prefix: str) -> Iterator[tuple[str, float]]:
    """The ids of the documents that were found; those that hold the same passage have its score."""
    for hit in hits:
        for source in (hit.source, *hit.also):
            yield source.removeprefix(prefix), hit.score


def _check_corpus(corpus: Path, qrels: Path, judged: Qrels) -> None:
    """Every line is a document of an id of its own, and some are judged: else all would be 0, and nobody know why."""
    if corpus.suffix.lower() not in (".jsonl", ".ndjson"):
        raise beir.DatasetInvalid(f"the corpus '{corpus}' is not read as JSONL: unpack or rename it to end in .jsonl")
    ids = {row["_id"] for row in beir.read_corpus(corpus)}
    if judged and not any(document in ids for grades in judged.values() for document in grades):
        raise beir.DatasetInvalid(
            f"no document that '{qrels}' judges is in '{corpus}': give judgements and corpus of the same data set"
        )


def _check_directory(directory: Path, file: str) -> None:
    try:
        manifest = disk.read_manifest(*disk.pointed_to(directory))
    except NoIndex:
        return
    if any(root["path"] != file for root in manifest.roots):
        raise RagError(
            f"the index at '{directory}' holds other documents, and the corpus would stay among them: "
            "name another folder, or leave --index out"
        )
