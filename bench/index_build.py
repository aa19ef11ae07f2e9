"""Chunks a second from text to a saved index: ours against LangChain with FAISS, and txtai; same chunks, same encoder.

Run, with the peers in an environment of their own (for instance python -m venv ../peers, then
../peers/bin/pip install -r bench/requirements.txt):

    .venv/bin/python -m bench.index_build FOLDER --peers ../peers/bin/python [--chunks 1500] [--repeat 3]

Chunks are drawn from the folder's documents with a fixed seed. Every system runs in a process of its own, in turns, as
its manual's first example does. Chunks a second leave imports and the loading of the model out; the seconds of the
whole process hold them. `index.build` is all that `rag-index build` does: reading a file a chunk, cutting, encoding,
both indexes, flushing to disk. A run begins when the machine is quiet, and is repeated where other processes took more
than a twentieth of the processor all the same.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DISTURBED = 0.05
TRIES = 4


def ours_encode(texts: list[str], encoder: str, folder: Path, precision: str) -> float:
    """Our encoder and a flat FAISS index."""
    import faiss

    from index.encoder import SentenceEncoder

    model = SentenceEncoder(encoder, precision)
    model.encode(texts[:8])
    began = time.perf_counter()
    vectors = model.encode(texts)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    return time.perf_counter() - began


def ours_build(texts: list[str], encoder: str, folder: Path, precision: str) -> float:
    """All of `index.build`."""
    from index import ChunkSettings, build
    from index.encoder import SentenceEncoder

    files = folder / "files"
    files.mkdir()
    for number, text in enumerate(texts):
        (files / f"{number:05}.txt").write_text(text, "utf-8")
    model = SentenceEncoder(encoder, precision)
    model.encode(texts[:8])
    settings = ChunkSettings(max_tokens=200, max_chars=4000)  # a file stays one chunk
    began = time.perf_counter()
    report = build([files], folder / "index", encoder=model, settings=settings)
    seconds = time.perf_counter() - began
    if abs(report.chunks - len(texts)) > len(texts) / 50:
        raise SystemExit(f"{len(texts)} files became {report.chunks} chunks")
    return seconds


def langchain(texts: list[str], encoder: str, folder: Path, precision: str) -> float:
    """HuggingFaceEmbeddings and FAISS.from_documents."""
    from langchain_community.vectorstores import FAISS
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings

    embeddings = HuggingFaceEmbeddings(model_name=encoder)
    embeddings.embed_documents(texts[:8])
    documents = [Document(text) for text in texts]
    began = time.perf_counter()
    FAISS.from_documents(documents, embeddings).save_local(str(folder / "faiss"))
    return time.perf_counter() - began


def txtai(texts: list[str], encoder: str, folder: Path, precision: str) -> float:
    """Embeddings.index, its texts kept too, as the others keep them."""
    from txtai import Embeddings

    embeddings = Embeddings(path=encoder, content=True)
    embeddings.batchtransform(texts[:8])
    began = time.perf_counter()
    embeddings.index(texts)
    embeddings.save(str(folder / "txtai"))
    return time.perf_counter() - began


SYSTEMS: dict[str, tuple[Callable[..., float], str]] = {
    "LangChain HuggingFaceEmbeddings + FAISS": (langchain, "fp32"),
    "txtai": (txtai, "fp32"),
    "ours, encoder + FAISS, fp32": (ours_encode, "fp32"),
    "ours, encoder + FAISS, bf16": (ours_encode, "bf16"),
    "ours, index.build, fp32": (ours_build, "fp32"),
    "ours, index.build, bf16": (ours_build, "bf16"),
}
PEERS = ("LangChain HuggingFaceEmbeddings + FAISS", "txtai")


def sample(folder: Path, count: int) -> list[str]:
    """Distinct chunk texts with their headings, as a build encodes them, from documents in random order."""
    from index.chunker import ChunkSettings, chunk
    from index.encoder import SentenceEncoder
    from index.errors import LoadError
    from index.loaders import is_known, load

    encoder, settings = SentenceEncoder(), ChunkSettings()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_known(path.name))
    random.Random(0).shuffle(files)
    texts: dict[str, None] = {}
    for path in files:
        if path.stat().st_size > 1_000_000 or path.suffix == ".pdf":
            continue
        try:
            documents = load(path, path.read_bytes())
        except LoadError:
            continue
        for document in documents:
            for one in chunk(document, encoder.tokenize, settings):
                spans = encoder.tokenize(one.heading)[-settings.heading_tokens :]
                heading = one.heading[spans[0][0] :] if spans else ""
                # On one line, since a file of text with blank lines would be cut at them.
                texts[" ".join(f"{heading}. {one.text}".split())] = None
        if len(texts) > 4 * count:
            break
    drawn = list(texts)
    random.Random(1).shuffle(drawn)
    return drawn[:count]


def work(name: str, encoder: str, texts: Path, folder: Path) -> None:
    """One run in this process; prints its seconds and the share of the processor that others took."""
    run, precision = SYSTEMS[name]
    before = _ticks(), sum(os.times()[:4]), time.perf_counter()
    seconds = run(json.loads(texts.read_text("utf-8")), encoder, folder, precision)
    others = (_ticks() - before[0]) - (sum(os.times()[:4]) - before[1])
    cores = os.cpu_count() or 1
    print(json.dumps({"seconds": seconds, "others": max(0.0, others / (time.perf_counter() - before[2]) / cores)}))


def _ticks() -> float:
    """Seconds of processor time that all processes have used so far, on all cores."""
    fields = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = (int(field) for field in fields[:7])
    return float(user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _wait_for_quiet() -> None:
    for _ in range(300):
        before = _ticks()
        time.sleep(2)
        if _ticks() - before < 2 * DISTURBED * (os.cpu_count() or 1):
            return


def measure(name: str, python: str, encoder: str, texts: Path) -> dict[str, float]:
    """The run that was least disturbed, of as many as it takes to find an undisturbed one."""
    best: dict[str, float] = {}
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "RAG_HOME": f"{folder}/home",
                "HF_HUB_OFFLINE": "1",
                "PYTHONWARNINGS": "ignore",
            }
            command = [python, str(Path(__file__)), "--work", name, encoder, str(texts), folder]
            environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
            _wait_for_quiet()
            began = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            whole = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        found: dict[str, float] = {**json.loads(done.stdout.splitlines()[-1]), "process": whole}
        if not best or found["others"] < best["others"]:
            best = found
        if best["others"] <= DISTURBED:
            break
    return best


def table(results: dict[str, Any]) -> str:
    """Markdown: chunks a second, and how often the best peer's."""
    best = max(results["systems"][peer]["chunks_per_second"] for peer in PEERS)
    shortest = min(results["systems"][peer]["process_seconds"] for peer in PEERS)
    lines = [
        "| system | chunks/s (median) | all runs | times the best peer | whole process, s | times the best peer |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["systems"].items():
        runs = ", ".join(f"{value:.0f}" for value in row["runs"])
        rate = row["chunks_per_second"]
        process = row["process_seconds"]
        lines.append(f"| {name} | {rate:.0f} | {runs} | {rate / best:.2f} | {process:.1f} | {shortest / process:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all systems in turns; prints the table and writes bench/results/index_build.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="documents to draw chunks from")
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--encoder", help="sentence-transformers folder (default: the bundled one)")
    parser.add_argument("--chunks", type=int, default=1500)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    from bench.machine import machine
    from index.encoder import SentenceEncoder, locate

    name, encoder = locate(options.encoder)
    runs: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "chunks.json"
        drawn = sample(options.folder, options.chunks)
        texts.write_text(json.dumps(drawn), "utf-8")
        count = SentenceEncoder().tokenize
        tokens = statistics.mean(len(count(text)) for text in drawn)
        for _ in range(options.repeat):
            for system, found in runs.items():
                python = options.peers if system in PEERS else sys.executable
                found.append(measure(system, python, encoder, texts))
                print(f"{system}: {len(drawn) / found[-1]['seconds']:.0f} chunks/s", file=sys.stderr)
    command = [options.peers, "-c", VERSIONS]
    versions = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rates = {system: [round(len(drawn) / run["seconds"], 1) for run in found] for system, found in runs.items()}
    results = {
        "machine": machine(),
        "peers": versions,
        "encoder": name,
        "chunks": len(drawn),
        "tokens_per_chunk": round(tokens, 1),
        "systems": {
            system: {
                "chunks_per_second": statistics.median(rates[system]),
                "runs": rates[system],
                "process_seconds": round(statistics.median(run["process"] for run in found), 2),
                "others_share_of_cpu": [round(run["others"], 3) for run in found],
            }
            for system, found in runs.items()
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "index_build.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(table(results))


VERSIONS = """
import json
from importlib.metadata import version
names = ["langchain-community", "langchain-huggingface", "txtai", "torch", "sentence-transformers", "faiss-cpu"]
print(json.dumps({name: version(name) for name in names}))
"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
