"""Parts by document: shares, stability, and that nothing stands on both sides."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.config import Data
from finetune.data.records import read_records
from finetune.data.splits import split
from finetune.example import Example, Part

SHARED = Path(__file__).parents[2] / "shared" / "data"


def example(document: str, number: int = 0, **more: object) -> Example:
    text = " ".join(f"{document}.{number}.{word}" for word in range(20))
    made = Example(
        f"{document}-{number}", "question_answering", f"Q {text}?", "A", (text,), document=document, golden=0
    )
    return replace(made, **more)  # type: ignore[arg-type]


def documents(count: int, each: int = 1) -> list[Example]:
    return [example(f"d{n}", m) for n in range(count) for m in range(each)]


def parts(examples: list[Example]) -> Counter[Part]:
    return Counter(one.part for one in examples)


def by_document(examples: list[Example]) -> dict[str, set[Part]]:
    found: dict[str, set[Part]] = {}
    for one in examples:
        found.setdefault(one.group, set()).add(one.part)
    return found


def test_a_document_is_in_one_part_and_nothing_else_changes() -> None:
    examples = documents(50, each=7)
    random.Random(0).shuffle(examples)
    done = split(examples, 0.2, 0.2)
    assert all(len(found) == 1 for found in by_document(done).values())
    assert [replace(one, part="train") for one in done] == examples


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [10, 20, 50, 400])
def test_the_shares_are_met(count: int, seed: int) -> None:
    found = parts(split(documents(count, each=3), 0.1, 0.2, seed))
    total = 3 * count
    assert 0.5 * 0.1 * total <= found["validation"] <= 1.5 * 0.1 * total
    assert 0.5 * 0.2 * total <= found["test"] <= 1.5 * 0.2 * total


@pytest.mark.parametrize("seed", range(10))
def test_documents_of_very_different_size(seed: int) -> None:
    rng = random.Random(seed)
    examples = [example(f"d{n}", m) for n in range(15) for m in range(rng.choice([1, 2, 5, 100]))]
    found = parts(split(examples, 0.1, seed=seed))
    assert 0 < found["validation"] <= 0.35 * len(examples)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.9, 0.9), (1.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_there_is_always_something_to_train_on(val: float, test: float, seed: int) -> None:
    for count in (1, 2, 3, 4):
        found = parts(split(documents(count), val, test, seed))
        assert found["train"] >= 1
        assert found["test"] + found["validation"] >= min(count - 1, (val > 0) + (test > 0))
    assert split([], val, test, seed) == []


def test_one_document_is_all_trained_on() -> None:
    assert parts(split(documents(1, each=100), 0.1, 0.1)) == {"train": 100}


def test_no_share_no_part() -> None:
    assert parts(split(documents(100), 0.0)) == {"train": 100}
    assert set(parts(split(documents(100), 0.0, 0.1))) == {"train", "test"}


def test_documents_keep_their_parts_when_others_come_or_go() -> None:
    many = documents(1000)
    before = by_document(split(many, 0.1, 0.1))
    more = documents(1500)
    random.Random(1).shuffle(more)
    after = by_document(split(more, 0.1, 0.1))
    fewer = by_document(split(many[::2], 0.1, 0.1))
    assert before == {name: after[name] for name in before}
    assert fewer == {name: before[name] for name in fewer}


def test_the_validation_part_does_not_hang_on_whether_there_is_a_test_part() -> None:
    with_test = split(documents(300), 0.1, 0.1)
    without = split(documents(300), 0.1)
    assert [one.id for one in with_test if one.part == "validation"] == [
        one.id for one in without if one.part == "validation"
    ]


def test_another_seed_is_another_choice() -> None:
    assert by_document(split(documents(100), 0.2, seed=1)) != by_document(split(documents(100), 0.2, seed=2))


@pytest.mark.parametrize("seed", range(20))
def test_documents_with_nearly_equal_texts_go_together(seed: int) -> None:
    examples = documents(10)
    text = " ".join(f"word{n}" for n in range(60))
    examples += [example(f"copy{n}", passages=(f"{text} {n}",)) for n in range(5)]
    examples += [example("copy5", passages=("other", text, "more"), golden=1)]  # where its answer stands
    examples += [example(f"said{n}", question=f"{text}?", passages=(), golden=None) for n in range(3)]
    found = by_document(split(examples, 0.2, 0.2, seed))
    assert len(set.union(*(found[f"copy{n}"] for n in range(6)))) == 1
    assert len(set.union(*(found[f"said{n}"] for n in range(3)))) == 1


def test_distractors_do_not_tie_documents_together() -> None:
    shared = " ".join(f"shared{n}" for n in range(60))
    examples = [replace(one, passages=(shared, *one.passages), golden=1) for one in documents(40)]
    assert parts(split(examples, 0.2))["validation"] >= 4


def test_examples_without_a_document_stand_for_themselves() -> None:
    examples = [example("", n) for n in range(200)]
    assert 10 <= parts(split(examples, 0.1))["validation"] <= 30


def test_every_task_gets_its_share() -> None:
    examples = documents(20, each=50) + [example(f"s{n}", task="summarization") for n in range(40)]
    done = split(examples, 0.1)
    held = Counter(one.task for one in done if one.part == "validation")
    assert 50 <= held["question_answering"] <= 150 and 2 <= held["summarization"] <= 6


def test_parts_that_are_given_stay() -> None:
    examples = [example("given", 0, part="test"), example("given", 1), *documents(50)]
    done = split(examples, 0.2, 0.2)
    assert [one.part for one in done[:2]] == ["test", "train"]
    assert split(done, 0.2, 0.2)[:2] == done[:2]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the data sets in {SHARED}")
@pytest.mark.parametrize("name", ["squad/train_questions.jsonl", "tasks/mixed_tasks.jsonl"])
def test_no_passage_of_a_real_set_is_on_both_sides(name: str) -> None:
    done = split(list(read_records(Data(path=str(SHARED / name)))), 0.1, 0.1)
    sides: dict[str, set[Part]] = {}
    for one in done:
        for passage in one.passages:
            sides.setdefault(" ".join(passage.lower().split()), set()).add(one.part)
    assert all(len(found) == 1 for found in sides.values())
    assert all(0.05 * len(done) <= parts(done)[part] <= 0.15 * len(done) for part in ("validation", "test"))
