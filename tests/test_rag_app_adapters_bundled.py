"""The adapter that came with the program: whole, small, for the model beside it, in use, unlike the base."""

import json
import re
from pathlib import Path

import pytest

from index import folders
from rag_app.adapters import manifest
from rag_app.adapters.registry import BUNDLED, Registry
from rag_app.cli import main
from rag_app.engines.checkpoints import find
from rag_app.fingerprint import fingerprint
from rag_app.models import locate
from rag_app.questions import read_questions
from tests.conftest import ROOT

MACHINE = re.compile(r'"(?:[^"]*[ =:])?/[a-z]+/')
"""A path that begins at a root, in JSON."""


def test_it_is_whole_small_and_for_the_model_that_comes_with_the_program() -> None:
    assert folders.whole(BUNDLED) == ""
    assert (BUNDLED / manifest.GGUF).stat().st_size <= 10_000_000
    made = manifest.read(BUNDLED)
    manifest.check_prompts(made)
    manifest.check_base(made, locate().name, fingerprint(find(str(locate()))))
    names = {path.name for path in BUNDLED.iterdir()}
    assert names == {"README.md", "adapter.gguf", "complete.json", "heldout.jsonl", "manifest.json", "proof.json"}
    for name in ("manifest.json", "proof.json", "complete.json"):
        assert not MACHINE.search((BUNDLED / name).read_text("utf-8")), name


def test_an_installed_program_has_it() -> None:
    packaged = re.search(r"^package-data = .*", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert packaged and '"rag_app.adapters" = ["bundled/*"]' in packaged[0]


def test_it_says_how_it_was_made_and_what_was_measured() -> None:
    made, card = manifest.read(BUNDLED), (BUNDLED / "README.md").read_text("utf-8")
    test = made.scores["test"]
    assert test["adapter"]["n"] == test["base"]["n"] == 600
    for group, name in (("answers", "f1_answerable"), ("refusal", "f1"), ("citations", "precision")):
        assert test["adapter"][group][name] > test["base"][group][name]
        assert f"{test['adapter'][group][name]:.3f}" in card
    assert made.config["num_epochs"] and all(re.fullmatch("[0-9a-f]{64}", one["sha256"]) for one in made.data.values())
    assert "CC BY-SA 4.0" in card and "Apache-2.0" in card


def test_it_brings_questions_that_another_can_be_measured_on() -> None:
    questions = read_questions(BUNDLED / manifest.HELDOUT)
    assert len(questions) == 200
    assert {one.answerable for one in questions} == {True, False}


def test_it_answers_until_it_is_switched_off(
    real_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    def asked(*more: str) -> tuple[list[str], str]:
        told = json.loads(run("ask", "What is the lunch allowance?", "--index", str(real_index), "--json", *more))
        return told["adapters"], told["answer"]

    name = manifest.read(BUNDLED).name
    names, answer = asked()
    assert (names, re.sub(r" \[\d\]", "", answer)) == ([name], "14 euros a day")
    base = asked("--adapter", "off")
    assert base[0] == [] and len(base[1]) > len(answer)
    Registry().off()
    assert asked() == base
    assert run("adapters", "rollback") == f"in use: {name} (as the program came)\n"
    assert asked() == ([name], answer)
