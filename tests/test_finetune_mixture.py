"""An epoch's examples by the weights of their tasks."""

from collections import Counter

import pytest

from finetune.data.mixture import mixed
from finetune.errors import ConfigInvalid
from finetune.example import Example, Task


def examples(**counts: int) -> list[Example]:
    return [Example(f"{task}{n}", task, "Q?", "A") for task, count in counts.items() for n in range(count)]  # type: ignore[arg-type]


SET = examples(question_answering=70, summarization=20, tool_use=10)


def tasks(drawn: list[Example]) -> dict[Task, int]:
    return dict(Counter(example.task for example in drawn))


def test_without_weights_every_example_comes_once() -> None:
    drawn = mixed(SET, {}, 1)
    assert drawn != SET and sorted(e.id for e in drawn) == sorted(e.id for e in SET)


def test_an_epoch_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    for weights in ({}, {"summarization": 1.0, "tool_use": 2.0}):
        first = mixed(SET, weights, 1, 0)  # type: ignore[arg-type]
        assert first == mixed(SET, weights, 1, 0)  # type: ignore[arg-type]
        assert first != mixed(SET, weights, 1, 1) != mixed(SET, weights, 2, 0)  # type: ignore[arg-type]


def test_weights_are_shares_of_the_epoch() -> None:
    assert tasks(mixed(SET, {"question_answering": 1, "summarization": 1, "tool_use": 2}, 1)) == {
        "question_answering": 25, "summarization": 25, "tool_use": 50,
    }  # fmt: skip
    assert tasks(mixed(SET, {"question_answering": 3, "tool_use": 1}, 1)) == {"question_answering": 60, "tool_use": 20}
    assert tasks(mixed(SET, {"question_answering": 0, "tool_use": 1}, 1)) == {"tool_use": 10}


@pytest.mark.parametrize("weights", [(1, 1, 1), (1e308, 1e308, 1e308), (5e-324, 5e-324, 5e-324), (0.1, 0.2, 0.7)])
def test_what_does_not_divide_evenly_adds_up_all_the_same(weights: tuple[float, float, float]) -> None:
    named = dict(zip(("question_answering", "summarization", "tool_use"), weights, strict=True))
    assert len(mixed(SET, named, 1)) == 100  # type: ignore[arg-type]


def test_over_the_epochs_all_come_equally_often() -> None:
    seen: Counter[str] = Counter()
    for epoch in range(14):  # 25 of 70 at a time: 350 in all, 5 of each
        seen += Counter(e.id for e in mixed(SET, {"question_answering": 1, "summarization": 3}, 1, epoch))
    questions = {seen[f"question_answering{n}"] for n in range(70)}
    summaries = {seen[f"summarization{n}"] for n in range(20)}
    assert max(questions) - min(questions) <= 1 and max(summaries) - min(summaries) <= 1


def test_a_task_of_one_example_is_repeated() -> None:
    drawn = mixed(examples(question_answering=99, tool_use=1), {"question_answering": 1, "tool_use": 1}, 1)
    assert tasks(drawn) == {"question_answering": 50, "tool_use": 50}


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ConfigInvalid, match="no example of the task 'text_generation': leave it out, or add some"):
        mixed(SET, {"text_generation": 1}, 1)
    for weight in (0.0, float("inf")):
        with pytest.raises(ConfigInvalid, match="no task has a weight"):
            mixed(SET, {"tool_use": weight}, 1)
