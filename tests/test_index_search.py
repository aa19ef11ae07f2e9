"""Searches in full: copies, filters, places on pages, rerankers, LangChain; readers beside builds; evaluation."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from index import ChunkSettings, Index, IndexBusy, QueryInvalid, RagError, build
from index.errors import EncoderNotFound
from index.evaluate import evaluate_corpus
from index.maintain import collect_garbage, verify
from index.rerank import as_reranker
from tests.conftest import ROOT, WordEncoder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write(tmp_path / "docs" / "okapi.md", "# Okapi\n\nThe okapi lives in the Ituri rainforest.\n")
    write(tmp_path / "docs" / "guides" / "copy.md", "# Okapi\n\nThe okapi lives in the Ituri rainforest.\n")
    write(tmp_path / "docs" / "guides" / "axolotl.txt", "The axolotl keeps its gills for life.\n")
    return tmp_path / "docs"


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "index"


# --- one passage, many places


def test_a_copy_is_encoded_once_and_every_source_is_told(docs: Path, where: Path, encoder: WordEncoder) -> None:
    report = build([docs], where, encoder=encoder)
    assert (report.chunks, report.chunks_encoded) == (3, 2)
    with Index.open(where, encoder) as index:
        assert index.status()["passages"] == 2
        for mode in ("hybrid", "dense", "lexical"):
            hits = index.search("okapi rainforest", 5, mode=mode)
            assert hits[0].source == str(docs / "guides" / "copy.md") and list(hits[0].also) == [str(docs / "okapi.md")]
            assert len([hit for hit in hits if "okapi" in hit.text]) == 1


def test_a_filter_chooses_the_place_that_matches(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    with Index.open(where, encoder) as index:
        for pattern, name in (("okapi.md", "okapi.md"), ("guides/*", "guides/copy.md")):
            hit = index.search("okapi rainforest", 1, filters={"source": pattern})[0]
            assert hit.source == str(docs / name) and list(hit.also) == []
        for mode in ("hybrid", "dense", "lexical"):
            found = index.search("okapi axolotl", 5, mode=mode, filters={"format": "txt"})
            assert [Path(hit.source).name for hit in found] == ["axolotl.txt"]
            assert index.search("okapi", 5, mode=mode, filters={"source": "nowhere"}) == []
        assert len(index.search("okapi axolotl", 5, filters={"source": ["okapi.md", "axolotl.txt"]})) == 2
        for hostile in ("'", '"', "%", "_", "[", "]", "\n", "\0", "\udcff", "x" * 10**5):
            for key in ("source", "format", "title", "heading"):
                assert len(index.search("okapi", 1, filters={key: hostile})) <= 1
        with pytest.raises(QueryInvalid, match="there is no filter 'colour'"):
            index.search("okapi", filters={"colour": "red"})
        assert index.search("okapi", 1)


def test_many_filters_do_not_mix_up(docs: Path, where: Path, encoder: WordEncoder) -> None:
    for number in range(30):
        write(docs / f"{number}.md", f"# Number {number}\n\nThe okapi number{number} eats.\n")
    build([docs], where, encoder=encoder)
    with Index.open(where, encoder) as index, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> bool:
            (hit,) = index.search("okapi eats", 3, filters={"source": f"{number}.md"})
            return Path(hit.source).name == f"{number}.md"

        assert all(pool.map(ask, [*range(30)] * 4))


def test_a_change_of_sizes_and_back_encodes_nothing_twice(docs: Path, where: Path, encoder: WordEncoder) -> None:
    write(
        docs / "long.md", "".join(f"# S{n}\n\n" + " ".join(f"w{n}x{i}" for i in range(100)) + "\n\n" for n in range(9))
    )
    small = ChunkSettings.of(32)
    before = build([docs], where, encoder=encoder).chunks
    report = build([docs], where, encoder=encoder, settings=small)
    assert report.chunks > before
    encoder.encoded.clear()
    report = build([docs], where, encoder=encoder, settings=ChunkSettings())
    assert (report.chunks, report.chunks_encoded, encoder.encoded) == (before, 0, [])
    assert verify(where)[1] == []


def test_records_of_one_name_are_told_apart_or_joined(tmp_path: Path, where: Path, encoder: WordEncoder) -> None:
    rows = [{"_id": "a", "text": "The okapi."}, {"_id": "a", "text": "The okapi."}, {"_id": "a", "text": "The wombat."}]
    path = write(tmp_path / "corpus.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    build([path], where, encoder=encoder)
    assert verify(where)[1] == []
    with Index.open(where, encoder) as index:
        assert {hit.text for hit in index.search("okapi wombat", 5)} == {"The okapi.", "The wombat."}


# --- beside the passage


def test_expand_joins_what_stands_beside(tmp_path: Path, where: Path, encoder: WordEncoder) -> None:
    text = "\n\n".join(f"Paragraph {n} tells of topic{n} " + " ".join(f"w{n}x{i}" for i in range(60)) for n in range(9))
    path = write(tmp_path / "docs" / "long.txt", text)
    build([path], where, encoder=encoder)
    with Index.open(where, encoder) as index:
        (alone,) = index.search("topic4 w4x3", 1)
        lengths = [len(alone.text)]
        for neighbours in (1, 2, 100, 10**30):
            (hit,) = index.search("topic4 w4x3", 1, expand=neighbours)
            assert hit.text.split() == text[hit.start : hit.end].split() and len(hit.text) == hit.end - hit.start
            assert hit.start <= alone.start and hit.end >= alone.end
            lengths.append(len(hit.text))
        assert lengths == sorted(lengths) and lengths[1] > lengths[0] and lengths[-1] == lengths[-2] == len(text)


def test_boxes_stand_where_the_words_are_drawn(tmp_path: Path, where: Path, encoder: WordEncoder) -> None:
    from reportlab.pdfgen.canvas import Canvas

    path = tmp_path / "docs" / "page.pdf"
    path.parent.mkdir()
    canvas = Canvas(str(path), pagesize=(400, 600))
    canvas.drawString(50, 500, "Nothing of note stands on the first page.")
    canvas.showPage()
    canvas.setFont("Helvetica", 12)
    for line, words in enumerate(("The okapi lives in the Ituri", "rainforest, and its tongue is long.")):
        canvas.drawString(72, 400 - 20 * line, words)
    canvas.save()
    build([path], where, encoder=encoder)
    with Index.open(where, encoder) as index:
        (hit,) = index.search("okapi Ituri tongue", 1)
        assert hit.page == 2
        boxes = index.boxes(hit)
        assert [box.page for box in boxes] == [2, 2]
        for line, box in enumerate(boxes):  # points from the top left; the baseline stands at 200 and 220
            assert box.left == pytest.approx(72, abs=2) and box.right > 200
            assert box.top < 200 + 20 * line <= box.bottom + 1 and box.bottom - box.top < 20
        at = hit.start + hit.text.index("tongue")
        (word,) = index.boxes(hit, at, at + len("tongue"))
        assert boxes[1].left < word.left < word.right < boxes[1].right
        assert index.boxes(hit, 10**9, 10**9 + 5) == []
        (first,) = index.search("nothing of note", 1, filters={"page": 1})
        assert first.page == 1 and len(index.boxes(first)) == 1


# --- rerankers


class Longest:
    """Takes the longest text for the best, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        self.asked.append((query, len(texts)))
        return [float(len(text)) for text in texts]


def test_a_reranker_orders_the_best_anew(tmp_path: Path, where: Path, encoder: WordEncoder) -> None:
    for number in range(80):
        write(tmp_path / "docs" / f"{number}.md", f"# N{number}\n\nokapi " + f"word{number} " * number + "\n")
    build([tmp_path / "docs"], where, encoder=encoder)
    reranker = Longest()
    with Index.open(where, encoder) as index:
        for mode in ("hybrid", "dense", "lexical"):
            hits = index.search("okapi", 5, mode=mode, rerank=reranker)
            assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
            assert [hit.score for hit in hits] == sorted((float(len(hit.text)) for hit in hits), reverse=True)
        assert reranker.asked == [("okapi", 50)] * 3
        assert len(index.search("okapi", 70, rerank=reranker)) == 70  # as many as are asked for
        assert index.search("okapi", filters={"source": "none"}, rerank=reranker) == []


def test_a_cross_encoder_from_a_folder(docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = write(tmp_path / "tokens" / "vocab.txt", "\n".join(words))
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=16, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "cross")
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(tmp_path / "cross")
    build([docs], where, encoder=encoder)
    with Index.open(where, encoder) as index:
        hits = index.search("okapi axolotl", 2, rerank=str(tmp_path / "cross"))
        reranker = as_reranker(str(tmp_path / "cross"))
        assert reranker is not None
        expected = reranker.scores("okapi axolotl", [hit.text for hit in hits])
        assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-4) and expected[0] >= expected[1]


def test_what_is_no_reranker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAG_RERANKER", raising=False)
    assert as_reranker(None) is as_reranker(False) is None
    with pytest.raises(EncoderNotFound, match="no reranker is named: give a cross-encoder's folder or Hub id"):
        as_reranker(True)
    with pytest.raises(EncoderNotFound, match=r"the reranker '.*' cannot be loaded \(.*\): give a cross-encoder's"):
        as_reranker(str(tmp_path))


# --- LangChain


def test_a_retriever_gives_documents_with_all_that_is_known_of_a_hit(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    build([docs], where, encoder=encoder)
    with Index.open(where, encoder) as index:
        retriever = index.as_retriever(k=2, mode="lexical")
        documents, hits = retriever.invoke("okapi axolotl"), index.search("okapi axolotl", 2, "lexical")
        assert [document.page_content for document in documents] == [hit.text for hit in hits]
        assert [document.id for document in documents] == [hit.chunk_id for hit in hits]
        for document, hit in zip(documents, hits, strict=True):
            expected = hit.as_dict()
            del expected["text"]
            assert document.metadata == expected and json.dumps(document.metadata)
        batch = retriever.batch(["okapi", "axolotl"])
        assert ["okapi" in batch[0][0].page_content, "axolotl" in batch[1][0].page_content] == [True, True]


# --- evaluation


def test_an_evaluation_of_a_small_set(tmp_path: Path, encoder: WordEncoder) -> None:
    corpus = [{"_id": f"d{n}", "title": f"Animal {n}", "text": f"The animal{n} eats plant{n}."} for n in range(20)]
    queries = [{"_id": f"q{n}", "text": f"what does animal{n} eat"} for n in range(5)]
    files = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in corpus),
        "queries.jsonl": "".join(json.dumps(row) + "\n" for row in queries),
        "qrels.tsv": "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(5)),
    }
    paths = [write(tmp_path / name, text) for name, text in files.items()]
    for mode in ("lexical", "dense", "hybrid"):
        scores = evaluate_corpus(*paths, encoder=encoder, mode=mode)
        assert scores["mode"] == mode and scores["passages"] == 20
        measures = {name: value for name, value in scores.items() if "@" in name or name == "map"}
        assert len(measures) >= 4 and all(0.5 < value <= 1 for value in measures.values())
        assert mode != "lexical" or set(measures.values()) == {1.0}
    assert len(encoder.encoded) == 20  # kept for the next time
    paths[2].write_text("query-id\tcorpus-id\tscore\nq1\td1\tmany\n")
    with pytest.raises(RagError, match=r"qrels\.tsv.*2"):
        evaluate_corpus(*paths, encoder=encoder, mode="lexical")


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A corpus of two equal documents and another, below a name with a `#`, with a query for the equal ones."""
    rows = [("d1", "The okapi eats leaves."), ("d#2", "The okapi eats leaves."), ("d3", "Oil for the engine.")]
    folder = tmp_path / "c#1"
    corpus = "".join(json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in rows)
    return (
        write(folder / "corpus.jsonl", corpus),
        write(folder / "queries.jsonl", '{"_id": "q1", "text": "what does the okapi eat"}\n'),
        write(folder / "qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td#2\t1\n"),
    )


@pytest.mark.parametrize("relative", [False, True])
def test_a_corpus_of_any_name_with_copies_is_measured(
    labelled: tuple[Path, Path, Path], encoder: WordEncoder, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, queries, qrels = labelled
    if relative:
        monkeypatch.chdir(corpus.parent)
        corpus = Path("../c#1/corpus.jsonl")
    scores = evaluate_corpus(corpus, queries, qrels, encoder=encoder, mode="lexical")
    assert (scores["ndcg@10"], scores["recall@10"], scores["map"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("corpus.txt", None, r"'.*corpus\.txt' is not read as JSONL: unpack or rename it to end in \.jsonl"),
        ("corpus.jsonl.gz", None, r"'.*corpus\.jsonl\.gz' is not read as JSONL"),
        (
            "twice.jsonl",
            '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n',
            "line 2: the document 'd1' is there",
        ),
        (
            "other.jsonl",
            '{"_id": "x1", "text": "a"}\n',
            r"no document that '.*qrels\.tsv' judges is in '.*other\.jsonl'",
        ),
    ],
)
def test_a_corpus_that_cannot_be_measured_is_refused(
    labelled: tuple[Path, Path, Path], tmp_path: Path, encoder: WordEncoder, name: str, text: str | None, told: str
) -> None:
    corpus = write(tmp_path / name, labelled[0].read_text() if text is None else text)
    with pytest.raises(RagError, match=told):
        evaluate_corpus(corpus, *labelled[1:], encoder=encoder, mode="lexical")
    assert encoder.encoded == [] and not (tmp_path / "rag-home").exists()


def test_an_evaluation_stays_out_of_an_index_of_other_documents(
    labelled: tuple[Path, Path, Path], docs: Path, where: Path, encoder: WordEncoder
) -> None:
    build([docs], where, encoder=encoder)
    with pytest.raises(RagError, match=r"holds other documents.*: name another folder, or leave --index out"):
        evaluate_corpus(*labelled, directory=where, encoder=encoder, mode="lexical")
    with Index.open(where, encoder) as index:
        assert index.status()["roots"] == [str(docs)]
    for _ in range(2):
        evaluate_corpus(*labelled, directory=where.parent / "own", encoder=encoder, mode="lexical")


# --- readers beside builds


READER = """
import sys, threading
from index import Index
from tests.conftest import WordEncoder

done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
print("ready", flush=True)
opened, last = set(), False
while not last:
    last = done.is_set()
    with Index.open(sys.argv[1], WordEncoder()) as index:
        for mode in ("hybrid", "dense", "lexical"):
            texts = [hit.text for hit in index.search("text of a version", 3, mode)]
            assert len(texts) == 3 and len({text.split()[-1] for text in texts}) == 1, texts
        opened.add(index.name)
print(max(opened), flush=True)
"""


@pytest.mark.slow
def test_processes_and_threads_read_while_builds_publish_and_garbage_is_collected(docs: Path, where: Path) -> None:
    done = threading.Event()

    def publish(version: int) -> None:
        for number in range(3):
            write(docs / f"{number}.txt", f"Text {number} of a version{version}.")
        build([docs / f"{number}.txt" for number in range(3)], where, encoder=WordEncoder())

    def keeps_one_open() -> int:
        """Searches in one generation for long, whatever becomes of it."""
        searches = 0
        while not done.is_set():
            with Index.open(where, WordEncoder()) as index:
                first = index.search("text of a version", 3)
                for _ in range(20):
                    assert index.search("text of a version", 3) == first
                    searches += 1
        return searches

    publish(0)
    command = [sys.executable, "-c", READER, str(where)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as process, ThreadPoolExecutor(2) as pool:
        assert process.stdout and process.stdin and process.stdout.readline() == "ready\n"
        readers = [pool.submit(keeps_one_open) for _ in range(2)]
        try:
            for version in range(1, 21):
                publish(version)
                if version % 3 == 0:
                    collect_garbage(where)
        finally:
            done.set()
            process.stdin.close()
        assert all(reader.result(60) > 0 for reader in readers)
        assert process.stdout.readline() == "gen-000021\n"
    assert process.returncode == 0
    collect_garbage(where)
    assert sorted(path.name for path in where.glob("gen-*")) == ["gen-000021"]
    assert verify(where)[1] == []


BUSY = """
import sys
from index import build
from tests.conftest import WordEncoder

class Waits(WordEncoder):
    def encode(self, texts, progress=None):
        print("encoding", flush=True)
        sys.stdin.read()
        return super().encode(texts, progress)

build([sys.argv[1]], sys.argv[2], encoder=Waits())
"""


def test_of_two_builds_at_once_the_second_says_which_process_holds_the_index(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", BUSY, str(docs), str(where)], **pipes) as first:
        assert first.stdin and first.stdout and first.stdout.readline() == "encoding\n"
        holder = rf"\(process {first.pid}, since \d\d:\d\d:\d\d\)"
        told = rf"^another build {holder} of '{where}' is running: wait for it to end$"
        with pytest.raises(IndexBusy, match=told):
            build([docs], where, encoder=encoder)
        first.stdin.close()
    assert first.returncode == 0
    with Index.open(where, encoder) as index:
        assert index.search("okapi", 1)
    assert build([docs], where, encoder=encoder).chunks_encoded == 0
