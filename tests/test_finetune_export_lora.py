"""LoRAs that we write for llama.cpp, against PEFT; and which adapters cannot be one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from finetune import methods
from finetune.config import checked
from finetune.errors import CheckpointInvalid, ExportInvalid
from finetune.export import gguf, lora
from finetune.export.engines import LlamaCpp, Transformers
from rag_app.adapters import forms
from rag_app.engines.layout import Layout
from tests.test_finetune_gguf import bytewise, tiny

TEXT = "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long."


def loaded(small_base: Path) -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(small_base)


@pytest.fixture(scope="module")
def plain(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base for llama.cpp."""
    file = tmp_path_factory.mktemp("base") / "f16.gguf"
    gguf.write(*loaded(small_base), file)
    return file


def filled(model: Any, share: float = 0.1) -> Any:
    """With random numbers where an adapter begins with zeros."""
    torch.manual_seed(1)
    for name, one in model.named_parameters():
        if "lora_B" in name or "lora_E" in name:
            one.data = torch.randn_like(one) * (share if "lora_B" in name else 1.0)
    return model


def trained(small_base: Path, folder: Path, method: str) -> Any:
    """The model with an adapter on it, which is also in the folder."""
    model, tokenizer = loaded(small_base)
    config = checked({"adapter": method, "lora_r": 4}, "here")
    tuned = filled(methods.attach(model, config, tokenizer, steps=4))
    if method == "relora":
        for step in (1, 2):  # merged each time, and begun again
            methods.after_step(tuned, config, step, 4, torch.optim.SGD(tuned.parameters()))
            filled(tuned, 0.1 / step)
    methods.save(tuned, folder, config)
    return tuned.eval()


@pytest.mark.parametrize("method", ["lora", "rslora", "adalora", "relora"])
def test_llama_cpp_computes_what_peft_does(method: str, plain: Path, small_base: Path, tmp_path: Path) -> None:
    tuned = trained(small_base, tmp_path, method)
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    tokens = tokenizer.encode(TEXT)
    right = Transformers(tuned, Layout("small", tokenizer)).logits(tokens, len(tokens))
    assert lora.obstacle(tmp_path) == ""
    rank = lora.write(tmp_path, loaded(small_base)[0], tmp_path / "adapter.gguf")
    assert rank == {"adalora": 6, "relora": 12}.get(method, 4)
    assert forms.check(tmp_path, None) == rank
    with tuned.disable_adapter():
        other = Transformers(tuned, Layout("small", tokenizer)).logits(tokens, len(tokens))
    assert abs(other - right).max() > 0.5
    with LlamaCpp(plain, tmp_path / "adapter.gguf") as served:
        assert abs(served.logits(tokens, len(tokens)) - right).max() < 0.05


def qwen2(tokens: int) -> Any:
    torch.manual_seed(3)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=tokens, **shape, **heads)).eval()


@pytest.mark.parametrize(("make", "same"), [(tiny, False), (qwen2, True)], ids=["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_rows_are_rearranged_where_the_base_s_are(make: Any, same: bool, kind: Any, tmp_path: Path) -> None:
    tokenizer = bytewise()
    model = make(len(tokenizer))
    tuned = filled(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])))
    tuned.save_pretrained(tmp_path)
    tokens = tokenizer.encode(TEXT)
    right = Transformers(tuned, Layout("tiny", tokenizer)).logits(tokens, len(tokens))
    base = tuned.unload()
    gguf.write(base, tokenizer, tmp_path / "base.gguf")
    lora.write(tmp_path, base, tmp_path / "adapter.gguf", kind)
    found = {one.name: one for one in GGUFReader(tmp_path / "adapter.gguf").tensors}
    assert {one.tensor_type.name.lower() for one in found.values()} == {kind}
    kept = load_file(tmp_path / "adapter_model.safetensors")
    for place, name, equal in (("v", "v", True), ("q", "q", same)):
        b = kept[f"base_model.model.model.layers.1.self_attn.{name}_proj.lora_B.weight"].numpy()
        assert np.allclose(found[f"blk.1.attn_{place}.weight.lora_b"].data, b, atol=1e-3) == equal
    with LlamaCpp(tmp_path / "base.gguf", tmp_path / "adapter.gguf") as served:
        difference = abs(served.logits(tokens, len(tokens)) - right).max()
    assert difference < 0.01 * right.std()


FITTING: Mapping[str, Any] = {"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
HEAD, LAYER = "base_model.model.lm_head", "base_model.model.model.layers.0.self_attn.q_proj"


def made(folder: Path, settings: Any, names: tuple[str, ...] = (LAYER,), size: float = 1.0) -> Path:
    """An adapter of random numbers."""
    settings.save_pretrained(str(folder))
    tensors = {}
    for name in names:
        tensors |= {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": size * torch.ones(64, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def bottlenecks(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BOTTLENECK"}))
    save_file(
        {"x.bottleneck.down.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors", {"method": "adapter"}
    )
    return folder


def set_to(**more: Any) -> Callable[[Path], Path]:
    return lambda folder: made(folder, peft.LoraConfig(**{**FITTING, **more}))


def of_kind(kind: Any, **settings: Any) -> Callable[[Path], Path]:
    return lambda folder: made(folder, kind(task_type="CAUSAL_LM", **settings))


@pytest.mark.parametrize(
    ("make", "why", "mergeable"),
    [
        (set_to(), "", True),
        (set_to(use_rslora=True, lora_dropout=0.1, init_lora_weights="gaussian"), "", True),
        (set_to(use_dora=True), "it has a magnitude for each row (DoRA)", True),
        (set_to(modules_to_save=["embed_tokens"]), "it holds whole layers (modules_to_save)", True),
        (set_to(bias="lora_only"), "it changes biases", True),
        (set_to(lora_bias=True), "it has biases of its own", True),
        (set_to(rank_pattern={"q_proj": 4}), "its layers differ in rank (rank_pattern)", True),
        (set_to(alpha_pattern={"q_proj": 4}), "its layers differ in alpha (alpha_pattern)", True),
        (set_to(trainable_token_indices=[1]), "its trainable_token_indices is set", True),
        (set_to(init_lora_weights="pissa"), "it stands on changed weights (init_lora_weights is pissa)", True),
        (lambda at: made(at, peft.LoraConfig(**FITTING), (HEAD,)), "it changes lm_head, too", True),
        (of_kind(peft.VeraConfig), "it is of the method vera", True),
        (of_kind(peft.IA3Config), "it is of the method ia3", True),
        (of_kind(peft.PromptTuningConfig, num_virtual_tokens=2), "it adds virtual tokens", False),
        (of_kind(peft.PrefixTuningConfig, num_virtual_tokens=2), "it adds virtual tokens", False),
        (of_kind(peft.AdaptionPromptConfig, adapter_len=2), "it adds prompts inside attention", False),
        (bottlenecks, "it adds layers to the model", False),
    ],
)  # fmt: skip
def test_what_cannot_be_a_lora_says_why(
    make: Callable[[Path], Path], why: str, mergeable: bool, tmp_path: Path
) -> None:
    assert lora.obstacle(make(tmp_path)) == why
    assert lora.mergeable(tmp_path) == mergeable


def test_whole_models_and_damaged_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert lora.obstacle(tmp_path) == "it is a whole model"
    made(tmp_path, peft.LoraConfig(**FITTING))
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointInvalid, match="does not say what the adapter is"):
        lora.obstacle(tmp_path)


@pytest.mark.parametrize(
    ("names", "size", "error", "phrase"),
    [
        ((LAYER, LAYER.replace("0", "9")), 1, CheckpointInvalid, r"does not fit the model at model.layers.9.self_attn"),
        ((LAYER,), 1e5, ExportInvalid, "do not fit f16: give --type f32"),
    ],
)
def test_what_does_not_fit_leaves_no_file(names: Any, size: float, error: Any, phrase: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    folder = made(tmp_path / "adapter", peft.LoraConfig(**FITTING), names, size)
    with pytest.raises(error, match=phrase):
        lora.write(folder, tiny(700), tmp_path / "adapter.gguf")
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]
