"""Every strategy with real models, on llama.cpp and on Transformers in four bits: each run ends with an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag_app.bot import Bot
from rag_app.decoding import Decoding
from rag_app.engines.huggingface import TransformersChat
from rag_app.settings import Options

QUESTION = "What is the lunch allowance?"
STRATEGIES = ("zero-shot", "few-shot", "cot", "react", "pal")


@pytest.fixture(scope="module")
def in_four_bits(base: Path) -> Any:
    model = TransformersChat(path=str(base), precision="nf4", decoding=Decoding(max_tokens=12))
    yield model
    model.close()


def answered(model: Any, index: Path, encoder: Any, strategy: Any) -> dict[str, Any]:
    options = Options(strategy=strategy, k=1, shots=1, max_steps=2, budget=64)
    given = json.loads(json.dumps(Bot(model, index, encoder, options).ask(QUESTION).as_dict()))
    assert given["strategy"] == strategy
    assert given["answer"]
    assert given["finish_reason"]
    assert 0 < given["usage"]["completion_tokens"] <= 64
    assert (given["steps"] != []) or strategy in ("zero-shot", "few-shot", "cot")
    for step in given["steps"]:
        assert set(step) == {"number", "thought", "action", "input", "observation", "error"}
    return dict(given)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_on_llama_cpp(strategy: str, real_index: Path, real_encoder: Any, real_model: Any) -> None:
    given = answered(real_model, real_index, real_encoder, strategy)
    if strategy == "react":
        assert given["steps"][0]["action"] == "search"
        assert "14 euros" in given["steps"][0]["observation"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_on_transformers_in_four_bits(strategy: str, real_index: Path, real_encoder: Any, in_four_bits: Any) -> None:
    given = answered(in_four_bits, real_index, real_encoder, strategy)
    if strategy == "react":
        assert given["steps"][0]["action"] == "search"
