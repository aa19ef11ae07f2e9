"""PEFT's adapters swapped on a model of Transformers: each computes what it would alone; none is the base exactly."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from rag_app.decoding import Decoding
from rag_app.engines.forward import Forward
from rag_app.engines.tuned import Tuned, Use
from rag_app.errors import AdapterInvalid

library: Any = peft
hf: Any = transformers
PROMPT = [(1, 2, 3, 4, 5), (6, 7, 8)]


def fresh() -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).eval()


def save(folder: Path, seed: int, **settings: Any) -> str:
    """An adapter that changes the model visibly."""
    config = library.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings})
    model = library.get_peft_model(fresh(), config)
    draws = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora_" in name and not name.endswith("magnitude_vector.weight"):
            value.data.normal_(std=0.5, generator=draws)
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        save(folder / "a", 1),
        save(folder / "b", 2),
        save(folder / "ranked", 3, r=6, use_rslora=True),
        save(folder / "dora", 4, use_dora=True, target_modules=["v_proj"]),
    ]


@pytest.fixture
def model() -> Any:
    return fresh()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits)


def alone(uses: list[Use]) -> torch.Tensor:
    model = fresh()
    with torch.inference_mode():
        Tuned(model).apply(uses)
    return logits(model)


def test_each_computes_what_it_would_alone_whatever_was_on_before(model: Any, folders: list[str]) -> None:
    tuned = Tuned(model)
    ways = [[(one, 1.0)] for one in folders] + [[(folders[0], 1.0), (folders[1], 0.5)], [(folders[2], 2.0)], []]
    right = [alone(uses) for uses in ways]
    for n in (0, 1, 2, 3, 4, 5, 6, 4, 0, 6, 3):
        with torch.inference_mode():
            tuned.apply(ways[n])
        assert torch.equal(logits(model), right[n]), n
    assert min((a - b).abs().max() for i, a in enumerate(right) for b in right[:i]) > 0.01


def test_one_adapter_is_what_peft_makes_of_it(model: Any, folders: list[str]) -> None:
    Tuned(model).apply([(folders[2], 1.0)])
    wanted = library.PeftModel.from_pretrained(fresh(), folders[2])
    assert torch.allclose(logits(model), logits(wanted), atol=1e-6)


def test_off_gives_the_base_back_exactly(model: Any, folders: list[str]) -> None:
    before, tuned = logits(model), Tuned(model)
    tuned.apply([(folders[0], 1.0)])
    assert not torch.equal(logits(model), before)
    tuned.apply([])
    assert torch.equal(logits(model), before)


def test_those_of_one_shape_are_swapped_in_place(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rag_app.engines.tuned.MOST", 1)
    folders = [save(tmp_path / str(seed), seed) for seed in range(3)] + [save(tmp_path / "wide", 9, r=8)]
    tuned = Tuned(model)
    tuned.apply([(folders[0], 1.0)])
    tensor = model.model.layers[0].self_attn.q_proj.lora_A["adapter-0"].weight
    for folder in (*folders[1:], folders[0]):
        tuned.apply([(folder, 1.0)])
        assert torch.equal(logits(model), alone([(folder, 1.0)]))
    for folder in folders[:3]:
        tuned.apply([(folder, 1.0)])
    assert len(tuned._names) == 1
    assert tensor.shape == (4, 32)


def test_a_folder_that_is_replaced_is_read_anew(model: Any, tmp_path: Path) -> None:
    folder, tuned = save(tmp_path / "one", 1), Tuned(model)
    first = tuned.apply([(folder, 1.0)])
    save(tmp_path / "one", 2)
    assert tuned.apply([(folder, 1.0)]) != first
    assert torch.equal(logits(model), alone([(folder, 1.0)]))


def test_a_prompt_read_with_another_adapter_is_read_again(model: Any, folders: list[str]) -> None:
    forward = Forward(model, frozenset())

    def reused(*uses: Use) -> int:
        with torch.inference_mode():
            first, *_ = forward.read(PROMPT, Decoding(), lambda: False, uses)
        return first

    one = folders[0]
    ways: list[list[Use]] = [[], [], [(one, 1.0)], [(one, 1.0)], [(one, 0.5)]]
    assert [reused(*uses) for uses in ways] == [0, 5, 0, 5, 0]


def test_what_is_no_adapter_of_this_model_is_refused_and_the_rest_goes_on(
    model: Any, folders: list[str], tmp_path: Path
) -> None:
    before, tuned = logits(model), Tuned(model)
    cut, empty, virtual = tmp_path / "cut", tmp_path / "empty", tmp_path / "virtual"
    save(cut, 1)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    empty.mkdir()
    prompts = library.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    library.get_peft_model(fresh(), prompts).save_pretrained(str(virtual))
    other = save(tmp_path / "other", 1)
    settings = Path(other, "adapter_config.json")
    settings.write_text(settings.read_text().replace("down_proj", "no_such_layer"))
    for folder, on in ((cut, folders[0]), (empty, folders[0]), (virtual, folders[1]), (Path(other), folders[1])):
        with pytest.raises(AdapterInvalid, match=str(folder)) as caught:
            tuned.apply([(str(folder), 1.0)])
        assert "\n" not in str(caught.value)
        tuned.apply([(on, 1.0)])
        assert torch.equal(logits(model), alone([(on, 1.0)]))
    tuned.apply([])
    assert torch.equal(logits(model), before)
