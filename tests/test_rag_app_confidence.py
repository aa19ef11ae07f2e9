"""Confidence tells questions about the documents from others; its threshold is chosen, kept and ignored with care."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from index import Hit, Index, RagError, build
from index.beir import DatasetInvalid
from index.maintain import collect_garbage, verify
from rag_app import confidence as confident
from rag_app.confidence import (
    DEFAULT,
    FILE,
    Calibration,
    auc,
    calibrate,
    calibration,
    choose,
    common,
    confidence,
    judged,
    keep,
    threshold,
)
from rag_app.questions import Question
from tests.conftest import WordEncoder, copy_of
from tests.test_rag_app_evaluate import Run, run, written

__all__ = ["run"]  # a fixture

ABOUT = [
    "Where does the okapi live?",
    "How long is the tongue of an okapi?",
    "How much is the lunch allowance?",
    "How often must the oil be changed?",
    "Which animal keeps its gills for life?",
]
FOREIGN = [
    "Who won the chess world cup in 1997?",
    "What is the boiling point of mercury?",
    "When was the Treaty of Westphalia signed?",
    "Which composer wrote Fidelio?",
    "How do I sort a list in Haskell?",
]


def hit(cosine: float | None, text: str = "", heading: str = "") -> Hit:
    return Hit(1, 1.0, "c", "/a.md", None, heading, 0, len(text), text, cosine, 1.0)


@pytest.fixture
def directory(facts: Path, tmp_path: Path, encoder: WordEncoder) -> Path:
    build([facts], tmp_path / "index", encoder=encoder)
    return tmp_path / "index"


def test_it_weighs_cosine_and_common_words_of_one_passage() -> None:
    hits = [hit(0.8, "nothing in common"), hit(0.6, "okapis were living there", "Animals")]
    assert confidence("Where do okapi live?", hits) == pytest.approx(0.7 * 0.6 + 0.3)
    assert confidence("Where do zebras live?", hits) == pytest.approx(max(0.7 * 0.8, 0.7 * 0.6 + 0.3 * 0.5))
    assert common(frozenset({"anim"}), hit(0.1, "", "Animals")) == 1


def test_it_stays_between_0_and_1() -> None:
    assert confidence("okapi", []) == 0
    assert confidence("okapi", [hit(None, "okapi")]) == pytest.approx(0.3)
    assert confidence("okapi", [hit(-0.4, "zebra")]) == 0
    assert confidence("okapi", [hit(1.005, "okapi")]) == 1
    assert confidence("what is it?", [hit(0.5, "what is it")]) == 0.5  # no content words: the cosine alone
    assert confidence("¿?", [hit(0.5)]) == 0.5


def test_only_the_first_four_count() -> None:
    hits = [hit(0.2)] * 4
    assert confidence("okapi", [*hits, hit(0.9, "okapi")]) == confidence("okapi", hits)


def test_the_default_tells_foreign_questions(real_index: Path, real_encoder: Any) -> None:
    with Index.open(real_index, real_encoder) as index:
        sure = {question: confidence(question, index.search(question, 4)) for question in ABOUT + FOREIGN}
    assert all(sure[question] >= DEFAULT for question in ABOUT)
    assert all(sure[question] < DEFAULT for question in FOREIGN)
    assert auc([sure[q] for q in ABOUT], [sure[q] for q in FOREIGN]) == 1


def test_kept_and_read_again(directory: Path, encoder: WordEncoder) -> None:
    with Index.open(directory, encoder) as index:
        assert calibration(index) == Calibration()
        keep(index, Calibration(0.9))
        path = keep(index, Calibration(0.4, {"lost": 1}, {"f1": 0.5}))
        assert path == directory / FILE
        assert calibration(index) == Calibration(0.4, {"lost": 1}, {"f1": 0.5})
        assert threshold(index) == 0.4
    assert not list(directory.glob(".*"))  # no drafts


def test_the_index_keeps_it(directory: Path, facts: Path, encoder: WordEncoder) -> None:
    with Index.open(directory, encoder) as index:
        keep(index, Calibration(0.4))
    assert verify(directory)[1] == []
    collect_garbage(directory)
    build([facts], directory, encoder=encoder, rebuild=True)
    assert verify(directory)[1] == []
    with Index.open(directory, encoder) as index:
        assert threshold(index) == 0.4


def test_one_of_another_encoder_does_not_count(directory: Path, facts: Path, encoder: WordEncoder) -> None:
    with Index.open(directory, encoder) as index:
        keep(index, Calibration(0.9))
    other = WordEncoder("others")
    build([facts], directory, encoder=other, rebuild=True)
    with Index.open(directory, other) as index:
        found = calibration(index)
    assert found.threshold == DEFAULT
    assert "is of another encoder and does not count: run rag-app calibrate" in found.note


def test_one_of_another_formula_does_not_count(
    directory: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(directory, encoder) as index:
        keep(index, Calibration(0.9))
        monkeypatch.setattr(confident, "VERSION", confident.VERSION + 1)
        assert "another version" in calibration(index).note


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"threshold": 0.5',
        b'{"threshold": NaN}',
        b'{"threshold": true}',
        b'{"threshold": "0.5"}',
        b'{"threshold": 1.5}',
        b'{"threshold": -1}',
        b'{"encoder": {}}',
        b"[" * 60_000,
        b" " * (1 << 17),
    ],
)
def test_a_damaged_one_does_not_count(directory: Path, encoder: WordEncoder, damage: bytes) -> None:
    (directory / FILE).write_bytes(damage)
    with Index.open(directory, encoder) as index:
        found = calibration(index)
    assert (found.threshold, found.counts, found.scores) == (DEFAULT, {}, {})
    assert "cannot be read" in found.note


def test_odd_values_beside_the_threshold_do_not_reach_anybody(directory: Path, encoder: WordEncoder) -> None:
    with Index.open(directory, encoder) as index:
        path = keep(index, Calibration(0.4))
        path.write_text(json.dumps({**json.loads(path.read_text()), "counts": "many", "scores": [1]}))
        assert calibration(index) == Calibration(0.4)


def test_what_is_no_file_does_not_count(directory: Path, encoder: WordEncoder) -> None:
    with Index.open(directory, encoder) as index:
        (directory / FILE).mkdir()
        assert "cannot be read" in calibration(index).note
        with pytest.raises(RagError, match=r"calibration\.json' is a folder, .*: move it away"):
            keep(index, Calibration(0.4))
        (directory / FILE).rmdir()
        os.mkfifo(directory / FILE)  # would make the reader wait
        assert "cannot be read" in calibration(index).note
        keep(index, Calibration(0.4))
        assert threshold(index) == 0.4


def test_a_threshold_between_kinds_far_apart_keeps_away_from_both() -> None:
    assert choose([0.8, 0.7, 0.6], [0.1, 0.2], 0.0) == pytest.approx(0.4)
    assert choose([0.6], [0.7, 0.9], 0.0) == pytest.approx(0.3)  # nothing to gain above


def test_a_threshold_never_loses_more_than_allowed() -> None:
    draw = random.Random(0)
    for _ in range(500):
        answerable = [round(draw.random(), draw.choice((1, 4))) for _ in range(draw.randint(1, 60))]
        unanswerable = [round(draw.random(), 1) for _ in range(draw.randint(1, 60))]
        lost = draw.choice((0.0, 0.02, 0.1, 0.5, 0.99))
        value = choose(answerable, unanswerable, lost)
        counts, scores = judged(answerable, unanswerable, value)
        assert scores["lost"] <= lost
        other = max(v for v in {*answerable, *unanswerable, 1.0} if judged(answerable, [0.0], v)[1]["lost"] <= lost)
        assert counts["refused"] == judged(answerable, unanswerable, other)[0]["refused"]  # and refuses the most


def test_auc_is_the_share_of_pairs_in_order() -> None:
    draw = random.Random(1)
    above = [round(draw.random() + 0.2, 1) for _ in range(40)]
    below = [round(draw.random(), 1) for _ in range(30)]
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    assert auc(above, below) == pytest.approx(sum(pairs) / len(pairs))


def test_too_few_questions_are_refused(directory: Path, encoder: WordEncoder) -> None:
    questions = [Question("", text, (), True) for text in ABOUT * 4] + [Question("", "x", (), False)] * 9
    with Index.open(directory, encoder) as index, pytest.raises(DatasetInvalid) as error:
        calibrate(index, [*questions, Question("", "unlabelled")])
    assert "20 questions are answerable and 9 are not: give at least 10 of each kind" in str(error.value)


def test_the_command_keeps_what_a_real_index_needs(real_index: Path, tmp_path: Path, run: Run) -> None:
    directory = copy_of(real_index, tmp_path / "index")
    rows = [{"question": text, "answerable": True} for text in ABOUT * 2]
    rows += [{"question": text, "answerable": False} for text in FOREIGN * 2]
    questions = written(tmp_path / "q.jsonl", *rows)
    code, stdout, stderr = run("calibrate", questions, "--index", directory, "--json")
    assert (code, stderr) == (0, "")
    report = json.loads(stdout)
    assert report["counts"] == {"answerable": 10, "unanswerable": 10, "lost": 0, "refused": 10}
    assert report["scores"] == {"precision": 1, "recall": 1, "f1": 1, "lost": 0, "auc": 1}
    assert report["before"] == DEFAULT
    with Index.open(directory) as index:
        assert threshold(index) == report["threshold"]
    code, stdout, _ = run("calibrate", questions, "--index", directory, "--lost", "0.5")
    assert code == 0
    assert f"(before: {report['threshold']:.3f})" in stdout


@pytest.mark.parametrize("lost", ["1", "-0.1", "nan", "x"])
def test_a_bad_share_is_bad_usage(run: Run, tmp_path: Path, lost: str) -> None:
    code, _, stderr = run("calibrate", tmp_path / "q.jsonl", f"--lost={lost}")
    assert code == 2
    assert f"'{lost}' is not a number from 0 to below 1" in stderr
