"""What people wait for every day: a rebuild of 5,000 files, and a hybrid search of 10,000 passages with its encoding.

Run: .venv/bin/python -m bench.daily [--docs DIR] [--work DIR]

DIR holds real documents (../shared/data/get_docs_medium.sh brings some); their passages are dealt out to 5,000 text
files of two paragraphs each. Rebuilds are timed as commands, the start of Python and of the encoder included.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from index import Index
from index.chunker import ChunkSettings, chunk
from index.encoder import SentenceEncoder
from index.errors import LoadError
from index.loaders import load

RESULTS = Path(__file__).parent / "results"
FILES, PER_FILE, QUERIES = 5000, 2, 300


def passages(docs: Path, encoder: SentenceEncoder) -> Iterator[str]:
    """Passages of real documents, spread over the folder."""
    files = sorted(path for path in docs.rglob("*") if path.suffix in (".html", ".txt", ".rst"))
    random.Random(1).shuffle(files)
    for path in files:
        try:
            documents = load(path, path.read_bytes())
        except LoadError:
            continue
        for document in documents:
            for one in islice(chunk(document, encoder.tokenize, ChunkSettings()), 20):
                text = " ".join(one.text.split())
                if len(text) > 200:
                    yield text


def rebuild(docs: Path, directory: Path) -> tuple[float, dict[str, Any]]:
    """Wall-clock seconds and report of `rag-index build`."""
    command = [str(Path(sys.executable).parent / "rag-index"), "build", str(docs), "--index", str(directory), "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def searches(directory: Path, encoder: SentenceEncoder) -> dict[str, float]:
    """Milliseconds of hybrid searches for the first words of passages, in a shuffled order."""
    with Index.open(directory, encoder) as index:
        texts = [row[0] for row in index._db.execute("SELECT text FROM passages").fetchall()]
        random.Random(2).shuffle(texts)
        queries = [" ".join(text.split()[3:14]) for text in texts[:QUERIES]]
        for query in queries[:10]:
            index.search(query, 4)
        taken, encoding = [], []
        for query in queries:
            began = time.perf_counter()
            index.search(query, 4)
            taken.append(1e3 * (time.perf_counter() - began))
            began = time.perf_counter()
            encoder.encode_query(query)
            encoding.append(1e3 * (time.perf_counter() - began))
        return {
            "passages": index.manifest.passages,
            "p50_ms": statistics.median(taken),
            "p95_ms": float(np.percentile(taken, 95)),
            "encoding_p50_ms": statistics.median(encoding),
            "encoding_p95_ms": float(np.percentile(encoding, 95)),
        }


def main() -> None:
    """Prints the figures and writes them to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("../shared/data/docs_medium"))
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    docs, directory, encoder = work / "docs", work / "index", SentenceEncoder()
    if not docs.exists():
        docs.mkdir(parents=True)
        found = passages(options.docs, encoder)
        for number in range(FILES):
            (docs / f"{number:05}.txt").write_text("\n\n".join(islice(found, PER_FILE)), "utf-8")
    seconds, report = rebuild(docs, directory)
    figures: dict[str, Any] = {"files": report["files_seen"], "passages": report["chunks"], "build_s": seconds}
    figures["unchanged_s"] = statistics.median(rebuild(docs, directory)[0] for _ in range(5))
    changed = []
    for turn in range(5):
        path = docs / f"{997 * (turn + 1) % FILES:05}.txt"
        path.write_text(
            path.read_text("utf-8") + f"\n\nA paragraph that was added on day {turn}, {time.time_ns()}.", "utf-8"
        )
        changed.append(rebuild(docs, directory))
    figures["one_changed_s"] = statistics.median(seconds for seconds, _ in changed)
    figures["one_changed_encoded"] = max(report["chunks_encoded"] for _, report in changed)
    figures["hybrid"] = searches(directory, encoder)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=1)
    (RESULTS / "daily.json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
