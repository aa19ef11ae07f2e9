"""The real encoder and tiny random ones: unit vectors in both precisions, the same as the library's; nothing cut or
loaded before it is needed; what is measured is remembered; folders that are no model."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import EncoderNotFound, QueryInvalid, memo
from index.bert import Bert, fits
from index.chunker import ChunkSettings, chunk
from index.encoder import BUNDLED, QUERY_WINDOWS, SentenceEncoder, locate
from index.loaders import load
from index.modelfiles import ModelFiles
from index.models import Library, Plain, load_model
from index.precision import PRECISIONS, measured
from tests.conftest import ROOT

PASSAGES = [
    "The okapi lives in the Ituri rainforest.",
    "Change the engine oil every 7500 kilometres.",
    "The lunch allowance is 14 euros a day.",
    "x",
    "Low-rank adaptation freezes the weights and trains two small matrices. " * 12,
    "日本語の文章です。",
    "word " * 2_000,
]


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


# --- vectors


def test_identity(real_encoder: Any) -> None:
    identity = real_encoder.identity
    assert (identity.name, identity.dimension, real_encoder.window) == (BUNDLED, 384, 256)
    assert identity.fingerprint == "53aa51172d142c89"  # SHA-256 of the published weights
    assert identity.as_dict() == {"name": BUNDLED, "dimension": 384, "fingerprint": "53aa51172d142c89"}


def test_vectors_are_unit_float32(real_encoder: Any) -> None:
    vectors = real_encoder.encode(PASSAGES)
    assert (vectors.shape, vectors.dtype) == ((len(PASSAGES), 384), np.float32)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    query = real_encoder.encode_query("Where does the okapi live?")
    assert (query.shape, query.dtype) == ((384,), np.float32)
    assert abs(np.linalg.norm(query) - 1) < 1e-6


def test_nothing_gives_no_vectors(real_encoder: Any) -> None:
    assert real_encoder.encode([]).shape == (0, 384)


def test_both_precisions_agree_and_are_unit() -> None:
    full, half = (SentenceEncoder(precision=precision).encode(PASSAGES) for precision in PRECISIONS)
    for vectors in (full, half):
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert (full * half).sum(axis=1).min() > 0.998


def test_results_are_in_the_order_of_the_texts_whatever_the_batches(real_encoder: Any) -> None:
    texts = [f"Passage {n} is about {'very ' * (n * 7 % 23)}many things." for n in range(70)]
    together = real_encoder.encode(texts)
    for n in (0, 32, 69):
        assert real_encoder.encode([texts[n]])[0] @ together[n] > 0.99
        assert (together @ real_encoder.encode([texts[n]])[0]).argmax() == n
    assert (real_encoder.encode(texts[::-1])[::-1] * together).sum(axis=1).min() > 0.99


def test_progress_counts_up_to_all(real_encoder: Any) -> None:
    done: list[int] = []
    real_encoder.encode(["word " * 200] * 70, done.append)
    assert done == sorted(set(done)) and done[-1] == 70 and len(done) > 1


def test_like_is_nearer_than_unlike(real_encoder: Any) -> None:
    vectors = real_encoder.encode(PASSAGES[:3])
    for query, best in [
        ("In which forest can I see the relative of the giraffe?", 0),
        ("How often does my car need a service?", 1),
        ("How much may I spend on food at noon?", 2),
    ]:
        scores = vectors @ real_encoder.encode_query(query)
        assert scores.argmax() == best
        assert scores[best] > sorted(scores)[-2] + 0.05


# --- tokens


@pytest.mark.parametrize("text", ["word " * 5_000, "Zürich naïve 日本語 🦓 don't e.g. 3.14 " * 200, "x" * 5_000, ""])
def test_every_token_has_its_span_and_none_is_cut(real_encoder: Any, text: str) -> None:
    spans = real_encoder.tokenize(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    inside = bytearray(len(text))
    for start, end in spans:
        inside[start:end] = b"\1" * (end - start)
    assert all(inside[i] or text[i].isspace() for i in range(len(text)))
    if text.startswith("word"):
        assert len(spans) == 5_000 > real_encoder.window


def test_no_passage_of_the_demo_documents_is_cut_by_the_model(real_encoder: Any) -> None:
    room = real_encoder.window - 2  # [CLS] and [SEP]
    longest = 0
    for path in sorted((ROOT / "examples" / "peft_docs").rglob("*.md")):
        for document in load(path, path.read_bytes()):
            for c in chunk(document, real_encoder.tokenize, ChunkSettings()):
                longest = max(longest, len(real_encoder.tokenize(c.text)))
    assert 100 < longest <= room - ChunkSettings().heading_tokens


# --- queries


@pytest.mark.parametrize("query", ["", "  ", "\n\t", "\u00a0\u3000"])
def test_an_empty_query_is_refused(real_encoder: Any, query: str) -> None:
    with pytest.raises(QueryInvalid, match="the question is empty: write one"):
        real_encoder.encode_query(query)


@pytest.mark.parametrize("query", ["?", "\u200b", "\x00", "🦓", "x" * 10_000])
def test_an_odd_query_gives_a_unit_vector(real_encoder: Any, query: str) -> None:
    assert abs(np.linalg.norm(real_encoder.encode_query(query)) - 1) < 1e-6


def test_a_long_query_is_read_in_windows_of_equal_weight(real_encoder: Any) -> None:
    room = real_encoder.window - 2
    parts = ["okapi " * (room // 3), "engine oil " * (room // 2)]
    filled = []
    for part in parts:  # to the last token of a window
        missing = room - len(real_encoder.tokenize(part))
        filled.append(part + "a " * missing)
        assert len(real_encoder.tokenize(filled[-1])) == room
    expected = unit(sum(real_encoder.encode_query(part) for part in filled))
    assert real_encoder.encode_query("".join(filled)) @ expected > 0.99
    assert real_encoder.encode_query("".join(filled)) @ real_encoder.encode_query(filled[0]) < 0.98


def test_a_query_of_all_windows_is_answered_and_a_longer_one_refused(real_encoder: Any) -> None:
    most = (real_encoder.window - 2) * QUERY_WINDOWS
    assert abs(np.linalg.norm(real_encoder.encode_query("word " * most)) - 1) < 1e-6
    with pytest.raises(QueryInvalid, match=r"is 2,033 tokens long, at most 2,032 .*: shorten it"):
        real_encoder.encode_query("word " * (most + 1))
    with pytest.raises(QueryInvalid, match=r"is 20,000 tokens long") as raised:
        real_encoder.encode_query("word " * 20_000)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


# --- loaded when needed

LAZY = """
import sys
from index.encoder import SentenceEncoder
encoder = SentenceEncoder()
print(encoder.identity.fingerprint, encoder.window, encoder.tokenize("two words"), *sorted(sys.modules))
encoder.encode(["a text"])
print(*sorted(sys.modules))
import os
assert "GOMP_SPINCOUNT" not in os.environ
"""


def test_identity_and_tokens_need_no_torch_and_vectors_no_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before.startswith("53aa51172d142c89 256 [(0, 3), (4, 9)] ")
    assert not {"torch", "transformers", "sentence_transformers", "numpy"} & set(before.split())
    assert "torch" in after.split() and "transformers" not in after.split()


def test_threads_that_come_first_together_load_one_model_and_agree(real_encoder: Any) -> None:
    fresh = SentenceEncoder(precision=real_encoder.precision)
    queries = ["Where does the okapi live?", "engine oil", "word " * 600] * 4
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(fresh.encode_query, queries))
    for query, vector in zip(queries, found, strict=True):
        assert vector @ real_encoder.encode_query(query) > 0.999


# --- precision


def test_a_precision_may_be_asked_for() -> None:
    for precision in PRECISIONS:
        asked = SentenceEncoder(precision=precision)
        assert (asked.precision, asked.choose_precision()) == (precision, precision)
    with pytest.raises(ValueError, match="the precision is 'int4': give fp32 or bf16"):
        SentenceEncoder(precision="int4")


def test_the_precision_is_measured_once_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAG_HOME", str(tmp_path / "home"))
    first = SentenceEncoder()
    assert not (tmp_path / "home").exists()  # only a build makes it
    chosen = first.choose_precision()
    assert chosen == first.precision and abs(np.linalg.norm(first.encode_query("text")) - 1) < 1e-6
    facts = json.loads((tmp_path / "home" / memo.FILE).read_text("utf-8"))
    (machine,) = facts["precision"]
    assert facts["precision"][machine] == chosen
    other = "fp32" if chosen == "bf16" else "bf16"
    memo.put("precision", machine, other)
    second = SentenceEncoder()
    assert (second.precision, second.choose_precision()) == (other, other)  # as the file says, not measured again
    assert (first.choose_precision(), first.precision) == (other, other)


@pytest.mark.parametrize("damage", [b"", b"{cut", b"[]", b'{"precision": 3}', b"\xff\xfe", b'{"precision": {"x": []}}'])
def test_a_damaged_memory_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: bytes) -> None:
    monkeypatch.setenv("RAG_HOME", str(tmp_path))
    (tmp_path / memo.FILE).write_bytes(damage)
    assert SentenceEncoder().identity.fingerprint == "53aa51172d142c89"
    assert memo.get("fingerprints", "k") is None
    memo.put("fingerprints", "k", "v")
    assert memo.get("fingerprints", "k") == "v"


def test_a_home_that_cannot_be_written_to_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAG_HOME", str(tmp_path / "file"))
    encoder = SentenceEncoder()
    assert encoder.choose_precision() in PRECISIONS
    assert encoder.encode(["text"]).shape == (1, 384)


def test_the_faster_precision_wins_and_bf16_must_pay() -> None:
    def runs(rounds: dict[str, int]) -> str:
        return measured(lambda precision: lambda: sum(range(rounds[precision])))

    assert runs({"fp32": 200_000, "bf16": 20_000}) == "bf16"
    assert runs({"fp32": 20_000, "bf16": 200_000}) == "fp32"


# --- any model


def tiny(folder: Path, *, pooling: str = "mean", tail: Any = (), prompts: Any = None, window: int = 64) -> Path:
    """A random BERT of 2 layers as a sentence-transformers folder, with the bundled encoder's vocabulary."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    plain = folder / "plain"
    config = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    BertModel(config).save_pretrained(plain)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(Path(locate()[1]) / name, plain)
    parts = [Transformer(str(plain), max_seq_length=window), Pooling(48, pooling), *tail]
    SentenceTransformer(modules=parts, prompts=prompts).save(str(folder / "model"))
    return folder / "model"


def library(folder: Path, texts: list[str], prompt: str = "") -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.stack([unit(vector) for vector in model.encode(texts, prompt=prompt)])


SHORT = [PASSAGES[0], "x", "A longer one, with " + "many " * 30 + "words.", PASSAGES[5]]


def test_vectors_are_the_librarys(real_encoder: Any) -> None:
    expected = library(Path(locate()[1]), PASSAGES[:6])
    assert np.abs(SentenceEncoder(precision="fp32").encode(PASSAGES[:6]) - expected).max() < 1e-5
    assert (real_encoder.encode(PASSAGES[:6]) * expected).sum(axis=1).min() > 0.998


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_plain_bert_is_computed_as_the_library_does(tmp_path: Path, pooling: str, packed: bool) -> None:
    folder = tiny(tmp_path, pooling=pooling)
    files = ModelFiles(folder)
    assert fits(files) and isinstance(load_model(files, "fp32"), Plain)
    tokenizer = SentenceEncoder(str(folder))._tokenizer
    found = Bert(files, "fp32", packed)([tokenizer.encode(text).ids for text in SHORT])
    expected = library(folder, SHORT)
    assert np.abs(found / np.linalg.norm(found, axis=1, keepdims=True) - expected).max() < 1e-5
    half = Bert(files, "bf16", packed)([tokenizer.encode(text).ids for text in SHORT])
    assert (half / np.linalg.norm(half, axis=1, keepdims=True) * expected).sum(axis=1).min() > 0.998


def test_other_parts_are_the_librarys(tmp_path: Path) -> None:
    import torch
    from sentence_transformers.models import Dense

    folder = tiny(tmp_path, tail=[Dense(48, 24, activation_function=torch.nn.Tanh())])
    encoder = SentenceEncoder(str(folder), "fp32")
    assert encoder.identity.dimension == 24
    assert isinstance(load_model(ModelFiles(folder), "fp32"), Library)
    assert np.abs(encoder.encode(SHORT) - library(folder, SHORT)).max() < 1e-5
    assert SentenceEncoder(str(folder), "bf16").encode(SHORT).dtype == np.float32


def test_a_model_without_modules_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    tiny(tmp_path)
    encoder = SentenceEncoder(str(tmp_path / "plain"), "fp32")
    assert (encoder.identity.dimension, encoder.window) == (48, 512)
    assert np.abs(encoder.encode(SHORT) - library(tmp_path / "plain", SHORT)).max() < 1e-5


@pytest.mark.parametrize("dense", [False, True])
def test_prompts_stand_before_queries_and_passages_and_count(tmp_path: Path, dense: bool) -> None:
    from sentence_transformers.models import Dense

    prompts = {"query": "query: ", "passage": "please read this passage: "}
    folder = tiny(tmp_path, prompts=prompts, tail=[Dense(48, 48)] if dense else [])
    encoder = SentenceEncoder(str(folder), "fp32")
    assert np.abs(encoder.encode(SHORT) - library(folder, SHORT, prompts["passage"])).max() < 1e-5
    query = encoder.encode_query(SHORT[0])
    assert np.abs(query - library(folder, SHORT[:1], prompts["query"])[0]).max() < 1e-5
    assert encoder.window == 64 - 5
    full = "word " * (encoder.window - 2)
    assert np.abs(encoder.encode([full]) - library(folder, [full], prompts["passage"])).max() < 1e-5


def test_a_passage_longer_than_the_window_is_the_mean_of_its_windows(real_encoder: Any) -> None:
    room = real_encoder.window - 2
    parts = ["okapi " * room, "engine oil " * room]
    start = real_encoder.encode(["okapi " * len(real_encoder.tokenize(parts[0]))])[0]
    both = real_encoder.encode([parts[0] + parts[1]])[0]
    assert both @ start < 0.98  # its end counts too
    assert np.abs(np.linalg.norm(real_encoder.encode(["antidisestablishmentarianism" * 900]), axis=1) - 1).max() < 1e-6


def test_parts_that_do_not_tell_their_dimension_are_asked_when_loaded(tmp_path: Path) -> None:
    from sentence_transformers.models import CNN, Pooling

    folder = tiny(tmp_path, tail=[CNN(48, 16, [1, 3]), Pooling(32)])
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    del modules[1]  # the library pools after the convolution only
    (folder / "modules.json").write_text(json.dumps(modules[:2]), "utf-8")
    assert ModelFiles(folder).dimension is None and not fits(ModelFiles(folder))


def test_the_fingerprint_covers_dense_layers_and_heeds_every_change(tmp_path: Path) -> None:
    from sentence_transformers.models import Dense

    folder = tiny(tmp_path, tail=[Dense(48, 24)])
    memo.put("fingerprints", "any", "thing", make_home=True)
    before = ModelFiles(folder).fingerprint
    assert ModelFiles(folder).fingerprint == before
    weights = folder / "2_Dense" / "model.safetensors"
    data, stat = bytearray(weights.read_bytes()), weights.stat()
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps times
    assert ModelFiles(folder).fingerprint != before


def test_no_vocabulary_in_todays_form_is_converted_by_the_library(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    expected = library(folder, SHORT)
    spans = SentenceEncoder(str(folder)).tokenize(PASSAGES[1])
    (folder / "tokenizer.json").unlink()
    shutil.copy(Path(locate()[1]) / "vocab.txt", folder)
    old = SentenceEncoder(str(folder), "fp32")
    assert old.tokenize(PASSAGES[1]) == spans
    assert np.abs(old.encode(SHORT) - expected).max() < 1e-5


# --- which encoder


def test_the_bundled_encoder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, path = locate()
    assert name == BUNDLED and (Path(path) / "model.safetensors").is_file()
    assert locate(BUNDLED) == (name, path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for wanted in ("mine", "./mine", str(tmp_path / "mine"), "../" + tmp_path.name + "/mine"):
        assert locate(wanted) == ("mine", str(tmp_path / "mine"))
    monkeypatch.setenv("RAG_ENCODER", "mine")
    assert locate()[0] == "mine" and locate(BUNDLED)[0] == BUNDLED
    assert locate("owner/model") == ("owner/model", "owner/model")


@pytest.mark.parametrize("wanted", ["/no/such/folder", "./missing", "~/missing-encoder", "missing", "a/b/c"])
def test_a_missing_folder_is_told_in_one_line(wanted: str) -> None:
    with pytest.raises(EncoderNotFound, match=f"^no encoder at '{wanted}': give a sentence-transformers folder"):
        SentenceEncoder(wanted)


def test_a_model_that_cannot_be_fetched_is_told_in_one_line() -> None:
    with pytest.raises(EncoderNotFound, match=r"^the encoder 'nobody/nothing' cannot be fetched") as raised:
        SentenceEncoder("nobody/nothing")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_model_in_the_hubs_cache_is_used_without_asking_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--name"
    shutil.copytree(locate()[1], cached / "snapshots" / ("a" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    code = "from index.encoder import SentenceEncoder; print(SentenceEncoder('owner/name').identity)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)

    assert "there are no weights" in run().stderr  # a part of it is not enough, and the rest cannot be fetched here
    (cached / "snapshots" / ("a" * 40) / "model.safetensors").symlink_to(Path(locate()[1]) / "model.safetensors")
    assert "name='owner/name', dimension=384, fingerprint='53aa51172d142c89'" in run().stdout


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled encoder, to be harmed: its large files are links."""
    source, copy = Path(locate()[1]), tmp_path / "model"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(source / "model.safetensors")
    return copy


def test_a_copy_of_the_model_is_the_same_encoder(model: Path, real_encoder: Any) -> None:
    copy = SentenceEncoder(str(model))
    assert copy.identity.name == "model"
    assert copy.identity.fingerprint == real_encoder.identity.fingerprint
    same, there = SentenceEncoder(str(model), "fp32"), SentenceEncoder(precision="fp32")  # which one is fast, varies
    assert np.array_equal(same.encode(PASSAGES[:2]), there.encode(PASSAGES[:2]))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", b"cut"),
        ("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}" * 50),
        ("config.json", None),
        ("config.json", b"{}"),
        ("config.json", b"[]"),
        ("config.json", b"{cut"),
        ("modules.json", b"{cut"),
        ("modules.json", b"[]"),
        ("tokenizer.json", b"{cut"),
        ("config_sentence_transformers.json", b"[]"),
        ("1_Pooling/config.json", b"{cut"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_told_in_one_line(model: Path, name: str, data: bytes | None) -> None:
    (model / name).unlink()
    if data is not None:
        (model / name).write_bytes(data)
    with pytest.raises(EncoderNotFound, match=f"encoder at '{model}'") as raised:
        SentenceEncoder(str(model)).load()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
