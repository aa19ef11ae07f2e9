"""Every method trained, kept, loaded again and merged, on the bundled model cut to two layers."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import methods
from finetune.config import METHODS, VIRTUAL, Config
from finetune.errors import CheckpointInvalid, MethodInvalid
from finetune.example import Example
from finetune.training.optimizer import MasterWeights
from finetune.training.rows import mask
from rag_app.engines.layout import Layout

STEPS = 5
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
    return Config.model_validate({"adapter": method, "lora_r": 4, "num_virtual_tokens": 6, **more})


@lru_cache(4)
def _loaded(folder: Path, attention: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


def fresh(folder: Path, attention: str = "sdpa", dtype: torch.dtype = torch.bfloat16) -> Any:
    """A base model as if just loaded."""
    torch.manual_seed(0)
    return deepcopy(_loaded(folder, attention, dtype))


@lru_cache(1)
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


def train(model: Any, settings: Config, made: list[Batch], own: Any, first: int = 0, last: int = STEPS) -> list[float]:
    """Losses before each step, and the last one after."""
    losses = []
    model.train()
    for step in range(first, last):
        for group in own.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * methods.rate_factor(settings, step, STEPS)
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
    settings, made = config(method, relora_steps=2 if method == "relora" else None), batches(small_base, method)[:1]
    model = methods.attach(fresh(small_base), settings, tokenizer(small_base), STEPS)
    intended = {name for name, one in model.named_parameters() if one.requires_grad}
    own = optimizer(model, settings)
    losses = train(model, settings, made, own, 0, 2)
    methods.save(model, tmp_path / "half", settings)
    kept = deepcopy(own.state_dict())
    rest = train(model, settings, made, own, 2)
    assert rest[-1] < losses[0] - 0.05
    assert {name for name, one in model.named_parameters() if one.requires_grad} == intended
    assert methods.trainable(model) == sum(model.get_parameter(name).numel() for name in intended)

    resumed = methods.load(fresh(small_base), tmp_path / "half", trainable=True)
    assert {name for name, one in resumed.named_parameters() if one.requires_grad} == intended
    own = optimizer(resumed, settings)
    own.load_state_dict(kept)
    assert train(resumed, settings, made, own, 2) == rest

    methods.save(model, tmp_path / "kept", settings)
    before = logits(model, made)
    loaded = methods.load(fresh(small_base), tmp_path / "kept")
    assert not methods.trainable(loaded)
    assert torch.equal(logits(loaded, made), before)

    if method not in MERGED:
        with pytest.raises(MethodInvalid, match=r"cannot be merged: serve the base with its adapter$"):
            methods.merge(model)
        return
    merged = methods.merge(model)
    assert type(merged).__name__ == "LlamaForCausalLM"
    merged.save_pretrained(tmp_path / "merged")
    plain = _loaded.__wrapped__(tmp_path / "merged", "sdpa", torch.bfloat16)
    assert plain.state_dict().keys() == fresh(small_base).state_dict().keys()
    assert torch.equal(logits(plain, made), logits(merged, made))
    assert (logits(plain, made) - before).norm() / before.norm() < 0.01


def test_the_whole_model_trains(base: Path, tmp_path: Path) -> None:
    settings, made = config("lora", lora_r=16), batches(base, "lora")[:1]
    model = methods.attach(fresh(base), settings, tokenizer(base))
    assert methods.trainable(model) == 4_884_480
    losses = train(model, settings, made, optimizer(model, settings), 0, 2)
    assert losses[-1] < 0.8 * losses[0]
    before = logits(model, made)
    assert (logits(methods.merge(model), made) - before).norm() / before.norm() < 0.1  # 30 layers of 8 bits


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "vera", "adalora", "ia3", "delta-lora", "relora"])
def test_merging_is_exact_but_for_rounding(method: str, small_base: Path) -> None:
    made = batches(small_base, method, torch.float32)[:1]
    model = methods.attach(fresh(small_base, dtype=torch.float32), config(method), tokenizer(small_base), STEPS)
    plain = logits(model, made)
    _away_from_zero(model)
    before = logits(model, made)
    assert (before - plain).norm() / plain.norm() > 4e-5
    assert (logits(methods.merge(model), made) - before).norm() / before.norm() < 1e-5


KINDS = ("full", "lora", "dora", "vera", "adalora", "ia3", "prompt-tuning", "prefix-tuning", "p-tuning",
         "llama-adapter", "adapter")  # fmt: skip


@pytest.mark.parametrize("method", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(method: str, small_base: Path) -> None:
    settings, made = config(method), batches(small_base, method)[:1]
    model = methods.attach(fresh(small_base), settings, tokenizer(small_base), STEPS).train()
    _away_from_zero(model)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss(model, made).backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.requires_grad})
    plain, again = gradients
    for name, gradient in plain.items():
        assert gradient is not None and gradient.any(), name
        assert torch.equal(gradient, again[name]), name


def _away_from_zero(model: Any) -> None:
    """LoRA's B, AdaLoRA's E, VeRA's b and the gates of llama-adapter begin at 0, which stops other gradients."""
    torch.manual_seed(3)
    for one in model.parameters():
        if one.requires_grad and (one.detach() == one.detach().flatten()[0]).all():
            one.data.normal_(0.01, 0.01)


@pytest.mark.parametrize("method", ["lora", "llama-adapter", "adapter", "prompt-tuning", "prefix-tuning"])
def test_every_attention_gives_the_same(method: str, small_base: Path) -> None:
    from finetune.training import attention

    settings, made, found = config(method), batches(small_base, method), []
    for name in ("eager", "sdpa", attention.register()):
        model = methods.attach(fresh(small_base, name), settings, tokenizer(small_base))
        _away_from_zero(model)
        found.append(logits(model, made))
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() < 0.01


def test_virtual_tokens_begin_as_words_that_hurt_less_than_random_ones(base: Path) -> None:
    made = batches(base, "prompt-tuning")[:1]
    for method in ("prompt-tuning", "prefix-tuning"):
        model = methods.attach(fresh(base), config(method, num_virtual_tokens=20), tokenizer(base)).eval()
        with torch.no_grad():
            words = loss(model, made)
            table = model.prompt_encoder["default"].embedding.weight
            table.data = torch.randn_like(table)
            assert words < loss(model, made), method


def test_lora_plus_has_pefts_learning_rates(small_base: Path) -> None:
    from peft.optimizers import create_loraplus_optimizer

    settings = config("lora+", learning_rate=1e-4, weight_decay=0.1)
    model = methods.attach(fresh(small_base), settings, tokenizer(small_base))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
    rates = [
        {id(p): g["lr"] for g in groups for p in g["params"]}
        for groups in (theirs.param_groups, methods.groups(model, settings))
    ]
    assert rates[0] == rates[1] and set(rates[0].values()) == {1e-4, 16e-4}


def test_lora_fa_projects_the_gradient_of_b_as_peft_does(small_base: Path) -> None:
    from peft.optimizers import create_lorafa_optimizer

    made = batches(small_base, "lora", torch.float32)[:1]
    plain = methods.attach(fresh(small_base, dtype=torch.float32), config("lora"), tokenizer(small_base))
    projected = methods.attach(fresh(small_base, dtype=torch.float32), config("lora-fa"), tokenizer(small_base))
    theirs = create_lorafa_optimizer(plain, r=4, lora_alpha=32, lr=1e-4)
    for model in (plain, projected):
        loss(model.train(), made).backward()
    given = {name: one.grad.clone() for name, one in plain.named_parameters() if one.grad is not None}
    theirs.step()
    checked = 0
    for name, one in projected.named_parameters():
        if ".lora_B." in name:
            a = projected.get_parameter(name.replace("lora_B", "lora_A"))
            assert not a.requires_grad
            direct = given[name] @ torch.linalg.inv(a @ a.T) / (32 / 4) ** 2
            assert torch.allclose(one.grad, direct, rtol=1e-3, atol=1e-7)
            step = theirs.state[name.partition("lora")[0] + "lora"]["exp_avg_B"] / 0.1  # PEFT multiplies in bf16
            assert (step - direct).norm() / direct.norm() < 0.02
            checked += 1
    assert checked == 14


def test_adalora_is_penalised_as_peft_does_and_ends_with_its_budget(small_base: Path, tmp_path: Path) -> None:
    settings, made = config("adalora"), batches(small_base, "adalora")
    model = methods.attach(fresh(small_base), settings, tokenizer(small_base), STEPS)
    ids = made[0][0]["input_ids"]
    with torch.no_grad():
        theirs, penalty = model(input_ids=ids, labels=ids).loss, methods.penalty(model, settings)
        model.peft_config["default"].orth_reg_weight = 0.0
        assert penalty is not None and penalty.item() > 0
        assert theirs - model(input_ids=ids, labels=ids).loss == pytest.approx(penalty.item(), rel=1e-2)
    model.peft_config["default"].orth_reg_weight = 0.5
    train(model, settings, made, optimizer(model, settings), 0, 2)
    methods.save(model, tmp_path, settings)
    again = methods.load(fresh(small_base), tmp_path, trainable=True)
    kept, put = (one.base_model.rankallocator.exp_avg_unc for one in (model, again))
    assert len(kept) == 42 and all(torch.equal(kept[name], put[name]) for name in kept)
    train(again, settings, made, optimizer(again, settings), 2)
    used = sum(int((one != 0).sum()) for name, one in again.named_parameters() if ".lora_E." in name)
    assert used == 14 * 4  # of 14 * 6


def test_a_tied_head_is_kept_once_and_stays_tied(small_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    settings, made = config("full"), batches(small_base, "full")
    model = methods.attach(fresh(small_base), settings, tokenizer(small_base))
    assert methods.trainable(model) == sum(one.numel() for one in fresh(small_base).parameters())
    train(model, settings, made, optimizer(model, settings), 0, 1)
    methods.save(model, tmp_path, settings)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = methods.load(fresh(small_base), tmp_path, trainable=True)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_learning_rates() -> None:
    assert methods.LEARNING_RATES.keys() == set(METHODS)
    assert methods.learning_rate(config("ia3")) == methods.LEARNING_RATES["ia3"]
    assert methods.learning_rate(config("ia3", learning_rate=2e-4)) == 2e-4
    assert methods.rate_factor(config("lora"), 10, 20) == 1.0


def test_vectors_do_not_decay(small_base: Path) -> None:
    settings = config("full", weight_decay=0.1)
    groups = methods.groups(methods.attach(fresh(small_base), settings, None), settings)
    assert {group["weight_decay"]: {one.ndim for one in group["params"]} for group in groups} == {0.1: {2}, 0.0: {1}}


@pytest.mark.parametrize(
    ("method", "more", "named"),
    [
        ("lora", {"lora_target_modules": ("nowhere",)}, "lora_target_modules"),
        ("llama-adapter", {"adapter_layers": 9}, "more adapter layers '9'"),
        ("adalora", {}, "max_steps"),
        ("delta-lora", {"lora_dropout": 0.1}, "remove lora_dropout"),
        ("relora", {"fsdp": ("full_shard",)}, "launch it without"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(method: str, more: Any, named: str, small_base: Path) -> None:
    with pytest.raises(MethodInvalid, match=named) as caught:
        methods.attach(fresh(small_base), config(method, **more), tokenizer(small_base))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "adapter", "relora", "full"])
def test_an_adapter_of_another_model_is_refused(method: str, small_base: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = config(method)
    methods.save(methods.attach(fresh(small_base), settings, tokenizer(small_base)), tmp_path, settings)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    with pytest.raises(CheckpointInvalid, match=str(tmp_path)) as caught:
        methods.load(LlamaForCausalLM(LlamaConfig(vocab_size=99, **shape)), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_refused(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="neither"):
        methods.load(fresh(small_base), tmp_path)
    settings = config("lora")
    methods.save(methods.attach(fresh(small_base), settings, tokenizer(small_base)), tmp_path, settings)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        methods.load(fresh(small_base), tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        methods.load(fresh(small_base), tmp_path)


def test_an_adapter_that_peft_wrote_is_taken(small_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    made = batches(small_base, "lora")
    theirs = get_peft_model(fresh(small_base), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    assert isinstance(loaded := methods.load(fresh(small_base), tmp_path), PeftModel)
    assert torch.equal(logits(loaded, made), logits(theirs, made))
