"""Search, measured on a labelled set in BEIR's formats: an index of its corpus, its queries, its judgements."""

import hashlib
from pathlib import Path
from typing import Any

from index import beir
from index.build import build
from index.embedding import Progress
from index.engine import RERANKED, Index, Mode
from index.errors import LoadError
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
        corpus: JSONL, `{"_id", "title", "text"}` a line.
        queries: JSONL, `{"_id", "text"}` a line.
        qrels: TSV of query, document and grade.
        directory: where the corpus is indexed; a folder of its own under the home by default, kept for the next time.
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
    reranker = as_reranker(rerank)
    name = hashlib.sha256(str(corpus.absolute()).encode()).hexdigest()[:12]
    directory = Path(directory or home() / "eval" / name)
    report = build([corpus], directory, encoder=encoder, progress=progress)
    failed = [row["error"] for row in report.files_failed]
    if failed:
        raise LoadError(f"'{corpus}' cannot be read: {failed[0]}")
    with Index.open(directory, encoder) as index:
        if mode != "lexical":
            index.load_encoder().encode_query("warm up")

        def search(query: str, k: int) -> list[tuple[str, float]]:
            hits = index.search(query, RERANKED if reranker else max(k, PASSAGES), mode, rerank=reranker)
            ranked = beir.documents((hit.source.partition("#")[2], hit.score) for hit in hits)
            return ranked[:k]

        scores = beir.evaluate(search, asked, judged, DEPTH, progress)
        return {"mode": mode, **scores, "passages": index.manifest.passages}
