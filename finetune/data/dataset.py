"""Files of questions and an index to one dataset: RAFT's examples, and beside them those that bring their own text.

files ─► Asked ─► without repetitions ─► search ─► parts, by document ─► groups, with and without golden ─► Example
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from finetune.config import Data
from finetune.data.answers import Form
from finetune.data.asked import Asked, asked_in, asked_of, distinct_ids, is_labelled, joined
from finetune.data.duplicates import distinct
from finetune.data.formats.rows import TABLES, rows
from finetune.data.found import Found, find
from finetune.data.raft import MOST, Group, as_served, examples, shared, without_golden
from finetune.data.records import read_records
from finetune.data.report import Report
from finetune.data.splits import split
from finetune.errors import RecordInvalid
from finetune.example import PARTS, Example, Part
from index import Hit
from index.embedding import Progress
from index.errors import QueryInvalid


@dataclass(frozen=True, slots=True)
class Settings:
    """How examples are made of questions."""

    k: int = 4
    """Passages of an example: as many as serving shows."""
    form: Form = "short"
    """Of the answers."""
    without_golden: float = 0.2
    """Least share of refusals; golden passages are taken out as far as questions without an answer do not reach it."""
    insert_golden: bool = False
    """Puts the golden passage in where search missed it, to train on."""
    rounds: int = 1
    """How often a question occurs at most, each time with other passages."""
    share_passages: bool = True
    """Whether questions that the same passages settle have the same ones, to train on."""
    val_share: float = 0.1
    """Of the questions; 1 makes all of them validation."""
    test_share: float = 0.0
    """Likewise."""
    seed: int = 42


@dataclass
class Tally:
    """What became of the questions."""

    questions: int = 0
    answerable: int = 0
    found: int = 0
    """Answerable questions with a golden passage among their first k hits."""
    groups: dict[str, int] = field(default_factory=dict)
    """Different lists of passages, by part."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why the examples have their answers."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "questions": self.questions,
            "golden_found": round(self.found / self.answerable, 4) if self.answerable else None,
            "groups": self.groups,
            "reasons": dict(self.reasons.most_common()),
        }

    def lines(self) -> list[str]:
        """For people."""
        if not self.questions:
            return []
        share = f"; search finds the passage of {self.found / self.answerable:.1%}" if self.answerable else ""
        made = ", ".join(f"{count:,} {name}" for name, count in self.reasons.most_common())
        return [
            f"  questions: {self.questions:,}, {self.answerable:,} with an answer{share}",
            f"  examples of them: {made}",
            f"  lists of passages: {', '.join(f'{count:,} {part}' for part, count in self.groups.items())}",
        ]


def read(files: Sequence[Data], on_bad: Literal["stop", "skip"], report: Report) -> tuple[list[Asked], list[Example]]:
    """The questions of files, and the examples in them that stay as they are.

    Raises:
        RecordInvalid: a record cannot be used, and `on_bad` is stop; the text begins with its file and line.
        DatasetEmpty: a file cannot be read or holds nothing.
        ConfigInvalid: a file is of no known form.
    """
    asked: list[Asked] = []
    kept: list[Example] = []
    for data in files:
        if _is_labelled(data):
            asked += _labelled(Path(data.path), on_bad, report)
            continue
        for example in read_records(_as_questions(data), on_bad, report):
            question = None if data.type == "feedback" else asked_in(example)
            asked += [question] if question else []
            kept += [] if question else [example]
    return asked, kept


def _is_labelled(data: Data) -> bool:
    path = Path(data.path)
    if data.type != "auto" or data.question or Path(data.path.removesuffix(".gz")).suffix.lower() in TABLES:
        return False
    first = next((row for row in rows(path) if not row.problem), None)
    return first is not None and is_labelled(first.value)


def _as_questions(data: Data) -> Data:
    """Of a table without a task, questions of the documents: with no context it would be learnt by heart."""
    table = data.question or data.type == "csv" or Path(data.path.removesuffix(".gz")).suffix.lower() in TABLES
    return data.model_copy(update={"task": "question_answering"}) if table and not data.task else data


def _labelled(path: Path, on_bad: Literal["stop", "skip"], report: Report) -> list[Asked]:
    asked = []
    for row in rows(path):
        try:
            if row.problem:
                raise RecordInvalid(f"{row.place}: {row.problem}")
            line = row.place.rpartition(":")[2]
            asked.append(asked_of(path, int(line) if line.isdecimal() else 0, row.value))
        except RecordInvalid as error:
            if on_bad == "stop":
                raise
            report.dropped.append((row.place, str(error).removeprefix(f"{row.place}: ")))
    return asked


def drawn(
    asked: Sequence[Asked], kept: Sequence[Example], limit: int | None, seed: int
) -> tuple[list[Asked], list[Example]]:
    """At most `limit` of both together, in their order."""
    count = len(asked) + len(kept)
    places = range(count) if limit is None or limit >= count else random.Random(seed).sample(range(count), limit)
    chosen = set(places)
    return (
        [one for n, one in enumerate(asked) if n in chosen],
        [one for n, one in enumerate(kept, len(asked)) if n in chosen],
    )


def unrepeated(asked: Sequence[Asked], kept: Sequence[Example], report: Report) -> tuple[list[Asked], list[Example]]:
    """Those that do not say the same as another; questions with names that tell them apart."""
    named = distinct_ids(asked)
    questions = [one.example(*one.documents) for one in named]
    left = {id(example) for example in distinct([*questions, *kept], report)}
    return (
        [one for one, example in zip(named, questions, strict=True) if id(example) in left],
        [example for example in kept if id(example) in left],
    )


def assemble(
    asked: Sequence[Asked],
    kept: Sequence[Example],
    search: Callable[[str], Sequence[Hit]],
    prefix: str,
    settings: Settings,
    report: Report,
    progress: Progress,
) -> Tally:
    """Fills in the report's examples: of the questions, and those that stay as they are, each in its part.

    Args:
        asked: questions with different ids.
        kept: examples that stay as they are.
        search: gives a question's hits, `finetune.data.found.depth` of them.
        prefix: what stands before a document's id in `Hit.source`.
        settings: how examples are made.
        report: told of questions that none can be made of.
        progress: told how far it is, as 'searching' and 'grouping'.
    """
    found, kept = _found(asked, kept, search, prefix, report, progress)
    kept = _parted(found, kept, settings)
    groups = _groups(found, settings, report, progress)
    made = examples(groups, settings.form, lambda one, reason: report.dropped.append((one.asked.origin, reason)))
    report.examples = [*made, *kept]
    answerable = [one for one in found if one.asked.golds]
    hit = sum(any(map(one.is_golden, one.hits[: settings.k])) for one in answerable)
    parts = Counter(part for part, _ in {(group.members[0][0].part, group.key) for group in groups})
    reasons = Counter(str(reason) for group in groups for _, reason in group.members)
    return Tally(len(found), len(answerable), hit, {str(part): count for part, count in parts.items()}, reasons)


def _found(
    asked: Sequence[Asked],
    kept: Sequence[Example],
    search: Callable[[str], Sequence[Hit]],
    prefix: str,
    report: Report,
    progress: Progress,
) -> tuple[list[Found], list[Example]]:
    """Questions with their hits; those whose own text the index does not have stay what they were."""
    found: list[Found] = []
    kept = list(kept)
    for n, one in enumerate(asked):
        progress("searching", n, len(asked))
        try:
            result = find(one, search, prefix)
        except QueryInvalid as error:
            report.dropped.append((one.origin, str(error)))
            continue
        if one.given and not any(map(result.is_about, result.hits)):
            kept.append(one.given)
        elif reason := result.problem():
            report.dropped.append((one.origin, reason))
        else:
            found.append(result)
    names = [
        [*one.asked.documents, *(hit.source.removeprefix(prefix) for hit in one.hits if hit.chunk_id in one.home)]
        for one in found
    ]
    for result, name in zip(found, joined(names), strict=True):
        result.document = name
    return found, kept


def _parted(found: Sequence[Found], kept: Sequence[Example], settings: Settings) -> list[Example]:
    """Gives every question its part, and every example that stays as it is."""
    questions = []
    for one in found:
        golden = next((hit.text for hit in one.hits if hit.chunk_id in one.home), None)
        bare = one.asked.example(golden, golden=0) if golden else one.asked.example()
        questions.append(replace(bare, document=one.document))
    everything = [*questions, *kept]
    whole: Part | None = "test" if settings.test_share == 1 else "validation" if settings.val_share == 1 else None
    if whole:
        parted = [replace(example, part=whole) for example in everything]
    else:
        parted = split(everything, settings.val_share, settings.test_share, settings.seed)
    for one, example in zip(found, parted, strict=False):
        one.part = example.part
    return parted[len(found) :]


def _groups(found: Sequence[Found], settings: Settings, report: Report, progress: Progress) -> list[Group]:
    """Of the part to train on as few as can be; of the others every question with what serving shows."""
    groups: list[Group] = []
    for part in PARTS:
        questions = [one for one in found if one.part == part]
        if part == "train":
            most = MOST if settings.share_passages else 1
            some = shared(
                questions, settings.k, rounds=settings.rounds, most=most, insert_golden=settings.insert_golden,
                seed=settings.seed, progress=progress,
            )  # fmt: skip
        else:
            some = as_served(questions, settings.k)
        groups += [*some, *without_golden(some, settings.without_golden, seed=settings.seed)]
    asked = {id(one) for group in groups for one, _ in group.members}
    partly = "its passages hold a part of what the answer rests on"
    report.dropped += [(one.asked.origin, partly) for one in found if id(one) not in asked]
    return groups
