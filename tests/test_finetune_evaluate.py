"""finetune.evaluation.evaluate, tasks and metrics against the libraries' own numbers and rag_app's scores."""

import random
import time
from dataclasses import replace

import pytest

from finetune.errors import DatasetEmpty
from finetune.evaluation import metrics
from finetune.evaluation.evaluate import sample, score
from finetune.evaluation.tasks import refused
from finetune.example import Example
from rag_app import scores
from rag_app.prompt import NOT_FOUND, react_step

WORDS = ("the", "okapi", "lives", "in", "a", "rainforest", "and", "eats", "leaves", "near", "river", "at", "night")


def asked(name: str, answer: str = "Rollo", answerable: bool = True) -> Example:
    return Example(name, "question_answering", "Who?", answer if answerable else NOT_FOUND, answerable=answerable)


def sentences(count: int, seed: int) -> list[str]:
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=draws.randint(3, 12))) for _ in range(count)]


def test_questions_have_squads_scores_and_abstention() -> None:
    examples = [
        asked("right"),
        asked("half"),
        asked("gives up"),
        asked("abstains", "", False),
        asked("guesses", "", False),
    ]
    answers = [
        "the Rollo!",
        "Rollo of Normandy [1]",
        "The documents do not say.",
        "the documents do not say it",
        "Rollo",
    ]
    found = score(examples, answers).metrics["question_answering"]
    values = {name: one.value for name, one in found.items()}
    assert values == {
        "f1": pytest.approx((1 + 0.5 + 0 + 1 + 0) / 5),
        "em": pytest.approx((1 + 0 + 0 + 1 + 0) / 5),
        "f1_answerable": pytest.approx(1.5 / 3),
        "em_answerable": pytest.approx(1 / 3),
        "abstention_precision": 0.5,
        "abstention_recall": 0.5,
        "abstention_f1": 0.5,
    }
    assert [found[name].count for name in ("f1", "f1_answerable", "abstention_recall")] == [5, 3, 2]


@pytest.mark.parametrize("text", [NOT_FOUND, "the documents do not say that", "", "  \n"])
def test_an_answer_is_an_abstention_as_it_is_when_it_is_served(text: str) -> None:
    assert refused(text)
    assert not refused(f"Rollo. {NOT_FOUND}")


def test_a_ratio_has_the_interval_that_serving_gives_it() -> None:
    draws = random.Random(3)
    parts, wholes = [draws.random() for _ in range(90)], [float(draws.random() < 0.7) for _ in range(90)]
    parts = [part * whole for part, whole in zip(parts, wholes, strict=True)]
    one = metrics.ratio(parts, wholes)
    assert one.value == pytest.approx(scores.ratio(parts, wholes))
    assert one.interval(7) == pytest.approx(scores.interval(parts, wholes, seed=7))


def test_where_nothing_counts_there_is_no_score() -> None:
    found = score([asked("a"), asked("b")], ["Rollo", "Rollo"]).as_dict()["tasks"]["question_answering"]["metrics"]
    assert found["abstention_recall"] == {"value": None, "interval": None, "of": 0}


def test_corpus_scores_are_sacrebleus_with_several_references() -> None:
    texts, first, second = sentences(30, 1), sentences(30, 2), sentences(30, 3)
    golds = [(a, b) if place % 3 else (a,) for place, (a, b) in enumerate(zip(first, second, strict=True))]
    assert metrics.bleu(texts, golds).value == pytest.approx(scores.bleu(texts, golds))
    assert metrics.chrf(texts, golds).value == pytest.approx(scores.chrf(texts, golds))


def test_bleu_has_the_interval_of_corpora_drawn_in_full() -> None:
    import numpy as np

    texts, golds = sentences(25, 4), [(one,) for one in sentences(25, 5)]
    draws, drawn = np.random.default_rng(0), []
    for _ in range(metrics.ROUNDS):
        rows = draws.integers(25, size=25)
        drawn.append(rows.tolist())
    direct = [scores.bleu([texts[n] for n in rows], [golds[n] for n in rows]) for rows in drawn[:40]]
    one = metrics.bleu(texts, golds)
    assert [one.of(sums) for sums in metrics._drawn(one.parts, 0)[:40]] == pytest.approx(direct)


def test_the_difference_of_a_pair_is_surer_than_two_intervals() -> None:
    hard = [n % 5 == 0 for n in range(100)]
    low = [0.1 if one else 0.8 for one in hard]
    high = [value + 0.05 + 0.01 * (n % 2) for n, value in enumerate(low)]
    more, (least, most) = metrics.ratio(high).difference(metrics.ratio(low)) or (0.0, (0.0, 0.0))
    assert more == pytest.approx(0.055)
    assert 0.05 < least < more < most < 0.06
    below, above = metrics.ratio(high).interval() or (0.0, 0.0)
    assert above - below > 0.05


def test_summaries_have_rouge_and_chrf() -> None:
    golds = ("the okapi eats leaves", "an okapi lives in the rainforest")
    example = Example("s", "summarization", "Summarize.", golds[0], references=golds)
    found = score([example], ["okapis live in the rainforest"])
    assert found.metrics["summarization"]["rougeL"].value == pytest.approx(
        scores.rouge(found.answers[0], golds)["rougeL"]
    )
    assert found.score == found.metrics["summarization"]["rougeL"].value
    assert set(found.metrics["summarization"]) == {"rougeL", "rouge1", "rouge2", "chrf"}


TOOLS = (("weather", "of a city"), ("search", "the documents"))


@pytest.mark.parametrize(
    ("answer", "exact", "tool"),
    [
        ('Thought: x\nAction: weather\nInput: {"days": 3, "city": "Oslo"}', 1, 1),
        ('Action: weather\nInput: {"city": "Oslo", "days": 3.0}', 1, 1),
        ('{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}', 1, 1),
        ('Action: weather\nInput: {"city": "Oslo", "days": true}', 0, 1),
        ('Action: weather\nInput: {"city": "Rome", "days": 3}', 0, 1),
        ("Action: search\nInput: Oslo", 0, 0),
        ("Action: sing\nInput: {}", 0, 0),
        ("It is cold in Oslo.", 0, 0),
    ],
)
def test_tool_calls_are_right_where_name_and_arguments_are(answer: str, exact: float, tool: float) -> None:
    gold = react_step("I look it up.", "weather", '{"city": "Oslo", "days": 3}')
    found = score([Example("t", "tool_use", "Weather?", gold, tools=TOOLS)], [answer]).flat()
    assert found == {"tool_use_exact": exact, "tool_use_tool": tool}


def test_arguments_that_are_no_json_are_compared_by_words_and_an_end_has_none() -> None:
    call = Example("t", "tool_use", "?", react_step("", "search", "okapi  tongue"), tools=TOOLS)
    end = Example("e", "tool_use", "?", react_step("", "finish", "45 centimetres"), tools=TOOLS)
    answers = ["Action: search\nInput: okapi tongue", "Action: finish\nInput: It is 45 cm long."]
    assert score([call, end], answers).score == 1


def test_the_score_is_the_mean_over_tasks_whatever_their_sizes() -> None:
    text = Example("g", "text_generation", "Write.", "the okapi lives here")
    found = score([asked("a"), asked("b"), text], ["Rollo", "Rollo", "the okapi lives here"])
    assert found.score == pytest.approx(1)
    assert found.flat()["text_generation_chrf"] == pytest.approx(100)
    half = score([asked("a"), asked("b"), text], ["Rollo", "Rollo", ""])
    assert half.score == pytest.approx(0.5)
    assert score([text], ["okapi the"]).quality[0] == pytest.approx(scores.chrf(["okapi the"], [[text.answer]]) / 100)


def test_the_worst_come_first_task_by_task() -> None:
    examples = [asked("fine"), asked("bad"), asked("half"), Example("g", "text_generation", "Write.", "okapi")]
    found = score(examples, ["Rollo", "no", "Rollo of Normandy", "leaf"])
    assert (found.worst(2), found.worst(1)) == ([1, 2, 3], [1, 3])


def test_a_table_shows_both_models_and_their_difference() -> None:
    examples = [asked(str(n)) for n in range(20)] + [Example("g", "text_generation", "Write.", "the okapi lives here")]
    good = score(examples, ["Rollo"] * 20 + ["the okapi lives there"])
    bad = score(examples, ["Rollo of Normandy"] * 20 + ["leaf"])
    lines = good.lines(bad)
    shown = " ".join(lines[1].split())
    assert shown == "question_answering f1 1.000 1.000 to 1.000 20 0.500 +0.500 +0.500 to +0.500"
    assert len({len(line) for line in lines[:-1]}) == 1
    row = good.as_dict(bad)["tasks"]["question_answering"]["metrics"]["f1"]
    assert (row["base"], row["difference"], row["difference_interval"]) == (0.5, 0.5, [0.5, 0.5])
    assert "base" not in good.lines()[0]


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(DatasetEmpty):
        score([], [])


def test_a_sample_is_balanced_by_task_and_keeps_the_share_of_answerable_questions() -> None:
    questions = [asked(f"q{n}", answerable=n % 4 > 0) for n in range(400)]
    text = [Example(f"g{n}", "text_generation", "Write.", "x") for n in range(50)]
    few = [Example(f"s{n}", "summarization", "Summarize.", "x") for n in range(5)]
    drawn = sample([*questions, *text, *few], 65, seed=1)
    of = {
        task: [one for one in drawn if one.task == task]
        for task in ("question_answering", "text_generation", "summarization")
    }
    assert [len(one) for one in of.values()] == [30, 30, 5]
    assert sum(one.answerable for one in of["question_answering"]) == round(30 * 0.75)
    assert drawn == sample([*questions, *text, *few], 65, seed=1) != sample([*questions, *text, *few], 65, seed=2)
    places = {one.id: place for place, one in enumerate([*questions, *text, *few])}
    assert [places[one.id] for one in drawn] == sorted(places[one.id] for one in drawn)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_a_sample_has_the_size_that_was_asked_for(n: int) -> None:
    examples = [asked("a"), asked("b"), Example("g", "text_generation", "Write.", "x")]
    examples += [replace(examples[2], id="h"), Example("s", "summarization", "Summarize.", "x")]
    assert len(sample(examples, n, seed=0)) == min(n, 5)


def test_six_hundred_questions_are_scored_at_once() -> None:
    texts = sentences(600, 8)
    examples = [asked(str(n), one, n % 3 > 0) for n, one in enumerate(sentences(600, 9))]
    examples += [Example(f"g{n}", "text_generation", "Write.", one) for n, one in enumerate(texts)]
    began = time.process_time()
    score(examples, [*texts, *sentences(600, 10)]).lines(score(examples, [*sentences(600, 11), *texts]))
    assert time.process_time() - began < 12
