"""Files of every form to examples: what becomes of a record, and what is said of one that cannot be used."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune.config import Config, Data
from finetune.data.formats.tools import FINISH
from finetune.data.records import load_examples, read_records
from finetune.data.report import Report
from finetune.errors import ConfigInvalid, DatasetEmpty, RecordInvalid
from finetune.example import Example, write_examples
from index import Hit
from rag_app.answer import Answer
from rag_app.chats import Chats, Turn
from rag_app.citations import Citation
from rag_app.parse import parse_step
from rag_app.prompt import NOT_FOUND

SHARED = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the data sets in {SHARED}")


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def read(file: Path, **data: Any) -> list[Example]:
    return list(read_records(Data(path=str(file), **data)))


def one(file: Path, row: Any, **data: Any) -> Example:
    (example,) = read(lines(file, row), **data)
    return example


def problem(file: Path, row: Any, **data: Any) -> str:
    with pytest.raises(RecordInvalid) as caught:
        read(lines(file, row), **data)
    text = str(caught.value)
    assert text.startswith(f"{file}:1: ") and "\n" not in text
    return text.removeprefix(f"{file}:1: ")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


# --- our own --------------------------------------------------------------------------------------------------------


def test_our_own_files_come_back_as_they_were_written(file: Path) -> None:
    example = Example(
        "a", "question_answering", "What?", "That.", passages=("p", "q"), golden=1, document="d", part="test",
        references=("That.", "this"), history=(("x", "y"),), weight=0.5, origin="made by hand",
    )  # fmt: skip
    write_examples([example], file)
    assert read(file) == [example]


def test_an_example_without_a_name_keeps_the_one_it_gets_when_lines_are_added_before_it(file: Path) -> None:
    row = {"task": "text_generation", "question": "What?", "answer": "That."}
    before = one(file, row)
    after = read(lines(file, {**row, "question": "Else?"}, row))[1]
    assert before.id == after.id and (before.origin, after.origin) == (f"{file}:1", f"{file}:2")


def test_the_task_of_a_file_is_that_of_lines_that_name_none(file: Path) -> None:
    row = {"question": "What?", "answer": "That."}
    assert one(file, row, type="examples", task="summarization").task == "summarization"
    told = {**row, "task": "text_generation"}
    assert one(file, told, type="examples", task="summarization").task == "text_generation"


# --- SQuAD ----------------------------------------------------------------------------------------------------------

OFFICIAL = {
    "version": "v2.0",
    "data": [
        {
            "title": "Okapi",
            "paragraphs": [
                {
                    "context": "The okapi lives in the Ituri rainforest.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where does it live?",
                            "is_impossible": False,
                            "answers": [{"text": "the Ituri rainforest.", "answer_start": 19}]
                            + [{"text": "the Ituri rainforest", "answer_start": 19}] * 2,
                        },
                        {"id": "q2", "question": "What does it eat?", "is_impossible": True, "answers": [],
                         "plausible_answers": [{"text": "rainforest", "answer_start": 29}]},
                    ],
                }
            ],
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
def test_the_official_json_of_squad(file: Path, indent: int | None) -> None:
    file.write_text(json.dumps(OFFICIAL, indent=indent), "utf-8")
    first, second = read(file)
    assert (first.id, first.answer, first.document, first.golden) == ("q1", "the Ituri rainforest", "Okapi", 0)
    assert first.references == ("the Ituri rainforest.", "the Ituri rainforest")
    assert first.passages == second.passages == ("The okapi lives in the Ituri rainforest.",)
    assert (second.answer, second.answerable, second.references, second.golden) == (NOT_FOUND, False, (), None)
    assert second.golds == () and second.origin == f"{file}:q2"


def test_an_answer_of_squad_that_is_not_in_its_context_is_told_by_its_id(file: Path) -> None:
    paragraph = {"context": "Nothing of it.", "qas": [{"id": "q7", "question": "Q?", "answers": [{"text": "okapi"}]}]}
    file.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [paragraph]}]}), "utf-8")
    with pytest.raises(RecordInvalid, match=f"^{file}:q7: no answer stands in the context: correct one of them$"):
        read(file)


def test_the_context_of_a_flat_row_may_stand_in_the_row_or_in_the_corpus_beside(tmp_path: Path) -> None:
    row = {"id": "q1", "question": "Where?", "answers": ["in  Ituri"], "answerable": True, "paragraph_id": "Okapi#0"}
    file = lines(tmp_path / "my_questions.jsonl", row, {**row, "answerable": False, "answers": []})
    with pytest.raises(RecordInvalid, match=r":1: no 'context', and no file '.*my_corpus.jsonl'"):
        read(file)
    lines(tmp_path / "my_corpus.jsonl", {"_id": "Okapi#0", "text": "It lives in\nIturi."})
    first, second = read(file)
    assert (first.answer, first.passages, second.answerable) == ("in  Ituri", ("It lives in\nIturi.",), False)
    assert first.document == second.document != ""
    lines(tmp_path / "my_corpus.jsonl", {"_id": "Okapi#1", "text": "It lives in Ituri."})
    with pytest.raises(RecordInvalid, match=r"its paragraph is not in my_corpus\.jsonl"):
        read(file)


def test_rows_as_hugging_face_has_them(file: Path) -> None:
    row = {"id": "a", "title": "T", "context": "An okapi.", "question": "What?"}
    assert one(file, {**row, "answers": {"text": ["okapi"], "answer_start": [3]}}).answer == "okapi"
    assert not one(file, {**row, "answers": {"text": [], "answer_start": []}}).answerable


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": ["giraffe"]}, "no answer stands in the context: correct one of them"),
        ({"answers": []}, "no words in 'answers': write one, or answerable: false"),
        ({"answers": [1]}, "'answers' is no list of texts, or of objects with a 'text': write one"),
        ({"answers": "okapi"}, "'answers' is no list of texts, or of objects with a 'text': write one"),
        ({"question": " "}, "no words in 'question': write some"),
        ({"context": ["An okapi."]}, "'context' is no text: write one"),
    ],
)
def test_what_is_wrong_with_a_row_of_squad(file: Path, change: dict[str, Any], said: str) -> None:
    row = {"question": "What?", "context": "An okapi.", "answers": ["okapi"], "answerable": True}
    assert problem(file, {**row, **change}) == said


# --- instructions ---------------------------------------------------------------------------------------------------


def test_dolly_by_its_categories(file: Path) -> None:
    row = {"instruction": "Do it", "context": "", "response": "Done", "category": "brainstorming"}
    assert one(file, row).task == "text_generation"
    about = {**row, "context": "Some text."}
    assert one(file, {**about, "category": "closed_qa"}).task == "question_answering"
    assert one(file, {**about, "category": "summarization"}).task == "summarization"
    assert one(file, about).passages == ("Some text.",)
    closed_without_a_text = {**row, "category": "closed_qa"}  # nothing to answer from
    assert one(file, closed_without_a_text).task == "text_generation"


@pytest.mark.parametrize("indent", [None, 1])
def test_alpaca_as_a_list_or_as_lines(file: Path, indent: int | None) -> None:
    rows = [{"instruction": "Add", "input": "1, 2", "output": "3"}, {"instruction": "Greet", "output": "Hi"}]
    from_lines = read(lines(file, *rows))
    file.write_text(json.dumps(rows, indent=indent), "utf-8")
    from_list = read(file)
    assert [(e.id, e.question, e.passages, e.answer, e.task) for e in from_list] == [
        (e.id, e.question, e.passages, e.answer, e.task) for e in from_lines
    ]
    assert from_list[0].messages()[0].content == "1, 2\n\nAdd"
    assert [e.origin for e in from_list] == [f"{file}:{n}" for n in ((1, 1) if indent is None else (2, 7))]


def test_examples_of_one_context_are_of_one_document(file: Path) -> None:
    row = {"instruction": "Sum up", "context": "Some text.", "response": "Text", "category": "summarization"}
    first, second, third = read(
        lines(file, row, {**row, "instruction": "Shorten"}, {**row, "context": "Another text."})
    )
    assert first.group == second.group != third.group


def test_mixed_tasks_become_ours(file: Path) -> None:
    row = {"task": "closed_qa", "instruction": "Q?", "context": "C a.", "response": "a", "references": ["a", "C a"]}
    closed = one(file, row)
    assert (closed.task, closed.golden, closed.golds) == ("question_answering", 0, ("a", "C a"))
    open_ = one(file, {**row, "task": "unanswerable_qa", "references": [], "response": "I don't know."})
    assert (open_.answer, open_.answerable) == (NOT_FOUND, False)
    tasks = {"summarization": "summarization", "data_to_text": "text_generation", "instruction": "text_generation"}
    assert {name: one(file, {**row, "task": name}).task for name in tasks} == tasks
    worked = one(file, {**row, "task": "arithmetic", "response": "1+1=2\n#### 2", "references": ["2"]})
    assert worked.golds == ("1+1=2\n#### 2",)
    assert "the task 'poetry' is none of question_answering, " in problem(file, {**row, "task": "poetry"})


def test_gsm8k_in_both_its_forms_without_the_calculators_notes(file: Path) -> None:
    solution = "He has 2*3=<<2*3=6>>6.\n#### 6"
    ours = one(file, {"question": "How many?", "solution": solution, "answer": "6"})
    official = one(file, {"question": "How many?", "answer": solution})
    assert ours.answer == official.answer == "He has 2*3=6.\n#### 6"


# --- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_a_table_by_the_names_of_its_columns(tmp_path: Path, suffix: str, delimiter: str) -> None:
    file = tmp_path / f"data{suffix}"
    rows = [["Frage", "Antwort", "Text", "Quelle"], ["Was?", '"Das, ""so"";\nja."', "Ein Text.", "a.md"], [""] * 4]
    file.write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n", "utf-8")
    named = {"question": "Frage", "answer": "Antwort", "context": "Text", "document": "Quelle"}
    (example,) = read(file, **named)
    assert (example.question, example.answer) == ("Was?", 'Das, "so";\nja.')
    assert (example.task, example.document, example.origin) == ("question_answering", "a.md", f"{file}:2")
    with pytest.raises(ConfigInvalid, match=r"of no known form: its first record has 'Frage', 'Antwort', .*name the"):
        read(file)
    with pytest.raises(RecordInvalid, match=r":2: no column 'Titel' for the document: there are Frage, Antwort"):
        read(file, **{**named, "document": "Titel"})


def test_the_usual_names_of_columns_need_not_be_given(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("Question,ANSWER\nWhat?,That.\n", "utf-8")
    (example,) = read(file)
    assert (example.question, example.answer, example.task) == ("What?", "That.", "text_generation")
    (example,) = read(file, task="question_answering")
    assert example.task == "question_answering"


def test_a_row_of_a_table_that_is_too_short_and_one_that_is_no_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(b'question,answer\n"a\nb",c\nonly\nd,caf\xe9\ne,f\n')
    report = Report()
    examples = list(read_records(Data(path=str(file)), "skip", report))
    assert [(e.question, e.answer, e.origin) for e in examples] == [("a\nb", "c", f"{file}:2"), ("e", "f", f"{file}:6")]
    assert [(place, reason.partition(":")[0]) for place, reason in report.dropped] == [
        (f"{file}:4", "not as many cells as the first line has names"),
        (f"{file}:5", "not UTF-8"),
    ]


def test_a_weight_beyond_all_numbers_is_a_bad_record(file: Path) -> None:
    row = {"task": "question_answering", "question": "Q?", "answer": "a", "weight": 10**400}
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordInvalid, match=r"'weight' is .*: write a number above 0"):
        list(read_records(Data(path=str(file), type="examples")))


def test_a_table_with_names_and_texts_as_long_as_they_come(tmp_path: Path) -> None:
    file, text = tmp_path / "data.csv", "word " * 40_000
    file.write_text(f"question,answer,{'x' * 200_000}\n{text},a,b\n")
    (example,) = read_records(Data(path=str(file)))
    assert example.question == text.strip()


def test_json_rows_have_columns_too(file: Path) -> None:
    row = {"q": "Two and two?", "a": 4, "more": None}
    example = one(file, row, question="q", answer="a")
    assert (example.question, example.answer) == ("Two and two?", "4")


# --- conversations --------------------------------------------------------------------------------------------------


def test_every_answer_of_a_conversation_is_an_example(file: Path) -> None:
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why"), ("user", "so?")]
    said += [("assistant", "Because"), ("user", "Thanks")]
    openai = {"id": "c", "messages": [{"role": role, "content": text} for role, text in said]}
    first, second = read(lines(file, openai))
    assert (first.id, first.question, first.answer, first.history) == ("c/1", "Be brief.\n\nHi", "Hello", ())
    assert (second.question, second.answer) == ("Why\n\nso?", "Because")
    assert second.history == (("Be brief.\n\nHi", "Hello"),)
    assert first.group == second.group == "c" and first.task == "text_generation"
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    sharegpt = {"id": "c", "conversations": [{"from": roles[role], "value": text} for role, text in said]}
    assert read(lines(file, sharegpt)) == [first, second]


def test_what_nobody_asked_for_is_context_and_weight_0_is_not_learnt(file: Path) -> None:
    said = [("assistant", "Welcome!", 1), ("user", "A?", 1), ("assistant", "a", 0), ("user", "B?", 1)]
    messages = [{"role": role, "content": text, "weight": weight} for role, text, weight in said]
    example = one(file, {"messages": [*messages, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]})
    assert (example.question, example.answer, example.history) == ("B?", "b", (("A?", "a"),))


WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


def test_calls_of_tools_become_steps(file: Path) -> None:
    call = {"name": "weather", "arguments": {"city": "Bonn", "days": 1}}
    turns = [("human", "Weather in Bonn?"), ("function_call", json.dumps(call)), ("observation", '{"sky": "blue"}')]
    turns += [("gpt", "It is blue."), ("human", "Thank you"), ("gpt", "You are welcome.")]
    row = {"id": "g", "tools": [WEATHER], "conversations": [{"from": role, "value": text} for role, text in turns]}
    calling, answering, thanked = read(lines(file, row))
    assert {example.task for example in (calling, answering, thanked)} == {"tool_use"}
    assert calling.tools == (("weather", 'Tells the weather. Input: {"city": string, "days": integer}'), FINISH)
    assert calling.answer == 'Thought: I need weather for this.\nAction: weather\nInput: {"city": "Bonn", "days": 1}'
    assert answering.steps == ((calling.answer, '{"sky": "blue"}'),)
    assert answering.answer == "Thought: I can answer now.\nAction: finish\nInput: It is blue."
    assert thanked.steps == () and thanked.history == (("Weather in Bonn?", "It is blue."),)
    assert [m.content for m in answering.messages()][-1] == 'Observation: {"sky": "blue"}'


def test_calls_at_once_become_one_after_the_other_by_their_ids(file: Path) -> None:
    def call(number: int, city: str) -> dict[str, Any]:
        arguments = json.dumps({"city": city})
        return {"id": f"c{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}

    messages = [
        {"role": "user", "content": "Bonn or Rome?"},
        {"role": "assistant", "content": "I look at both.", "tool_calls": [call(1, "Bonn"), call(2, "Rome")]},
        {"role": "tool", "tool_call_id": "c2", "content": "hot"},
        {"role": "tool", "tool_call_id": "c1", "content": "cold"},
        {"role": "assistant", "content": "Rome."},
    ]
    row = {"messages": messages, "tools": [{"type": "function", "function": WEATHER}]}
    first, second, last = read(lines(file, row))
    assert first.answer.startswith("Thought: I look at both.\nAction: weather") and first.steps == ()
    assert second.steps == ((first.answer, "cold"),)
    assert last.steps == ((first.answer, "cold"), (second.answer, "hot"))
    unanswered = {**row, "messages": messages[:2]}
    first, second = read(lines(file, unanswered))
    assert second.steps == ((first.answer, "(no result)"),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tools": []}, "a tool is called, and there are no 'tools': describe them there"),
        ({"tools": [{"name": "other"}]}, "it calls 'weather', which is none of its tools: describe it there"),
        ({"tools": [{"name": "get weather"}]}, "the tool 'get weather' cannot be called so: use up to 64 letters"),
        ({"tools": [WEATHER, {"name": "finish"}]}, "a tool is called 'finish', by which runs end"),
        ({"conversations": []}, "no question with an answer: write one, or remove the conversation"),
        ({"conversations": "hi"}, "'messages' or 'conversations' is no list of objects: write one"),
        ({"conversations": [{"from": "narrator", "value": "hi"}]}, "the role 'narrator' is none of system, "),
        ({"conversations": [{"from": "observation", "value": "hi"}]}, "an observation without a call"),
        ({"conversations": [{"from": "function_call", "value": "hi"}]}, "a call or its arguments are no JSON"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "a call has no 'name'"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": " "}]}, "no words in 'answer'"),
        ({"conversations": [{"from": "human", "value": "hi"}] * 1001}, "more than 1,000 turns"),
        ({"conversations": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a message holds more than text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_conversation(file: Path, change: dict[str, Any], said: str) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "weather"}'}]
    if said.startswith("no words"):
        change = {**change, "tools": []}
    row = {"tools": [WEATHER], "conversations": turns}
    assert problem(file, {**row, **change}).startswith(said)


def test_tools_are_told_in_the_words_that_they_are_served_with() -> None:
    from finetune.data.formats.tools import described
    from rag_app.tools import Notebook, as_tool, standard_tools

    def weather(city: str, days: int) -> str:
        """Tells the weather."""
        return city * days

    served = as_tool(weather)
    assert described({"tools": [WEATHER]})[0] == (served.name, served.description)
    assert ("finish", standard_tools(Notebook(lambda query: []))["finish"].description) == FINISH


# --- rated answers --------------------------------------------------------------------------------------------------


def rated(chats: Chats, question: str, text: str, *rating: Any, cited: int = 0, refused: bool = False) -> None:
    hits = [Hit(n, 0.5, f"c{n}", f"/d/{n}.md", None, "", 0, 10, f"Passage {n}.") for n in (1, 2)]
    citations = [Citation(cited, f"/d/{cited}.md", None, 0, 7, "Passage")] if cited else []
    answer = Answer(question, text, hits=hits, citations=citations, refused=refused)
    chats.add("a", Turn("user", question))
    chats.add("a", Turn("assistant", text, {**answer.as_dict(), "error": "", "stopped": False}))
    if rating:
        chats.rate("a", chats.turns("a")[-1].id, *rating)


def test_rated_answers_as_they_are_exported(tmp_path: Path, file: Path) -> None:
    chats = Chats(tmp_path / "chats.sqlite3")
    rated(chats, "What is an okapi?", "An animal. [2] See [3].", 1, cited=2)
    rated(chats, "Where does it live?", "In Rome. [1]", -1, "", "In Ituri.", cited=1)
    rated(chats, "How much is lunch?", NOT_FOUND, 1, refused=True)
    rated(chats, "And dinner?", "9 euros [1]", -1, cited=1)
    rated(chats, "And tea?", "3 euros [1]", cited=1)
    rated(chats, "What is a giraffe?", NOT_FOUND, 0, "", "An animal, too.", refused=True)
    report = Report()
    lines(file, *chats.export())
    good, corrected, refusal, late = read_records(Data(path=str(file)), "stop", report)
    assert good.passages == ("Passage 1.", "Passage 2.") and good.golden == 1 and good.document == "/d/2.md"
    assert good.answer == "An animal. See [3]." and good.id == "a/1" and good.task == "question_answering"
    assert good.history == ()
    assert corrected.answer == "In Ituri." and corrected.answerable
    assert corrected.history == (("What is an okapi?", "An animal. [2] See [3]."),)  # "it": as it was asked
    assert (refusal.answer, refusal.answerable, refusal.golds) == (NOT_FOUND, False, ())
    assert refusal.history == ()  # it stands alone, and was asked alone
    assert (late.answer, late.answerable) == ("An animal, too.", True)
    assert report.dropped == [(f"{file}:4", "rated bad, and not corrected"), (f"{file}:5", "not rated")]


def test_a_correction_may_be_that_the_documents_do_not_say(file: Path) -> None:
    row = {"question": "Why?", "answer": "So.", "passages": [{"n": 1, "text": "P."}], "rating": -1}
    example = one(file, {**row, "correction": "the documents do not say"})
    assert (example.answer, example.answerable) == (NOT_FOUND, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rating": 5}, "'rating' is none of 1, 0 and -1: write one"),
        ({"rating": True}, "'rating' is none of 1, 0 and -1: write one"),
        ({"passages": ["P."]}, "'passages' is no list of objects: write one"),
        ({"passages": [{"n": 1}]}, "no words in 'text': write some"),
        ({"answer": None}, "no words in 'answer': write some"),
    ],
)
def test_what_is_wrong_with_a_rated_answer(file: Path, change: dict[str, Any], said: str) -> None:
    row = {"question": "Why?", "answer": "So.", "passages": [{"n": 1, "text": "P."}], "rating": 1}
    assert problem(file, {**row, **change}) == said


# --- bad records ----------------------------------------------------------------------------------------------------

GOOD = b'{"question": "Q?", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": "Q?", "answer": "a"', "no JSON (Expecting ',' delimiter): write one JSON object a record"),
        (b'["question"]', "no JSON object: write one a record"),
        (b'{"question": "Q?", "answer": "\xff"}', "not UTF-8: convert the file"),
        (b'{"question": "Q?", "answer": NaN}', "no JSON (NaN is no value of JSON): write one JSON object a record"),
        (b'{"question": "Q?", "answer": 1e999}', "'answer' is no text: write one"),
        (b'{"question": "Q?", "answer": null}', "no words in 'answer': write some"),
        (b'{"question": "Q?", "answer": "\\u200b \\u00ad"}', "no words in 'answer': write some"),
        (b'{"question": "Q?", "answer": ["a"]}', "'answer' is no text: write one"),
        (b'{"question": "Q?", "answer": "a<|im_end|>"}', "'<|im_end|>' in the answer: take out what a chat template"),
        (b'{"question": "Q?", "answer": "a</s>"}', "'</s>' in the answer: take out what a chat template"),
        (b'{"question": "Q?", "answer": "' + b"a" * 1_000_001 + b'"}', "1,000,003 characters, at most 1,000,000"),
        (b"[" * 100_000, "nested too deeply: write texts and lists of texts"),
    ],
)  # fmt: skip
def test_a_bad_record_stops_or_is_counted(file: Path, line: bytes, said: str) -> None:
    file.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD.replace(b"Q", b"R"))
    with pytest.raises(RecordInvalid) as caught:
        load_examples([Data(path=str(file))], Config())
    assert str(caught.value).startswith(f"{file}:3: {said}") and "\n" not in str(caught.value)
    examples, report = load_examples([Data(path=str(file))], Config(on_bad_record="skip"))
    assert [example.question for example in examples] == ["Q?", "R?"]
    ((place, reason),) = report.dropped
    assert place == f"{file}:3" and reason.startswith(said)


def test_halves_of_characters_become_what_a_tokenizer_takes(file: Path) -> None:
    file.write_bytes(b'{"question": "Q \\ud83d\\ude00 \\ud800", "answer": "a\\uD83D"}\n')
    (example,) = read(file)
    assert (example.question, example.answer) == ("Q 😀 \ufffd", "a\ufffd")


def test_a_struck_through_word_of_html_is_no_mark(file: Path) -> None:
    assert one(file, {"question": "Q?", "answer": "<s>no</s> yes"}).answer == "<s>no</s> yes"


def test_a_conversation_is_used_whole_or_not_at_all(file: Path) -> None:
    turns = [("user", "A?"), ("assistant", "a"), ("user", "B?"), ("assistant", "b<|im_end|>")]
    lines(file, {"messages": [{"role": role, "content": text} for role, text in turns]})
    report = Report()
    assert list(read_records(Data(path=str(file)), "skip", report)) == []
    assert len(report.dropped) == 1


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('[{"question": "Q?", "answer": "a"},\n {"question": ]', 2, "no JSON (Expecting value)"),
        ('[{"question": "Q?", "answer": "a"},\n', 2, "the list does not end here"),
        ('[{"question": "Q?", "answer": "a"}]\n{"question"', 1, "the list does not end here"),
        ('[{"question": "Q?", "answer": "a"}, 5]', 1, "no JSON object"),
    ],
)
def test_a_json_list_that_is_cut_or_goes_on(file: Path, text: str, place: int, said: str) -> None:
    file.write_text(text, "utf-8")
    report = Report()
    assert len(list(read_records(Data(path=str(file)), "skip", report))) == 1
    assert [(where, why.startswith(said)) for where, why in report.dropped] == [(f"{file}:{place}", True)]


def test_a_first_line_that_is_cut_does_not_take_the_others_with_it(file: Path) -> None:
    file.write_bytes(b'{"question": "Q?", "ans\n' + GOOD)
    report = Report()
    assert len(list(read_records(Data(path=str(file)), "skip", report))) == 1
    assert [place for place, _ in report.dropped] == [f"{file}:1"]


def test_a_compressed_file_is_read_and_a_damaged_one_told(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress(GOOD))
    assert len(read(file)) == 1
    table = tmp_path / "data.csv.gz"
    table.write_bytes(gzip.compress(b"question,answer\nQ?,a\n"))
    assert len(read(table)) == 1
    file.write_bytes(gzip.compress(GOOD * 50)[:-12])
    with pytest.raises(DatasetEmpty, match="damaged: fetch it again"):
        read(file)


def test_a_line_too_long_to_hold_is_passed_over(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.formats.rows.LONGEST_LINE", 1 << 20)
    file.write_bytes(GOOD + b'"' + b"x" * (3 << 20) + b'"\n' + GOOD)
    report = Report()
    assert [e.origin for e in read_records(Data(path=str(file)), "skip", report)] == [f"{file}:1", f"{file}:3"]
    assert report.dropped == [(f"{file}:2", "longer than 1 MB: write one record a line")]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b"question,answer\n"])
def test_a_file_without_a_record(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / ("data.csv" if b"," in content else "data.jsonl")
    file.write_bytes(content)
    with pytest.raises(DatasetEmpty, match="holds no example"):
        read(file)


def test_files_that_are_not_there_or_are_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DatasetEmpty, match=f"'{path}' cannot be read .*: check the path"):
            read(path)


def test_an_unknown_form_is_told_by_what_was_seen(file: Path) -> None:
    lines(file, {"prompt": "Q?", "chosen": "a", "rejected": "b"})
    with pytest.raises(ConfigInvalid) as caught:
        read(file)
    assert "its first record has 'prompt', 'chosen', 'rejected'. Give its type, or name the columns" in str(
        caught.value
    )
    assert read(file, question="prompt", answer="chosen")[0].answer == "a"


def test_a_set_of_which_nothing_is_left(file: Path) -> None:
    lines(file, {"question": "Q?", "answer": ""})
    with pytest.raises(DatasetEmpty, match=rf"no example is left of '{file}': {file}:1: no words in 'answer'"):
        load_examples([Data(path=str(file))], Config(on_bad_record="skip"))
    with pytest.raises(DatasetEmpty, match="name one under datasets"):
        load_examples([], Config())


def test_several_files_make_one_set_without_repetition(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"question": "Q?", "answer": "a"}, {"question": "R?", "answer": "b"})
    second = lines(tmp_path / "b.jsonl", {"instruction": "q", "output": "A."})
    examples, report = load_examples([Data(path=str(first)), Data(path=str(second))], Config())
    assert [example.question for example in examples] == ["Q?", "R?"]
    assert report.duplicates == [(f"{second}:1", f"{first}:1")] and report.examples == examples


# --- real sets ------------------------------------------------------------------------------------------------------

REAL = {
    "squad/train_questions.jsonl": {"question_answering": 6463},
    "hotpotqa/closedbook.jsonl": {"text_generation": 500},
    "tasks/gsm8k.jsonl": {"text_generation": 249},
    "tasks/mixed_tasks.jsonl": {"question_answering": 598, "summarization": 350, "text_generation": 900},
    "tasks/glaive_toolcall.jsonl": {"tool_use": 228, "text_generation": 220},
}


@shared
@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_known_and_read_whole(name: str) -> None:
    examples = read(SHARED / name)
    assert Counter(example.task for example in examples) == REAL[name]
    assert all(example.messages() and example.answer.strip() for example in examples)


@shared
def test_real_calls_are_understood_by_the_program_that_serves() -> None:
    called = 0
    for example in read(SHARED / "tasks/glaive_toolcall.jsonl"):
        if example.task != "tool_use":
            continue
        action = parse_step(example.answer, [name for name, _ in example.tools])
        assert action.problem == "" and action.thought
        if action.tool == "finish":
            assert action.input.split() == example.answer.partition("\nInput:")[2].split()
        else:
            assert isinstance(json.loads(action.input), dict)
            called += 1
    assert called == 79


@shared
def test_a_real_refusal_and_a_real_answer_of_squad() -> None:
    examples = read(SHARED / "squad/train_questions.jsonl")
    assert sum(not example.answerable for example in examples) == 6463 - 4451
    assert all(example.answer == NOT_FOUND for example in examples if not example.answerable)
    assert len({example.document for example in examples}) == 18
