"""Questions with what is known of their answers, before any passages are found. Knows no index and no model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.errors import RecordInvalid
from finetune.example import Example
from index.beir import DatasetInvalid
from rag_app.prompt import NOT_FOUND
from rag_app.questions import Evidence, question_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A question for which passages are to be found."""

    id: str
    question: str
    golds: tuple[str, ...]
    """Any of them is right; none where the documents do not hold the answer."""
    evidence: tuple[Evidence, ...] = ()
    """All the places that the answer rests on; of a question without an answer, what it is about."""
    documents: tuple[str, ...] = ()
    """What must not stand in two parts of a split: the documents of its evidence, or what they belong to."""
    origin: str = ""
    given: Example | None = None
    """The example that it is of, which brings a text of its own; its answer is evident in passages of that text."""

    @property
    def placed(self) -> bool:
        """Whether it is known where the answer stands."""
        return bool(self.evidence or self.given)

    def example(self, *passages: str, golden: int | None = None) -> Example:
        """It with passages that only tell it from others, for what looks at questions and documents."""
        return Example(
            self.id, "question_answering", self.question, self.golds[0] if self.golds else NOT_FOUND, passages,
            references=self.golds, answerable=bool(self.golds), document=self.documents[0] if self.documents else "",
            origin=self.origin, golden=golden,
        )  # fmt: skip


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether a record is a question of documents elsewhere, as `rag_app.questions` reads them."""
    brings = row.keys() & {"context", "passages", "task", "solution"}
    worked = re.search("^#### ", str(row.get("answer")), re.MULTILINE)  # GSM8K
    return "question" in row and not brings and not worked


def asked_of(file: Path, number: int, row: Mapping[str, Any]) -> Asked:
    """A line of a file of questions, in any form that `rag_app.questions` reads.

    Raises:
        RecordInvalid: it is no question, or says nothing of the answer; the text begins with file and line.
    """
    place = f"{file}:{number}"
    try:
        read = question_of(file, number, dict(row))
    except DatasetInvalid as error:
        reason = str(error).removeprefix(f"'{file}', line {number}: ")
        raise RecordInvalid(f"{place}: {reason}") from None
    if read.answerable is None or (read.answerable and not read.answers):
        raise RecordInvalid(f"{place}: no answer: write an 'answer', or answerable: false where there is none")
    evidence = read.evidence or _about(row)
    named = [name for one in evidence for name in one.documents]
    title = row.get("title")
    if isinstance(title, str) and title.strip() and "paragraph_id" in row:
        named.insert(0, title)  # the article that the paragraph is of
    return Asked(read.id, read.question, read.answers, evidence, tuple(dict.fromkeys(named)), place)


def asked_in(example: Example) -> Asked | None:
    """The question of an example that brings one text, or none; None for what stays as it is."""
    if example.task != "question_answering" or example.history or len(example.passages) > 1:
        return None
    document = (example.document,) if example.document else ()
    given = example if example.passages else None
    return Asked(example.id, example.question, example.golds, (), document, example.origin, given)


def _about(row: Mapping[str, Any]) -> tuple[Evidence, ...]:
    """What a question without an answer was written on: read for the answer, it would be no evidence."""
    for key in ("paragraph_id", "source_file"):
        if isinstance(name := row.get(key), str | int) and str(name).strip():
            return (Evidence((str(name),)),)
    return ()


def distinct_ids(asked: Iterable[Asked]) -> list[Asked]:
    """The questions with ids that tell them apart: files number their lines alike."""
    taken: set[str] = set()
    result = []
    for one in asked:
        name = one.id if one.id not in taken else f"{Path(one.origin.rpartition(':')[0]).stem}/{one.id}"
        count = 1
        while name in taken:
            count += 1
            name = f"{one.id}/{count}"
        taken.add(name)
        result.append(one if name == one.id else replace(one, id=name))
    return result


def joined(names: Sequence[Sequence[str]]) -> list[str]:
    """For each list of documents one name; lists that share a document, or are linked by others, have the same.

    A question on two documents keeps both of them, and all questions on either, in one part of a split.
    """
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = name = above[above[name]]
        return name

    for some in names:
        for name in some[1:]:
            above[top(name)] = top(some[0])
    return [top(some[0]) if some else "" for some in names]
