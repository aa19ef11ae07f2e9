"""The command `rag-finetune check`: what training would run on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import main
from rag_app.prompt import PROMPT_VERSION


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    given = json.loads(out)
    assert set(given) == {"base_model", "prompt_version", "device", "packages"}
    assert Path(given["base_model"]).is_file()
    assert given["prompt_version"] == PROMPT_VERSION
    assert given["device"]
    assert list(given["packages"]) == ["torch", "transformers", "peft", "trl", "bitsandbytes"]
    assert given["packages"]["torch"]
    assert all(version is None or version[0].isdecimal() for version in given["packages"].values())


def test_check_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, *packages = out.splitlines()
    assert first.startswith(f"base model SmolLM2-135M-Instruct.Q4_1.gguf, prompt version {PROMPT_VERSION}, device ")
    assert [line.split()[0] for line in packages] == ["torch", "transformers", "peft", "trl", "bitsandbytes"]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_missing_base_model_is_one_line(
    as_json: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAG_MODEL", str(tmp_path / "none.gguf"))
    assert main(["check", *as_json]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"rag-finetune: the model '{tmp_path}/none.gguf' does not exist. ")
    assert err.count("\n") == 1
    assert out == (json.dumps({"error": err.removeprefix("rag-finetune: ").strip()}) + "\n" if as_json else "")


@pytest.mark.parametrize("arguments", [[], ["train"], ["check", "extra"], ["check", "--nonsense"]])
def test_bad_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rag-finetune")
    assert err.endswith("--help\n")
    assert err.count("\n") == 1


def test_the_program_is_installed() -> None:
    program = Path(sys.executable).parent / "rag-finetune"
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rag-finetune ")
