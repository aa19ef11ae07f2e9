"""Training with rounded weights, against what llama.cpp and gguf make of the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import methods
from finetune.compress import qat
from finetune.config import Config, checked
from finetune.errors import MethodInvalid
from finetune.export import gguf
from finetune.export.quantise import quantise
from tests.test_finetune_gguf import bytewise, tiny

TOKENS = torch.arange(100, 148)[None]


def config(kind: str, **settings: Any) -> Config:
    return checked({"qat": kind, "adapter": "lora", "lora_r": 4, **settings}, "test")


def trained(model: Any, settings: Config) -> Any:
    """With an update that is not nothing."""
    model = methods.attach(model, settings, None)
    torch.manual_seed(5)
    for name, one in model.named_parameters():
        if "lora_B" in name:
            one.data = torch.randn_like(one) * 0.02
    return model.train()


HARD = {
    "ties": [[1.0, -1.0] + [0.5] * 30, [-1.0, 1.0] + [0.25] * 30],
    "zeros": [[0.0] * 32, [1e-30] * 32],
    "halves": [[127.0, *(number + 0.5 for number in range(31))], [-127.0, *(-number - 0.5 for number in range(31))]],
    "tiny": [[6e-8 * number for number in range(32)], [1e-5 / (number + 1) for number in range(32)]],
}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_rounds_as_ggml_does(kind: Any) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(64, 96), torch.randn(64, 96).bfloat16(), torch.randn(32, 64) * 1e-4]
    for one in [*weights, *map(torch.tensor, HARD.values())]:
        number = GGMLQuantizationType[kind]
        right = quants.dequantize(quants.quantize(one.float().numpy(), number), number)
        assert np.array_equal(qat.rounded(one, kind).numpy(), right)


def file_of(model: Any, tokenizer: Any, kind: str, folder: Path) -> dict[str, Any]:
    """Tensors of the exported model, quantised by llama.cpp: type and weights."""
    gguf.write(model, tokenizer, folder / "f32.gguf", "f32")
    quantise(folder / "f32.gguf", folder / "model.gguf", kind)
    read = GGUFReader(folder / "model.gguf").tensors
    return {one.name: (one.tensor_type.name, quants.dequantize(one.data, one.tensor_type)) for one in read}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("adapter", ["lora", "rslora", "full"])
@pytest.mark.parametrize("tied", [True, False])
def test_computes_with_what_llama_cpp_will_read(kind: Any, adapter: Any, tied: bool, tmp_path: Path) -> None:
    tokenizer = bytewise()
    model = trained(tiny(700, tie_word_embeddings=tied), config(kind, adapter=adapter))
    qat.attach(model, config(kind, adapter=adapter))
    with torch.no_grad():
        model.eval()(TOKENS)
    ours = {
        name.removeprefix("base_model.model."): vars(layer)["forward"]
        for name, layer in model.named_modules()
        if "forward" in vars(layer)
    }
    assert len(ours) == 2 * 7 + 2
    qat.detach(model)
    written = file_of(methods.merge(model), tokenizer, kind, tmp_path)
    names = {"model.embed_tokens": "token_embd", "model.layers.1.mlp.down_proj": "blk.1.ffn_down"}
    names |= {"model.layers.0.self_attn.v_proj": "blk.0.attn_v"} | ({} if tied else {"lm_head": "output"})
    for name, tensor in names.items():
        found, right = written[f"{tensor}.weight"]
        assert ours[name].kind == found
        assert np.array_equal(ours[name].weight().numpy(), right), name
    rows = torch.tensor(written["blk.1.attn_k.weight"][1]).reshape(2, 8, 2, 64).transpose(1, 2).reshape(32, 64)
    assert torch.equal(ours["model.layers.1.self_attn.k_proj"].weight(), rows)  # permuted by rows, rounded along them
    rounded = {f"{one}.weight" for one in ("token_embd", "output")} | {n for n in written if "attn_" in n or "ffn" in n}
    assert {name for name, (type_, _) in written.items() if type_ != "F32"} <= rounded


@pytest.mark.parametrize("width", [64, 256])
def test_which_layers_are_rounded_goes_by_llama_cpp(width: int, tmp_path: Path) -> None:
    model = tiny(700, hidden_size=width, intermediate_size=96)
    types = file_of(model, bytewise(), "Q4_0", tmp_path)
    found = {id(layer): kind for layer, kind in qat.quantised(model, "Q4_0")}
    assert types["token_embd.weight"][0] == found[id(model.model.embed_tokens)] == "Q4_0"  # not tied
    head = {64: "Q8_0", 256: "Q6_K"}[width]
    assert types["output.weight"][0] == head
    assert found.get(id(model.lm_head)) == (head if head == "Q8_0" else None)


def test_gradients_pass_straight_through() -> None:
    settings = config("Q4_0")
    model = trained(tiny(700), settings)
    qat.attach(model, settings)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).square().sum().backward()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    ours = [one.grad.clone() for one in (x, a, b)]
    for one in (x, a, b):
        one.grad = None
    update = layer.base_layer.weight + (b @ a) * layer.scaling["default"]
    weight = update + (qat.rounded(update, "Q4_0") - update).detach()
    functional.linear(x, weight).square().sum().backward()
    for found, one in zip(ours, (x, a, b), strict=True):
        assert torch.allclose(found, one.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_weights_are_rounded_anew_after_a_step(adapter: Any) -> None:
    settings = config("Q8_0", adapter=adapter)
    model = trained(tiny(700), settings)
    qat.attach(model, settings)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.1)
    model(TOKENS, labels=TOKENS).loss.backward()
    with torch.no_grad():
        before = model.eval()(TOKENS).logits
    optimizer.step()
    model.train()(TOKENS, labels=TOKENS)
    with torch.no_grad():
        after = model.eval()(TOKENS).logits
        qat.detach(model)
        qat.attach(model, settings)
        again = model(TOKENS).logits
    assert not torch.equal(before, after)
    assert torch.equal(after, again)


def test_it_is_trained_on_after_it_was_only_read() -> None:
    settings = config("Q4_0")
    model = trained(tiny(700), settings)
    qat.attach(model, settings)
    with torch.inference_mode():
        before = model.eval()(TOKENS).logits
    loss = model.train()(TOKENS, labels=TOKENS).loss
    loss.backward()
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)
    with torch.inference_mode():
        assert torch.equal(model.eval()(TOKENS).logits, before)


def test_detached_it_is_the_model_that_it_was(small_base: Path) -> None:
    settings = config("Q4_0")
    plain: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.bfloat16)
    model = trained(plain, settings)
    with torch.no_grad():
        right = model.eval()(TOKENS).logits
        qat.attach(model, settings)
        rounded = model(TOKENS).logits
        with model.disable_adapter():
            without = model(TOKENS).logits
        qat.detach(model)
        assert torch.equal(model(TOKENS).logits, right)
    assert not torch.equal(rounded, right) and not torch.equal(rounded, without)
    assert np.corrcoef(rounded.float().numpy().ravel(), right.float().numpy().ravel())[0, 1] > 0.9


def test_the_file_computes_what_was_trained(small_base: Path, tmp_path: Path) -> None:
    """Logits of llama.cpp from the quantised file against those of the model as it is trained."""
    from tests.test_finetune_gguf import logits

    settings = config("Q4_0")
    model = trained(AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32), settings)
    with torch.no_grad():
        plain = model.eval()(TOKENS).logits[0].numpy()
        qat.attach(model, settings)
        trained_with = model(TOKENS).logits[0].numpy()
    qat.detach(model)
    merged = methods.merge(model)
    assert not isinstance(merged, PeftModel)
    gguf.write(merged, AutoTokenizer.from_pretrained(small_base), tmp_path / "f32.gguf", "f32")
    quantise(tmp_path / "f32.gguf", tmp_path / "q4.gguf", "Q4_0")
    served = logits(tmp_path / "q4.gguf", TOKENS[0].tolist())
    assert np.abs(served - trained_with).std() < 0.2 * np.abs(served - plain).std()


def test_what_cannot_be_rounded_is_one_line(small_base: Path) -> None:
    with pytest.raises(MethodInvalid, match="rows of 80 weights"):
        qat.attach(tiny(700, intermediate_size=80), config("Q4_0", adapter="full"))
    from rag_app.engines import checkpoints

    packed, _ = checkpoints.load(checkpoints.find(str(small_base)), "nf4", "cpu")
    with pytest.raises(MethodInvalid, match="quantised already"):
        qat.attach(packed, config("Q4_0"))
