"""How cost grows: build, rebuild, open, search and memory at 1,000 to 1,000,000 passages with synthetic vectors.

Run: .venv/bin/python bench/scale.py [--sizes 1000,10000,100000,1000000] [--keep DIR]

Documents are paragraphs of 100 words drawn by Zipf's law from 200,000; an encoder that draws a random unit vector of
384 dimensions for a text takes the place of the real one, so all but encoding is measured. Random vectors are the
worst case for every approximate index. Each figure is taken in a process of its own; the page cache is warm.
"""

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from index import Index, build
from index.encoder import EncoderIdentity

RESULTS = Path(__file__).parent / "results"
PER_FILE = 20
DIMENSION = 384
WORDS = 200_000
QUERIES = 200


class RandomEncoder:
    """A unit vector for every text, drawn from its hash."""

    identity = EncoderIdentity("random", DIMENSION, "random")
    precision = "fp32"

    def tokenize(self, text: str) -> Sequence[tuple[int, int]]:
        """Words, by blanks."""
        spans, position = [], 0
        for word in text.split(" "):
            spans.append((position, position + len(word)))
            position += len(word) + 1
        return spans

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> Any:
        """(len(texts), 384) float32."""
        seed = int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest(), "big")
        found = np.random.default_rng(seed).standard_normal((len(texts), DIMENSION), dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def encode_query(self, query: str) -> Any:
        """(384,) float32."""
        return self.encode([query])[0]


def words(generator: np.random.Generator, count: int) -> list[str]:
    """Made-up words by Zipf's law."""
    ranks = np.minimum(generator.zipf(1.2, count), WORDS)
    return [f"w{rank:x}" for rank in ranks]


def corpus(folder: Path, passages: int) -> None:
    """Text files of 20 paragraphs, each of which becomes one passage."""
    generator = np.random.default_rng(1)
    for number in range(max(1, passages // PER_FILE)):
        below = folder / f"{number % 100:02}"
        below.mkdir(parents=True, exist_ok=True)
        text = words(generator, 100 * PER_FILE)
        paragraphs = (" ".join(text[i : i + 100]) + "." for i in range(0, len(text), 100))
        (below / f"{number:06}.txt").write_text("\n\n".join(paragraphs), "utf-8")


def serve(directory: Path) -> dict[str, Any]:
    """Opens an index and searches it; to be run in a fresh process."""
    encoder = RandomEncoder()
    began = time.perf_counter()
    index = Index.open(directory, encoder)
    opened = time.perf_counter() - began
    generator = np.random.default_rng(2)
    queries = [" ".join(words(generator, 6)) for _ in range(QUERIES)]
    index.search(queries[0], 10)
    times: dict[str, list[float]] = {"hybrid": [], "dense": [], "lexical": []}
    for query in queries:
        for mode, taken in times.items():
            began = time.perf_counter()
            index.search(query, 10, mode)  # type: ignore[arg-type]
            taken.append(1e3 * (time.perf_counter() - began))
    resident = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    found: dict[str, Any] = {"open_s": opened, "resident_mib": resident}
    for mode, taken in times.items():
        found[f"{mode}_p50_ms"] = statistics.median(taken)
        found[f"{mode}_p95_ms"] = float(np.percentile(taken, 95))
    return found | {"recall@10": recall(index, queries)}


def recall(index: Index, queries: list[str]) -> float:
    """Share of the ten exactly nearest passages that a dense search finds."""
    vectors = np.stack([index.load_encoder().encode_query(query) for query in queries[:100]])
    exact = index._vectors.exact.search(vectors, 10)[1]
    found = [index._vectors.search(vector, 10)[0] for vector in vectors]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found, strict=True)]))


def timed_build(docs: Path, directory: Path) -> dict[str, Any]:
    """One build; to be run in a fresh process."""
    began = time.perf_counter()
    report = build([docs], directory, encoder=RandomEncoder())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "s": time.perf_counter() - began,
        "encoded": report.chunks_encoded,
        "peak_mib": peak,
        "chunks": report.chunks,
    }


def fresh(task: str, *arguments: Path) -> dict[str, Any]:
    """Runs `task` of this script in a process of its own; adds its wall-clock time, the start of Python included."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "bench.scale", "--task", task, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) | {"wall_s": time.perf_counter() - began}


def measure(passages: int, folder: Path) -> dict[str, Any]:
    """All figures of one size."""
    docs, directory = folder / "docs", folder / "index"
    corpus(docs, passages)
    first = fresh("build", docs, directory)
    row: dict[str, Any] = {"passages": first["chunks"], "files": sum(1 for _ in docs.rglob("*.txt"))}
    row |= {"build_s": first["s"], "build_peak_mib": first["peak_mib"]}
    row["unchanged_s"] = statistics.median(fresh("build", docs, directory)["wall_s"] for _ in range(3))
    changed = []
    for turn in range(3):
        path = next(docs.rglob("*.txt"))
        path.write_text(path.read_text("utf-8") + f"\n\nOne more paragraph, number {turn}.", "utf-8")
        changed.append(fresh("build", docs, directory))
    row["one_changed_s"] = statistics.median(run["wall_s"] for run in changed)
    row["one_changed_encoded"] = changed[-1]["encoded"]
    row |= {"bytes": sum(p.stat().st_size for p in sorted(directory.glob("gen-*"))[-1].rglob("*") if p.is_file())}
    return row | fresh("serve", directory)


def main() -> None:
    """Prints a table and writes it with a plot to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--task", choices=["build", "serve"])
    parser.add_argument("paths", nargs="*", type=Path)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(timed_build(*options.paths) if options.task == "build" else serve(*options.paths)))
        return
    rows = []
    for size in map(int, options.sizes.split(",")):
        folder = Path(tempfile.mkdtemp(dir=options.keep))
        rows.append(measure(size, folder))
        print(json.dumps(rows[-1]), flush=True)
        if not options.keep:
            shutil.rmtree(folder)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", "utf-8")
    table(rows)
    plot(rows)


COLUMNS = {
    "passages": "passages",
    "build_s": "build, s",
    "unchanged_s": "nothing changed, s",
    "one_changed_s": "one file changed, s",
    "open_s": "open, s",
    "hybrid_p50_ms": "hybrid p50, ms",
    "hybrid_p95_ms": "hybrid p95, ms",
    "recall@10": "recall@10",
    "resident_mib": "serving, MiB",
    "bytes": "on disk, MB",
}


def table(rows: list[dict[str, Any]]) -> None:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + " ---: |" * len(COLUMNS)]
    for row in rows:
        values = [row[key] / 1e6 if key == "bytes" else row[key] for key in COLUMNS]
        lines.append("| " + " | ".join(f"{v:,}" if isinstance(v, int) else f"{v:,.3g}" for v in values) + " |")
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def plot(rows: list[dict[str, Any]]) -> None:
    """A curve per figure over the number of passages, as SVG."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    panels = {
        "build, s": ["build_s", "one_changed_s", "unchanged_s"],
        "open, s": ["open_s"],
        "search p95, ms": ["hybrid_p95_ms", "dense_p95_ms", "lexical_p95_ms"],
        "memory, MiB": ["resident_mib", "build_peak_mib"],
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, panels.items(), strict=True):
        for key in keys:
            axis.plot([row["passages"] for row in rows], [row[key] for row in rows], marker="o", label=key)
        axis.set(xscale="log", yscale="log", xlabel="passages", title=title)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(RESULTS / "scale.svg")


if __name__ == "__main__":
    main()
