"""The three methods that PEFT lacks, against a direct computation of each paper's formula."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import methods
from finetune.errors import MethodInvalid
from finetune.methods import bottleneck, by_peft, delta_lora, relora
from finetune.training.optimizer import MasterWeights
from tests.test_finetune_methods import batches, config, fresh, logits, loss, tokenizer


def _model(folder: Path, method: str, **more: Any) -> tuple[Any, Any, Any]:
    settings = config(method, learning_rate=1e-2, **more)
    model = methods.attach(fresh(folder, dtype=torch.float32), settings, tokenizer(folder))
    return model.train(), settings, batches(folder, method, torch.float32)[:1]


def _weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, A and B in fp64."""
    parts = (layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    w, a, b = (one.detach().double().clone() for one in parts)
    return w, a, b


def test_a_bottleneck_adds_what_houlsby_writes(small_base: Path) -> None:
    model, _, made = _model(small_base, "adapter", bottleneck_size=24)
    plain = logits(fresh(small_base, dtype=torch.float32), made)
    assert 0 < (logits(model, made) - plain).norm() / plain.norm() < 0.05  # near the identity
    found = {name: one for name, one in model.named_modules() if isinstance(one, bottleneck.Bottleneck)}
    assert sorted(found) == [f"model.layers.{n}.{half}.bottleneck" for n in (0, 1) for half in ("mlp", "self_attn")]
    for one in found.values():
        for layer in (one.down, one.up):
            assert layer.weight.abs().max() <= 0.02 and 0.008 < layer.weight.std() < 0.01
            assert not layer.bias.any()
            layer.bias.data.normal_()
    mlp, hidden = model.model.layers[1].mlp, torch.randn(1, 5, 576)
    d, u = mlp.bottleneck.down, mlp.bottleneck.up
    h = mlp.forward(hidden)  # without what comes behind
    x = h @ d.weight.T + d.bias
    gelu = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    assert torch.allclose(mlp(hidden), h + gelu @ u.weight.T + u.bias, atol=1e-5)


def test_a_model_of_another_build_takes_no_bottleneck() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20, state_size=4))
    with pytest.raises(MethodInvalid, match="no attention and MLP in a mamba model"):
        bottleneck.attach(model, 4)


def test_delta_lora_moves_the_weights_as_zi_et_al_write(small_base: Path, tmp_path: Path) -> None:
    model, settings, made = _model(small_base, "delta-lora", lora_target_modules=("v_proj", "down_proj"))
    optimizer = torch.optim.AdamW(methods.groups(model, settings))
    named = dict(by_peft.layers(model))
    steps, scale = 20, settings.lora_alpha / settings.lora_r
    begin = int(delta_lora.WAIT * steps)
    assert begin == 2
    expected = {name: _weights(layer) for name, layer in named.items()}
    for step in range(1, 6):
        loss(model, made).backward()
        optimizer.step()
        optimizer.zero_grad()
        methods.after_step(model, settings, step, steps, optimizer)
        for name, layer in named.items():
            (w, a, b), (now, new_a, new_b) = expected[name], _weights(layer)
            if step > begin:
                w = w + delta_lora.FOLLOW * scale * (new_b @ new_a - b @ a)
            assert (now - w).norm() <= 1e-6 * w.norm()
            expected[name] = (w, new_a, new_b)
    base = fresh(small_base)
    for name, (w, _, _) in expected.items():
        assert (w - base.get_submodule(name.removeprefix("base_model.model.")).weight).norm() > 0.1

    methods.save(model, tmp_path, settings)
    _read_as_plain_lora(small_base, tmp_path, logits(model, made), made)


def _read_as_plain_lora(small_base: Path, folder: Path, expected: torch.Tensor, made: Any) -> None:
    """What is kept is a LoRA for any program that knows LoRA."""
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(fresh(small_base, dtype=torch.float32), folder)
    assert (logits(theirs, made) - expected).norm() / expected.norm() < 1e-5


def test_relora_merges_and_begins_again_as_lialin_et_al_write(small_base: Path, tmp_path: Path) -> None:
    names = ("v_proj", "down_proj")
    model, settings, made = _model(small_base, "relora", lora_target_modules=names, relora_steps=2)
    optimizer = torch.optim.AdamW(methods.groups(model, settings))
    named, scale = dict(by_peft.layers(model)), settings.lora_alpha / settings.lora_r
    for step in range(1, 7):
        loss(model, made).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = {name: _weights(layer) for name, layer in named.items()}
        moments = {one: optimizer.state[one]["exp_avg"].clone() for g in optimizer.param_groups for one in g["params"]}
        function = logits(model, made)
        methods.after_step(model.train(), settings, step, 6, optimizer)
        assert (logits(model, made) - function).norm() / function.norm() < 1e-5
        model.train()
        for name, layer in named.items():
            (w, a, b), (now, new_a, new_b) = before[name], _weights(layer)
            if step not in (2, 4):  # not behind the last step either
                assert torch.equal(now, w) and torch.equal(new_a, a) and torch.equal(new_b, b)
                continue
            assert (now - (w + scale * b @ a)).norm() <= 1e-6 * w.norm()
            assert not new_b.any() and not torch.equal(new_a, a)
            assert new_a.abs().max() <= 1 / math.sqrt(a.shape[1])  # Kaiming's bound with a = sqrt(5)
        if step in (2, 4):
            for one, moment in moments.items():
                kept = optimizer.state[one]["exp_avg"]
                assert int((kept != 0).sum()) == round(0.01 * kept.numel())
                assert torch.equal(kept[kept != 0], moment[kept != 0])
                assert moment[kept == 0].abs().max() <= moment[kept != 0].abs().min()
                assert torch.equal(optimizer.state[one]["exp_avg_sq"] != 0, kept != 0)
    assert all(len(layer.merged_pieces) == 2 for layer in named.values())
    methods.save(model, tmp_path, settings)
    _read_as_plain_lora(small_base, tmp_path, logits(model, made), made)


def test_relora_begins_again_with_fp32_copies_in_the_optimiser(small_base: Path) -> None:
    settings = config("relora", relora_steps=1, lora_target_modules=("v_proj",))
    model, made = methods.attach(fresh(small_base), settings, tokenizer(small_base)), batches(small_base, "relora")[:1]
    optimizer = MasterWeights(methods.groups(model, settings), torch.optim.AdamW)
    (_, layer), *_ = by_peft.layers(model)
    for step in (1, 2):
        loss(model.train(), made).backward()
        optimizer.step()
        optimizer.zero_grad()
        b = layer.lora_B["default"].weight.detach().clone()
        methods.after_step(model, settings, step, 9, optimizer)
        assert b.any() and not layer.lora_B["default"].weight.any()
        moment = optimizer.state_of(layer.lora_B["default"].weight)["exp_avg"]
        assert 0 < int((moment != 0).sum()) < 0.02 * moment.numel()
    _, b = layer.merged_pieces[1]  # of one step each: the second began at 0 again
    assert b.abs().max() <= 2 * methods.learning_rate(settings)


def test_reloras_learning_rate_is_jagged() -> None:
    factors = [methods.rate_factor(config("relora", relora_steps=20), step, 60) for step in range(60)]
    assert factors[:20] == [1.0] * 20
    assert factors[20:24] == factors[40:44] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert relora.cycle(config("relora"), 10) == 3
