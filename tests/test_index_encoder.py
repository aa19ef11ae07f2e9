"""The real encoder: unit vectors in both precisions, long texts, the order of results, folders that are no model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import EncoderNotFound, QueryInvalid
from index.chunker import ChunkSettings, chunk
from index.encoder import BUNDLED, QUERY_WINDOWS, SentenceEncoder, locate
from index.loaders import load
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


IN_FP32 = """
import json, sys
from index.encoder import SentenceEncoder
encoder = SentenceEncoder()
json.dump([encoder.precision, encoder.encode(json.load(sys.stdin)).tolist()], sys.stdout)
"""


def test_both_precisions_agree_and_are_unit(real_encoder: Any) -> None:
    # PyTorch takes the processor for an older one without bf16 units.
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", IN_FP32]
    done = subprocess.run(
        command, input=json.dumps(PASSAGES), env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    precision, vectors = json.loads(done.stdout)
    assert precision == "fp32" and real_encoder.precision in ("fp32", "bf16")
    full = np.array(vectors, np.float32)
    assert np.abs(np.linalg.norm(full, axis=1) - 1).max() < 1e-6
    cosines = (full * real_encoder.encode(PASSAGES)).sum(axis=1)
    assert cosines.min() > 0.99


def test_results_are_in_the_order_of_the_texts_whatever_the_batches(real_encoder: Any) -> None:
    texts = [f"Passage {n} is about {'very ' * (n * 7 % 23)}many things." for n in range(70)]
    together = real_encoder.encode(texts)
    for n in (0, 32, 69):
        assert real_encoder.encode([texts[n]])[0] @ together[n] > 0.99
        assert (together @ real_encoder.encode([texts[n]])[0]).argmax() == n
    assert (real_encoder.encode(texts[::-1])[::-1] * together).sum(axis=1).min() > 0.99


def test_progress_counts_up_to_all(real_encoder: Any) -> None:
    done: list[int] = []
    real_encoder.encode(["text"] * 70, done.append)
    assert done == [32, 64, 70]


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
        for c in chunk(load(path, path.read_bytes()), real_encoder.tokenize, ChunkSettings()):
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
    assert np.array_equal(copy.encode(PASSAGES[:2]), real_encoder.encode(PASSAGES[:2]))


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
        SentenceEncoder(str(model))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
