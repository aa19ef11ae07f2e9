"""Few-shot examples: the bundled file is sound, a damaged one is refused in a line, the most alike are picked."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag_app.errors import SettingInvalid
from rag_app.examples import BUNDLED, Example, load_examples, pick
from rag_app.prompt import NOT_FOUND

ASKED = "When does the library close?"
EXAMPLES = [
    Example("When does the pool close?", "at nine"),
    Example("Who wrote the letter?", "Edda"),
    Example("When does the library close on Mondays?", "at six"),
    Example("How long is the bridge?", "40 metres"),
]


def test_the_bundled_examples_are_short_answers_from_their_passages() -> None:
    examples = load_examples()
    assert len(examples) == 12
    assert len({example.question for example in examples}) == 12
    unanswered = [example for example in examples if example.answer == NOT_FOUND]
    assert len(unanswered) == 3
    for example in examples:
        assert len(example.passages) == 2
        assert example in unanswered or any(example.answer in passage for passage in example.passages)
        assert len(example.answer.split()) <= 6
        assert len(" ".join([example.question, example.answer, *example.passages]).split()) <= 70


def test_the_bundled_examples_are_few_tokens(real_encoder: Any) -> None:
    for example in load_examples():
        text = " ".join([example.question, example.answer, *example.passages])
        assert len(real_encoder.tokenize(text)) <= 110


def test_the_package_ships_them() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    assert BUNDLED.name in project.split("package-data")[1].split("\n")[0]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [
        {"question": " Who? ", "answer": "Edda\n", "passages": ["Edda did.", "Else."], "id": 7, "source": "x"},
        {"question": "Where?", "answer": "Here", "passages": None},
        {"question": "Wann?", "answer": "Früh\u2028morgens"},
    ]
    file.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n", "utf-8")
    assert load_examples(str(file)) == [
        Example("Who?", "Edda", ("Edda did.", "Else.")),
        Example("Where?", "Here"),
        Example("Wann?", "Früh\u2028morgens"),
    ]


GOOD = '{"question": "Who?", "answer": "Edda"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "are empty"),
        (b"\n \n", "are empty"),
        (GOOD.encode() + b"{", "line 2 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b'{"question": "Who?"}', "line 1 has no answer"),
        (b'\n{"answer": "Edda"}', "line 2 has no question"),
        (b'{"question": " ", "answer": "Edda"}', "line 1 has no question"),
        (b'{"question": 7, "answer": "Edda"}', "line 1 has no question"),
        (b'["Who?", "Edda"]', "line 1 is list, not an object"),
        (b'{"question": "Who?", "answer": "Edda", "passages": "Edda did."}', "passages that are no list of texts"),
        (b'{"question": "Who?", "answer": "Edda", "passages": [1]}', "passages that are no list of texts"),
        (b"\xff\xfe\x00", "no UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_bytes(text)
    with pytest.raises(SettingInvalid, match=says) as caught:
        load_examples(str(file))
    assert "own.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(SettingInvalid, match="cannot be read"):
            load_examples(str(path))


@pytest.mark.parametrize("by_meaning", [False, True])
def test_the_most_alike_comes_last(encoder: Any, by_meaning: bool) -> None:
    encode = encoder.encode if by_meaning else None
    picked = pick(ASKED, EXAMPLES, 2, encode)
    assert [example.answer for example in picked] == ["at nine", "at six"]
    assert pick(ASKED, EXAMPLES, 2, encode) == picked
    assert len(pick(ASKED, EXAMPLES, 9, encode)) == 4
    assert pick(ASKED, EXAMPLES, 0, encode) == pick(ASKED, [], 3, encode) == []
    assert pick("", EXAMPLES, 1, encode)


def test_the_question_itself_is_left_out_and_repeated_ones_count_once() -> None:
    twice = [*EXAMPLES, Example("when does THE library close", "at seven"), Example("Who wrote the letter?", "Odo")]
    answers = [example.answer for example in pick(ASKED, twice, 9)]
    assert "at seven" not in answers and "Odo" not in answers and len(answers) == 4


def test_the_first_wins_where_all_are_equally_alike() -> None:
    assert [example.answer for example in pick("xyz", EXAMPLES, 2)] == ["Edda", "at nine"]


def test_examples_are_encoded_once(encoder: Any) -> None:
    pick("first question", EXAMPLES, 2, encoder.encode)
    pick("second question", EXAMPLES, 2, encoder.encode)
    assert encoder.encoded.count(EXAMPLES[0].question) == 1
    assert encoder.encoded.count("second question") == 1


def test_by_meaning_with_the_real_encoder(real_encoder: Any) -> None:
    (picked,) = pick("How much time do I have to cancel the rental?", load_examples(), 1, real_encoder.encode)
    assert picked.answer == "three months"


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"question": "a\\ud800?", "answer": "\\udc00 \\ud83d\\ude00", "passages": ["\\ud83d"]}')
    assert load_examples(str(path)) == [Example("a\ufffd?", "\ufffd \U0001f600", ("\ufffd",))]
