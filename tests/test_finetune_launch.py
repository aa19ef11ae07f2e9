"""Training in several processes by accelerate, and the configurations for it that are shipped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from finetune.config import checked, read_config
from finetune.example import Example, write_examples
from finetune.training.train import Steps, arguments, train

LAUNCH = Path(__file__).parent.parent / "examples" / "launch"
ANIMALS = (
    "okapi", "axolotl", "tapir", "quokka", "numbat", "kakapo", "saola", "dugong", "fossa", "gharial", "pangolin",
    "serval",
)  # fmt: skip
ONE = {"micro_batch_size": 2, "gradient_accumulation_steps": 2}
EACH_OF_TWO = {"micro_batch_size": 2, "gradient_accumulation_steps": 1}


def written(folder: Path, base: Path, **settings: Any) -> Path:
    """A configuration of four steps on twelve examples."""
    write_examples(
        [
            Example(name, "question_answering", f"Where does the {name} live?", f"In region {number * 7}",
                    (f"The {name} lives in region {number * 7}.",), document=name)
            for number, name in enumerate(ANIMALS)
        ],
        folder / "facts.jsonl",
    )  # fmt: skip
    values = {
        "base_model": base, "output_dir": folder / "out", "val_set_size": 0, "share_prefixes": "false", "lora_r": 4,
        "max_steps": 4, "save_steps": 4, "logging_steps": 1, "learning_rate": 0.001, "use_tensorboard": "false",
        "datasets": "[{path: facts.jsonl}]", **settings,
    }  # fmt: skip
    (folder / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return folder / "run.yaml"


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def alone(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of it."""
    return train(read_config(written(tmp_path_factory.mktemp("alone"), small_base, **ONE)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tolerance"), [("ddp-cpu", 1e-4), ("fsdp-cpu", 5e-3)])
def test_two_processes_learn_what_one_does(
    kind: str, tolerance: float, alone: dict[str, Any], small_base: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, small_base, **EACH_OF_TWO)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / f"{kind}.yaml")]
    done = subprocess.run(
        [*command, "-m", "finetune", "train", str(file), "--json"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)  # of one process, not of each
    assert len(losses(result["history"])) == 4
    assert losses(result["history"]) == pytest.approx(losses(alone["history"]), rel=tolerance)
    assert done.stderr.count("step 4 of 4") <= 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["adapter", "checkpoint-4"]
    ours = load_file(Path(result["adapter"], "adapter_model.safetensors"))
    right = load_file(Path(alone["adapter"], "adapter_model.safetensors"))
    assert ours.keys() == right.keys()
    for name in right:
        assert torch.dist(ours[name].float(), right[name].float()) <= 0.02 * right[name].float().norm(), name


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_takes_every_configuration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(LAUNCH.parent.parent)
    given = launch_command_parser().parse_args(["--config_file", str(file), "-m", "finetune", "train", "run.yaml"])
    options, defaults, _ = _validate_launch_command(given)
    if options.use_deepspeed:
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(options)
        assert Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).is_file()
    else:
        environment = prepare_multi_gpu_env(options)
    assert options.num_processes == 2
    assert environment.get("ACCELERATE_USE_FSDP") == ("true" if "fsdp" in file.stem else None)
    assert environment.get("FSDP_VERSION") == ("2" if "fsdp" in file.stem else None)
    assert options.use_cpu == file.stem.endswith("-cpu")


class Read(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):  # type: ignore[misc]
    """A DeepSpeed configuration as Transformers fills it in, without DeepSpeed."""

    def __init__(self, file: Path) -> None:
        HfDeepSpeedConfig.__init__(self, str(file))
        self._dtype, self.mismatches = None, []


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_told_everything(stage: int, small_base: Path, tmp_path: Path) -> None:
    read = Read(LAUNCH / f"zero{stage}.json")
    assert read.get_value("zero_optimization.stage") == stage
    settings = arguments(checked(EACH_OF_TWO, "test"), tmp_path, Steps(4, 1, 4, 4), "cpu")
    settings.bf16 = True  # as it is under DeepSpeed, whose package is not here
    read.trainer_config_process(settings)
    model = type("Model", (), {"config": AutoConfig.from_pretrained(small_base)})
    read.trainer_config_finalize(settings, model, 4)
    assert "auto" not in str(read.config)
    assert read.dtype() == torch.bfloat16
    assert read.config["train_micro_batch_size_per_gpu"] == 2
    assert read.config["gradient_clipping"] == 1.0
