"""`rag-finetune dataset`: from documents, questions and ratings to a file of examples, by the program itself."""

import json
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

from finetune.cli import main
from finetune.commands import dataset as command
from finetune.config import Data
from finetune.data.dataset import Settings, assemble, drawn, read, unrepeated
from finetune.data.report import Report
from finetune.errors import RecordInvalid
from finetune.example import Example, read_examples
from index import Index, build
from index.errors import RagError
from rag_app.evaluate import index_corpus
from rag_app.prompt import NOT_FOUND
from tests.conftest import WordEncoder
from tests.test_rag_app_evaluate import written

SQUAD = Path(__file__).parents[2] / "shared" / "data" / "squad"
QUESTIONS = [
    {"question": "Where does the okapi live?", "answer": "the Ituri rainforest", "source_file": "animals.md"},
    {"question": "How long is the tongue of the okapi?", "answer": "45 centimetres", "source_file": "animals.md"},
    {"question": "What does the axolotl keep for life?", "answer": "its gills", "source_file": "animals.md"},
    {"question": "How much is the lunch allowance?", "answer": "14 euros a day", "source_file": "lunch.txt"},
    {
        "question": "How often is the oil to be changed?",
        "answer": "every 7500 kilometres",
        "source_file": "engine.html",
    },
    {"question": "Who pays for dinner?", "answerable": False, "source_file": "lunch.txt"},
]
RATED = {
    "id": "c/1", "chat": "c", "question": "How long is it?", "answer": "45 centimetres. [1]", "correction": "",
    "rating": 1, "refused": False, "history": [], "citations": [{"n": 1}],
    "passages": [{"n": 1, "text": "Its tongue is 45 centimetres long.", "source": "/docs/animals.md"}],
}  # fmt: skip


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Exit code, what `--json` prints, and stderr."""
    code = main(["dataset", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return written(tmp_path / "questions.jsonl", *QUESTIONS)


def test_questions_and_ratings_become_a_file(
    questions: Path, real_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feedback, out = written(tmp_path / "rated.jsonl", RATED), tmp_path / "data.jsonl"
    arguments = ["--index", real_index, "--questions", questions, "--feedback", feedback, "-k", 2, "--val-share", 0.3]
    code, report, err = told(capsys, *arguments, "--out", out)
    assert (code, err) == (0, "")
    made = list(read_examples(out))
    first = out.read_bytes()
    assert report["out"] == str(out)
    assert report["examples"] == len(made)
    assert report["questions"] == 6
    assert report["golden_found"] == 1.0
    assert sum(report["groups"].values()) == len({(one.passages, one.part) for one in made if one.id != "c/1"})
    assert set(report["reasons"]) <= {"answered", "unanswerable", "taken out"}
    refused = [one for one in made if not one.answerable]
    assert {one.answer for one in refused} == {NOT_FOUND}
    assert 5 * len(refused) >= len(made) - 1
    for one in made:
        assert one.task == "question_answering"
        if one.golden is not None and one.id != "c/1":
            assert one.answer in one.passages[one.golden]
            assert len(one.passages) == 2
    parts = {(one.document, one.part) for one in made}
    assert len(parts) == len({document for document, _ in parts})
    assert {part for _, part in parts} == {"train", "validation"}
    [kept] = [one for one in made if one.id == "c/1"]
    assert (kept.passages, kept.answer) == ((RATED["passages"][0]["text"],), "45 centimetres.")  # type: ignore[index]

    assert told(capsys, *arguments, "--out", out)[0] == 1  # it is there
    assert told(capsys, *arguments, "--out", out, "--force")[0] == 0
    assert out.read_bytes() == first


def test_without_questions_patterns_write_some(
    real_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data.jsonl"
    code = main(["dataset", "--index", str(real_index), "--generate", "20", "--out", str(out), "--val-share", "0"])
    said, err = capsys.readouterr()
    assert (code, err) == (0, "")
    made = {one.question: one for one in read_examples(out)}
    assert made["How often should you change the oil?"].answer == "every 7500 kilometres"
    assert "questions that were written came through" in said
    assert said.endswith(f"written to {out}\n")
    assert "search finds the passage of 100.0%" in said


def writer() -> FakeListChatModel:
    """For --engine langchain: a question on the oil, and its answer."""
    form = "Question: How often does an engine need new oil?\nAnswer: every 7500 kilometres"
    return FakeListChatModel(responses=[form, "Every 7500 kilometres."])


def test_a_model_writes_questions(real_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--writer", "tests.test_finetune_dataset:writer", "--engine", "langchain"]
    code, report, err = told(
        capsys, *model, "--index", real_index, "--generate", 1, "--out", tmp_path / "o", "--without-golden", 0.5
    )
    assert err == ""
    assert code == 0
    assert report["written"]["kept"] == 1
    assert report["reasons"] == {"answered": 1, "taken out": 1}
    first, second = read_examples(tmp_path / "o")
    assert (first.answer, second.answer) == ("every 7500 kilometres", NOT_FOUND)
    assert first.passages != second.passages
    assert second.id == f"{first.id}~2"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "there is nothing to ask: give --questions FILE"),
        (("--questions", "{q}", "--writer"), 2, "--writer has nothing to write"),
        (("--questions", "{q}", "--index", "x", "--corpus", "y"), 2, "exclude each other"),
        (("--generate", "0"), 2, "'0' is not a whole number above 0"),
        (("--questions", "{q}", "--val-share", "2"), 2, "'2' is no share"),
        (("--questions", "{q}", "--val-share", "0.6", "--test-share", "0.6"), 2, "more than all"),
        (("--questions", "{q}", "--without-golden", "1"), 2, "would leave nothing to answer"),
        (("--questions", "{q}", "--column", "frage=x"), 2, "write NAME=COLUMN"),
        (("--questions", "{q}", "-k", "0"), 2, "k is 0"),
        (("--questions", "{q}"), 1, "there is no index"),
        (("--questions", "none.jsonl"), 1, "'none.jsonl' cannot be read"),
        (("--questions", "{q}", "--corpus", "none.jsonl"), 1, "'none.jsonl' cannot be read"),
        (("--questions", "{bad}"), 1, "{bad}:2: 'answer' is 3"),
        (("--questions", "{q}", "--out", "{q}", "--force"), 1, "is what is read"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = written(questions.with_name("bad.jsonl"), QUESTIONS[0], {"question": "?", "answer": 3})
    names = {"q": str(questions), "bad": str(bad)}
    out = questions.with_name("data.jsonl")
    given = [one.format(**names) for one in arguments]
    assert main(["dataset", "--out", str(out), *given]) == code
    said, err = capsys.readouterr()
    assert said == ""
    assert err.count("\n") == 1
    assert message.format(**names) in err
    assert not out.exists()


def test_an_index_of_another_encoder(
    questions: Path, tmp_path: Path, encoder: WordEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Something is said here.", "utf-8")
    build([folder], tmp_path / "index", encoder=encoder)
    arguments = [
        "dataset",
        "--questions",
        str(questions),
        "--index",
        str(tmp_path / "index"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "the index was built with 'words'" in err
    assert err.count("\n") == 1


def test_bad_records_are_skipped_where_it_is_said(
    questions: Path, real_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = written(questions.with_name("mixed.jsonl"), *QUESTIONS[:2], "{", {"question": "Where?"}, {"question": 3})
    code, report, _ = told(
        capsys, "--index", real_index, "--questions", mixed, "--on-bad-record", "skip", "--out", tmp_path / "o"
    )
    assert code == 0
    assert report["questions"] == 2
    places = [place.rpartition(":")[2] for one in report["dropped"] for place in one["first"]]
    assert sorted(places) == ["3", "4", "5"]


# of the library


def test_files_of_every_kind(tmp_path: Path, facts: Path) -> None:
    own = {
        "instruction": "How long is its tongue?",
        "context": FACT,
        "response": "45 centimetres",
        "category": "closed_qa",
    }
    files = [
        written(tmp_path / "labelled.jsonl", *QUESTIONS),
        written(tmp_path / "dolly.jsonl", own, {**own, "instruction": "Shorten it.", "category": "summarization"}),
        written(tmp_path / "table.csv", "Frage,Antwort", "Wer?,Ann"),
    ]
    data = [*(Data(path=str(file)) for file in files[:2]), Data(path=str(files[2]), question="Frage", answer="Antwort")]
    report = Report()
    asked, kept = read(data, "stop", report)
    assert [one.question for one in asked[-2:]] == ["How long is its tongue?", "Wer?"]
    assert [one.task for one in kept] == ["summarization"]
    assert asked[-2].given is not None
    assert report.dropped == []


FACT = "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long."


def test_a_text_of_its_own_is_looked_for_in_the_index(tmp_path: Path, encoder: WordEncoder) -> None:
    corpus = written(
        tmp_path / "corpus.jsonl", *({"_id": str(n), "text": text} for n, text in enumerate([FACT, "None."]))
    )
    directory, prefix = index_corpus(corpus, encoder)
    inside = Example("1", "question_answering", "How long is its tongue?", "45 centimetres", (FACT,), origin="f:1")
    outside = Example("2", "question_answering", "How long?", "3 metres", ("It is 3 metres long.",), origin="f:2")
    written(tmp_path / "own.jsonl", inside.as_dict(), outside.as_dict())
    report = Report()
    asked, kept = unrepeated(*read([Data(path=str(tmp_path / "own.jsonl"))], "stop", report), report)
    assert (len(asked), kept) == (2, [])
    with Index.open(directory, encoder) as index:
        assemble(asked, kept, index.search, prefix, Settings(val_share=0), report, lambda *_: None)
    first, twin, last = report.examples
    assert (first.passages, first.golden, first.document) == ((FACT, "None."), 0, "0")
    assert (twin.passages, twin.answer) == (("None.",), NOT_FOUND)
    assert last == outside


def test_repetitions_and_a_sample(tmp_path: Path) -> None:
    twice = written(tmp_path / "q.jsonl", *QUESTIONS, {**QUESTIONS[0], "question": "WHERE does the okapi live"})
    report = Report()
    asked, _ = read([Data(path=str(twice))], "stop", report)
    assert len(asked) == 7
    assert len(unrepeated(asked, [], report)[0]) == 6
    assert len(report.duplicates) == 1
    some, none = drawn(asked, [], 3, seed=1)
    assert (len(some), none) == (3, [])
    assert some == drawn(asked, [], 3, seed=1)[0]
    assert [asked.index(one) for one in some] == sorted(asked.index(one) for one in some)
    assert drawn(asked, [], 3, seed=2)[0] != some
    with pytest.raises(RecordInvalid):
        read([Data(path=str(written(tmp_path / "bad.jsonl", {"question": "Where?"})))], "stop", report)


def test_all_of_one_part(tmp_path: Path, encoder: WordEncoder) -> None:
    corpus = written(
        tmp_path / "corpus.jsonl", *({"_id": str(n), "text": f"Box {n} holds {n}0 nails."} for n in range(9))
    )
    rows = [
        {"question": f"How much does box {n} hold?", "answer": f"{n}0 nails", "gold_titles": [str(n)]} for n in range(9)
    ]
    directory, prefix = index_corpus(corpus, encoder)
    asked, _ = read([Data(path=str(written(tmp_path / "q.jsonl", *rows)))], "stop", Report())
    with Index.open(directory, encoder) as index:
        for settings, parts in (
            (Settings(test_share=1, val_share=0), {"test"}),
            (Settings(val_share=1), {"validation"}),
            (Settings(val_share=0.3, test_share=0.3), {"train", "validation", "test"}),
        ):
            report = Report()
            tally = assemble(asked, [], index.search, prefix, settings, report, lambda *_: None)
            assert {one.part for one in report.examples} == parts == set(tally.groups)
            for one in report.examples:
                if one.part != "train" and one.answerable:
                    assert one.passages == tuple(hit.text for hit in index.search(one.question, 4))


def test_a_full_disk_loses_no_earlier_file(tmp_path: Path) -> None:
    place = tmp_path / "data.jsonl"
    place.write_text("before", "utf-8")
    some = [Example(str(n), "question_answering", "Where?" * 100, "there") for n in range(2000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RagError, match="cannot be written"):
            command._write(place, some)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert place.read_text("utf-8") == "before"
    assert list(tmp_path.iterdir()) == [place]
    command._write(place, some)
    assert len(list(read_examples(place))) == 2000


@pytest.mark.skipif(not SQUAD.is_dir(), reason="the data sets are not here")
def test_squad_shares_passages(tmp_path: Path, real_encoder: Any) -> None:
    rows = [json.loads(line) for line in (SQUAD / "train_questions.jsonl").read_text("utf-8").splitlines()[:120]]
    names = {row["paragraph_id"] for row in rows}
    corpus = [json.loads(line) for line in (SQUAD / "train_corpus.jsonl").read_text("utf-8").splitlines()]
    directory, prefix = index_corpus(
        written(tmp_path / "corpus.jsonl", *(row for row in corpus if row["_id"] in names)), real_encoder
    )
    report = Report()
    asked, _ = read([Data(path=str(written(tmp_path / "q.jsonl", *rows)))], "stop", report)
    with Index.open(directory, real_encoder) as index:
        tally = assemble(
            asked, [], lambda text: index.search(text, 12), prefix, Settings(val_share=0), report, lambda *_: None
        )
    assert tally.found / tally.answerable > 0.9
    assert len(report.examples) >= 118
    shared = Counter(one.passages for one in report.examples)
    assert len(report.examples) / len(shared) > 4
    assert all(len(one.passages) == 4 for one in report.examples)
    assert sum(one.answerable for one in report.examples) / tally.answerable > 0.9
