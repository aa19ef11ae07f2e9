"""The page of a run's curves."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune.training import curves
from tests.conftest import ROOT

HISTORY: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "learning_rate": 1e-4, "tokens_per_second": 600.0, "epoch": 0.1},
    {"step": 10, "loss": 1.5, "learning_rate": 2e-4, "tokens_per_second": 640.0, "epoch": 1.0},
    {"step": 10, "eval_loss": 1.4, "eval_score": 0.25, "eval_f1": 0.31, "eval_runtime": 3.0, "epoch": 1.0},
    {"step": 20, "loss": 1.25, "learning_rate": 0.0, "tokens_per_second": 620.0, "epoch": 2.0},
    {"step": 20, "eval_loss": 1.6, "eval_score": 0.2, "eval_f1": 0.3, "epoch": 2.0},
    {"step": 20, "train_runtime": 60.0, "train_loss": 1.5},
]


def page(history: list[dict[str, Any]], folder: Path, best: int | None = None) -> str:
    return curves.write(history, folder, best).read_text("utf-8")


def test_the_page_holds_every_curve_and_needs_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "my <run>"
    folder.mkdir()
    text = page(HISTORY, folder, best=10)
    assert "<h1>my &lt;run&gt;</h1>" in text
    assert "Best checkpoint: checkpoint-10." in text
    assert "Last loss: training 1.25, validation 1.6." in text
    assert not re.search(r"(src|href)=\"(?!#)", text.replace("xlink:href", "href")), "it loads something"
    assert "@import" not in text and "url(http" not in text
    drawn = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.DOTALL)[0])  # type: ignore[index]
    said = {"".join(one.itertext()).strip() for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"loss", "scores on validation", "learning rate", "tokens per second", "step"} <= said
    assert {"training", "validation", "score", "f1"} <= said
    assert "runtime" not in said
    assert os.listdir(folder) == ["curves.html"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([], "Nothing was logged."),
        ([{"step": 1, "loss": 2.0}], "Last loss: training 2."),
        ([{"step": 1, "loss": float("nan")}], "The loss was no number at step 1."),
        ([{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("inf")}], "The loss was no number at step 2."),
        ([{"step": 1, "epoch": 1.0}, {"loss": 1.0}, {"step": 1, "loss": "two"}], "No checkpoint was compared"),
    ],
)
def test_odd_histories_make_a_page(tmp_path: Path, history: list[dict[str, Any]], said: str) -> None:
    assert said in page(history, tmp_path)


def test_it_takes_the_place_of_the_page_before(tmp_path: Path) -> None:
    first = page(HISTORY[:1], tmp_path)
    assert page(HISTORY, tmp_path) != first
    assert page(HISTORY, tmp_path) == page(HISTORY, tmp_path)


def test_a_home_that_cannot_be_written_to_is_no_hindrance(tmp_path: Path) -> None:
    code = "import pathlib, sys\nfrom finetune.training import curves\n"
    code += "curves.write([dict(step=1, loss=2)], pathlib.Path(sys.argv[1]))"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG", "MPL"))}
    env |= {"HOME": "/proc/nobody", "DISPLAY": ":77"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "<svg" in (tmp_path / "curves.html").read_text("utf-8")


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        curves.write([], tmp_path / "none")
