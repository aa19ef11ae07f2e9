"""Questions and corpora in the forms of public data sets; one clear line for each that has none."""

import json
from pathlib import Path
from typing import Any

import pytest

from index.beir import DatasetInvalid
from rag_app.questions import Evidence, Question, has_paragraphs, read_documents, read_questions
from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
MUSIQUE = {
    "id": "2hop",
    "question": "Which currency?",
    "answer": "the markka",
    "answer_aliases": ["markka", "the markka"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Euro", "paragraph_text": "The euro is new.", "is_supporting": False},
        {"idx": 1, "title": "Markka", "paragraph_text": "The markka is old.", "is_supporting": True},
        {"idx": 2, "title": "Markka", "paragraph_text": "Another text.", "is_supporting": True},
    ],
}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def one(tmp_path: Path, row: Any) -> Question:
    return read_questions(written(tmp_path / "q.jsonl", row))[0]


def test_squad(tmp_path: Path) -> None:
    row = {
        "id": "5",
        "question": " Who? ",
        "answers": ["Ann", "Ann", "A. B."],
        "answerable": True,
        "paragraph_id": "P#0",
    }
    assert one(tmp_path, row) == Question("5", "Who?", ("Ann", "A. B."), True, (Evidence(("P#0",)),))
    none = one(tmp_path, {**row, "answers": [], "answerable": False})
    assert (none.answers, none.answerable, none.evidence) == ((), False, ())


@pytest.mark.parametrize("key", ["gold_titles", "supporting_facts"])
def test_hotpotqa(tmp_path: Path, key: str) -> None:
    titles = {"gold_titles": ["A", "B"], "supporting_facts": [["A", 0], ["A", 3], ["B", 1]]}
    found = one(tmp_path, {"id": "x", "question": "Who?", "answer": "yes", key: titles[key]})
    assert found == Question("x", "Who?", ("yes",), True, (Evidence(("A",)), Evidence(("B",))))


def test_musique_names_paragraphs_as_its_corpus_does(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", MUSIQUE, {**MUSIQUE, "id": "again"})
    documents = list(read_documents(path))
    assert [row["title"] for row in documents] == ["Euro", "Markka", "Markka"]  # each once
    question = read_questions(path)[0]
    assert question.answers == ("the markka", "markka")
    assert [one.documents for one in question.evidence] == [(documents[1]["_id"],), (documents[2]["_id"],)]
    assert has_paragraphs(path)
    twin = one(tmp_path, {**MUSIQUE, "answerable": False})  # as MuSiQue's full set has them, answer and all
    assert (twin.answers, twin.evidence) == ((), ())


def test_own_documents(tmp_path: Path) -> None:
    row = {"id": "p", "question": "Who?", "question_hard": "Whoever?", "answer": "Ann", "source_file": "docs/a.md"}
    row |= {"supporting_sentence": "It is Ann.", "also_in": ["docs/b.md"], "answerable": True}
    assert one(tmp_path, row).evidence == (Evidence(("docs/a.md", "docs/b.md"), "It is Ann."),)
    nothing = {**row, "answer": None, "answerable": False, "source_file": None, "supporting_sentence": None}
    assert one(tmp_path, nothing) == Question("p", "Who?", (), False)


def test_labels_may_be_missing(tmp_path: Path) -> None:
    path = written(
        tmp_path / "q.jsonl",
        "\ufeff" + json.dumps({"question": "Bare?"}),
        "",
        {"question": "Told?", "answerable": True},
        {"question": "None?", "answers": []},
        {"question": "Null?", "answer": None},
        {"question": "Given?", "answer": "x"},
        {"question": "Blank?", "answer": " ", "answerable": True},
    )
    questions = read_questions(path)
    assert [q.id for q in questions] == ["1", "3", "4", "5", "6", "7"]
    assert [q.answerable for q in questions] == [None, True, False, False, True, True]
    assert questions[1].answers == questions[5].answers == ()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ({"answer": "x"}, "no words in 'question'"),
        ({"question": " "}, "no words in 'question'"),
        ({"question": 5}, "no words in 'question'"),
        ({"question": "x", "answerable": "no"}, "'answerable' is 'no'"),
        ({"question": "x", "answerable": 1}, "'answerable' is 1"),
        ({"question": "x", "answers": "Ann"}, "'answers' is no list of texts"),
        ({"question": "x", "answers": [1]}, "'answers' is no list of texts"),
        ({"question": "x", "answer": 14}, "'answer' is 14"),
        ({"question": "x", "answer": "y", "gold_titles": "A"}, "'gold_titles'"),
        ({"question": "x", "answer": "y", "supporting_facts": [["A", 0], []]}, "'supporting_facts'"),
        ({"question": "x", "answer": "y", "paragraphs": ["text"]}, "'paragraphs'"),
        ({"question": "x", "answer": "y", "paragraphs": [{"title": "t"}]}, "'paragraph_text'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, told: str) -> None:
    path = written(tmp_path / "q.jsonl", {"question": "fine?"}, line)
    with pytest.raises(DatasetInvalid, match="line 2") as error:
        read_questions(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_questions, lambda path: list(read_documents(path))])
def test_an_empty_or_missing_file_is_named(tmp_path: Path, read: Any) -> None:
    empty = written(tmp_path / "empty.jsonl", "", "  ")
    with pytest.raises(DatasetInvalid, match=r"empty\.jsonl' holds no"):
        read(empty)
    with pytest.raises(DatasetInvalid, match="No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DatasetInvalid, match="Is a directory"):
        read(tmp_path)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetInvalid, match="line 1: not UTF-8"):
        read(tmp_path / "bytes.jsonl")


def test_documents_of_either_form(tmp_path: Path) -> None:
    path = written(
        tmp_path / "c.jsonl",
        {"_id": "A#0", "title": "A", "text": "One."},
        {"id": 7, "title": None, "sentences": ["Two. ", "Three."]},
        {"_id": "empty", "text": ""},
    )
    assert list(read_documents(path)) == [
        {"_id": "A#0", "title": "A", "text": "One."},
        {"_id": "7", "title": "", "text": "Two. Three."},
        {"_id": "empty", "title": "", "text": ""},
    ]
    assert not has_paragraphs(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"_id": "A", "text": "again"}, "is there twice"),
        ({"text": "x"}, "no '_id'"),
        ({"_id": " ", "text": "x"}, "no '_id'"),
        ({"_id": True, "text": "x"}, "no '_id'"),
        ({"_id": "B"}, "no 'text' or 'sentences'"),
        ({"_id": "B", "text": None}, "no 'text' or 'sentences'"),
        ({"_id": "B", "text": "x", "title": 5}, "no 'text' or 'sentences'"),
        ({"_id": "B", "sentences": "x"}, "'sentences' is no list"),
    ],
)
def test_a_bad_document_is_named(tmp_path: Path, line: Any, told: str) -> None:
    path = written(tmp_path / "c.jsonl", {"_id": "A", "text": "fine"}, line)
    with pytest.raises(DatasetInvalid, match="line 2") as error:
        list(read_documents(path))
    assert told in str(error.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "count", "evidence"),
    [
        ("squad/train_questions", 6463, 4451),
        ("hotpotqa/questions", 149, 298),
        ("hotpotqa/closedbook", 500, 0),
        ("musique/questions", 43, 98),
        ("peft_docs/questions", 60, 50),
    ],
)
def test_public_sets_are_read(name: str, count: int, evidence: int) -> None:
    questions = read_questions(DATA / f"{name}.jsonl")
    assert len(questions) == count
    assert sum(len(question.evidence) for question in questions) == evidence
    assert all(question.answers for question in questions if question.answerable)


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    row = '{"question": "a\\ud800?", "answers": ["\\udc00 \\ud83d\\ude00"], "_id": 1, "text": "\\ud83d", "id": 2}'
    path = written(tmp_path / "q.jsonl", row)
    assert read_questions(path) == [Question("2", "a\ufffd?", ("\ufffd \U0001f600",), True)]
    assert list(read_documents(path)) == [{"_id": "1", "title": "", "text": "\ufffd"}]


@pytest.mark.parametrize("row", ["NaN", "[]", '{"question": ' + "[" * 90_000])
def test_a_line_that_is_no_object_is_told_without_advice_on_other_files(tmp_path: Path, row: str) -> None:
    with pytest.raises(DatasetInvalid, match="line 1: no JSON") as caught:
        read_questions(written(tmp_path / "q.jsonl", row))
    assert "_id" not in str(caught.value)
