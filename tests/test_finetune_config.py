"""The configuration of a run: unknown keys with the nearest name, ranges, contradictions, --set, paths."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config import METHODS, RANKED, VIRTUAL, Config, checked, read_config
from finetune.errors import ConfigInvalid


def wrote(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, "utf-8")
    return file


def test_axolotls_keys_are_read(tmp_path: Path) -> None:
    text = """
        base_model: HuggingFaceTB/SmolLM2-135M-Instruct
        adapter: qlora
        lora_r: 8
        lora_alpha: 16
        lora_dropout: 0.05
        lora_target_linear: true
        load_in_4bit: true
        sequence_len: 1024
        sample_packing: true
        val_set_size: 0.05
        micro_batch_size: 2
        gradient_accumulation_steps: 8
        num_epochs: 1
        learning_rate: 2e-4
        lr_scheduler: cosine
        optimizer: adamw_torch
        warmup_steps: 10
        gradient_checkpointing: true
        flash_attention: false
        train_on_inputs: false
        group_by_length: false
        early_stopping_patience: 3
        resume_from_checkpoint:
        wandb_project:
        saves_per_epoch: 2
        evals_per_epoch: 2
        datasets:
          - path: train.jsonl
            type: examples
    """
    config = read_config(wrote(tmp_path, text))
    assert (config.learning_rate, config.four_bit, config.lora_r) == (2e-4, True, 8)
    assert config.datasets[0].path == str(tmp_path / "train.jsonl")


def test_settings_are_over_the_file_and_are_yaml(tmp_path: Path) -> None:
    file = wrote(tmp_path, "adapter: lora\nfsdp_config: {a: 1}\nmixture: {summarization: 2}\n")
    settings = [
        "learning_rate=3e-4",
        "adapter=full",
        "fsdp_config.b=two",
        "datasets=[{path: x.jsonl}]",
        "val_set_size=0",
    ]
    config = read_config(file, settings)
    assert (config.learning_rate, config.adapter, config.fsdp_config) == (3e-4, "full", {"a": 1, "b": "two"})
    assert config.datasets[0].path == "x.jsonl" and config.val_set_size == 0
    assert config.mixture == {"summarization": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": 4}, r"unknown key 'lora_rank': did you mean 'lora_r'\?"),
        ({"learning_rte": 4}, r"unknown key 'learning_rte': did you mean 'learning_rate'\?"),
        ({"zzzz": 4}, "unknown key 'zzzz': see docs/finetune.md"),
        ({"datasets": [{"path": "a", "typ": "squad"}]}, r"unknown key 'datasets.0.typ': did you mean 'type'\?"),
        ({"adapter": "qlorra"}, r"'adapter': .*did you mean 'qlora'\?"),
        ({"learning_rate": 0}, r"'learning_rate': input should be greater than 0 \(it is '0'\)"),
        ({"learning_rate": "fast"}, "'learning_rate': input should be a valid number"),
        ({"lora_dropout": 1.0}, "'lora_dropout': input should be less than 1"),
        ({"sequence_len": 0}, "'sequence_len': input should be greater than or equal to 1"),
        ({"datasets": "a.jsonl"}, "'datasets': input should be a valid tuple"),
        ({"mixture": {"translation": 1}}, "'mixture.translation"),
        ({"mixture": {"summarization": 0}}, "mixture: every weight is 0"),
        ({"adapter": "qlora", "load_in_4bit": False}, "adapter 'qlora' is 4-bit"),
        ({"adapter": "full", "load_in_4bit": True}, "adapter 'full' changes the weights themselves"),
        ({"adapter": "relora", "load_in_4bit": True}, "adapter 'relora' changes the weights themselves"),
        (
            {"adapter": "prompt-tuning", "sample_packing": True},
            "virtual tokens before every row: remove sample",
        ),
        ({"adapter": "p-tuning", "share_prefixes": True}, "remove share_prefixes"),
        ({"flash_attention": True, "share_prefixes": True}, "knows no shared prefixes"),
        ({"train_on_inputs": True, "share_prefixes": True}, "every prompt in its own row"),
        ({"qat": "Q4_0", "adapter": "qlora"}, "qat rounds to another grid"),
        ({"qat": "Q4_0", "adapter": "ia3"}, "use adapter full or lora, not ia3"),
        ({"qat": "Q4_K"}, "'qat'"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "give one"),
        ({"saves_per_epoch": 3, "save_steps": 1}, "give one"),
        ({"evals_per_epoch": 3, "eval_steps": 1}, "give one"),
        ({"lora_target_linear": True, "lora_target_modules": ["q_proj"]}, "remove it, or lora_target_modules"),
        ({"fsdp": ["full_shard"], "deepspeed": "zero2.json"}, "give one of them"),
        ({"nf4_storage": "packed"}, "nf4_storage needs load_in_4bit"),
        ({"relora_steps": 5}, "relora_steps needs adapter: relora"),
        ({"lora_r": True}, r"'lora_r': true is none of its values$"),
        ({"seed": -1}, "'seed': input should be greater than or equal to 0"),
        ({"num_epochs": float("inf")}, "'num_epochs': input should be a finite number"),
        ({"mixture": {"summarization": float("inf")}}, "'mixture.summarization': input should be a finite number"),
        ({"lora_r": 10**8}, "'lora_r': input should be less than or equal to 4096"),
        ({"lora_target_modules": []}, "'lora_target_modules': tuple should have at least 1 item"),
        ({"datasets": [{"path": "a\0b"}]}, "'datasets.0.path': there is a character in it that no name has"),
        ({"base_model": "a\ud800b"}, "'base_model': there is a character in it that no name has"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=message) as caught:
        read_config(wrote(tmp_path, yaml.safe_dump(values)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("setting", ["lora_rank=4", "lora_r=0", "fsdp_confi.a=1"])
def test_a_mistake_outside_the_file_is_not_blamed_on_it(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"^--set: "):
        read_config(wrote(tmp_path, "adapter: lora\n"), [setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings"),
        ("- a\n- b\n", "holds no settings"),
        ("1: 2\n", "holds no settings"),
        ("adapter: [lora\n", "is no YAML"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
        ("[" * 3000, "is no YAML"),
        ("seed: 1\nlora_r: 4\nseed: 2\n", "is no YAML: the key seed stands there twice"),
        ("seed: 2020-13-45", "is no YAML: month must be"),
        ("seed: !!int foo", "is no YAML"),
        ('seed: !!float ""', "is no YAML"),
        ("seed: " + "9" * 5000, "is no YAML"),
    ],
)
def test_files_that_are_no_configuration(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=message) as caught:
        read_config(wrote(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot be read \(No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigInvalid, match=r"cannot be read \(Is a directory"):
        read_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("adapter: löra".encode("latin-1"))
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        read_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize("setting", ["adapter", "=lora", "adapter=[", " =1", "seed=2020-13-45", "a=" + "[" * 3000])
def test_settings_that_are_none(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"--set"):
        read_config(wrote(tmp_path, "adapter: lora\n"), [setting])


def test_every_method_is_a_configuration_and_the_object_is_frozen() -> None:
    assert set(METHODS) > RANKED | VIRTUAL and len(METHODS) == 17
    for method in METHODS:
        assert checked({"adapter": method}, "x").four_bit == (method == "qlora")
    with pytest.raises(ValueError, match="frozen"):
        Config().adapter = "full"  # type: ignore[misc]
