"""The command `rag-finetune export`, on a tiny model, an adapter on it, and the same model tampered with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import methods
from finetune.cli import main
from finetune.commands.train import following
from finetune.config import checked
from finetune.errors import ExportInvalid
from finetune.example import Example, write_examples
from finetune.export import converter, export, gguf, gptq, merged, places, wanted
from finetune.training import machine
from index import folders
from index.generation import sha256
from rag_app.adapters import forms, manifest
from rag_app.engines import checkpoints
from rag_app.fingerprint import fingerprint
from rag_app.prompt import PROMPT_VERSION
from tests.conftest import ROOT
from tests.test_finetune_gguf import bytewise, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = bytewise()
    tiny(len(tokenizer)).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(model: Path, run: Path, **settings: Any) -> Path:
    """What a run leaves."""
    config = checked({"base_model": str(model), "lora_r": 2, **settings}, "here")
    source = checkpoints.find(str(model))
    base, tokenizer = checkpoints.load(source, "auto", "cpu")
    tuned = methods.attach(base, config, tokenizer, steps=4)
    for name, one in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.01, generator=torch.Generator().manual_seed(0))
    data = [Path(one.path) for one in config.datasets]
    with folders.staged(run / "adapter") as part:
        methods.save(tuned, part, config)
        ran = {**machine.what_ran(config, data, source), "method": config.adapter}
        (part / "run.json").write_text(json.dumps(ran))
        (part / "heldout.jsonl").write_text('{"question": "Who?", "answers": ["I"]}\n')
    return run


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA."""
    data = tmp_path_factory.mktemp("data") / "data.jsonl"
    write_examples([Example("1", "text_generation", "Say something.", "An okapi.")], data)
    return trained(model, tmp_path_factory.mktemp("runs") / "My run", datasets=[{"path": str(data)}])


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "My run"))


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()} if folder.is_dir() else set()


def exported(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = main(["export", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), out
    report: dict[str, Any] = json.loads(out)
    return report


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    assert main(["export", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("rag-finetune: ").rstrip()


def test_files_for_llama_cpp_with_their_proofs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = exported(capsys, run, "--to", "gguf", "--type", "f16,q4_0")
    assert [Path(one["place"]).name for one in report["exports"]] == ["My run-f16.gguf", "My run-Q4_0.gguf"]
    assert names(run / "export") == {
        "My run-f16.gguf", "My run-f16.gguf.proof.json", "My run-Q4_0.gguf", "My run-Q4_0.gguf.proof.json"
    }  # fmt: skip
    for one in report["exports"]:
        place = Path(one["place"])
        assert json.loads(place.with_name(f"{place.name}.proof.json").read_text()) == one["proof"]
        assert one["proof"]["file"] == {"bytes": place.stat().st_size, "sha256": sha256(place)}
        assert one["proof"]["source"]["adapter"] == str(run / "adapter")
        assert one["proof"]["source"]["base"] == "original"
    assert report["exports"][0]["proof"]["measured"]["difference"] < 0.05


def test_people_get_a_line_with_what_to_do_next(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "gguf"]) == 0
    out, err = capsys.readouterr()
    place = run / "export" / "My run-Q8_0.gguf"
    assert out.startswith(f"{place}: 0.2 MB, logits at most ")
    assert out.endswith(f"Use it: rag-app ask --model '{place}' QUESTION\n")
    assert err == ""


def test_the_adapter_alone_as_the_registry_takes_it(run: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = exported(capsys, run / "adapter", "--to", "gguf-lora")
    folder = run / "export" / "gguf-lora"
    assert [one["place"] for one in report["exports"]] == [str(folder)]
    assert names(folder) == {
        "adapter.gguf", "manifest.json", "run.json", "heldout.jsonl", "proof.json", "complete.json"
    }  # fmt: skip
    assert folders.whole(folder) == ""
    assert forms.check(folder, 2) == 2
    found = manifest.read(folder)
    assert (found.name, found.rank, found.method, found.prompt_version) == ("my-run", 2, "lora", PROMPT_VERSION)
    assert found.base == {"name": "tiny", "fingerprint": fingerprint(checkpoints.find(str(model)))}
    assert (folder / "run.json").read_bytes() == (run / "adapter" / "run.json").read_bytes()
    proven = json.loads((folder / "proof.json").read_text())
    assert proven["measured"]["difference"] < 0.05
    assert proven["file"]["sha256"] == sha256(folder / "adapter.gguf")


def test_an_adapter_that_peft_wrote_is_taken(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / "adapter" / name, bare)
    settings = json.loads((bare / "adapter_config.json").read_text())
    (bare / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone"}))
    said = refused(capsys, bare, "--to", "gguf-lora")
    assert said.endswith("was trained on '/gone', which is not here: give it with --model")
    exported(capsys, bare, "--to", "gguf-lora", "--model", model, "--out", tmp_path / "out")
    assert manifest.read(tmp_path / "out").base["name"] == "tiny"


def test_16_bits_for_transformers(run: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = exported(capsys, run, "--to", "merged")
    folder = run / "export" / "merged"
    assert folders.whole(folder) == ""
    assert {"model.safetensors", "config.json", "tokenizer.json", "proof.json"} <= names(folder)
    assert report["exports"][0]["proof"]["engine"] == "transformers"
    ours, theirs = (load_file(one / "model.safetensors") for one in (folder, model))
    assert {one.dtype for one in ours.values()} == {torch.bfloat16}
    assert not torch.equal(ours["model.layers.0.mlp.up_proj.weight"], theirs["model.layers.0.mlp.up_proj.weight"])


def test_a_run_on_4_bits_has_two_bases(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(model, tmp_path / "q", adapter="qlora")
    found = {}
    for base in ("original", "dequantised"):
        report = exported(capsys, run, "--to", "gguf", "--type", "f16", "--base", base, "--out", tmp_path / base)
        found[base] = report["exports"][0]["proof"]
        assert found[base]["source"]["base"] == base
    assert found["original"]["file"]["sha256"] != found["dequantised"]["file"]["sha256"]


def test_what_is_no_lora_is_merged_and_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(model, tmp_path / "d", adapter="dora")
    said = refused(capsys, run, "--to", "gguf-lora")
    assert "cannot be a GGUF LoRA, as it has a magnitude for each row (DoRA): give --to gguf, which merges it" in said
    report = exported(capsys, run, "--to", "gguf", "--type", "f32")
    assert report["notes"][0].startswith("merged into the weights for good, as it has a magnitude for each row (DoRA)")
    assert report["exports"][0]["proof"]["measured"]["difference"] < 1e-3
    run = trained(model, tmp_path / "p", adapter="prompt-tuning")
    for target in ("gguf-lora", "gguf", "merged"):
        assert "cannot be exported, as it adds virtual tokens" in refused(capsys, run, "--to", target)


def test_llama_cpp_s_converter_takes_the_merged_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(script: Path, folder: Path, file: Path, kind: Any, progress: Any) -> None:
        assert script == tmp_path / "convert.py"
        found, tokenizer = checkpoints.load(checkpoints.find(str(folder)), "auto", "cpu")
        gguf.write(found.float(), tokenizer, file, kind)

    monkeypatch.setattr(converter, "convert", convert)
    report = exported(capsys, run, "--to", "gguf", "--type", "f16", "--converter", tmp_path / "convert.py")
    assert report["exports"][0]["proof"]["measured"]["difference"] < 0.2


def test_gptq_is_calibrated_on_what_the_run_was_trained_on(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not find_spec("gptqmodel"):
        assert "needs gptqmodel" in refused(capsys, run, "--to", "gptq")
    given: list[Any] = []

    def write(source: Path, folder: Path, bits: int, group: int, rows: list[list[int]], progress: Any) -> None:
        given.extend([bits, group, len(rows)])
        shutil.copytree(source, folder, dirs_exist_ok=True)

    monkeypatch.setattr(gptq, "check", lambda *asked: None)
    monkeypatch.setattr(gptq, "write", write)
    report = exported(capsys, run, "--to", "gptq", "--bits", 8)
    assert given == [8, 64, 1]
    proven = report["exports"][0]["proof"]
    assert (proven["type"], proven["engine"]) == ("gptq-8", "transformers")
    assert proven["limits"]["divergence"] == 0.03
    assert "proof.json" in names(run / "export" / "gptq")


def test_a_whole_model_that_was_trained(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(model, tmp_path / "whole", adapter="full")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model / name).is_file():
            shutil.copy(model / name, run / "adapter")
    report = exported(capsys, run, "--to", "gguf", "--type", "f16")
    assert report["exports"][0]["place"] == str(run / "export" / "whole-f16.gguf")


def test_a_model_without_an_adapter(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plain.gguf"
    exported(capsys, model, "--to", "gguf", "--type", "bf16", "--out", out)
    assert names(tmp_path) >= {"plain.gguf", "plain.gguf.proof.json"}
    assert "is a whole model, and no adapter: give --to gguf" in refused(capsys, model, "--to", "gguf-lora")


def test_what_is_there_stays_without_force(run: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = run / "export" / "My run-f16.gguf"
    place.parent.mkdir()
    place.write_text("old")
    said = refused(capsys, run, "--to", "gguf", "--type", "f16")
    assert said == f"'{place}' is there already: give another --out, or replace it with --force"
    assert place.read_text() == "old"
    exported(capsys, run, "--to", "gguf", "--type", "f16", "--force")
    assert place.stat().st_size > 1000
    for read in (model, run / "adapter", run):
        assert "is what is read" in refused(capsys, run, "--to", "merged", "--out", read, "--force")
    assert folders.whole(run / "adapter") == ""
    (run.parent / "letters").mkdir()
    (run.parent / "letters" / "one.txt").write_text("Dear")
    said = refused(capsys, run, "--to", "merged", "--out", run.parent / "letters", "--force")
    assert "holds what is none of ours" in said
    said = refused(capsys, run, "--to", "gguf", "--type", "f16,f32", "--out", run / "x.gguf")
    assert "is one file, and 2 types are as many" in said


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("--to", "gguf", "--type", "Q4_KM"), "llama.cpp has no type 'Q4_KM': did you mean Q4_K_M?"),
        (("--to", "gguf", "--type", "f16,,"), "llama.cpp has no type '': give one such as Q8_0"),
        (("--to", "merged", "--type", "f16"), "--type is for --to gguf and gguf-lora: leave it out"),
        (("--to", "gguf-lora", "--type", "Q4_0"), "--type of gguf-lora is f16 or f32"),
        (("--to", "gguf", "--bits", "4"), "--bits is for --to gptq: leave it out"),
        (("--to", "gguf", "--group-size", "64"), "--group-size is for --to gptq"),
    ],
)
def test_bad_usage(run: Path, arguments: tuple[str, ...], phrase: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert phrase in refused(capsys, run, *arguments, code=2)
    assert names(run) == {"adapter"}


def test_what_cannot_be_exported_is_one_line(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(capsys, tmp_path / "none", "--to", "gguf")
    assert "is neither an adapter nor a model: name the folder of a run" in said
    said = refused(capsys, run, "--to", "gguf", "--base", "dequantised")
    assert "was not trained on weights of 4 bits: leave out --base dequantised" in said
    other = Path(shutil.copytree(model, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    assert refused(capsys, other, "--to", "gguf").endswith("use llama.cpp's own converter: --converter")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100_000))
    said = refused(capsys, run, "--to", "gguf", "--type", "f16,Q4_0")
    assert said.startswith(f"there is no room in '{run / 'export'}': this takes 0.5 MB, and 0.1 MB are free")
    assert names(run / "export") == set()


def test_a_run_without_an_adapter_says_how_it_goes_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "cut"
    run.mkdir()
    (run / "data.json").write_text("{}")
    said = f"the run in '{run}' was cut short before its first checkpoint: train again"
    assert refused(capsys, run, "--to", "gguf-lora") == said
    shutil.copytree(made / "adapter", run / "checkpoint-4")
    said = (
        f"'{run}' holds the checkpoints of a run that was cut short: rag-finetune train CONFIG.yaml --resume goes on "
        "from them"
    )
    assert refused(capsys, run, "--to", "gguf-lora") == refused(capsys, run / "adapter", "--to", "gguf") == said
    assert main(["evaluate", str(run), "--data", "x"]) == main(["compare", str(run)]) == 1
    assert capsys.readouterr().err.count(said) == 3
    with folders.held(run):
        assert "is not at its end yet: wait for it" in refused(capsys, run, "--to", "gguf")
    exported(capsys, run / "checkpoint-4", "--to", "gguf", "--type", "f16")


def test_a_remedy_names_a_flag_that_the_command_has(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("none")
    none = f"the folder '{tmp_path}' holds no config.json, so it is no model of Transformers"
    assert refused(capsys, tmp_path, "--to", "gguf") == f"{none}: name another"
    said = refused(capsys, tmp_path / "notes", "--to", "gguf")
    assert said == f"the model '{tmp_path / 'notes'}' is not a GGUF file: name another"
    said = refused(capsys, run, "--to", "gguf", "--model", tmp_path)
    assert said == f"{none}: give another with --model"
    for arguments in ((run, "--base", tmp_path), ("base", "--base", tmp_path)):
        assert main(["evaluate", *map(str, arguments), "--data", "x"]) == 1
        assert capsys.readouterr().err == f"rag-finetune: {none}: give another with --base\n"


def test_ctrl_c_says_what_was_written(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write", write)
        for to in ("gguf", "gguf-lora"):
            said = refused(capsys, run, "--to", to, code=130)
            assert said == "interrupted; nothing was written: run it again"
    assert names(run / "export") == set()
    publish, left = places.publish, [None]

    def once(*given: Any) -> None:
        publish(*given)
        left.pop()

    def prove(*given: Any) -> Any:
        if not left:
            raise KeyboardInterrupt
        return proof(*given)

    proof = export._Job._prove
    monkeypatch.setattr(places, "publish", once)
    monkeypatch.setattr(export._Job, "_prove", prove)
    said = refused(capsys, run, "--to", "gguf", "--type", "Q8_0,Q4_0", code=130)
    assert said == "interrupted; nothing was written but My run-Q8_0.gguf: run it again for the rest"
    assert names(run / "export") == {"My run-Q8_0.gguf", "My run-Q8_0.gguf.proof.json"}


def test_progress_says_what_is_written(run: Path) -> None:
    told: list[str] = []
    asked = wanted.Wanted(to="gguf-lora", types=("f16",))
    export.export(str(run), asked, None, lambda stage, done, total: told.append(stage), told.append)
    assert any(one.startswith("writing the base to prove it on, ") for one in told)
    assert not any(one.startswith("writing f16") for one in told)


def test_what_follows_training_is_what_the_method_can_become(made: Path, model: Path, tmp_path: Path) -> None:
    told = following(made / "adapter")
    assert told[0] == f"compare it with its base: rag-finetune evaluate '{made / 'adapter'}' --data FILE"
    assert told[1] == f"make it ready for the chat: rag-finetune export '{made / 'adapter'}' --to gguf-lora"
    assert following(trained(model, tmp_path / "d", adapter="dora") / "adapter")[1].endswith("--to gguf")
    assert following(trained(model, tmp_path / "w", adapter="full") / "adapter")[1].endswith("--to gguf")
    assert len(following(trained(model, tmp_path / "p", adapter="prompt-tuning") / "adapter")) == 1


def test_a_lie_leaves_no_file_and_the_old_one_whole(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run / "export" / "My run-Q8_0.gguf"
    place.parent.mkdir()
    place.write_text("old")
    monkeypatch.setattr(gguf, "permuted", lambda rows, heads: rows)
    said = refused(capsys, run, "--to", "gguf", "--force")
    assert "what was written as f16 is not the model that it was made of" in said
    assert "the difference of its logits is" in said
    assert names(run / "export") == {place.name}
    assert place.read_text() == "old"
    assert "is not the model that it was made of" in refused(capsys, run, "--to", "gguf-lora")
    assert names(run / "export") == {place.name}
    monkeypatch.undo()
    monkeypatch.setattr(merged, "fold", lambda tuned, width: tuned.unload())
    assert "written as merged is not the model" in refused(capsys, run, "--to", "merged")
    assert names(run / "export") == {place.name}


def test_two_exports_to_one_place_do_not_mix(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "export").mkdir()
    with folders.held(run / "export"):
        said = refused(capsys, run, "--to", "gguf")
    assert "another export is writing into" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 250 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_loses_nothing(
    run: Path, small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "x.gguf").write_bytes(b"old" * 1000)
    monkeypatch.setattr(places, "check_room", lambda *given: None)  # another program fills it meanwhile
    for target in (("gguf", "--type", "f16", "--out", small_disk / "x.gguf"), ("merged", "--out", small_disk / "m")):
        assert "No space left on device" in refused(capsys, run, "--force", "--to", *target)
        assert names(small_disk) == {"x.gguf"}
    assert (small_disk / "x.gguf").read_bytes() == b"old" * 1000


CHILD = """
import json, os, signal, sys
from pathlib import Path
from finetune.export import export, places, proof
from finetune.export.origin import Origin
from finetune.export.wanted import Wanted
from index import folders
from rag_app.engines.checkpoints import Source

class Proof(proof.Proof):
    def __init__(self, text):
        object.__setattr__(self, "text", text)
    def write(self, file):
        file.write_text(self.text)

def instant(event, arguments):
    # Every file that is opened, folder that is made or renamed is an instant to be killed at.
    global left
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Job(export._Job):
    def _write(self, kinds, wanted):
        self._file("f16").parent.mkdir()
        self._file("f16").write_text("plain")
        return None, None
    def _quantise(self, file, kind, matrix):
        file.write_text("new")
    def _prove(self, file, kind, right, adapter=None):
        return Proof("of " + file.read_text())

def run(out):
    with places.work(out) as work:
        job = Job(Origin("x", out, Source("x", "x")), Wanted(to="gguf"), work, {}, None, None)
        job.gguf({"Q8_0": out / "x.gguf"})

def state(out):
    return {one.name: one.read_text() for one in out.iterdir() if one.is_file()}

found = []
for number in range(1000):
    out = Path(sys.argv[1], str(number))
    out.mkdir()
    (out / "x.gguf").write_text("old")
    (out / "x.gguf.proof.json").write_text("of old")
    if not (child := os.fork()):
        left = number
        sys.addaudithook(instant)
        run(out)
        os._exit(0)
    ended = os.waitpid(child, 0)[1] == 0
    found.append(state(out))
    with places.work(out):
        found[-1]["left"] = [one.name for one in out.iterdir() if one.name.startswith(".")][1:]
    if ended:
        break
print(json.dumps(found))
"""


def test_killed_at_any_instant_the_old_file_or_the_new_one_is_there(tmp_path: Path) -> None:
    """Kills a process with SIGKILL before each thing that it does on the disk, from the first to the last."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    states = json.loads(done.stdout)
    assert len(states) > 15
    assert {one["x.gguf"] for one in states} == {"old", "new"}
    for one in states:
        assert set(one) == {"x.gguf", "x.gguf.proof.json", "left"}
        assert one["left"] == []  # what was killed is cleared away by the next one
        if one["x.gguf"] == "new":  # which never stands without its proof
            assert one["x.gguf.proof.json"] == "of new"
    assert sum(one["x.gguf.proof.json"] != f"of {one['x.gguf']}" for one in states) <= 1  # between two renames


def test_types_are_known_by_any_case() -> None:
    assert wanted.types("F16, q4_k_m,f16") == ("f16", "Q4_K_M")
    with pytest.raises(ExportInvalid, match=r"no type '4': did you mean"):
        wanted.types("4")
    assert [places.amount(count) for count in (300_000, 271e6, 4.2e9)] == ["0.3 MB", "271.0 MB", "4.2 GB"]
