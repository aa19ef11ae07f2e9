"""QLoRA on packed 4-bit weights of bitsandbytes, on a CPU: its gradients against those on the dequantised weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import methods
from finetune.config import Config
from finetune.errors import MethodInvalid
from finetune.methods.by_peft import layers
from finetune.methods.packed import keep
from rag_app.engines import checkpoints
from rag_app.engines.layout import Layout
from rag_app.prompt import question_prompt

SETTINGS = Config.model_validate({"adapter": "qlora", "lora_r": 16})


def packed(folder: Path) -> tuple[Any, Any]:
    return checkpoints.load(checkpoints.find(str(folder)), "nf4", "cpu", double=True)


def dequantised(folder: Path, source: Any) -> Any:
    """The model in 16 bits, with what the 4-bit weights of another stand for."""
    from bitsandbytes import functional

    plain, _ = checkpoints.load(checkpoints.find(str(folder)), "16-bit", "cpu")
    for name, module in source.named_modules():
        if type(module).__name__ == "Linear4bit":
            plain.get_submodule(name).weight.data = functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            ).to(plain.dtype)
    return plain


def batch(tokenizer: Any) -> dict[str, torch.Tensor]:
    layout = Layout("base", tokenizer)
    passages = ["The okapi lives in the Ituri rainforest.", "The axolotl keeps its gills for life."]
    prompt = layout.prompt(question_prompt("Where does the okapi live?", passages))
    ids = prompt + layout.answer("the Ituri rainforest")
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([[-100] * len(prompt) + ids[len(prompt) :]])}


def gradients(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    model(**given, use_cache=False).loss.backward()
    return {name: one.grad.float().clone() for name, one in model.named_parameters() if one.requires_grad}


def lora(model: Any, tokenizer: Any) -> Any:
    """QLoRA some steps on: with B at 0, A would have no gradient."""
    trained = methods.attach(model, SETTINGS, tokenizer)
    torch.manual_seed(7)
    for _, layer in layers(trained):
        layer.lora_A["default"].weight.data.normal_(0, 0.02)
        layer.lora_B["default"].weight.data.normal_(0, 0.02)
    return trained


def worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() and len(one) == 28 and all(gradient.any() for gradient in one.values())
    return max(((one[name] - other[name]).norm() / one[name].norm()).item() for name in one)


def test_gradients_are_those_on_the_dequantised_weights(small_base: Path) -> None:
    four_bit, tokenizer = packed(small_base)
    assert sum(type(one).__name__ == "Linear4bit" for one in four_bit.modules()) == 14
    plain, given = dequantised(small_base, four_bit), batch(tokenizer)
    before = gradients(lora(plain, tokenizer), given)
    model = lora(four_bit, tokenizer)
    assert worst(before, gradients(model, given)) <= 1e-3
    # An evaluation would have bitsandbytes lay its weights out for inference alone, which passes no gradient on.
    with torch.no_grad():
        model.eval()(input_ids=given["input_ids"])
    assert worst(before, gradients(model, given)) <= 1e-3


@pytest.mark.parametrize("kept", [True, False])
def test_a_model_that_has_answered_trains_too(kept: bool, small_base: Path) -> None:
    model, tokenizer = packed(small_base)
    given = batch(tokenizer)
    before = gradients(lora(dequantised(small_base, model), tokenizer), given)
    if kept:
        keep(model)
    with torch.no_grad():
        model(input_ids=given["input_ids"])
    # Laid out for inference, the scales have lost digits, which do not come back.
    assert worst(before, gradients(lora(model, tokenizer), given)) <= (1e-3 if kept else 0.1)


@pytest.mark.parametrize("method", ["dora", "ia3", "prefix-tuning", "llama-adapter", "adapter"])
def test_other_methods_train_on_4_bits(method: str, small_base: Path, tmp_path: Path) -> None:
    model, tokenizer = packed(small_base)
    settings = Config.model_validate({"adapter": method, "load_in_4bit": True, "num_virtual_tokens": 4, "lora_r": 4})
    trained, given = methods.attach(model, settings, tokenizer), batch(tokenizer)
    optimizer = torch.optim.SGD(methods.groups(trained, settings))
    losses = []
    for _ in range(3):
        found = trained.train()(**given, use_cache=False).loss
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.item())
    assert losses[-1] < losses[0]
    methods.save(trained, tmp_path, settings)
    loaded = methods.load(packed(small_base)[0], tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**given).logits, trained.eval()(**given).logits)


def test_4_bits_are_not_merged_into_nor_trained_themselves(small_base: Path) -> None:
    model, tokenizer = packed(small_base)
    with pytest.raises(MethodInvalid, match="load the model in 16 bits, or use qlora"):
        methods.attach(model, Config(adapter="full"), tokenizer)
    with pytest.raises(MethodInvalid, match="load the base in 16 bits"):
        methods.merge(methods.attach(model, SETTINGS, tokenizer))
