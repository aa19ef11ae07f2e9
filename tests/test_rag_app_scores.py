"""Scores of text against a literal copy of the official formula and the libraries, and intervals against theory."""

import collections
import math
import random
import re
import string

import pytest

from rag_app.scores import bleu, chrf, exact_match, f1, holds, interval, normalised, ratio, refusal, rouge

# SQuAD's evaluation script 2.0, letter by letter.


def normalize_answer(s: str) -> str:
    def remove_articles(text: str) -> str:
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text: str) -> str:
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def get_tokens(s: str) -> list[str]:
    if not s:
        return []
    return normalize_answer(s).split()


def compute_exact(a_gold: str, a_pred: str) -> int:
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks = get_tokens(a_gold)
    pred_toks = get_tokens(a_pred)
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official(answer: str, golds: list[str]) -> tuple[float, float]:
    gold_answers = [gold for gold in golds if normalize_answer(gold)]
    if not gold_answers:
        gold_answers = [""]
    return max(compute_exact(a, answer) for a in gold_answers), max(compute_f1(a, answer) for a in gold_answers)


ODD = [
    ("The Eiffel Tower!", ["eiffel tower"]),
    ("“quoted”", ["quoted"]),  # Unicode punctuation stays
    ("five–six", ["five six", "fivesix"]),
    ("u.s.", ["US", "u s"]),
    ("the", [""]),
    ("the", ["an", "a!"]),  # gold answers that are nothing do not count
    ("", []),
    ("", ["x"]),
    ("x", []),
    ("a b a b", ["a b", "b b b"]),
    ("İstanbul", ["i̇stanbul"]),
    ("a\u00a0b\tc\nd", ["b c d"]),
    ("anthem the-anthem", ["anthem theanthem"]),
    ("14 euros a day", ["14 euros", "14"]),
    ("ÉTÉ", ["été"]),
    ("#$%", ["..."]),
]


@pytest.mark.parametrize(("answer", "golds"), ODD)
def test_scores_are_the_official_ones_on_odd_cases(answer: str, golds: list[str]) -> None:
    assert (exact_match(answer, golds), f1(answer, golds)) == pytest.approx(official(answer, golds), abs=1e-12)


def test_scores_are_the_official_ones_on_random_texts() -> None:
    draw = random.Random(0)
    words = ["a", "the", "An", "cat", "Cat.", "dog", "–", "...", "14", "x-y", "\u00a0", ""]
    for _ in range(2000):
        answer = " ".join(draw.choices(words, k=draw.randint(0, 6)))
        golds = [" ".join(draw.choices(words, k=draw.randint(0, 4))) for _ in range(draw.randint(0, 3))]
        assert normalised(answer) == normalize_answer(answer)
        assert (exact_match(answer, golds), f1(answer, golds)) == pytest.approx(official(answer, golds), abs=1e-12)


def test_a_gold_answer_is_held_as_whole_words() -> None:
    assert holds("It costs 14 Euros, a day.", ["14 euros"])
    assert holds("the Ituri-rainforest", ["Iturirainforest"])
    assert not holds("a party", ["art"])
    assert not holds("anything", ["the", ""])
    assert not holds("14 big euros", ["14 euros"])
    assert not holds("anything", [])


def test_bleu_and_chrf_take_any_number_of_golds() -> None:
    texts = ["the cat sat on the mat today", "hello there big world"]
    golds = [["the cat sat on the mat today", "a cat"], ["hello there small world"]]
    from sacrebleu import corpus_bleu, corpus_chrf

    columns = [["the cat sat on the mat today", "hello there small world"], ["a cat", None]]
    assert bleu(texts, golds) == pytest.approx(corpus_bleu(texts, columns).score)  # type: ignore[arg-type]
    assert chrf(texts, golds) == pytest.approx(corpus_chrf(texts, columns).score)  # type: ignore[arg-type]
    assert bleu(texts[:1], golds[:1]) == pytest.approx(100)
    assert 0 < bleu(texts, golds) < 100


def test_rouge_takes_the_best_gold() -> None:
    scores = rouge("the cat sat", ["dogs ran", "the cat lay down"])
    assert scores["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == scores["rouge1"]
    assert rouge("", ["x"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = [1.0] * 120 + [0.0] * 280
    found = interval(values)
    assert found
    width = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert found == pytest.approx((0.3 - width, 0.3 + width), abs=0.01)
    assert interval(values) == found
    assert interval(values, seed=1) != found


def test_an_interval_of_a_ratio_draws_part_and_whole_together() -> None:
    parts, wholes = [2.0, 0.0, 1.0] * 50, [4.0, 0.0, 2.0] * 50
    assert ratio(parts, wholes) == 0.5
    assert interval(parts, wholes) == (0.5, 0.5)  # every draw has it


@pytest.mark.parametrize(("parts", "wholes"), [([], None), ([0.0, 0.0], [0.0, 0.0])])
def test_nothing_counted_is_0_without_an_interval(parts: list[float], wholes: list[float] | None) -> None:
    assert ratio(parts, wholes) == 0.0
    assert interval(parts, wholes) is None


def test_one_question_in_many_counts() -> None:
    assert interval([1.0] + [0.0] * 99, [1.0] + [0.0] * 99) == (1.0, 1.0)  # draws without it are left out


def test_refusal_counts_what_was_and_what_should_have_been_abstained_from() -> None:
    abstained = [True, True, False, False, True]
    unanswerable = [True, False, True, False, True]
    scores = refusal(abstained, unanswerable)
    assert ratio(*scores["precision"]) == pytest.approx(2 / 3)
    assert ratio(*scores["recall"]) == pytest.approx(2 / 3)
    assert ratio(*scores["f1"]) == pytest.approx(2 / 3)
    never = refusal([False] * 2, [True, False])
    assert [ratio(*never[name]) for name in ("precision", "recall", "f1")] == [0, 0, 0]
    assert sum(never["precision"][1]) == 0
