"""The README: its Python runs as printed, and its four questions give the printed output again."""

import re
from pathlib import Path

import pytest

from rag_app.cli import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
TRIED = re.findall(r'```\n\$ rag-app ask "(.+?)"\n(.+?)\n```', README, re.DOTALL)


@pytest.fixture(scope="module")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose index the README's own Python built."""
    home = tmp_path_factory.mktemp("demo")
    (snippet,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAG_HOME", str(home))
        patch.chdir(ROOT)
        exec(snippet, {})
    return home


def test_there_are_four_questions() -> None:
    assert len(TRIED) == 4


@pytest.mark.parametrize(("question", "printed"), TRIED, ids=[question for question, _ in TRIED])
def test_questions_give_the_printed_output_again(
    question: str, printed: str, demo_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAG_HOME", str(demo_home))
    monkeypatch.chdir(ROOT)
    assert main(["ask", question]) == 0
    assert capsys.readouterr().out.rstrip() == printed


def test_what_make_runs_is_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^    make (\w+)", README, re.MULTILINE))
    assert targets == {"chat", "test"}
    assert all(f"\n{target}:" in makefile for target in targets)
