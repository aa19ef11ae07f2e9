"""What there is to tell of a set of examples: how many of what, how long, what was left out and why. Reads no files."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from finetune.example import PARTS, TASKS, Example, refusal
from rag_app.prompt import NOT_FOUND

if TYPE_CHECKING:
    from rag_app.engines.layout import Layout

FIRST = 3
"""Places that are named for each reason."""
MOST_LINES = 10
"""Origins and reasons that people are shown."""


@dataclass
class Report:
    """Filled while examples are read, and asked afterwards."""

    examples: Sequence[Example] = ()
    """Those that are left."""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Place ('file:line') and reason of each record that was left out."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Origin of each example that says the same as another, and the other's."""
    layout: "Layout | None" = None
    """Counts lengths in the tokens of a model; without one they are words."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        by_task = Counter((example.task, example.part) for example in self.examples)
        return {
            "examples": len(self.examples),
            "documents": len({example.group for example in self.examples}),
            "unanswerable": sum(map(refusal, self.examples)),
            "tasks": {
                task: {part: by_task[task, part] for part in PARTS if by_task[task, part]}
                for task in TASKS
                if any(by_task[task, part] for part in PARTS)
            },
            "origins": dict(Counter(_file(example.origin) for example in self.examples).most_common()),
            "lengths": self._lengths(),
            "dropped": [
                {"reason": reason, "records": len(places), "first": places[:FIRST]}
                for reason, places in self._reasons().items()
            ],
            "duplicates": {
                "examples": len(self.duplicates),
                "first": [{"origin": origin, "like": like} for origin, like in self.duplicates[:FIRST]],
            },
        }

    def lines(self) -> list[str]:
        """For people."""
        told = self.as_dict()
        examples, documents, unanswerable = told["examples"], told["documents"], told["unanswerable"]
        lines = [f"{examples:,} examples of {documents:,} documents; {unanswerable:,} have the answer '{NOT_FOUND}'"]
        for task, parts in told["tasks"].items():
            lines.append(f"  {task}: {', '.join(f'{count:,} {part}' for part, count in parts.items())}")
        for name in ("prompt", "answer") if examples else ():
            length, unit = told["lengths"][name], told["lengths"]["unit"]
            lines.append(
                f"  {name}: {length['median']:,} {unit} (median), 95% up to {length['p95']:,}, "
                f"the longest {length['longest']:,}"
            )
        lines += _few([f"  from {origin}: {count:,}" for origin, count in told["origins"].items()], "origins")
        dropped = []
        for one in told["dropped"]:
            places = ", ".join(one["first"]) + (", …" if one["records"] > len(one["first"]) else "")
            dropped.append(f"  left out: {one['records']:,} ({one['reason']}): {places}")
        lines += _few(dropped, "reasons")
        if self.duplicates:
            origin, like = self.duplicates[0]
            lines.append(
                f"  left out: {len(self.duplicates):,} that say the same as another, such as {origin} as {like}"
            )
        return lines

    def _reasons(self) -> dict[str, list[str]]:
        """Places by reason, the commonest reason first."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for place, reason in self.dropped:
            reasons[reason].append(place)
        return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))

    def _lengths(self) -> dict[str, Any]:
        if not self.examples:
            return {}
        if layout := self.layout:
            prompts = [len(layout.prompt(example.messages())) for example in self.examples]
            answers = [len(layout.answer(example.answer)) for example in self.examples]
        else:
            prompts = [sum(len(one.content.split()) for one in example.messages()) for example in self.examples]
            answers = [len(example.answer.split()) for example in self.examples]
        unit = "tokens" if layout else "words"
        return {"unit": unit, "prompt": _spread(prompts), "answer": _spread(answers)}


def _few(lines: list[str], what: str) -> list[str]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"  and {more:,} more {what}"] if more > 0 else lines


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {
        "median": round(median(ordered)),
        "p95": ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)],
        "longest": ordered[-1],
    }


def _file(origin: str) -> str:
    """The file of a place; what was made is told by how."""
    file, colon, line = origin.rpartition(":")
    return file if colon and line.isdecimal() else origin
