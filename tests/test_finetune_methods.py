"""Every method trained, kept, loaded again and merged, on the bundled model cut to two layers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import methods
from finetune.config import METHODS, VIRTUAL, Config
from finetune.errors import MethodInvalid
from finetune.example import Example
from finetune.optimizer import MasterWeights
from finetune.rows import mask
from rag_app.engines.layout import Layout

STEPS = 6
EXAMPLES = [
    Example("1", "question_answering", "Where does the okapi live?", "the Ituri rainforest",
            ("The okapi lives in the Ituri rainforest.", "The axolotl keeps its gills for life.")),
    Example("2", "question_answering", "How much is the lunch allowance?", "14 euros a day",
            ("The lunch allowance is 14 euros a day.",)),
]  # fmt: skip
MERGED = {
    "full",
    "lora",
    "qlora",
    "dora",
    "rslora",
    "lora+",
    "lora-fa",
    "vera",
    "adalora",
    "ia3",
    "delta-lora",
    "relora",
}
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


def config(method: str, **more: Any) -> Config:
    return Config.model_validate(
        {"adapter": method, "lora_r": 4, "num_virtual_tokens": 6, "relora_steps": None, **more}
    )


def fresh(folder: Path, attention: str = "sdpa", dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def batches(folder: Path, method: str, dtype: torch.dtype = torch.bfloat16) -> list[Batch]:
    """What the model is given, and the labels of its last tokens: real prompts, as training has them."""
    layout = Layout("base", tokenizer(folder))
    made = []
    for example in EXAMPLES:
        prompt, answer = layout.prompt(example.messages()), layout.answer(example.answer)
        ids = torch.tensor([prompt + answer])
        given: dict[str, torch.Tensor] = {"input_ids": ids, "logits_to_keep": torch.arange(-len(answer) - 1, -1)}
        if method in VIRTUAL:
            given["attention_mask"] = torch.ones_like(ids)
        else:
            one = torch.zeros_like(ids)
            given |= {"attention_mask": mask(one, one, dtype), "position_ids": torch.arange(ids.shape[1])[None]}
        made.append((given, torch.tensor(answer)))
    return made


def loss(model: Any, made: list[Batch]) -> torch.Tensor:
    found = []
    for given, labels in made:
        logits = model(**given, use_cache=False).logits[0].float()
        found.append(torch.nn.functional.cross_entropy(logits, labels))
    return torch.stack(found).mean()


def optimizer(model: Any, settings: Config) -> Any:
    groups = methods.groups(model, settings)
    sixteen = any(one.dtype == torch.bfloat16 for group in groups for one in group["params"])
    return MasterWeights(groups, torch.optim.AdamW) if sixteen else torch.optim.AdamW(groups)


def train(model: Any, settings: Config, made: list[Batch], steps: int = STEPS, first: int = 0) -> list[float]:
    """Losses before each step, and the last one after."""
    own, losses = optimizer(model, settings), []
    model.train()
    for step in range(first, first + steps):
        now = loss(model, made)
        extra = methods.penalty(model, settings)
        (now if extra is None else now + extra).backward()
        own.step()
        methods.after_step(model, settings, step + 1, STEPS, own)
        own.zero_grad()
        losses.append(now.item())
    with torch.no_grad():
        return [*losses, loss(model.eval(), made).item()]


def logits(model: Any, made: list[Batch]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(**given, use_cache=False).logits[0].float() for given, _ in made])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_is_kept_and_merged(method: str, small_base: Path, tmp_path: Path) -> None:
    settings, made = config(method), batches(small_base, method)
    model = methods.attach(fresh(small_base), settings, tokenizer(small_base), STEPS)
    intended = {name for name, one in model.named_parameters() if one.requires_grad}
    losses = train(model, settings, made)
    assert losses[-1] < losses[0] - 0.05
    assert {name for name, one in model.named_parameters() if one.requires_grad} == intended
    assert methods.trainable(model) == sum(model.get_parameter(name).numel() for name in intended)

    methods.save(model, tmp_path / "kept", settings)
    before = logits(model, made)
    loaded = methods.load(fresh(small_base), tmp_path / "kept")
    assert not methods.trainable(loaded)
    assert torch.equal(logits(loaded, made), before)

    again = methods.load(fresh(small_base), tmp_path / "kept", trainable=True)
    assert {name for name, one in again.named_parameters() if one.requires_grad} == intended
    further = train(again, settings, made, 2, STEPS - 2)
    assert further[0] == pytest.approx(losses[-1], rel=2e-3) and further[-1] < losses[-1]

    if method not in MERGED:
        with pytest.raises(MethodInvalid, match=r"cannot be merged: serve the base with its adapter$"):
            methods.merge(model)
        return
    merged = methods.merge(model)
    assert type(merged).__name__ == "LlamaForCausalLM"
    merged.save_pretrained(tmp_path / "merged")
    plain = fresh(tmp_path / "merged")
    assert plain.state_dict().keys() == fresh(small_base).state_dict().keys()
    assert torch.equal(logits(plain, made), logits(merged, made))
    assert (logits(plain, made) - before).norm() / before.norm() < 0.01
