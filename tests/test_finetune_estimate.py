"""Memory of a run, estimated before anything is loaded: known rules, real training, and what to change."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main
from finetune.config import METHODS, Config, checked
from finetune.errors import ConfigInvalid, DoesNotFit
from finetune.training import estimate as module
from finetune.training.estimate import available, check, described, estimate, remedy
from rag_app.errors import SettingInvalid
from tests.conftest import ROOT

LLAMA_65B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80,
    "num_attention_heads": 64, "vocab_size": 32000,
}  # fmt: skip
TINY_LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip
"""1.1 billion parameters."""
SMALL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip


def config(**settings: Any) -> Config:
    return checked({"bf16": True, "device": "cpu", "max_steps": 100, **settings}, "test")


def test_full_training_in_fp32_is_4_bytes_a_parameter_to_store_and_16_to_train_before_activations() -> None:
    found = estimate(config(adapter="full", bf16=False), SMALL, 32, 8)
    assert found.trained == found.parameters
    assert found.weights == found.gradients == 4 * found.parameters
    assert found.optimiser == 8 * found.parameters


def test_training_a_billion_parameters_in_fp32_takes_about_80_gb() -> None:
    """Eight rows of 2,048 tokens at a time, each token learned, on a GPU, without checkpointing."""
    settings = config(adapter="full", bf16=False, device="cuda", micro_batch_size=8)
    found = estimate(settings, TINY_LLAMA, 2048, 2048)
    assert found.total / found.parameters == pytest.approx(80, rel=0.15)


@pytest.mark.slow
def test_qlora_of_65_billion_parameters_fits_into_48_gb() -> None:
    settings = config(adapter="qlora", device="cuda", gradient_checkpointing=True)
    found = estimate(settings, LLAMA_65B, 512, 128)
    assert found.parameters == pytest.approx(65.3e9, rel=0.001)
    assert 34e9 < found.weights < 36e9
    assert found.total < 48e9


@pytest.mark.parametrize(
    ("settings", "weights", "optimiser"),
    [
        ({"bf16": True}, 2, 12),
        ({"bf16": False}, 4, 8),
        ({"bf16": True, "device": "cuda", "optimizer": "paged_adamw_8bit"}, 2, 6),
        ({"bf16": True, "optimizer": "paged_adamw_8bit"}, 2, 12),  # a GPU's; on a CPU it is AdamW
        ({"bf16": False, "optimizer": "sgd"}, 4, 0),
    ],
)
def test_widths_and_optimisers(settings: dict[str, Any], weights: int, optimiser: int) -> None:
    found = estimate(config(adapter="full", **settings), SMALL, 32, 8)
    assert found.weights == weights * found.parameters
    assert found.gradients == weights * found.parameters
    assert found.optimiser == optimiser * found.parameters


def test_only_packed_4_bit_weights_are_small() -> None:
    rounded, packed = (estimate(config(adapter="qlora", nf4_storage=s), SMALL, 32, 8) for s in ("rounded", "packed"))
    linear = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
    assert rounded.weights - packed.weights == pytest.approx((2 - module.NF4) * linear, abs=1)
    of_one_layer = 2 * 256 * 512 * module.HOLES[2]
    assert packed.activations - rounded.activations == pytest.approx(of_one_layer, abs=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_counted(method: str) -> None:
    found = estimate(config(adapter=method), SMALL, 64, 8)
    assert not found.by_formula
    assert 0 < found.trained <= found.parameters
    assert found.activations > 0
    assert sum(found.parts().values()) >= found.total > found.weights


def test_delta_lora_holds_the_weights_that_move_twice() -> None:
    settings = {"lora_target_modules": ["q_proj"]}  # 256 x 256, in two layers
    plain, twice = (estimate(config(adapter=method, **settings), SMALL, 32, 8) for method in ("lora", "delta-lora"))
    assert twice.weights - plain.weights == 2 * 2 * 256 * 256


def test_checkpointing_and_shorter_rows_lower_the_activations_and_fewer_labels_the_logits() -> None:
    def of(row: int, labels: int, **settings: Any) -> module.Estimate:
        return estimate(config(**settings), SMALL, row, labels)

    plain = of(256, 256)
    assert plain.logits > 256 * 1000 * 8
    assert of(256, 16).logits < plain.logits / 8
    assert of(256, 16, gradient_checkpointing=True).activations < 0.6 * of(256, 16).activations  # of two layers
    assert of(256, 16, micro_batch_size=2).activations > 2 * of(256, 16).activations  # attention's grow by the square
    assert of(256, 16, device="cuda").activations < of(256, 16).activations / module.HOLES[2]  # a kernel keeps none


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2}),
        ("mistral", {}),
        ("qwen3", {}),
        ("gemma3_text", {"head_dim": 32}),
        ("mixtral", {}),
    ],
)
def test_any_architecture(kind: str, more: dict[str, Any]) -> None:
    values = {**SMALL, "model_type": kind, **more}
    found = estimate(config(), values, 64, 8)
    assert found.trained > 0
    assert found.activations > 0
    assert found.by_formula == (kind == "mixtral")  # whose experts PEFT wraps in what needs a real device


def test_an_unknown_architecture_is_one_line() -> None:
    with pytest.raises(ConfigInvalid, match="model_type that it knows"):
        estimate(config(), {**SMALL, "model_type": "nonesuch"}, 8, 8)


def test_processes_that_share_a_model_out_hold_a_part_each(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = estimate(config(adapter="full"), SMALL, 32, 8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert estimate(config(adapter="full"), SMALL, 32, 8).total == alone.total
    sharing = estimate(config(adapter="full", fsdp=["full_shard"]), SMALL, 32, 8)
    assert sharing.weights + sharing.gradients + sharing.optimiser == pytest.approx(
        (alone.weights + alone.gradients + alone.optimiser) / 2, rel=0.001
    )


@pytest.mark.parametrize(
    ("settings", "row", "room", "changed"),
    [
        ({"micro_batch_size": 4}, 512, 0.5, {"micro_batch_size": 1}),
        ({}, 1024, 0.7, {"gradient_checkpointing": True}),
        ({"gradient_checkpointing": True}, 1024, 0.7, {"sequence_len": 512}),
        ({"bf16": False}, 32, 0.8, {"bf16": True}),
        ({"adapter": "full"}, 32, 0.7, {"adapter": "lora"}),
        ({"adapter": "qlora"}, 32, 0.8, {"nf4_storage": "packed"}),
        ({"micro_batch_size": 4}, 512, 0.15, {"micro_batch_size": 1, "gradient_checkpointing": True}),
    ],
)
def test_what_does_not_fit_names_the_setting_to_change(
    settings: dict[str, Any], row: int, room: float, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RUNTIME", 0)  # beside which such a small model is nothing
    found = estimate(config(**settings), SMALL, row, 16)
    free = int(room * found.total)
    given, then = remedy(found, free)
    assert given == changed
    assert then.total <= free
    shown = ", ".join(f"{name}: {str(value).lower() if value is True else value}" for name, value in changed.items())
    with pytest.raises(DoesNotFit, match=rf"set {shown} \(0.* then\)"):
        check(found, free)
    check(found, found.total)


def test_what_never_fits_says_so() -> None:
    found = estimate(config(), SMALL, 64, 8)
    with pytest.raises(DoesNotFit, match=r"are free, most of it for runtime.*a smaller base_model") as caught:
        check(found, 1000)
    assert "\n" not in str(caught.value)


def test_memory_that_is_free_here() -> None:
    import psutil

    own = psutil.Process().memory_info().rss
    assert own < available("cpu") <= psutil.virtual_memory().total + own
    with pytest.raises(SettingInvalid, match="nonesuch"):
        available("nonesuch")


@pytest.mark.parametrize(
    ("listed", "folder", "names"),
    [
        ("0::/run/job\n", "run/job", ("memory.max", "memory.current", "inactive_file")),
        ("0::/elsewhere\n", "", ("memory.max", "memory.current", "inactive_file")),  # as a container sees itself
        ("9:memory:/job\n1:cpu:/\n", "memory/job",
         ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)  # fmt: skip
def test_limits_of_a_container_count(tmp_path: Path, listed: str, folder: str, names: tuple[str, str, str]) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "own").write_text(listed)
    for name, content in zip(names, ("8000", "5000", ""), strict=True):
        (tmp_path / folder / name).write_text(content)
    (tmp_path / folder / "memory.stat").write_text(f"anon 3000\n{names[2]} 1500\n")
    assert list(module._left_by_limits(tmp_path, tmp_path / "own")) == [4500]
    (tmp_path / folder / names[0]).write_text("max\n")
    assert list(module._left_by_limits(tmp_path, tmp_path / "own")) == []


def test_a_model_is_described_by_a_file_a_folder_or_a_gguf(tmp_path: Path, small_base: Path) -> None:
    assert described(str(small_base)) == described(str(small_base / "config.json"))
    assert described(str(small_base))["num_hidden_layers"] == 2
    bundled = described(None)
    assert (bundled["model_type"], bundled["hidden_size"], bundled["num_hidden_layers"]) == ("llama", 576, 30)
    file = tmp_path / "config.json"
    for content, said in (("", "no JSON"), ("[]", "no model_type"), ("{}", "no model_type")):
        file.write_text(content)
        with pytest.raises(ConfigInvalid, match=said):
            described(str(file))
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        described(str(tmp_path / "none.json"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "config.json"
    model.write_text(json.dumps(SMALL))
    assert main(["estimate", "--model", str(model), "--set", "adapter=full", "--set", "sequence_len=64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("1,692,928 parameters, 1,692,928 trained (100%), on the CPU; ")
    assert "rows of 64 tokens, 16 of them learned" in out
    assert {"weights", "gradients", "optimiser", "activations", "logits", "runtime", "total"} <= set(out.split())
    assert "it fits: " in out

    (tmp_path / "run.yaml").write_text("adapter: lora\nsequence_len: 32\ntrain_on_inputs: true\n")
    assert main(["estimate", str(tmp_path / "run.yaml"), "--model", str(model), "--json"]) == 0
    out, err = capsys.readouterr()
    given = json.loads(out)
    assert err == ""
    assert given["labels"] == given["row"] == 32
    assert given["fits"] is True and given["total"] < given["available"]
    assert given["steps"] is None

    nowhere = ["--set", "device=cuda:77", "--set", "nf4_storage=packed", "--set", "adapter=qlora"]
    assert main(["estimate", "--model", str(model), *nowhere]) == 0
    assert "there is no device 'cuda:77' here to compare with" in capsys.readouterr().out


def test_the_command_counts_the_rows_of_the_data(
    tmp_path: Path, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": str(n), "task": "text_generation", "question": "word " * n, "answer": "yes"} for n in (5, 50)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"base_model": str(small_base), "datasets": [{"path": "data.jsonl"}], "val_set_size": 0}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    assert main(["estimate", str(tmp_path / "run.yaml"), "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert 50 < given["row"] < 150
    assert 1 < given["labels"] < 10
    assert given["steps"] == 3
    assert main(["estimate", str(tmp_path / "run.yaml")]) == 0
    few = "only 3 steps of the optimiser in all, which teaches little: raise num_epochs (now 3)"
    assert capsys.readouterr().out.splitlines()[-1] == few
    assert main(["estimate", str(tmp_path / "run.yaml"), "--set", "num_epochs=20"]) == 0
    assert capsys.readouterr().out.endswith("\n20 steps of the optimiser in all\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "name a CONFIG.yaml"),
        (["none.yaml"], 1, "cannot be read"),
        (["--model", "none.json"], 1, "cannot be read"),
        (["--model", "/none"], 1, "does not exist"),
        (["--model", "none.json", "--set", "lora_rr=3"], 1, "did you mean 'lora_r'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


# Takes real steps with the real trainer, a process for each method, and prints the most memory that each had. Forked
# once everything is imported; files that the kernel maps into memory count, too.
CHILD = """
import json, os, sys
from pathlib import Path
import torch, transformers, peft, trl, accelerate, datasets
torch.set_num_threads(1)
from finetune import methods
from finetune.training import attention, machine, nf4
from finetune.config import checked
from finetune.training.rows import Row
from finetune.training.train import Steps, arguments
from finetune.training.trainer import AnswerTrainer, Method
from rag_app.engines import checkpoints as models

def steps(method, folder, out):
    config = checked({"adapter": method, "bf16": True, "device": "cpu", "max_steps": 2, "save_steps": 1000,
                      "gradient_accumulation_steps": 1, "use_tensorboard": False}, "test")
    model, tokenizer = models.load(models.find(folder), "auto", "cpu")
    torch.set_num_threads(1)
    model = model.to(torch.bfloat16)
    if config.four_bit:
        nf4.rounded_(model)
    model.set_attn_implementation(attention.register())
    model = methods.attach(model, config, tokenizer, steps=2).train()
    ids = list(range(1000, 1512))
    labels = [-100] * 448 + ids[448:]
    row = Row(ids, list(range(512)), [0] * 512, [0] * 512, labels, [1.0] * 512, 512, 1)
    settings = arguments(config, Path(out), Steps.of(config, 2), "cpu")
    trainer = AnswerTrainer(model, [row] * 2, config, settings, tokenizer)
    trainer.args.save_strategy = "no"
    trainer.add_callback(Method(config))
    Path("/proc/self/clear_refs").write_text("5")  # what loading took is no matter
    trainer.train()

for method in sys.argv[3:]:
    child = os.fork()
    if not child:
        code = 1
        try:
            steps(method, sys.argv[1], sys.argv[2])
            os.write(1, f"{method} {machine.used()[1]}\\n".encode())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the most memory used")
def test_the_estimate_is_within_a_fifth_of_real_training(base: Path, tmp_path: Path) -> None:
    methods = ("lora", "full")  # qlora has the weights of lora on a CPU
    command = [sys.executable, "-c", CHILD, str(base), str(tmp_path), *methods]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    measured = {line[0]: int(line[1]) for line in lines if line[0] in methods}
    for method in methods:
        settings = config(adapter=method)
        found = estimate(settings, described(str(base)), 512, 64)
        assert found.total == pytest.approx(measured[method], rel=0.2), (method, found.parts(), measured)
