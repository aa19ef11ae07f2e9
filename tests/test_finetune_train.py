"""Runs of training: an adapter that is kept whole, resumed after a kill, refused in one line where the input is bad."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main
from finetune.config import read_config
from finetune.example import Example, write_examples
from finetune.training import checkpoints, folder
from finetune.training.train import prepare
from index import folders
from rag_app.decoding import Decoding
from rag_app.prompt import NOT_FOUND, PROMPT_VERSION

COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]
THINGS = ["gate of the mill", "roof of the barn", "door of the church", "wall of the school", "boat on the lake"]


def lesson(number: int, thing: str, colour: str) -> list[Example]:
    passage = f"The {thing} number {number} was painted {colour} by the people of the village last year."
    ids = (f"{number}-{thing}", f"{number}-{thing}-none")
    return [
        Example(ids[0], "question_answering", f"Which colour has the {thing} {number}?", colour, (passage,),
                document=f"{thing} {number}", golden=0, origin=f"made:{number}"),
        Example(ids[1], "question_answering", f"Who paid for the {thing} {number}?", NOT_FOUND, (passage,),
                answerable=False, document=f"{thing} {number}", origin=f"made:{number}"),
    ]  # fmt: skip


def lessons(count: int) -> list[Example]:
    return [one for n in range(count) for one in lesson(n, THINGS[n % len(THINGS)], COLOURS[n % len(COLOURS)])]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_examples([*lessons(12), *(validation(one) for one in lessons(15)[24:])], tmp_path / "data.jsonl")
    return tmp_path / "data.jsonl"


def validation(example: Example) -> Example:
    return Example(**{**{f: getattr(example, f) for f in Example.__slots__}, "part": "validation"})


@pytest.fixture
def config(tmp_path: Path, small_base: Path, data: Path) -> Path:
    settings = {
        "base_model": str(small_base), "adapter": "lora", "datasets": [{"path": data.name}], "learning_rate": 2e-3,
        "output_dir": str(tmp_path / "out"), "max_steps": 6, "gradient_accumulation_steps": 2, "logging_steps": 1,
        "save_steps": 2, "eval_steps": 3, "eval_samples": 4, "use_tensorboard": False, "seed": 7,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    return tmp_path / "run.yaml"


Said = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], config: Path) -> Said:
    """Runs `train --json` on the configuration with more settings; gives the exit code, the object, and stderr."""

    def run(*settings: str, flags: tuple[str, ...] = ()) -> tuple[int, dict[str, Any], str]:
        sets = [part for setting in settings for part in ("--set", setting)]
        code = main(["train", str(config), *sets, *flags, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


def losses(result: dict[str, Any]) -> list[float]:
    return [one["loss"] for one in result["history"] if "loss" in one]


@pytest.mark.slow
def test_a_run_leaves_an_adapter_and_all_that_made_it(said: Said, tmp_path: Path, small_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune import methods

    code, result, err = said("use_tensorboard=true")
    assert code == 0 and "step 6 of 6" in err
    found = losses(result)
    assert len(found) == 6 and min(found[3:]) < 0.9 * found[0]
    out = tmp_path / "out"
    assert result["adapter"] == str(out / "adapter") and folders.whole(out / "adapter") == ""
    kept = json.loads((out / "adapter" / "run.json").read_text())
    assert (kept["method"], kept["prompt_version"], kept["steps"]) == ("lora", PROMPT_VERSION, 6)
    assert kept["config"]["learning_rate"] == 2e-3 and kept["config_with_defaults"]["lora_r"] == 16
    assert kept["examples"] == {"train": 24, "validation": 6} and len(kept["data"]) == 1
    evaluated = [one for one in kept["history"] if "eval_loss" in one]
    assert [one["step"] for one in evaluated] == [3, 6] and kept["best_step"] in (3, 6)
    assert {"eval_score", "eval_question_answering_f1"} <= evaluated[0].keys()
    assert (
        max(evaluated, key=lambda one: one["eval_score"])["eval_score"]
        == evaluated[kept["best_step"] // 6]["eval_score"]
    )
    assert (out / "curves.html").read_text().count("data:image/") or "<svg" in (out / "curves.html").read_text()
    assert list(out.glob("runs/*/events*"))
    base = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.bfloat16)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain = base(ids).logits
        tuned = methods.load(base, out / "adapter")(ids).logits
    assert (plain - tuned).abs().max() > 0.1


@pytest.mark.slow
def test_a_model_trained_whole_is_one_to_serve(said: Said, tmp_path: Path) -> None:
    from rag_app.engines.huggingface import TransformersChat

    code, result, _ = said("adapter=full", "max_steps=1", "eval_samples=0", "learning_rate=1e-5")
    assert code == 0
    with closing(TransformersChat(path=result["adapter"], decoding=Decoding(max_tokens=4))) as model:
        assert model.invoke("Which colour has the gate of the mill 0?").content


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_loss(said: Said, config: Path, tmp_path: Path) -> None:
    _, whole, _ = said(f"output_dir={tmp_path / 'whole'}")
    command = [sys.executable, "-m", "finetune", "train", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running.stderr
        told = next(line for line in running.stderr if "step 3" in line)  # as soon as it has been evaluated
        running.send_signal(signal.SIGKILL)
    assert told and checkpoints.latest(tmp_path / "out") == tmp_path / "out" / "checkpoint-2"
    assert not (tmp_path / "out" / "adapter").exists()
    code, resumed, _ = said(flags=("--resume",))
    assert code == 0
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-4)
    assert [one["eval_loss"] for one in resumed["history"] if "eval_loss" in one] == pytest.approx(
        [one["eval_loss"] for one in whole["history"] if "eval_loss" in one], rel=1e-3
    )


@pytest.mark.slow
def test_checkpoints_are_few_whole_and_the_best_among_them(said: Said, tmp_path: Path) -> None:
    _, result, _ = said("save_total_limit=1", "eval_steps=2", "metric_for_best_model=loss")
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert kept == sorted({"checkpoint-6", f"checkpoint-{result['best_step']}"})
    assert all(folders.whole(tmp_path / "out" / name) == "" for name in kept)
    assert not list((tmp_path / "out").glob(".*"))
    best = min((one for one in result["history"] if "eval_loss" in one), key=lambda one: one["eval_loss"])
    assert best["step"] == result["best_step"]


@pytest.mark.slow
def test_a_run_ends_early_where_nothing_gets_better(said: Said) -> None:
    settings = ("max_steps=30", "eval_steps=1", "early_stopping_patience=2", "learning_rate=1e-9", "eval_samples=0")
    _, result, _ = said(*settings, "metric_for_best_model=loss")
    assert result["steps"] < 30


@pytest.mark.slow
def test_the_loss_becomes_no_number(said: Said, tmp_path: Path) -> None:
    code, result, err = said("learning_rate=1e30", "warmup_steps=0", "save_steps=1", "eval_steps=100")
    assert code == 1 and "the loss is nan at step" in result["error"] and "lower learning_rate" in result["error"]
    assert err.strip().splitlines()[-1] == f"rag-finetune: {result['error']}"
    assert all(folders.whole(path) == "" for path in (tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_passed_over_or_refused(said: Said, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, whole, _ = said()
    shutil.rmtree(out / "adapter")
    weights = out / "checkpoint-6" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, result, _ = said(f"resume_from_checkpoint={out / 'checkpoint-6'}")
    assert code == 1
    assert f"'{out / 'checkpoint-6'}' is not whole (adapter_model.safetensors is 1,000 of " in result["error"]
    assert "checkpoint-4', the newest whole one" in result["error"]
    code, resumed, err = said(flags=("--resume",))
    assert code == 0 and "'checkpoint-6' is passed over" in err.replace(f"{out}/", "")
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-4)
    assert folders.whole(out / "checkpoint-6") == ""


def test_a_finished_run_is_not_overwritten(said: Said, tmp_path: Path) -> None:
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    code, result, _ = said()
    assert code == 1 and "holds a finished run: give --force" in result["error"]
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "adapter"]


@pytest.fixture(scope="module")
def cut_short(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that ended between its last checkpoint and its adapter."""
    folder = tmp_path_factory.mktemp("cut")
    write_examples(lessons(6), folder / "data.jsonl")
    settings = {
        "base_model": str(small_base), "datasets": [{"path": "data.jsonl"}], "output_dir": str(folder / "out"),
        "max_steps": 4, "save_steps": 2, "logging_steps": 1, "val_set_size": 0, "use_tensorboard": False, "lora_r": 4,
        "learning_rate": 1e-3,
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(settings), "utf-8")
    assert main(["train", str(folder / "run.yaml")]) == 0
    shutil.rmtree(folder / "out" / "adapter")
    return folder


@pytest.fixture
def again(cut_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `train` in a copy of that folder; gives the exit code and the last line on stderr."""
    shutil.copytree(cut_short / "out", tmp_path / "out")

    def run(*settings: str, flags: tuple[str, ...] = ()) -> tuple[int, str]:
        sets = [part for one in (f"output_dir={tmp_path / 'out'}", *settings) for part in ("--set", one)]
        code = main(["train", str(cut_short / "run.yaml"), *sets, *flags])
        return code, capsys.readouterr().err.strip().splitlines()[-1]

    return run


Again = Callable[..., tuple[int, str]]


def test_checkpoints_of_a_run_that_was_cut_short_are_not_overwritten(again: Again, tmp_path: Path) -> None:
    code, said = again()
    assert code == 1 and "a run that was cut short: --resume goes on from them, --force begins anew" in said
    assert sorted(path.name for path in (tmp_path / "out").glob("check*")) == ["checkpoint-2", "checkpoint-4"]


def test_an_adapter_whose_checkpoints_are_damaged_is_not_replaced(again: Again, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "adapter").mkdir()
    for name in ("checkpoint-2", "checkpoint-4"):
        (out / name / "adapter_model.safetensors").write_bytes(b"cut")
    code, said = again(flags=("--resume",))
    assert code == 1 and "holds a finished run: give --force" in said
    assert {path.name for path in out.glob("check*")} == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.slow
def test_force_begins_anew(again: Again, tmp_path: Path) -> None:
    code, _ = again("max_steps=1", flags=("--force",))
    assert code == 0
    assert [path.name for path in (tmp_path / "out").glob("check*")] == ["checkpoint-1"]
    assert json.loads((tmp_path / "out" / "adapter" / "run.json").read_text())["steps"] == 1


def test_a_run_that_lacks_nothing_but_its_adapter_gets_it(again: Again, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert again(flags=("--resume",))[0] == 0
    ran = json.loads((out / "adapter" / "run.json").read_text())
    assert (ran["steps"], len(losses(ran))) == (4, 4) and folders.whole(out / "adapter") == ""
    name = "adapter_model.safetensors"
    assert (out / "adapter" / name).read_bytes() == (out / "checkpoint-4" / name).read_bytes()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapter=ia3", "has adapter: lora, and this one has ia3: set it back, or begin anew with --force"),
        ("lora_r=8", "has lora_r: 4, and this one has 8"),
        ("learning_rate=1e-4", "has learning_rate: 0.001, and this one has 0.0001"),
        ("max_steps=3", "is past step 3, the run's last: raise max_steps or num_epochs"),
        ("datasets=[{path: OTHER}]", "has another data: give the same"),
    ],
)
def test_a_run_goes_on_as_it_began_or_not_at_all(setting: str, message: str, again: Again, tmp_path: Path) -> None:
    write_examples(lessons(5), tmp_path / "other.jsonl")
    before = sorted((tmp_path / "out").rglob("*"))
    code, said = again(setting.replace("OTHER", str(tmp_path / "other.jsonl")), flags=("--resume",))
    assert code == 1 and message in said
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_two_runs_do_not_write_into_one_folder(again: Again, tmp_path: Path) -> None:
    with folder.held(tmp_path / "out"):
        code, said = again(flags=("--resume",))
    assert code == 1 and f"another run is writing into '{tmp_path / 'out'}': wait for it" in said


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune", "train", str(config), "--set", "max_steps=1000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running.stderr
        assert next(line for line in running.stderr if "step 3" in line)
        running.send_signal(signal.SIGINT)
        assert running.stderr.read().splitlines()[-1] == "rag-finetune: interrupted; go on with --resume"
    assert running.returncode == 130


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("flash_attention=true", "flash_attention needs a GPU and the package flash-attn"),
        ("deepspeed=none.json", "deepspeed: 'none.json' is no file"),
        ("fsdp=[full_shard]", "start it by accelerate launch"),
        ("device=meta", "the device 'meta' cannot be used"),
    ],
)
def test_what_is_not_here_is_not_trained_with(setting: str, message: str, said: Said) -> None:
    code, result, err = said(setting)
    assert code == 1 and message in result["error"] and err.count("\n") == 1


def no_template(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "data.jsonl' holds no example"),
        (["{}"], "its first record has no fields"),
        (["[1, 2]"], "data.jsonl"),
        (['{"question": "a'], "data.jsonl"),
    ],
)
def test_data_that_is_none(lines: list[str], message: str, said: Said, data: Path) -> None:
    data.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    code, result, err = said()
    assert code == 1 and message in result["error"]
    assert err.count("\n") == 1


def test_a_record_too_long_is_named(said: Said, data: Path) -> None:
    long = Example("long", "question_answering", "Why?", "Because.", ("word " * 100_000,), origin="far")
    write_examples([*lessons(3), long], data)
    code, result, err = said()
    assert code == 1 and ", more than sequence_len 2,048: shorten it" in result["error"] and err.count("\n") == 1


def test_a_record_too_long_to_validate_on_is_left_out_before_it_could_end_the_run(data: Path, config: Path) -> None:
    long = Example("long", "question_answering", "Why?", "Because.", ("word " * 100_000,), origin="far")
    write_examples([*lessons(3), validation(long), *map(validation, lessons(5)[8:])], data)
    prepared = prepare(read_config(config, ["on_bad_record=skip"]))
    assert {one.part for one in prepared.validation} == {"validation"} and len(prepared.validation) == 2
    assert [reason.endswith("more than sequence_len 2,048") for _, reason in prepared.report.dropped] == [True]


def test_models_that_are_none(said: Said, tmp_path: Path, small_base: Path) -> None:
    code, result, err = said(f"base_model={tmp_path / 'nowhere'}")
    assert code == 1 and "nowhere' does not exist" in result["error"] and err.count("\n") == 1
    code, result, err = said(f"base_model={no_template(small_base, tmp_path / 'bare')}")
    assert code == 1 and "'bare' has no chat template" in result["error"] and err.count("\n") == 1


def test_a_typing_error_in_a_key(said: Said) -> None:
    code, result, err = said("lora_rank=8")
    assert code == 1 and "unknown key 'lora_rank': did you mean 'lora_r'?" in result["error"] and err.count("\n") == 1


@pytest.mark.slow
def test_one_example_is_enough(said: Said, data: Path) -> None:
    write_examples(lessons(1)[:1], data)
    code, result, err = said("max_steps=2")
    assert code == 0 and result["examples"] == {"train": 1, "validation": 0}
    assert "nothing to validate on" in err
    assert "only 2 steps of the optimiser in all, which teaches little: raise max_steps (now 2)\n" in err


@pytest.mark.parametrize(
    ("settings", "rows", "few"),
    [
        ({"num_epochs": 1}, 3, "only 1 step of the optimiser in all, … raise num_epochs (now 1)"),
        ({"num_epochs": 2.5}, 12, "only 8 steps of the optimiser in all, … raise num_epochs (now 2.5)"),
        ({"max_steps": 19}, 900, "only 19 steps of the optimiser in all, … raise max_steps (now 19)"),
        ({"num_epochs": 20}, 3, ""),
    ],
)
def test_a_run_of_few_steps_is_told(settings: dict[str, Any], rows: int, few: str) -> None:
    from finetune.config import checked
    from finetune.training.train import Steps

    config = checked(settings, "here")
    assert Steps.of(config, rows).few(config) == few.replace("…", "which teaches little:")


def test_weights_of_16_bits_leave_the_frequencies_of_positions_alone(small_base: Path) -> None:
    import torch

    from finetune.config import checked
    from finetune.training import base
    from rag_app.engines.checkpoints import find

    model, _ = base.load(checked({"bf16": True}, "test"), find(str(small_base)), "cpu")
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
