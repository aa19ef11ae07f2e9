"""The proof of an export: it passes what is the same model, and nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.errors import ProofFailed
from finetune.export import gguf, proof
from finetune.export.engines import LlamaCpp, Transformers
from finetune.export.proof import Expected
from finetune.export.quantise import kinds, quantise
from rag_app.engines.layout import Layout
from tests.test_finetune_gguf import bytewise, tiny

FACTS = {"what": "gguf", "source": {}, "file": {}}


def said(model: Any, tokenizer: Any) -> Expected:
    layout = Layout("source", tokenizer)
    return proof.expected(Transformers(model, layout), layout)


def proven(file: Path, right: Expected, kind: str) -> proof.Proof:
    with LlamaCpp(file) as engine:
        return proof.prove(engine, right, kind, FACTS)


def test_a_real_model_is_proven_and_says_how_near_it_came(small_base: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    right = said(model, tokenizer)
    assert len(right.logits) > 60
    gguf.write(model, tokenizer, tmp_path / "f16.gguf")
    found = proven(tmp_path / "f16.gguf", right, "f16")
    assert found.measured["difference"] < 0.05
    assert found.measured["agreement"] == 1
    assert (found.engine, found.stop, found.tokens) == ("llama.cpp", 2, len(right.talked))
    found.write(tmp_path / "proof.json")
    stored = json.loads((tmp_path / "proof.json").read_text())
    assert stored["measured"] == found.measured
    assert stored["versions"]["llama-cpp-python"]


@pytest.fixture(scope="module")
def source() -> tuple[Any, Any]:
    tokenizer = bytewise()
    return tiny(len(tokenizer)), tokenizer


@pytest.fixture(scope="module")
def right(source: tuple[Any, Any]) -> Expected:
    return said(*source)


@pytest.fixture(scope="module")
def file(source: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "f32.gguf"
    gguf.write(*source, path, "f32")
    return path


def test_32_bits_are_the_same_to_four_digits(file: Path, right: Expected) -> None:
    assert proven(file, right, "f32").measured["difference"] < 1e-3


def test_a_type_of_few_bits_is_proven_by_its_own_limits(file: Path, right: Expected, tmp_path: Path) -> None:
    quantise(file, tmp_path / "q4.gguf", "Q4_0")
    found = proven(tmp_path / "q4.gguf", right, "Q4_0")
    assert found.limits == {"divergence": 1.2, "agreement": 0.35}
    assert found.measured["divergence"] > 0.01
    with pytest.raises(ProofFailed, match=r"the difference of its logits is [0-9.]+, where 0\.\d+ is allowed"):
        proven(tmp_path / "q4.gguf", right, "f16")


def test_every_type_has_limits_that_rise_as_bits_fall(right: Expected) -> None:
    for kind in (*kinds(), "f32", "f16", "bf16", "merged", "gptq-4", "gptq-8"):
        assert proof.limits_of(kind if kind not in ("F16", "BF16") else kind.lower(), right.logits)
    falling = [proof.LIMITS[bits].divergence for bits in "865432"]
    assert falling == sorted(falling, key=lambda one: one or 0)
    assert proof.limits_of("Q4_K_M", right.logits) == proof.limits_of("gptq-4", right.logits)
    doubled = proof.limits_of("f16", 20 * right.logits)["difference"]
    assert doubled == pytest.approx(20 * proof.limits_of("f16", right.logits)["difference"], rel=1e-3)


def tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def lie(file: Path) -> None:
        read = GGUFReader(file, "r+")
        data = next(one.data for one in read.tensors if one.name == name)
        data[:] = change(data.copy())

    return lie


def field(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def lie(file: Path) -> None:
        found = GGUFReader(file, "r+").fields[name]
        found.parts[found.data[-1]][:] = change(found.parts[found.data[-1]].copy())

    return lie


def swapped(rows: Any) -> Any:
    return rows.reshape(4, 8, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def other_words(file: Path) -> None:
    """Two tokens change places."""
    found = GGUFReader(file, "r+").fields["tokenizer.ggml.tokens"]
    texts = {bytes(found.parts[place]).decode(): found.parts[place] for place in found.data}
    texts["e"][:], texts["a"][:] = texts["a"].copy(), texts["e"].copy()


@pytest.mark.parametrize(
    ("lie", "phrase"),
    [
        (tensor("blk.1.attn_q.weight", swapped), "the difference of its logits is"),
        (tensor("blk.0.ffn_down.weight", lambda data: data * 1.1), "the difference of its logits is"),
        (tensor("output_norm.weight", lambda data: data * np.nan), "the difference of its logits is nan"),
        (field("tokenizer.chat_template", lambda data: data[::-1]), "it has another chat template"),
        (other_words, r"its tokens differ from the tokenizer's, at token \d+ of \d+ first"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_is_named(
    lie: Callable[[Path], None], phrase: str, file: Path, right: Expected, tmp_path: Path
) -> None:
    other = Path(shutil.copy(file, tmp_path / "other.gguf"))
    lie(other)
    with pytest.raises(ProofFailed, match=phrase):
        proven(other, right, "f32")


@pytest.mark.parametrize(("kind", "remedy"), [("f32", "another type"), ("gptq-4", "--bits 8"), ("gptq-8", "as GGUF")])
def test_a_stop_token_that_does_not_stop_fails(kind: str, remedy: str, file: Path, right: Expected) -> None:
    with pytest.raises(ProofFailed, match=f"the token 5, which ends an answer, does not end it.*{remedy}"):
        proven(file, replace(right, stop=5), kind)


def test_a_reply_that_goes_on_as_somebody_else_fails(file: Path, right: Expected) -> None:
    with LlamaCpp(file) as engine:
        assert not proof._marks(engine, engine.reply(right.prompt, 8))
        mark = min(engine.control - engine.ends)
        engine.reply = lambda prompt, most: [5, mark]  # type: ignore[method-assign]
        with pytest.raises(ProofFailed, match="writes control tokens into its reply"):
            proof.prove(engine, right, "f32", FACTS)


def test_models_of_another_shape_are_infinitely_far_apart() -> None:
    assert proof.compared(np.zeros((3, 5)), np.zeros((3, 4)))["divergence"] == float("inf")
    same = proof.compared(np.eye(4), np.eye(4))
    assert same == {"difference": 0, "divergence": 0, "agreement": 1}
