"""One example, what a line of a dataset file holds, and the prompt that it is asked with. Knows no tokenizer.

A dataset file is JSON Lines; every line is an `Example` as `as_dict` gives it. `docs/finetune.md` describes the fields.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.errors import DatasetEmpty, RecordInvalid
from index.beir import DatasetInvalid, read_rows
from rag_app.halves import repaired
from rag_app.prompt import NOT_FOUND, Message, instruction_prompt, question_prompt, react_prompt

Task = Literal["question_answering", "summarization", "text_generation", "tool_use"]
TASKS: tuple[Task, ...] = get_args(Task)
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class Example:
    """What is asked, and what the model shall write."""

    id: str
    task: Task
    question: str
    """The question or instruction."""
    answer: str
    """What the model shall write, without a stop token."""
    passages: tuple[str, ...] = ()
    """What it is asked of, in the order of the prompt; question_answering has them numbered, the others plain."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier questions of the conversation and their answers, oldest first."""
    references: tuple[str, ...] = ()
    """Every answer that counts as right in scoring; empty: `answer` alone does."""
    answerable: bool = True
    """Whether the passages hold the answer; where not, `answer` is `rag_app.prompt.NOT_FOUND`."""
    tools: tuple[tuple[str, str], ...] = ()
    """tool_use: name and description of each."""
    steps: tuple[tuple[str, str], ...] = ()
    """tool_use: the steps before this one, as `rag_app.prompt.react_step` lays them out, and what was observed."""
    document: str = ""
    """What it comes from: all examples of one document are in the same part. Empty: it stands for itself."""
    part: Part = "train"
    golden: int | None = None
    """Which passage, from 0, holds the answer."""
    weight: float = 1.0
    """What its loss is multiplied with."""
    origin: str = ""
    """Where it comes from: 'file:line', or how it was made."""

    @property
    def golds(self) -> tuple[str, ...]:
        """The right answers; none where the passages hold none."""
        return (self.references or (self.answer,)) if self.answerable else ()

    @property
    def group(self) -> str:
        """What keeps it together with others in a split."""
        return self.document or self.id

    def messages(self) -> list[Message]:
        """The prompt, from `rag_app.prompt`."""
        if self.task == "question_answering":
            return question_prompt(self.question, self.passages, self.history)
        if self.task == "tool_use":
            return react_prompt(self.question, self.tools, self.steps, self.history)
        return instruction_prompt(self.question, "\n\n".join(self.passages), self.history)

    def as_dict(self) -> dict[str, Any]:
        """For a line of a dataset file; what is as by default is left out."""
        plain = {one.name: one.default for one in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


def refusal(example: Example) -> bool:
    """Whether the answer is that the passages do not hold one."""
    return not example.answerable or example.answer == NOT_FOUND


def write_examples(examples: Iterable[Example], file: Path) -> int:
    """Writes a dataset file, whole or not at all; returns the number of lines.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; what was there before is still there.
    """
    part = file.with_name(f".{file.name}.part")
    written = 0
    try:
        with part.open("w", encoding="utf-8") as stream:
            for example in examples:
                stream.write(json.dumps(example.as_dict(), ensure_ascii=False) + "\n")
                written += 1
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return written


def read_examples(file: Path, part: Part | None = None) -> Iterator[Example]:
    """The examples of a dataset file, in its order; of one part, if it is named.

    Raises:
        RecordInvalid: a line is no example; the message names file and line.
        DatasetEmpty: the file cannot be read, or holds no example.
    """
    empty = True
    for number, row in rows(file):
        empty = False
        example = example_of(row, f"{file}:{number}")
        if part in (None, example.part):
            yield example
    if empty:
        raise DatasetEmpty(f"'{file}' holds no example: make some with rag-finetune dataset")


def rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every line of a JSON Lines file, with texts that a tokenizer takes.

    Raises:
        RecordInvalid: a line is no JSON object; the message names file and line.
        DatasetEmpty: the file cannot be read.
    """
    try:
        for number, row in read_rows(file):
            try:
                text = json.dumps(row, ensure_ascii=False)
                yield number, row if (whole := repaired(text)) == text else json.loads(whole)
            except RecursionError:
                raise RecordInvalid(f"{file}:{number}: nested too deeply: write texts and lists of texts") from None
    except DatasetInvalid as error:
        raise RecordInvalid(str(error)) from error


def example_of(row: Mapping[str, Any], place: str) -> Example:
    """A line of a dataset file as an example.

    Raises:
        RecordInvalid: something is missing or of the wrong kind; `place` is named.
    """
    known = {one.name for one in fields(Example)}
    if unknown := sorted(set(row) - known):
        raise RecordInvalid(f"{place}: no field of an example: {', '.join(unknown)}. Known are {', '.join(known)}")
    given = {"origin": place, "id": place, **row}
    for name in ("id", "task", "question", "answer", "document", "part", "origin"):
        if not isinstance(given.get(name, ""), str):
            raise RecordInvalid(f"{place}: '{name}' is {given[name]!r}: write a text")
    if given.get("task") not in TASKS:
        raise RecordInvalid(f"{place}: 'task' is {given.get('task')!r}: write one of {', '.join(TASKS)}")
    if given.get("part", "train") not in PARTS:
        raise RecordInvalid(f"{place}: 'part' is {given['part']!r}: write one of {', '.join(PARTS)}")
    for name in ("question", "answer"):
        if not str(given.get(name, "")).strip():
            raise RecordInvalid(f"{place}: no words in '{name}': write it there")
    given |= {name: _texts(given.get(name, ()), name, place) for name in ("passages", "references")}
    given |= {name: _pairs(given.get(name, ()), name, place) for name in ("history", "tools", "steps")}
    return _checked(Example(**given), place)


def _checked(example: Example, place: str) -> Example:
    golden, weight = example.golden, example.weight
    if not isinstance(example.answerable, bool):
        raise RecordInvalid(f"{place}: 'answerable' is {example.answerable!r}: write true or false")
    if golden is not None and (type(golden) is not int or not 0 <= golden < len(example.passages)):
        raise RecordInvalid(f"{place}: 'golden' is {golden!r}, with {len(example.passages)} passages: count from 0")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
        raise RecordInvalid(f"{place}: 'weight' is {repr(weight)[:40]}: write a number above 0 and below 1e9")
    return example


def _texts(value: Any, name: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise RecordInvalid(f"{place}: '{name}' is no list of texts: write one")
    return tuple(value)


def _pairs(value: Any, name: str, place: str) -> tuple[tuple[str, str], ...]:
    fine = isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in value
    )
    if not fine:
        raise RecordInvalid(f"{place}: '{name}' is no list of pairs of texts: write one")
    return tuple((pair[0], pair[1]) for pair in value)
