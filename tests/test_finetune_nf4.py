"""Weights rounded onto NF4's grid against the packed 4-bit model of bitsandbytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from finetune.training import nf4
from rag_app.engines import checkpoints


def _trained_by(model: Any) -> Any:
    torch.manual_seed(7)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    # in the dtype of the weights: PEFT adds fp32 updates before it rounds to bf16, but after it beside 4-bit layers
    return get_peft_model(model, lora, autocast_adapter_dtype=False).train()


@pytest.fixture(scope="module")
def both(small_base: Path) -> tuple[Any, Any]:
    """The packed model and the rounded one, each with the same LoRA."""
    source = checkpoints.find(str(small_base))
    packed, _ = checkpoints.load(source, "nf4", "cpu", double=True)
    rounded, _ = checkpoints.load(source, "16-bit", "cpu")
    assert nf4.rounded_(rounded) == 14
    return _trained_by(packed), _trained_by(rounded)


def test_rounded_weights_are_those_that_the_packed_model_computes_with(both: tuple[Any, Any]) -> None:
    from bitsandbytes import functional

    packed, rounded = both
    named = dict(rounded.named_modules())
    layers = {name: layer for name, layer in packed.named_modules() if type(layer).__name__ == "Linear4bit"}
    layers = {name: layer for name, layer in layers.items() if name.endswith("base_layer")}
    assert len(layers) == 14
    for name, layer in layers.items():
        assert layer.weight.quant_state.nested
        unpacked = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(unpacked, named[name].weight), name


def test_logits_and_gradients_equal_those_of_the_packed_model(both: tuple[Any, Any]) -> None:
    tokens = torch.arange(100, 148)[None]
    results = []
    for model in both:
        model.zero_grad()
        output = model(input_ids=tokens, labels=tokens)
        output.loss.backward()
        results.append((output.logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (one, of_packed), (other, of_rounded) = results
    assert _error(one, other) <= 1e-3
    assert len(of_packed) == 28 and of_packed.keys() == of_rounded.keys()
    worst = max(_error(of_packed[name], of_rounded[name]) for name in of_packed)
    assert worst <= 1e-3


def _error(right: torch.Tensor, other: torch.Tensor) -> float:
    assert right.norm() > 0
    return ((right.float() - other.float()).norm() / right.float().norm()).item()


def test_the_head_and_the_embeddings_stay(small_base: Path) -> None:
    source = checkpoints.find(str(small_base))
    plain, _ = checkpoints.load(source, "16-bit", "cpu")
    rounded, _ = checkpoints.load(source, "16-bit", "cpu")
    nf4.rounded_(rounded)
    changed = {n for (n, a), b in zip(plain.named_parameters(), rounded.parameters(), strict=True) if not a.equal(b)}
    linear = {f"model.{name}.weight" for name, one in plain.model.named_modules() if type(one) is nn.Linear}
    assert changed == linear


@pytest.mark.parametrize("shape", [(96, 96), (30, 20)])
def test_widths_that_are_no_multiple_of_the_block(shape: tuple[int, int]) -> None:
    import bitsandbytes as bnb

    layer = nn.Linear(shape[1], shape[0], bias=False)
    packed = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type="nf4", compute_dtype=torch.float32)
    packed.weight = bnb.nn.Params4bit(layer.weight.data.clone(), quant_type="nf4").to("cpu")
    nf4._round(layer.weight.data)
    x = torch.randn(3, shape[1], requires_grad=True)
    assert torch.allclose(packed.train()(x), layer(x), atol=1e-6)


def test_a_model_whose_weights_lie_the_other_way_round() -> None:
    from bitsandbytes import functional
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50, n_positions=16))
    before = model.transformer.h[0].attn.c_attn.weight.data.T.contiguous()
    assert nf4.rounded_(model) == 4
    packed, state = functional.quantize_4bit(before, quant_type="nf4", compress_statistics=True)
    assert torch.equal(functional.dequantize_4bit(packed, state).T, model.transformer.h[0].attn.c_attn.weight)
