"""finetune.evaluation.abstention: the odds against direct computation, the threshold by looking at every one."""

import random
from pathlib import Path
from typing import Any

import pytest

from finetune.evaluation.abstention import Weighed, threshold, weighed
from finetune.evaluation.tasks import refused
from finetune.example import Example
from rag_app.engines.layout import Layout
from rag_app.prompt import NOT_FOUND

YES = Example("y", "question_answering", "Who?", "Rollo", ("Rollo was the leader.",))
NO = Example("n", "question_answering", "When?", NOT_FOUND, ("Rollo was the leader.",), answerable=False)


def test_odds_compare_abstaining_with_the_models_own_answer(small_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf: Any = AutoModelForCausalLM
    model, layout = (
        hf.from_pretrained(small_base, dtype=torch.float32),
        Layout("small", AutoTokenizer.from_pretrained(small_base)),
    )
    found = weighed(model, layout, [YES, NO], max_tokens=4)
    prompt = layout.prompt(YES.messages())

    def log_p(text: str) -> float:
        answer = layout.answer(text)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prompt) - 1 + n, token]) for n, token in enumerate(answer))

    assert [one.example for one in found] == [YES, NO]
    assert not any(refused(one.answer) for one in found)
    assert found[0].odds == pytest.approx(log_p(NOT_FOUND) - log_p(found[0].answer), abs=1e-3)


def test_no_other_odds_have_a_better_overall_f1() -> None:
    draws = random.Random(5)
    found = [Weighed(YES, draws.choice(["Rollo", "Bjorn"]), draws.gauss(-1, 1)) for _ in range(60)]
    found += [Weighed(NO, "Rollo", draws.gauss(1, 1)) for _ in range(30)]

    def overall(odds: float) -> float:
        right = sum(one.answer == "Rollo" for one in found if one.example is YES and one.odds < odds)
        return (right + sum(one.example is NO for one in found if one.odds >= odds)) / 90

    best = threshold(found)
    assert best.overall == pytest.approx(overall(best.odds))
    assert best.overall == pytest.approx(max(overall(one.odds) for one in found))
    kept = [one for one in found if one.odds < best.odds]
    assert best.f1_answerable == pytest.approx(sum(one.answer == "Rollo" for one in kept if one.example is YES) / 60)
    abstained = [one for one in found if one.odds >= best.odds]
    assert best.precision == pytest.approx(sum(one.example is NO for one in abstained) / len(abstained))
