"""Whether a bot answers better with one adapter than with another: the same questions, answered with each in turn.

What counts is SQuAD's F1 over all questions; to abstain is right where there is no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from index.embedding import Progress
from index.errors import RagError
from rag_app.answer import Answer
from rag_app.errors import AdapterWorse
from rag_app.evaluate import Evaluation, evaluate
from rag_app.questions import Question
from rag_app.scores import Interval, interval

if TYPE_CHECKING:
    from index import Index

TIE = 1e-9
"""Differences of sums that are none."""


class With:
    """A bot that answers with the adapters it is told to, whatever is in use."""

    def __init__(self, bot: Any, adapter: str) -> None:
        self._bot, self._options = bot, replace(bot.options, adapter=adapter)

    def ask(self, question: str) -> Answer:
        """The answer to one question."""
        answer: Answer = self._bot.ask(question, (), self._options)
        return answer

    def index(self) -> "Index":
        """The index that answers come from."""
        index: Index = self._bot.index()
        return index


@dataclass(frozen=True)
class Measured:
    """How a bot did with an adapter, or with several together."""

    adapter: str
    """'NAME', 'NAME,OTHER:0.5' or 'off'."""
    done: Evaluation
    report: dict[str, Any]
    """Of `Evaluation.report`."""

    @property
    def f1(self) -> float:
        """Over all questions that say what is right."""
        return float(self.report["answers"]["f1"])

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without single questions."""
        kept = ("n", "answers", "retrieval", "refusal", "citations", "counts", "intervals", "time")
        return {
            "adapter": self.adapter,
            **{key: self.report[key] for key in kept},
            "failed": len(self.report["errors"]),
        }


def measure(
    bot: Any,
    adapters: Sequence[str],
    questions: Sequence[Question],
    *,
    prefix: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measured]:
    """Asks every question with each of the adapters.

    Args:
        bot: a `rag_app.bot.Bot`.
        adapters: as `state.parsed` takes them.
        questions: with their labels.
        prefix: what stands before a document's id in `Hit.source`, where the index is of one corpus file.
        seed: of the intervals.
        progress: told how far it is over all adapters, as 'answering'.

    Raises:
        RagError: nothing is to be learnt: no question is labelled, the index is of other documents, or all failed.
        KeyboardInterrupt: it was interrupted; the text says so.
    """
    made: list[Measured] = []
    for number, adapter in enumerate(adapters):

        def tell(stage: str, done: int, total: int, before: int = number * len(questions)) -> None:
            if progress:
                progress(stage, before + done, len(adapters) * total)

        try:
            done = evaluate(With(bot, adapter), questions, prefix=prefix, progress=tell)
        except KeyboardInterrupt:
            done = Evaluation(interrupted=True)
        if done.interrupted:
            raise KeyboardInterrupt("interrupted: nothing was changed; run it again to measure anew")
        made.append(Measured(adapter, done, done.report(seed)))
        _check(made[-1])
    return made


def _check(one: Measured) -> None:
    report = one.report
    if len(report["errors"]) == report["n"]:
        first = report["errors"][0]["error"] if report["n"] else "there were none"
        raise RagError(f"every question failed with '{one.adapter}'; the first: {first}")
    if not report["counts"]["answers"]["f1"]:
        raise RagError("no question says what is right, so nothing can be compared: give others with --data")
    if report["counts"]["retrieval"]["recall@5"] and not report["retrieval"]["recall@5"]:
        raise RagError(
            "the index holds nothing of what the questions rest on, so that no answer can be right: give their "
            "documents with --corpus or --index, or other questions with --data"
        )


@dataclass(frozen=True)
class Difference:
    """How much higher the second's F1 is than the first's."""

    value: float
    interval: Interval | None
    """95%, of a paired bootstrap: what makes questions easy or hard cancels out."""
    n: int


def difference(first: Measured, second: Measured, seed: int = 0) -> Difference:
    """Compares two over the same questions."""
    pairs = zip(first.done.results, second.done.results, strict=True)
    more = [b.f1 - a.f1 for a, b in pairs if a.f1 is not None and b.f1 is not None]
    return Difference(sum(more) / len(more), interval(more, seed=seed), len(more))


def check(first: Measured, second: Measured, seed: int = 0) -> Difference:
    """Lets the second pass that is not worse than the first.

    Raises:
        AdapterWorse: it is; with both scores.
    """
    found = difference(first, second, seed)
    if found.value < -TIE:
        low, high = found.interval or (found.value, found.value)
        raise AdapterWorse(
            f"'{second.adapter}' answers worse than '{first.adapter}', which is in use: F1 {second.f1:.3f} against "
            f"{first.f1:.3f} ({found.value:+.3f}, 95% interval {low:+.3f} to {high:+.3f}, {found.n:,} questions). "
            "Nothing was changed: use it all the same with --force"
        )
    return found
