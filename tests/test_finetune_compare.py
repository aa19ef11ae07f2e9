"""Models measured beside each other: the model cut to two layers as a folder, as NF4 and as GGUF files."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune.cli import main
from finetune.errors import CheckpointInvalid, ExportInvalid
from finetune.evaluation import candidates, divergence, plots, subjects, table, texts
from finetune.evaluation.compare import Comparison, Row, brief, compare
from finetune.evaluation.measuring import Measuring
from finetune.evaluation.texts import Texts
from finetune.example import Example, write_examples
from index import console
from index.errors import RagError

PASSAGE = "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long."
EXAMPLES = [
    Example("q1", "question_answering", "Where does the okapi live?", "the Ituri rainforest", (PASSAGE,), part="test"),
    Example("q2", "question_answering", "How long is its tongue?", "45 centimetres", (PASSAGE,), part="test"),
    Example("t", "question_answering", "Where?", "Ituri", (PASSAGE,), part="train"),
]
TEXT = Texts("a text", [PASSAGE * 20, "The axolotl keeps its gills for life. " * 20])
QUICK: dict[str, Any] = {"tokens": 200, "written": 8, "rounds": 1}


@pytest.fixture(scope="module")
def forms(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of GGUF files, and of one that is cut short."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune.export import gguf
    from finetune.export.quantise import quantise

    folder = tmp_path_factory.mktemp("forms")
    model: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    gguf.write(model.eval(), AutoTokenizer.from_pretrained(small_base), folder / "f16.gguf")
    for kind in ("Q8_0", "Q4_0"):
        quantise(folder / "f16.gguf", folder / f"{kind}.gguf", kind)
    (folder / "damaged.gguf").write_bytes((folder / "f16.gguf").read_bytes()[:-1000])
    (folder / "same.gguf").symlink_to(folder / "f16.gguf")
    return folder


def named(*names: object) -> tuple[list[str], list[Any]]:
    return [str(name) for name in names], [candidates.find(str(name)) for name in names]


@pytest.fixture(scope="module")
def measured(small_base: Path, forms: Path) -> dict[str, Row]:
    files = [forms / f"{name}.gguf" for name in ("Q4_0", "damaged", "Q8_0", "f16")]
    names, found = named(files[0], small_base, f"{small_base}@nf4", *files[1:])
    made = compare([*names, "gone"], [*found, RagError("it is gone: name another")], TEXT, **QUICK)
    assert [row.name for row in made.rows] == [*names, "gone"]
    assert made.reference == str(small_base), "the first that is not quantised"
    return dict(zip(["Q4_0", "folder", "nf4", "damaged", "Q8_0", "f16", "gone"], made.rows, strict=True))


def test_forms_are_as_far_from_16_bits_as_their_weights_are_coarse(measured: dict[str, Row]) -> None:
    far = {name: row.divergence for name, row in measured.items()}
    assert far["folder"] == 0
    assert 0 < far["f16"] < far["Q8_0"] < far["Q4_0"] < 0.5  # type: ignore[operator]
    assert far["Q8_0"] < far["nf4"] < 0.5  # type: ignore[operator]
    for name in ("folder", "nf4", "Q4_0", "Q8_0", "f16"):
        assert measured[name].tokens == 200
        assert np.log(measured[name].perplexity or 0) == pytest.approx(np.log(measured["folder"].perplexity), abs=0.3)
    assert measured["f16"].perplexity == pytest.approx(measured["folder"].perplexity, rel=0.02)


def test_each_has_its_engine_size_memory_and_speeds(measured: dict[str, Row], small_base: Path, forms: Path) -> None:
    engines = {name: (row.engine, row.kind) for name, row in measured.items() if row.measured}
    assert engines == {
        "Q4_0": ("llama.cpp", "Q4_0"), "Q8_0": ("llama.cpp", "Q8_0"), "f16": ("llama.cpp", "F16"),
        "folder": ("transformers", "16-bit"), "nf4": ("transformers", "NF4"),
    }  # fmt: skip
    weights = (small_base / "model.safetensors").stat().st_size
    assert measured["folder"].size == measured["nf4"].size == weights
    for name in ("Q4_0", "Q8_0", "f16"):
        assert measured[name].size == (forms / f"{name}.gguf").stat().st_size
    for name in engines:
        row = measured[name]
        assert (row.prompt_tokens_per_second or 0) > (row.generation_tokens_per_second or 0) > 0, name
        assert (row.memory or 0) > (row.memory_before or 0) > 1e7, name
        assert row.failed == {}
    own = {name: (measured[name].memory or 0) - (measured[name].memory_before or 0) for name in engines}
    assert own["f16"] > 72e6, "its weights"
    assert own["Q8_0"] < own["f16"]


def test_what_cannot_be_measured_is_a_line_with_its_reason(measured: dict[str, Row]) -> None:
    assert not measured["damaged"].measured
    assert list(measured["damaged"].failed) == ["loading"]
    assert measured["damaged"].failed["loading"].startswith("llama.cpp cannot load it: the file is damaged, or of")
    assert measured["gone"].failed == {"loading": "it is gone: name another"}
    lines = table.lines(Comparison(list(measured.values()), reference=measured["folder"].name))
    assert re.search(r"damaged\.gguf( +-){10}$", lines[4])
    assert len({len(line) - len(line.split(None, 1)[1]) for line in lines}) == 1, "columns are below each other"


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    assert main(["compare", *map(str, arguments)]) == code
    return capsys.readouterr()


def test_the_command_gives_one_object_and_a_page_that_needs_nothing_else(
    forms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_examples(EXAMPLES, tmp_path / "data.jsonl")
    names = [forms / "damaged.gguf", forms / "same.gguf", forms / "f16.gguf"]
    page = tmp_path / "page.html"
    flags = ["--data", tmp_path / "data.jsonl", "--max-tokens", 4, "--tokens", 99, "--html", page, "--json"]
    out, err = run(capsys, *names, *flags)
    assert (out.count("\n"), err) == (1, "")
    report = json.loads(out)
    assert report["reference"] == str(names[1])
    rows = {Path(row["name"]).stem: row for row in report["rows"]}
    assert rows["f16"]["divergence"] < 1e-6, "the very same weights"
    assert rows["damaged"]["failed"]
    for name in ("same", "f16"):
        low, high = rows[name]["score_interval"]
        assert low <= rows[name]["score"] <= high
        assert rows[name]["scores"]["question_answering"]["n"] == 2
    assert (report["text"], report["part"]) == (f"'{tmp_path / 'data.jsonl'}', part 'test'", "test")
    assert (report["examples"], report["threads"], report["interrupted"]) == (2, report["machine"]["cores"], False)
    text = page.read_text("ascii")
    for name in names:
        assert text.count(str(name)) >= (1 if name.stem == "damaged" else 4), "in the table, and in each plot"
    assert not re.search(r"(src|href)=\"(?!#)", text.replace("xlink:href", "href")), "it loads something"
    assert "@import" not in text and "url(http" not in text and "<script" not in text
    assert "already" in run(capsys, *names, *flags[:-1], code=1)[1]


def test_answers_are_those_of_transformers(small_base: Path, forms: Path) -> None:
    ours = [subjects.load(candidates.find(str(one))) for one in (forms / "f16.gguf", small_base)]
    told = [dict(one.answers(EXAMPLES, 4)) for one in ours]
    assert told[0] == told[1]
    assert set(told[0]) == {0, 1, 2}
    assert ours[0].tokens(PASSAGE) == ours[1].tokens(PASSAGE)
    assert ours[0].prompt(EXAMPLES[0].messages()) == ours[1].prompt(EXAMPLES[0].messages())


@pytest.fixture(scope="module")
def tuned(small_base: Path, forms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves, and its adapter for llama.cpp as a run on the GGUF file would export it."""
    import torch

    from finetune import methods
    from finetune.config import checked
    from finetune.export import lora
    from finetune.training import machine
    from rag_app.engines import checkpoints

    out = tmp_path_factory.mktemp("run")
    write_examples(
        [*EXAMPLES, Example("v", "text_generation", "Say a word.", "Ituri", part="validation")], out / "data"
    )
    given = {"lora_r": 2, "lora_target_modules": ["q_proj", "down_proj"], "datasets": [{"path": str(out / "data")}]}
    config = checked({**given, "base_model": str(small_base)}, "here")
    plain, tokenizer = checkpoints.load(checkpoints.find(str(small_base)), "auto", "cpu")
    model = methods.attach(plain, config, tokenizer)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    methods.save(model, out / "adapter", config)
    (out / "export" / "gguf-lora").mkdir(parents=True)
    lora.write(out / "adapter", model.unload(), out / "export" / "gguf-lora" / "adapter.gguf")
    for folder, base in (("adapter", small_base), ("export/gguf-lora", forms / "f16.gguf")):
        config = config.model_copy(update={"base_model": str(base)})
        ran = machine.what_ran(config, [], checkpoints.find(str(base)))
        (out / folder / "run.json").write_text(json.dumps(ran))
    return out


def test_an_adapter_counts_with_its_base_in_either_engine(tuned: Path, forms: Path) -> None:
    base = candidates.find(str(forms / "f16.gguf"))
    run, served = candidates.find(str(tuned)), candidates.find(str(tuned / "export" / "gguf-lora"))
    assert (run.engine, run.kind, run.exact) == ("transformers", "16-bit + lora", True)
    assert (served.engine, served.kind) == ("llama.cpp", "F16 + LoRA")
    assert candidates.find(f"{tuned}@nf4").weights == "NF4"
    adapter = (tuned / "export" / "gguf-lora" / "adapter.gguf").stat().st_size
    assert served.size() == base.size() + adapter
    assert run.size() > (tuned / "adapter" / "adapter_model.safetensors").stat().st_size
    tokens = list(range(200, 240))
    found = [np.concatenate([part.copy() for part in subjects.load(one).logits(tokens)]) for one in (base, run, served)]
    plain, theirs, ours = (divergence.log_softmax(one) for one in found)
    assert (np.exp(theirs) * (theirs - plain)).sum(1).mean() > 0.5
    assert (np.exp(theirs) * (theirs - ours)).sum(1).mean() < 0.02


def test_the_text_is_a_runs_validation_part_else_demo_documents_else_bundled_examples(
    tuned: Path, forms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = candidates.find(str(tuned)), candidates.find(str(forms / "f16.gguf"))
    found = texts.default([plain, run])
    assert found.name == f"the validation part of '{tuned}'"
    assert [one.id for one in found.pieces if isinstance(one, Example)] == ["v"]
    found = texts.default([plain])
    assert found.name == "the demo documents (examples/peft_docs)"
    assert found.drawn(9) == found.drawn(9)
    assert len(set(found.drawn(9))) == 9
    monkeypatch.setattr(texts, "DEMO", Path("nowhere"))
    assert all(isinstance(one, Example) for one in texts.default([plain]).drawn(5))


@pytest.mark.parametrize("form", ["x-Q8_0.gguf", "x-Q8_0.gguf@16-bit", "merged", "gguf-lora"])
def test_the_text_of_an_export_is_its_runs(
    form: str, tuned: Path, forms: Path, small_base: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tuned, tmp_path / "run"))
    shutil.copy(forms / "Q8_0.gguf", run / "export" / "x-Q8_0.gguf")
    shutil.copytree(small_base, run / "export" / "merged")
    shutil.copy(forms / "Q8_0.gguf", tmp_path)
    name = str(run / "export" / form)
    elsewhere = candidates.find(str(tmp_path / "Q8_0.gguf"))
    found = texts.default([elsewhere, candidates.find(name)])
    assert found.name == f"the validation part of '{name}'"
    assert [one.id for one in found.pieces if isinstance(one, Example)] == ["v"]


def test_the_text_of_a_model_trained_whole_is_its_runs(tuned: Path, small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "run" / "adapter")
    ran = json.loads((tuned / "adapter" / "run.json").read_text())
    ran["config"]["adapter"] = "full"
    (tmp_path / "run" / "adapter" / "run.json").write_text(json.dumps(ran))
    found = candidates.find(str(tmp_path / "run"))
    assert found.adapter is None
    assert texts.default([found]).name == f"the validation part of '{tmp_path / 'run'}'"


def test_progress_names_the_end_of_a_path(forms: Path) -> None:
    told: list[str] = []
    compare(*named(forms / "f16.gguf"), TEXT, **QUICK, progress=lambda stage, done, total: told.append(stage))
    assert {one.partition(": ")[0] for one in told} == {"f16.gguf"}
    assert [brief(name) for name in ("base@nf4", "a/b/merged/", "/")] == ["base@nf4", "merged", "/"]


def test_names_that_stand_for_nothing(forms: Path, tmp_path: Path) -> None:
    with pytest.raises(RagError, match="names no precision that there is: put @16-bit or @nf4"):
        candidates.find("base@int8")
    with pytest.raises(RagError, match="is neither an adapter nor a model"):
        candidates.find(str(tmp_path / "none"))
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    assert (candidates.find(str(tmp_path)).kind, candidates.find(str(tmp_path)).exact) == ("GPTQ 4-bit", False)
    (tmp_path / "adapter.gguf").touch()
    with pytest.raises(ExportInvalid, match="stands on 'an unknown base', which is no GGUF file"):
        candidates.find(str(tmp_path))


def test_a_remedy_is_one_that_compare_has(
    tuned: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tuned, tmp_path / "run"))
    ran = json.loads((run / "adapter" / "run.json").read_text())
    ran["config"]["base_model"] = str(tmp_path / "gone")
    (run / "adapter" / "run.json").write_text(json.dumps(ran))
    with pytest.raises(CheckpointInvalid, match=r"gone', which is not here: put it back$"):
        candidates.find(str(run))
    broken = Path(shutil.copytree(small_base, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"cut")
    assert main(["compare", str(broken)]) == 1
    err = capsys.readouterr().err
    assert "Fetch it again, or name another" in err
    assert "--model" not in err


def interrupting(when: str) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        if stage.endswith(when):
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_keeps_what_is_done(
    forms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(*named(forms / "f16.gguf"), TEXT, **QUICK, progress=interrupting("loading"))

    @contextmanager
    def bars() -> Iterator[Any]:
        yield interrupting("Q8_0.gguf: loading")

    monkeypatch.setattr(console, "progress_bars", bars)
    out, err = run(capsys, forms / "Q8_0.gguf", forms / "f16.gguf", "--tokens", 20, "--json", code=1)
    report = json.loads(out)
    assert (report["interrupted"], report["reference"]) == (True, str(forms / "f16.gguf"))
    assert [row["perplexity"] is None for row in report["rows"]] == [True, False]
    assert report["rows"][0]["failed"] == {"loading": "interrupted before it was measured"}
    assert err == "rag-finetune: interrupted: the table holds what was measured until then\n"


def test_only_where_all_fail_does_the_command(forms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, forms / "damaged.gguf", forms / "none.gguf", "--json", code=1)
    report = json.loads(out)
    assert [list(row["failed"]) for row in report["rows"]] == [["loading"], ["loading"]]
    assert report["error"].startswith(f"no model could be measured: {forms / 'damaged.gguf'}: llama.cpp cannot load it")
    assert err == f"rag-finetune: {report['error']}\n"
    assert "a model is named twice" in run(capsys, "base", "base", code=2)[1]
    assert "give --data FILE" in run(capsys, "base", "--part", "test", code=2)[1]


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 3", "exit code 3"), ("kill -9 $$", "SIGKILL; it may have run out of memory"), ("kill -11 $$", "SIGSEGV")],
)
def test_a_process_that_dies_is_a_line(
    script: str, said: str, forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\necho \'{{"event": "progress", "stage": "speed", "done": 0, "total": 1}}\'\n{script}\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    (row,) = compare(*named(forms / "f16.gguf"), TEXT, **QUICK).rows
    assert row.failed == {"speed": f"the process that measured it ended ({said})"}
    assert not row.measured


def test_the_process_ends_with_the_program_that_started_it(forms: Path) -> None:
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune.evaluation.measuring"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(file.fileno(),), env={**os.environ},
        )  # fmt: skip
        request = {
            "name": str(forms / "f16.gguf"), "pieces": [PASSAGE] * 10_000, "tokens": 10**9, "written": 10**9,
            "rounds": 1, "max_tokens": 1, "examples": [], "reference": None, "file": file.fileno(),
        }  # fmt: skip
        out, _ = process.communicate(json.dumps(request).encode() + b"\n", timeout=60)
    assert process.returncode == 0
    assert b'"event": "done"' not in out


class Dice:
    """A model whose logits follow from the token."""

    device, computes, vocabulary, begin = "cpu", None, 7, list[int]()

    def __init__(self, heat: float = 1.0) -> None:
        self._heat = heat

    def logits(self, tokens: Sequence[int]) -> Iterator[Any]:
        rows = np.stack([np.sin(np.arange(7) * (token + 1)) * 9 for token in tokens]).astype(np.float32)
        yield rows[:2] / self._heat
        yield rows[2:] / self._heat


def test_divergence_is_the_formulas(tmp_path: Path) -> None:
    windows = divergence.windows(([1, 2, 3, 4, 5], [6], [0, 1, 2, 3], [4, 5]), 4, 5)
    assert windows == [[1, 2, 3, 4], [0, 1, 2]]
    reference, other = Dice(), Dice(2.0)
    with (tmp_path / "kept").open("w+b") as file:
        (*_, first) = divergence.judge(reference, windows, written=divergence.Kept(file, 7))  # type: ignore[arg-type]
        file.flush()
        assert file.tell() == 5 * 7 * 2
        (*_, same) = divergence.judge(reference, windows, compared=divergence.Kept(file, 7))  # type: ignore[arg-type]
        (*_, far) = divergence.judge(other, windows, compared=divergence.Kept(file, 7))  # type: ignore[arg-type]
    assert (first.divergence, first.positions, first.nll) == (None, 5, same.nll)
    assert same.divergence is not None and 0 <= same.divergence < 1e-5
    kl, nll = list[float](), list[float]()
    for window in windows:
        for here, following in pairwise(window):
            p, q = (np.exp(np.sin(np.arange(7) * (here + 1)) * 9 / heat) for heat in (1.0, 2.0))
            p, q = p / p.sum(), q / q.sum()
            kl.append(float((p * np.log(p / q)).sum()))
            nll.append(-float(np.log(p[following])))
    assert far.divergence == pytest.approx(np.mean(kl), rel=1e-3)
    assert first.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": "another"}, "it splits the text into other tokens than the reference"),
        ({"vocabulary": 8}, "it knows another number of tokens than the reference"),
    ],
)
def test_another_tokenizer_has_a_perplexity_and_no_divergence(change: dict[str, Any], said: str) -> None:
    def likelihood(reference: Any) -> list[dict[str, Any]]:
        events = list[dict[str, Any]]()
        measuring = Measuring({"reference": reference, "file": file.fileno()}, events.append)
        measuring._windows = [[1, 2, 3, 4], [0, 1, 2]]
        measuring._likelihood(Dice())  # type: ignore[arg-type]
        return [event for event in events if event["event"] != "progress"]

    with tempfile.TemporaryFile() as file:
        first, told = likelihood(None)
        failed, found = likelihood({**told["reference"], **change})
    assert failed == {"event": "failed", "stage": "KL", "message": said}
    assert (found["perplexity"], found["divergence"]) == (first["perplexity"], None)


def test_no_room_for_the_reference_costs_the_divergence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda number: SimpleNamespace(f_bavail=1, f_frsize=4096))
    events = list[dict[str, Any]]()
    with tempfile.TemporaryFile() as file:
        measuring = Measuring({"reference": None, "file": file.fileno()}, events.append)
        measuring._windows = [[1, 2, 3, 4]]
        measuring._likelihood(Dice())  # type: ignore[arg-type]
        assert os.fstat(file.fileno()).st_size == 0
    failed = next(event for event in events if event["event"] == "failed")
    assert failed["message"].startswith("the reference's probabilities take 0.0 GB of the disk: make room there, set")
    assert events[-1]["perplexity"] > 1
    assert "reference" not in events[-1]


def test_the_best_of_a_column_is_marked() -> None:
    rows = [
        Row("a", "16-bit", "transformers", size=2_000_000, divergence=0.0, prompt_tokens_per_second=10.0),
        Row("b", "Q4_0", "llama.cpp", size=1_000_000, divergence=0.3, prompt_tokens_per_second=20.0, score=0.5),
        Row("c", "Q8_0", "llama.cpp", size=1_000_001, divergence=0.01, score=0.4, score_interval=(0.3, 0.5)),
    ]
    lines = table.lines(Comparison(rows, reference="a"))
    assert [re.findall(r"(\S+)\*", line) for line in lines[1:]] == [[], ["1.0", "20.0", "0.500"], ["1.0", "0.0100"]]
    assert "0.400 (0.300 to 0.500)" in lines[3]
    assert "GPU" not in lines[0]
    text = plots.page(Comparison(rows, reference="a"), ["KL < 1 & more"])
    assert "<p>KL &lt; 1 &amp; more</p>" in text
    assert text.count('class="best"') == 5
