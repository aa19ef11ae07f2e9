"""The line that tells how far a run is."""

import io
import os
import pty
import subprocess
import sys
from itertools import count

import pytest

from finetune.training import machine
from finetune.training.progress import Line
from tests.conftest import ROOT


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_it_is_a_line_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    line = Line(total=100, stream=stream, every=30, clock=clock)
    for step in range(1, 101):
        clock.now += 10
        if step == 1:
            line.log(step, {"loss": 2.5})
        line.step(step, step * 5000)
    told = stream.getvalue().splitlines()
    assert len(told) == 34  # every 30 s of 1,000, and at the end
    assert told[0].startswith("step 3 of 100: loss 2.500, 500 tokens/s, 16:10 left, ")
    assert told[0].endswith(")") and " GB (at most " in told[0]
    assert told[-1].startswith("step 100 of 100: loss 2.500, 500 tokens/s, 0:00 left, ")


def test_time_left_counts_evaluations_and_speed_does_not() -> None:
    clock = Clock()
    line = Line(total=10, stream=io.StringIO(), clock=clock)
    for step in range(1, 6):
        clock.now += 100 if step == 3 else 1  # an evaluation
        line.step(step, 700 * step)
    assert line.tokens_per_second == 700
    assert line.seconds_left == 104


def test_a_resumed_run_counts_its_own_steps_for_the_time_left() -> None:
    clock = Clock()
    line = Line(total=100, stream=io.StringIO(), clock=clock)
    assert line.seconds_left == line.tokens_per_second == 0
    for step in (91, 92):
        clock.now += 2
        line.step(step, 10)
    assert line.seconds_left == 16


def test_more_than_an_hour() -> None:
    clock, stream = Clock(), io.StringIO()
    line = Line(total=1000, stream=stream, every=0, clock=clock)
    clock.now = 10
    line.step(1, 1)
    assert "2:46:30 left" in stream.getvalue()


def test_validation_is_always_a_line() -> None:
    stream = io.StringIO()
    line = Line(total=100, stream=stream, clock=Clock())
    line.log(40, {"eval_loss": 0.5, "eval_score": 0.25, "epoch": 1.0, "eval_note": None})
    line.log(41, {"loss": "none", "train_runtime": 3})
    assert stream.getvalue() == "step 40: validation loss 0.500, score 0.250\n"


def test_a_line_of_validation_has_room_for_what_matters() -> None:
    found = {"eval_loss": 1.5, "eval_score": 0.25}
    for name in ("f1", "em", "f1_answerable", "em_answerable", "abstention_precision", "abstention_recall"):
        found[f"eval_question_answering_{name}"] = 0.5
    found |= {"eval_question_answering_abstention_f1": 0.75, "eval_text_generation_chrf": 31.25}
    told = {}
    for metric in ("score", "question_answering_em"):
        stream = io.StringIO()
        Line(total=100, metric=metric, stream=stream, clock=Clock()).log(1040, found)
        told[metric] = stream.getvalue()
    line = "loss 1.500, score 0.250, F1 answerable 0.500, F1 abstaining 0.750, chrF 31.250\n"
    assert told["score"] == f"step 1,040: validation {line}"
    assert told["question_answering_em"] == f"step 1,040: validation question_answering_em 0.500, {line}"


def test_on_a_terminal_it_is_one_line_that_changes() -> None:
    code = (
        "import sys\nfrom finetune.training.progress import Line\n"
        "line = Line(total=3)\n"
        "for step in (1, 2, 3):\n"
        "    line.log(step, {'loss': step / 4})\n    line.step(step, 10 * step)\n"
        "    if step == 2:\n        line.log(2, {'eval_loss': 0.125})\n"
        "line.close()\nline.close()\nprint('done')\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, text=True)
    os.close(theirs)
    shown = b""
    with pytest.raises(OSError):  # so a terminal ends
        for _ in count():
            shown += os.read(ours, 65536)
    os.close(ours)
    text = shown.decode()
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "step 1/3" in text and "loss 0.250" in text and "tokens/s" in text and "GB" in text
    assert "step 2: validation loss 0.125\r\n" in text
    assert text.count("\n") == 1


def test_memory_now_and_at_most() -> None:
    now, most = machine.used()
    assert 10 << 20 < now <= most
