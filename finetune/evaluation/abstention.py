"""How much likelier a model finds it to abstain than to answer, and from which odds on it should. Trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.evaluation import generate
from finetune.evaluation.perplexity import evaluating, log_probs
from finetune.evaluation.tasks import refused
from finetune.example import Example
from rag_app.engines.layout import Layout
from rag_app.prompt import NOT_FOUND
from rag_app.scores import f1, ratio, refusal


@dataclass(frozen=True, slots=True)
class Weighed:
    """A question, and the choice that a model has."""

    example: Example
    answer: str
    """What it writes where it must not abstain."""
    odds: float
    """log p(NOT_FOUND) - log p(answer), with the tokens that end them."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Odds above which it is best to abstain, and the scores that this gives.

    Training with `abstention_weight` times exp(-odds) moves the model's own choice there, about: the weight of a class
    in the loss is what its odds are multiplied with.
    """

    odds: float
    overall: float
    """Mean over all questions: F1 of an answer, 1 for abstaining where there is none."""
    f1_answerable: float
    precision: float
    recall: float
    f1: float


def weighed(
    model: Any,
    layout: Layout,
    examples: Sequence[Example],
    *,
    max_tokens: int = 48,
    progress: generate.Progress | None = None,
) -> list[Weighed]:
    """Weighs each question's own answer against abstaining; arguments and errors as of `generate.answers`."""
    answers = generate.answers(model, layout, examples, max_tokens=max_tokens, progress=progress)
    places = [place for place, answer in enumerate(answers) if refused(answer)]
    other = generate.answers(
        model,
        layout,
        [examples[place] for place in places],
        max_tokens=max_tokens,
        begin_without=layout.answer(NOT_FOUND)[:1],
    )
    for place, answer in zip(places, other, strict=True):
        answers[place] = answer
    with evaluating(model):
        return [
            Weighed(example, answer, _odds(model, layout, example, answer))
            for example, answer in zip(examples, answers, strict=True)
        ]


def threshold(found: Sequence[Weighed]) -> Threshold:
    """The odds with the best overall F1, as SQuAD 2.0's own script picks its threshold. For a validation part only."""
    right = [f1(one.answer, one.example.golds) for one in found]
    cuts = (cut(found, right, odds) for odds in sorted({one.odds for one in found} | {float("inf")}))
    return max(cuts, key=lambda one: one.overall)


def _odds(model: Any, layout: Layout, example: Example, answer: str) -> float:
    prompt = layout.prompt(example.messages())
    abstaining, own = (float(log_probs(model, prompt, layout.answer(text)).sum()) for text in (NOT_FOUND, answer))
    return abstaining - own


def cut(found: Sequence[Weighed], right: Sequence[float], odds: float) -> Threshold:
    """The scores of abstaining from these odds on; `right` has each answer's F1."""
    abstains = [one.odds >= odds for one in found]
    kept = [
        0.0 if abstained else score
        for one, score, abstained in zip(found, right, abstains, strict=True)
        if one.example.answerable
    ]
    unanswerable = [not one.example.answerable for one in found]
    refused_well = sum(one and other for one, other in zip(abstains, unanswerable, strict=True))
    shares = refusal(abstains, unanswerable)
    return Threshold(
        odds,
        (sum(kept) + refused_well) / len(found),
        ratio(kept),
        *(ratio(*shares[name]) for name in ("precision", "recall", "f1")),
    )
