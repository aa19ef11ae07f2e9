"""The command `rag-finetune evaluate`, on the model cut to two layers and an adapter on it."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune.cli import main
from finetune.config import Data
from finetune.data import served
from finetune.data.dataset import read
from finetune.data.report import Report
from finetune.example import Example, write_examples
from rag_app.prompt import NOT_FOUND, PROMPT_VERSION
from tests.conftest import ScriptedModel

PASSAGE = "The okapi lives in the Ituri rainforest."
EXAMPLES = [
    Example("q1", "question_answering", "Where does the okapi live?", "the Ituri rainforest", (PASSAGE,), part="test"),
    Example("q2", "question_answering", "Who?", NOT_FOUND, (PASSAGE,), answerable=False, part="test"),
    Example("g", "text_generation", "Write a sentence about lunch.", "Lunch costs 14 euros.", part="test"),
    Example("t", "question_answering", "Where?", "Ituri", (PASSAGE,), part="train"),
]


@pytest.fixture(scope="module")
def trained(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: an adapter that changes what the model writes."""
    import torch

    from finetune import methods
    from finetune.config import checked
    from finetune.training import machine
    from index import folders
    from rag_app.engines import checkpoints as models

    config = checked(
        {"base_model": str(small_base), "lora_r": 2, "lora_target_modules": ["q_proj", "down_proj"]}, "here"
    )
    source = models.find(str(small_base))
    model, tokenizer = models.load(source, "auto", "cpu")
    model = methods.attach(model, config, tokenizer)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    out = tmp_path_factory.mktemp("run")
    with folders.staged(out / "adapter") as part:
        methods.save(model, part, config)
        (part / "run.json").write_text(json.dumps(machine.what_ran(config, [], source)))
    return out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_examples(EXAMPLES, tmp_path / "data.jsonl")
    return tmp_path / "data.jsonl"


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = main(["evaluate", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    report: dict[str, Any] = json.loads(out)
    return report


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("rag-finetune: ").rstrip()


def test_an_adapter_is_scored_beside_its_base(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    report = ran(capsys, trained, "--data", data, "--max-tokens", 8, "--out", out)
    assert report["model"] == str(trained / "adapter")
    assert report["base"] == "small"
    assert (report["part"], report["n"], report["asked"], report["interrupted"]) == ("test", 3, 3, False)
    assert set(report["tasks"]) == {"question_answering", "text_generation"}
    f1 = report["tasks"]["question_answering"]["metrics"]["f1"]
    assert f1["difference"] == pytest.approx(f1["value"] - f1["base"], abs=1e-5)
    assert report["prompt_version"] == PROMPT_VERSION
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["q1", "q2", "g"]
    assert [row["gold"] for row in rows] == [["the Ituri rainforest"], [], ["Lunch costs 14 euros."]]
    assert any(row["answer"] != row["base_answer"] for row in rows)
    assert all(row in rows for row in report["worst"])


def test_people_see_a_table_and_the_worst(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained / "adapter"), "--data", str(data), "--max-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"{trained / 'adapter'}, beside its base small: 3 examples of the part 'test'"
    assert "only 3 examples: too few to tell much; the intervals above should be wider" in lines
    assert "validation" not in out
    assert lines[2].split() == "task metric score 95% interval of base difference 95% interval".split()  # noqa: SIM905
    assert "Where does the okapi live?" in lines
    assert [line[:8] for line in lines[-3:]] == ["  gold: ", "  said: ", "  base: "]


def test_the_part_that_picked_the_checkpoint_is_told(
    trained: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "training picks its checkpoint by the validation part: a test part (dataset --test-share) is fairer"
    write_examples([replace(EXAMPLES[0], part="validation"), EXAMPLES[3]], tmp_path / "data.jsonl")
    data = ("--data", str(tmp_path / "data.jsonl"), "--max-tokens", "2", "--no-base")
    for arguments, told in (((str(trained),), 1), ((str(small_base),), 0), ((str(trained), "--part", "train"), 0)):
        assert main(["evaluate", *arguments, *data]) == 0
        assert capsys.readouterr().out.count(note) == told


def test_a_model_alone_on_a_part_and_a_sample(small_base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = ran(capsys, "base", "--base", small_base, "--data", data, "--part", "train", "--max-tokens", 2)
    assert (report["model"], report["base"], report["n"]) == ("small", None, 1)
    report = ran(capsys, small_base, "--no-base", "--data", data, "--limit", 2, "--max-tokens", 2)
    assert (report["base"], report["n"]) == (None, 2)
    assert set(report["tasks"]) == {"question_answering", "text_generation"}


def test_an_adapter_that_peft_wrote_is_taken_with_a_warning(
    trained: Path, small_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / "adapter" / name, bare)
    settings = json.loads((bare / "adapter_config.json").read_text())
    (bare / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone"}))
    assert "was trained on '/gone', which is not here: give it with --base" in refused(capsys, bare, "--data", data)
    assert main(["evaluate", str(bare), "--base", str(small_base), "--data", str(data), "--max-tokens", "8"]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "no run.json" in err
    assert "beside its base small" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_takes_no_scores_away(small_base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "base", "--base", small_base, "--data", data, "--max-tokens", 2, "--out", "/dev/full"]
    assert main([*map(str, arguments), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "cannot be written (No space left on device)" in report["error"]
    assert report["n"] == 3


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        run = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(run | values))
        (folder / "complete.json").unlink()

    return change


def cut(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


def scrawled(folder: Path) -> None:
    (folder / "run.json").write_text("{")
    (folder / "complete.json").unlink()


def diverged(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    save_file({name: one * float("nan") for name, one in load_file(weights).items()}, weights, metadata)
    (folder / "complete.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed(prompt_version=1), "was trained with prompts of version 1, and these are of version"),
        (changed(base_model={"name": "other", "fingerprint": "0" * 16}), "was trained on 'other' (0000000000000000)"),
        (changed(base_model=3), "names no base model"),
        (changed(config=None), "names no base model or settings"),
        (cut, "is not whole: adapter_model.safetensors is"),
        (scrawled, "run.json' cannot be read"),
        (diverged, "it holds NaN or infinity"),
    ],
)
def test_an_adapter_that_must_not_be_used_is_refused(
    spoil: Callable[[Path], None],
    message: str,
    trained: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", folder)
    spoil(folder)
    assert message in refused(capsys, folder, "--data", data)


def test_what_cannot_be_evaluated_is_one_line(
    small_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("base", "--base", small_base, "--data")
    assert "give --part test or train" in refused(capsys, *given, data, "--part", "validation")
    assert "cannot be read" in refused(capsys, *given, tmp_path / "none.jsonl")
    said = refused(capsys, tmp_path / "none", "--data", data)
    assert "none' is neither an adapter nor a model: name the folder of a run" in said
    assert "is what is read" in refused(capsys, *given, data, "--out", data)
    assert main(["evaluate", "base"]) == 2
    assert main(["evaluate", "base", "--data", str(data), "--seed", "-1"]) == 2


def test_questions_are_asked_with_the_passages_of_serving(
    real_index: Path, real_encoder: Any, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from index import Index
    from rag_app.bot import Bot

    file = tmp_path / "questions.jsonl"
    rows = [{"question": "What lives in the Ituri rainforest?", "answers": ["the okapi", "okapi"]}]
    rows += [{"question": "Who was Rollo?", "answers": [], "answerable": False}]  # type: ignore[dict-item]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Index.open(real_index, real_encoder) as index:
        examples = served.examples(read([Data(path=str(file))], "stop", Report())[0], index, 2)
    for example in examples:
        bot = Bot(ScriptedModel.saying("x"), real_index, real_encoder)
        assert example.passages == tuple(hit.text for hit in bot.ask(example.question).hits[:2])
    assert [example.golds for example in examples] == [("the okapi", "okapi"), ()]
    report = ran(capsys, "base", "--base", small_base, "--data", file, "--index", real_index, "--max-tokens", 2)
    assert (report["n"], report["k"], report["index"]) == (2, 4, str(real_index))
    assert report["tasks"]["question_answering"]["metrics"]["abstention_recall"]["of"] == 1


@pytest.mark.parametrize(("call", "beside", "kept"), [(2, None, 2), (4, "small", 2)])
def test_an_interrupted_evaluation_tells_what_is_done(
    call: int,
    beside: str | None,
    kept: int,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import GenerationMixin

    file, out = tmp_path / "long.jsonl", tmp_path / "rows.jsonl"
    # three of them are one more than a batch holds
    long = [Example(str(n), "text_generation", "Go on.", "x", ("okapi " * (700 + n),)) for n in range(3)]
    write_examples(long, file)
    real, calls = GenerationMixin.generate, [0]

    def counted(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signal.SIGINT)
        return real(*given, **more)

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    arguments = ["evaluate", trained, "--data", file, "--max-tokens", 2, "--out", out, "--json"]
    assert main(list(map(str, arguments))) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["error"] == f"interrupted: the scores are of {kept} of 3 examples"
    assert (report["n"], report["asked"], report["interrupted"], report["base"]) == (kept, 3, True, beside)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["1", "2"]
