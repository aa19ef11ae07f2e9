"""What is told of a set of examples."""

import json
from pathlib import Path

from finetune.data.report import Report
from finetune.example import Example
from rag_app.prompt import NOT_FOUND

EXAMPLES = [
    Example("a", "question_answering", "Why so?", "Because of it.", ("P.",), document="d", origin="/x/a.jsonl:1"),
    Example("b", "question_answering", "Why?", NOT_FOUND, ("P.",), answerable=False, document="d", part="test",
            origin="/x/a.jsonl:2"),
    Example("c", "text_generation", "Write one two three.", "Done", origin="made from a template"),
]  # fmt: skip


def test_counts_lengths_and_reasons() -> None:
    report = Report(EXAMPLES)
    report.dropped = [("a:3", "rare")] + [(f"a:{n}", "not rated") for n in range(10, 16)]
    report.duplicates = [("a:8", "a:1")]
    told = report.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["examples"], told["documents"], told["unanswerable"]) == (3, 2, 1)
    assert told["tasks"] == {"question_answering": {"train": 1, "test": 1}, "text_generation": {"train": 1}}
    assert told["origins"] == {"/x/a.jsonl": 2, "made from a template": 1}
    assert told["dropped"] == [
        {"reason": "not rated", "records": 6, "first": ["a:10", "a:11", "a:12"]},
        {"reason": "rare", "records": 1, "first": ["a:3"]},
    ]
    assert told["duplicates"] == {"examples": 1, "first": [{"origin": "a:8", "like": "a:1"}]}
    assert told["lengths"]["unit"] == "words"
    assert told["lengths"]["answer"] == {"median": 3, "p95": 5, "longest": 5}
    assert told["lengths"]["prompt"]["longest"] == sum(len(m.content.split()) for m in EXAMPLES[0].messages())


def test_lines_for_people() -> None:
    report = Report(EXAMPLES, dropped=[(f"a:{n}", f"reason {n}") for n in range(15)], duplicates=[("a:8", "a:1")])
    lines = report.lines()
    assert lines[0] == "3 examples of 2 documents; 1 have the answer 'The documents do not say.'"
    assert "  question_answering: 1 train, 1 test" in lines and "  from /x/a.jsonl: 2" in lines
    assert "  left out: 1 (reason 0): a:0" in lines and "  and 5 more reasons" in lines
    assert lines[-1] == "  left out: 1 that say the same as another, such as a:8 as a:1"
    report.dropped = [("a:1", "not rated"), ("a:2", "not rated"), ("a:3", "not rated"), ("a:4", "not rated")]
    assert "  left out: 4 (not rated): a:1, a:2, a:3, …" in report.lines()


def test_nothing_at_all() -> None:
    assert Report().lines() == ["0 examples of 0 documents; 0 have the answer 'The documents do not say.'"]
    assert Report().as_dict()["lengths"] == {}


def test_lengths_in_the_tokens_of_a_model(small_base: Path) -> None:
    from transformers import AutoTokenizer

    from rag_app.engines.layout import Layout

    layout = Layout("small", AutoTokenizer.from_pretrained(small_base))
    lengths = Report(EXAMPLES, layout=layout).as_dict()["lengths"]
    assert lengths["unit"] == "tokens"
    assert lengths["answer"]["longest"] == len(layout.answer(NOT_FOUND))
    assert lengths["prompt"]["longest"] == len(layout.prompt(EXAMPLES[0].messages()))
