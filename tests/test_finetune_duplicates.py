"""Examples that say the same: which go, which stay, and that many are looked through in little time."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from finetune.data.duplicates import distinct, near_pairs, similarity, words
from finetune.data.report import Report
from finetune.example import Example

PASSAGE = (
    "The okapi lives in the Ituri rainforest in the north east of the Congo. It eats leaves, buds, grasses, fruits and "
    "fungi, and its tongue is forty five centimetres long, so that it can wash its eyes and ears with it. It was "
    "described in 1901, and it is the only living relative of the giraffe."
)
EXAMPLE = Example("a", "question_answering", "Where does the okapi live?", "In the Ituri rainforest.", (PASSAGE,))


def left(*examples: Example) -> list[str]:
    return [example.id for example in distinct(examples, Report())]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"question": "where  does the OKAPI live"},
        {"answer": "in the Ituri rainforest"},
        {"passages": (PASSAGE.replace("buds, ", ""),)},
        {"passages": (PASSAGE.upper() + "\n",)},
        {"document": "another.md"},
        {"weight": 0.5},
    ],
)
def test_the_same_again_goes(change: dict[str, object]) -> None:
    assert left(EXAMPLE, replace(EXAMPLE, id="b", **change)) == ["a"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Where does the giraffe live?"},
        {"question": "Where did the okapi live?"},
        {"answer": "In the Congo."},
        {"answer": "The documents do not say.", "answerable": False},
        {"passages": ("The giraffe lives in the savannah.",)},
        {"passages": (PASSAGE, "The giraffe lives in the savannah.")},
        {"passages": ()},
        {"task": "text_generation"},
        {"history": (("What is an okapi?", "An animal."),)},
    ],
)
def test_what_differs_in_a_telling_way_stays(change: dict[str, object]) -> None:
    assert left(EXAMPLE, replace(EXAMPLE, id="b", **change)) == ["a", "b"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("What is hepatitis?", "What is hepatitis A?"),
        ("Is C a language?", "Is C++ a language?"),
        ("法国的首都是哪里？", "西班牙的首都是哪里？"),
        ("हिन्दी क्या है?", "हन्दा क्या है?"),
    ],
)
def test_one_telling_word_or_sign_makes_another_question(one: str, other: str) -> None:
    assert left(replace(EXAMPLE, question=one), replace(EXAMPLE, id="b", question=other)) == ["a", "b"]


def test_a_number_in_a_long_problem_makes_another_problem() -> None:
    long = f"{PASSAGE} If it eats {{}} leaves an hour, how many does it eat in a day of the week?"
    one, other = (replace(EXAMPLE, id=str(n), question=long.format(n), passages=()) for n in (20, 30))
    assert left(one, other) == ["20", "30"]
    assert left(one, replace(one, id="b", question=one.question.replace("the week", "a week"))) == ["20"]


def test_the_same_passages_in_another_order_stay() -> None:
    one = replace(EXAMPLE, passages=(PASSAGE, "The giraffe lives in the savannah."))
    assert left(one, replace(one, id="b", passages=one.passages[::-1])) == ["a", "b"]


def test_a_copy_to_train_on_goes_before_one_to_test_on() -> None:
    copies = [EXAMPLE, replace(EXAMPLE, id="b", part="validation"), replace(EXAMPLE, id="c", part="test")]
    report = Report()
    examples = [replace(example, origin=f"f:{example.id}") for example in copies]
    assert [example.id for example in distinct(examples, report)] == ["c"]
    assert report.duplicates == [("f:a", "f:c"), ("f:b", "f:c")]


def test_the_same_go_whatever_the_order_and_every_time() -> None:
    rng = random.Random(0)
    examples = [replace(EXAMPLE, id=str(n), question=f"Question {n % 20}?") for n in range(60)]
    rng.shuffle(examples)
    kept = distinct(examples, Report())
    assert {example.question for example in kept} == {f"Question {n}?" for n in range(20)} and len(kept) == 20
    assert kept == distinct(examples, Report()) == distinct(kept, Report())


def runs(text: str) -> set[tuple[str, ...]]:
    """By their definition, as tuples."""
    found = words(text)
    return {tuple(found[at : at + 5]) for at in range(max(len(found) - 4, 1))}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def changed(rng: random.Random, tokens: Sequence[str], times: int) -> str:
    tokens = list(tokens)
    for _ in range(times):
        tokens[rng.randrange(len(tokens))] = f"new{rng.randrange(10**9)}"
    return " ".join(tokens)


def test_similarity_is_that_of_the_definition() -> None:
    rng = random.Random(1)
    for length in (0, 1, 4, 5, 6, 40, 200):
        tokens = [f"w{rng.randrange(30)}" for _ in range(length)]
        for times in (0, 1, 3) if length else (0,):
            other = changed(rng, tokens, times)
            assert similarity(" ".join(tokens), other) == pytest.approx(jaccard(runs(" ".join(tokens)), runs(other)))


def test_pairs_above_the_threshold_are_found_and_none_below() -> None:
    rng = random.Random(2)
    texts = []
    for _ in range(40):
        tokens = [f"w{rng.randrange(10**6)}" for _ in range(100)]
        texts += [changed(rng, tokens, times) for times in (0, 1, 2, 3, 5)]
    found = set(near_pairs(texts))
    sets = [runs(text) for text in texts]
    real = {(a, b) for b in range(len(texts)) for a in range(b) if jaccard(sets[a], sets[b]) >= 0.8}
    assert found <= real and len(real) > 40
    assert len(found) >= 0.99 * len(real)


def test_equal_texts_are_pairs_however_short() -> None:
    assert near_pairs(["a", "b", "a", "", "", "A."]) == [(0, 2), (3, 4), (0, 5)]


def test_a_word_in_a_script_without_spaces_is_a_letter() -> None:
    assert words("Die Ära, C++ & 日本語!") == ["die", "ära", "c++", "&", "日", "本", "語"]


def test_many_examples_take_seconds() -> None:
    rng = random.Random(3)
    vocabulary = np.array([f"w{n}" for n in range(5000)])
    numbers = np.random.default_rng(3).integers(0, 5000, (5_000, 60))
    texts = [" ".join(row) for row in vocabulary[numbers]]
    examples = [
        replace(EXAMPLE, id=str(n), question="Sum it up.", passages=(text, rng.choice(texts[:100])))
        for n, text in enumerate(texts)
    ]
    began = time.process_time()
    assert len(distinct([*examples, *examples[::2]], Report())) == 5_000
    assert time.process_time() - began < 10  # 50,000 of them: about 8 s on an idle core


def test_boilerplate_does_not_make_it_slow() -> None:
    rng = random.Random(4)
    tokens = [f"w{n}" for n in range(200)]  # 0.6 to 0.75 alike: each meets all in some band
    examples = [
        replace(EXAMPLE, id=str(n), question="Sum it up.", passages=(changed(rng, tokens, 6),)) for n in range(1000)
    ]
    began = time.process_time()
    kept = distinct(examples, Report())
    assert len(kept) > 900
    assert time.process_time() - began < 10  # comparing all with all takes a minute
