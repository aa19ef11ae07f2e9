"""Questions from passages: what each pattern makes of a sentence, what it leaves alone, and what leads back."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from finetune.data.answers import answer_in
from finetune.data.roundtrip import Made, asked_of, make
from finetune.data.writing import KINDS, Source, Written, fluent, written
from index import Hit
from rag_app.prompt import question_prompt, writing_prompt
from rag_app.questions import Evidence
from tests.conftest import FACTS, ScriptedModel

OKAPI = Source("okapi", "/docs/animals.md", FACTS["animals.md"], "Animals > Okapi")


def source(text: str, heading: str = "", name: str = "1", document: str = "/docs/a.md") -> Source:
    return Source(name, document, text, heading)


def facts(text: str, heading: str = "") -> list[tuple[str, str]]:
    return [(one.question, one.answer) for one in written(source(text, heading), "fact")]


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("The lunch allowance is 14 euros a day.", "What is the lunch allowance?", "14 euros a day"),
        ("The capital of France is Paris.", "What is the capital of France?", "Paris"),
        ("The Premier of Victoria is Daniel Andrews.", "Who is the Premier of Victoria?", "Daniel Andrews"),
        ("Oslo City is the capital of Norway.", "What is the capital of Norway?", "Oslo City"),
        ("An etioplast is a plastid that lacks green.", "What is an etioplast?", "a plastid that lacks green"),
        ("William Farel was a student of Lefevre.", "Who was William Farel?", "a student of Lefevre"),
        ("The Golden Gate is about 2,737 metres long.", "How long is the Golden Gate?", "about 2,737 metres"),
        ("The Old Hall was built by monks in 1420.", "When was the Old Hall built by monks?", "1420"),
        ("In 1420, the Old Hall was built by monks.", "When was the Old Hall built by monks?", "1420"),
        ("The Old Hall is located in Upper Weston.", "Where is the Old Hall located?", "Upper Weston"),
        ("A tame okapi lives in the Ituri rainforest.", "Where does a tame okapi live?", "the Ituri rainforest"),
        ("The Opera Otello was composed by Verdi.", "Who was the Opera Otello composed by?", "Verdi"),
        ("A steel lever is used to lift loads.", "What is a steel lever used for?", "to lift loads"),
        ("The city's dialect is known as Geordie.", "What is the city's dialect known as?", "Geordie"),
        ("A clear sky is blue because air scatters light.", "Why is a clear sky blue?", "because air scatters light"),
        ("The name Fresno means ash tree in Spanish.", "What does the name Fresno mean?", "ash tree in Spanish"),
        ("The Old City has three large parks.", "How many large parks does the Old City have?", "three"),
        ("There are 42 bridges in Leeds.", "How many bridges are there in Leeds?", "42"),
        ("The boat tour takes three hours.", "How long does the boat tour take?", "three hours"),
        ("Nikola Tesla moved to Karlovac in 1870.", "When did Nikola Tesla move to Karlovac?", "1870"),
        ("Nikola Tesla invented the induction motor.", "Who invented the induction motor?", "Nikola Tesla"),
        ("Nikola Tesla invented the induction motor.", "What did Nikola Tesla invent?", "the induction motor"),
        ("Change the oil every 7500 kilometres.", "How often should you change the oil?", "every 7500 kilometres"),
        ("To load an adapter, use `load_adapter`.", "How can you load an adapter?", "use `load_adapter`"),
        ("Set `safe` to `True` to avoid pickles.", "How can you avoid pickles?", "Set `safe` to `True`"),
        ("`rank` (`int`, defaults to `8`): The rank of it.", "What does `rank` default to?", "`8`"),
        ("`rank` (`int`, defaults to `8`): The rank of updates.", "What is `rank`?", "The rank of updates"),
        ("In Hinduism, a spiritual teacher is called guru.", "What is a spiritual teacher called in Hinduism?", "guru"),
    ],
)
def test_a_pattern_makes_a_question_of_a_sentence(text: str, question: str, answer: str) -> None:
    assert (question, answer) in facts(text, "Animals > Lunch")


@pytest.mark.parametrize(
    "text",
    [
        "It was built in 1889.",
        "This method is a good choice.",
        "The method is an adaptation of another.",
        "The population density was 4,404 people.",
        "The others are 14 euros a day.",
        "Salaries include wages, bonuses, and 14 shares.",
        "The John Crerar Library contains volumes in the biological, medical, and physical sciences.",
        "However, no solution is a perfect one.",
        "The [link](https://example.org) is a page of ours.",
        "| A table | is a grid | of cells.",
        "What is the capital of France.",
        "the lunch allowance is 14 euros a day",
        "",
    ],
)
def test_a_sentence_that_needs_its_paragraph_gives_none(text: str) -> None:
    assert facts(text) == []


def test_what_the_headings_tell_of_needs_no_name() -> None:
    assert facts("The method is an adaptation of others.") == []
    assert facts("The allowance is 14 euros a day.", "Travel > Allowances") == [
        ("What is the allowance?", "14 euros a day")
    ]


def test_a_section_and_gaps() -> None:
    text = (
        "# Engine\n\n## Oil\n\nThe engine of model Seven needs 14 litres of oil in each of its two tanks near Berlin."
    )
    given = source(text, "Engine manual > Oil")
    assert list(written(given, "section")) == []  # it begins another
    opened = source(text.partition("\n\n")[2], "Engine manual > Oil")
    [section] = written(opened, "section")
    assert section.question == 'What does the section "Oil" of "Engine manual" say?'
    assert section.answer.startswith("The engine of model Seven needs")
    [gap] = written(given, "cloze")
    assert gap.question.endswith('in each of its two tanks near ___."?')
    assert gap.answer == "Berlin"


@pytest.mark.parametrize(
    "text", [*FACTS.values(), '"', "(", "`", "A" * 10_000, "is a. " * 500, "\ud83d", "été. Ça va."]
)
def test_an_answer_stands_in_its_passage(text: str) -> None:
    for kind in (kind for kinds in KINDS for kind in kinds):
        for one in written(source(text, "Engine > Oil > A"), kind):
            assert answer_in(text, [one.answer])
            assert re.fullmatch(r"[A-Z`].*\?", one.question)
            assert fluent(one.question, one.answer, one.kind)


def test_a_question_does_not_say_its_answer() -> None:
    assert fluent("Where does it end?", "there", "model") is False
    assert fluent("Who recovered the ball?", "Trevathan", "model")
    assert not fluent("How did Trevathan recover the ball?", "Trevathan recovered it", "model")
    assert not fluent("Is that so?", "yes", "model")
    assert not fluent("Who was in the (big house?", "Ann", "model")
    assert not fluent("Who was there", "Ann", "model")


# what leads back


def hits(*sources: Source) -> list[Hit]:
    return [
        Hit(n, 1.0, one.chunk_id, one.document, None, one.heading, 0, len(one.text), one.text)
        for n, one in enumerate(sources, 1)
    ]


LUNCH = source("The lunch allowance is 14 euros a day.", "Allowances", "lunch", "/docs/lunch.txt")
DINNER = source("The dinner allowance is 30 euros a day.", "Allowances", "dinner", "/docs/dinner.txt")


def finding(*sources: Source) -> Any:
    return lambda question: hits(*sources)


def test_what_patterns_write_is_kept_where_search_finds_it() -> None:
    both = finding(LUNCH, DINNER)
    made = make([LUNCH, DINNER], 9, both, 2)
    assert {(one.question, one.answer, one.kind, one.by) for one in made.kept} >= {
        ("What is the lunch allowance?", "14 euros a day", "fact", "value"),
        ("What is the dinner allowance?", "30 euros a day", "fact", "value"),
    }
    lost = make([LUNCH, DINNER], 9, both, 1)
    assert {one.source.chunk_id for one in lost.kept} == {"lunch"}
    assert lost.fell["retrieval does not find the passage with it"] == 1
    assert len(make([LUNCH, DINNER], 1, both, 2).kept) == 1
    assert make([], 9, both, 2).kept == []


def test_the_same_seed_writes_the_same() -> None:
    many = [source(f"The lunch of Team {n} is 14 euros a day.", "", str(n)) for n in range(20)]
    orders = [[one.source.chunk_id for one in make(many, 5, finding(*many), 20, seed=seed).kept] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_question_with_two_answers_means_nothing() -> None:
    other = source("The lunch allowance is 15 euros.", "Lunch", "other")
    same = source("The lunch allowance is 14 euros a day, they say.", "Lunch", "same")
    made = make([LUNCH, other], 9, finding(LUNCH, other), 2)
    assert not [one for one in made.kept if one.kind == "fact"]
    assert made.fell["the same question has another answer elsewhere"] == 2
    twice = make([LUNCH, same], 9, finding(LUNCH, same), 2)
    assert len([one for one in twice.kept if one.kind == "fact"]) == 1


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        (['Question: How much is lunch?\nAnswer: "14 euros a day"', "It is 14 euros."], ""),
        (["**Question:** no", "x"], "no question with an answer was written"),
        (["<think>Answer: a</think>Question: How much is lunch?\n\nAnswer: 14 euros.", "14 euros [1]"], ""),
        (["Question: How much is this?\nAnswer: 14 euros", "x"], "the question means nothing without the passage"),
        (["Question: How much is lunch?\nAnswer: 15 euros", "x"], "the answer stands not in the passage"),
        (["Question: How much is lunch?\nAnswer: " + "14 " * 20, "x"], "the answer is long"),
        (["Question: How much is lunch?\nAnswer: 14 euros", "The documents do not say."], "answering it gives another"),
        (["Question: How much is lunch?\nAnswer: 14 euros", "It costs 15 dollars."], "answering it gives another"),
    ],
)
def test_what_a_model_writes_must_lead_back(replies: Sequence[str], reason: str) -> None:
    model = ScriptedModel.saying(*replies, max_tokens=999)
    made = make([LUNCH], 3, finding(LUNCH), 1, model=model)
    assert model.prompts[0] == writing_prompt(LUNCH.text)
    assert bool(made.kept) == (not reason)
    assert all(fell.startswith(reason) and reason for fell in made.fell)
    if made.kept:
        [one] = made.kept
        assert (one.kind, one.by) == ("model", "scripted.gguf")
        assert model.prompts[1] == question_prompt(one.question, [LUNCH.text])
    assert made.as_dict()["kept"] == len(made.kept)
    assert made.lines()[0].startswith(f"{len(made.kept)} of {len(made.kept) + made.fell.total()} questions")


def test_an_engine_is_held_to_the_form_and_to_the_passage() -> None:
    model = ScriptedModel.saying('Question: How much is lunch?\nAnswer: "14 euros"', "14 euros")
    model.abilities = frozenset({"grammar", "quotes"})
    make([LUNCH], 1, finding(LUNCH), 1, model=model)
    first, second = model.settings
    assert first["quotes"] == [LUNCH.text]
    assert '"Question: "' in first["grammar"]
    assert set(second) == {"max_tokens"}


def test_a_written_question_knows_where_it_comes_from() -> None:
    one = Written("How long is its tongue?", "45 centimetres", "fact", "measure", OKAPI)
    [asked] = asked_of(Made([one]))
    assert asked.evidence == (Evidence((OKAPI.document,), "Its tongue is 45 centimetres long."),)
    assert (asked.golds, asked.documents, asked.origin) == (
        ("45 centimetres",),
        (OKAPI.document,),
        "written by measure",
    )
    [of_corpus] = asked_of(Made([one]), "/docs/")
    assert of_corpus.documents == ("Animals", "animals.md")
    assert of_corpus.evidence[0].documents == ("animals.md",)


@pytest.mark.slow
def test_the_bundled_model_writes_in_the_form(real_model: Any) -> None:
    made = make([source(OKAPI.text.partition("## Axolotl")[0])], 1, finding(), 1, model=real_model)
    assert made.fell.total() == 1
    assert not {"no question with an answer was written", "the answer stands not in the passage"} & set(made.fell)
