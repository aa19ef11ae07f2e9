"""What a good answer is, task by task: each task's metrics, and how good a single answer is. Texts in, numbers out."""

import json
from collections.abc import Sequence

from finetune.evaluation import metrics
from finetune.evaluation.metrics import Metric
from finetune.example import Example, Task
from rag_app import scores
from rag_app.citations import MARKER
from rag_app.parse import Action, parse_step
from rag_app.run import NOTHING, declines

MAIN: dict[Task, tuple[str, float]] = {
    "question_answering": ("f1", 1.0),
    "summarization": ("rougeL", 1.0),
    "text_generation": ("chrf", 100.0),
    "tool_use": ("exact", 1.0),
}
"""The metric that stands for a task, and what it is of."""


def measured(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> tuple[dict[str, Metric], list[float]]:
    """The metrics of one task's examples, and how good each answer is by its main metric, 0 to 1."""
    measure = {
        "question_answering": _question_answering,
        "summarization": _summarization,
        "text_generation": _text_generation,
        "tool_use": _tool_use,
    }[task]
    return measure(examples, answers)


def refused(answer: str) -> bool:
    """Whether an answer would be served as saying that the documents do not hold one."""
    return declines(answer.strip() or NOTHING)


def overlap(example: Example, answer: str) -> tuple[float, float]:
    """EM and F1 of an answer to a question; to abstain is right where there is no answer, wrong where there is one."""
    if refused(answer) or not example.answerable:
        right = float(refused(answer) and not example.answerable)
        return right, right
    text = MARKER.sub("", answer)
    return scores.exact_match(text, example.golds), scores.f1(text, example.golds)


def _question_answering(examples: Sequence[Example], answers: Sequence[str]) -> tuple[dict[str, Metric], list[float]]:
    pairs = [overlap(example, answer) for example, answer in zip(examples, answers, strict=True)]
    em, f1 = [one for one, _ in pairs], [one for _, one in pairs]
    answerable = [float(example.answerable) for example in examples]
    found = {"f1": metrics.ratio(f1), "em": metrics.ratio(em)}
    for name, values in (("f1", f1), ("em", em)):
        kept = [value * counts for value, counts in zip(values, answerable, strict=True)]
        found[f"{name}_answerable"] = metrics.ratio(kept, answerable)
    abstaining = scores.refusal([refused(one) for one in answers], [not example.answerable for example in examples])
    found |= {f"abstention_{name}": metrics.ratio(*one) for name, one in abstaining.items()}
    return found, f1


def _summarization(examples: Sequence[Example], answers: Sequence[str]) -> tuple[dict[str, Metric], list[float]]:
    golds = [_golds(example) for example in examples]
    each = [scores.rouge(answer, several) for answer, several in zip(answers, golds, strict=True)]
    found = {kind: metrics.ratio([one[kind] for one in each]) for kind in ("rougeL", "rouge1", "rouge2")}
    return {**found, "chrf": metrics.chrf(answers, golds)}, [one["rougeL"] for one in each]


def _text_generation(examples: Sequence[Example], answers: Sequence[str]) -> tuple[dict[str, Metric], list[float]]:
    golds = [_golds(example) for example in examples]
    chrf = metrics.chrf(answers, golds)
    return {"chrf": chrf, "bleu": metrics.bleu(answers, golds)}, [chrf.of(one) / 100 for one in chrf.parts]


def _tool_use(examples: Sequence[Example], answers: Sequence[str]) -> tuple[dict[str, Metric], list[float]]:
    pairs = [_called(example, answer) for example, answer in zip(examples, answers, strict=True)]
    exact, named = [float(one) for one, _ in pairs], [float(one) for _, one in pairs]
    return {"exact": metrics.ratio(exact), "tool": metrics.ratio(named)}, exact


def _golds(example: Example) -> tuple[str, ...]:
    return example.references or (example.answer,)


def _called(example: Example, answer: str) -> tuple[bool, bool]:
    """Whether an answer calls the right tool with the right arguments, and whether it calls the right tool.

    A run that is finished has no arguments: what it says is no call.
    """
    tools = [*dict.fromkeys([*(name for name, _ in example.tools), "finish"])]
    said = parse_step(answer, tools)
    wanted = [parse_step(gold, tools) for gold in _golds(example)]
    named = [one for one in wanted if one.tool == said.tool and not said.problem]
    return any(one.tool == "finish" or _arguments(one) == _arguments(said) for one in named), bool(named)


def _arguments(action: Action) -> str:
    """JSON in one form, whatever its layout, order and kind of number; else the words."""
    try:
        return json.dumps(json.loads(action.input, parse_int=float), sort_keys=True)
    except (ValueError, RecursionError):
        return " ".join(action.input.split())
