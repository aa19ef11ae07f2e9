"""Answers scored against what is right, each task by its own metric, and samples to do so on. Generates nothing."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import DatasetEmpty
from finetune.evaluation.metrics import Metric
from finetune.evaluation.tasks import MAIN, measured
from finetune.example import TASKS, Example, Task
from rag_app.scores import Interval


@dataclass(frozen=True)
class Scores:
    """Scores of a set of answers."""

    examples: tuple[Example, ...]
    answers: tuple[str, ...]
    metrics: Mapping[Task, Mapping[str, Metric]]
    """By task, the one that stands for it first."""
    quality: tuple[float, ...]
    """Of each answer, by its task's main metric: 0 to 1."""
    seed: int = 0
    """Of the intervals."""

    @property
    def score(self) -> float:
        """Mean over the tasks of the metric that stands for each, 0 to 1."""
        return sum((one[MAIN[task][0]].value or 0.0) / MAIN[task][1] for task, one in self.metrics.items()) / len(
            self.metrics
        )

    def flat(self) -> dict[str, float]:
        """Each metric that has a value, as `question_answering_f1`."""
        named = {f"{task}_{name}": one.value for task, found in self.metrics.items() for name, one in found.items()}
        return {name: value for name, value in named.items() if value is not None}

    def worst(self, n: int) -> list[int]:
        """Places of at most `n` examples of each task that are answered worst; in their order among equals."""
        found: list[int] = []
        for task in self.metrics:
            wrong = [m for m, one in enumerate(self.examples) if one.task == task and self.quality[m] < 1]
            found += sorted(wrong, key=lambda place: self.quality[place])[:n]
        return found

    def as_dict(self, base: "Scores | None" = None) -> dict[str, Any]:
        """For JSON; beside another model's scores on the same examples, with the differences."""
        tasks = {
            task: {
                "n": sum(example.task == task for example in self.examples),
                "metrics": {
                    name: self._row(one, base.metrics[task][name] if base else None) for name, one in found.items()
                },
            }
            for task, found in self.metrics.items()
        }
        return {"n": len(self.examples), "score": round(self.score, 6), "tasks": tasks}

    def _row(self, metric: Metric, other: Metric | None) -> dict[str, Any]:
        row: dict[str, Any] = {
            "value": _rounded(metric.value), "interval": _bounds(metric.interval(self.seed)), "of": metric.count
        }  # fmt: skip
        if other:
            more = metric.difference(other, self.seed)
            row |= {"base": _rounded(other.value), "base_interval": _bounds(other.interval(self.seed))}
            row["difference"] = _rounded(more[0]) if more else None
            row["difference_interval"] = _bounds(more[1]) if more else None
        return row

    def lines(self, base: "Scores | None" = None) -> list[str]:
        """A table for a person; beside another model's scores, with the differences."""
        found = self.as_dict(base)
        beside = f"  {'base':>7}  {'difference':>10}  {'95% interval':>18}" if base else ""
        lines = [f"{'task':18}  {'metric':20}  {'score':>7}  {'95% interval':>16}  {'of':>6}{beside}"]
        for task, one in found["tasks"].items():
            for number, (name, row) in enumerate(one["metrics"].items()):
                digits = 1 if name in ("bleu", "chrf") else 3
                cells = (
                    f"{'' if number else task:18}  {name:20}  {_shown(row['value'], digits):>7}  "
                    f"{_spread(row['interval'], digits):>16}  {row['of']:>6}"
                )
                if base:
                    cells += (
                        f"  {_shown(row['base'], digits):>7}  {_shown(row['difference'], digits, '+'):>10}  "
                        f"{_spread(row['difference_interval'], digits, '+'):>18}"
                    )
                lines.append(cells)
        overall = f"score {self.score:.3f}" + (f", base {base.score:.3f}" if base else "")
        return [*lines, f"{overall}: the mean over the tasks of {', '.join(MAIN[task][0] for task in self.metrics)}"]


def score(examples: Sequence[Example], answers: Sequence[str], seed: int = 0) -> Scores:
    """Scores answers, each by the metrics of its example's task.

    Raises:
        DatasetEmpty: there is no example.
    """
    if not examples:
        raise DatasetEmpty("there is nothing to score: give examples")
    found: dict[Task, Mapping[str, Metric]] = {}
    quality = [0.0] * len(examples)
    for task in TASKS:
        places = [place for place, example in enumerate(examples) if example.task == task]
        if places:
            found[task], good = measured(task, [examples[n] for n in places], [answers[n] for n in places])
            for place, one in zip(places, good, strict=True):
                quality[place] = one
    return Scores(tuple(examples), tuple(answers), found, tuple(quality), seed)


def sample(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """At most `n` examples, in their order: of each task as many, as far as there are, drawn at random.

    Among questions the share of answerable ones is that of all of them.
    """
    if n >= len(examples):
        return list(examples)
    draws, kept = random.Random(seed), set[int]()
    groups = {task: [place for place, one in enumerate(examples) if one.task == task] for task in TASKS}
    for task, count in _shares({task: len(places) for task, places in groups.items() if places}, n).items():
        kept.update(_drawn(examples, groups[task], count, draws))
    return [examples[place] for place in sorted(kept)]


def _shares(sizes: Mapping[Task, int], n: int) -> dict[Task, int]:
    """How many of each task: those that have too few leave theirs to the others."""
    found, left = dict.fromkeys(sizes, 0), n
    while left:
        open_ = [task for task, size in sizes.items() if found[task] < size]
        for task in open_[:left]:
            more = min(max(left // len(open_), 1), sizes[task] - found[task])
            found[task] += more
        left = n - sum(found.values())
    return found


def _drawn(examples: Sequence[Example], places: Sequence[int], count: int, draws: random.Random) -> list[int]:
    yes = [place for place in places if examples[place].answerable]
    no = [place for place in places if not examples[place].answerable]
    answerable = round(count * len(yes) / len(places))
    return [*draws.sample(yes, answerable), *draws.sample(no, count - answerable)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(bound, 6) for bound in interval]


def _shown(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _spread(bounds: Sequence[float] | None, digits: int, sign: str = "") -> str:
    return f"{bounds[0]:{sign}.{digits}f} to {bounds[1]:{sign}.{digits}f}" if bounds else "-"
