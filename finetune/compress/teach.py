"""A teacher's answers become examples (black-box distillation). Knows no tensors: any generator may teach."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.errors import DatasetEmpty
from finetune.example import Example, example_of, write_examples
from rag_app.errors import PromptTooLong
from rag_app.generator import Generator
from rag_app.halves import repaired
from rag_app.parse import parse_step
from rag_app.prompt import ECHO, NOT_FOUND, PROMPT_VERSION, Message
from rag_app.reasoning import Reasoning
from rag_app.run import declines
from rag_app.scores import holds


@dataclass
class Taught:
    """What became of the examples."""

    teacher: str
    asked: int = 0
    kept: int = 0
    again: int = 0
    """Of those asked, how many an earlier run, that was cut short, had asked already."""
    held_out: int = 0
    """Examples of other parts, which keep their own answers: they judge the student."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Answers that cannot be used, by reason."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "dropped": dict(self.dropped)}


def teach(
    examples: Sequence[Example], generator: Generator, out: Path, progress: Callable[[str, int, int], None]
) -> Taught:
    """Asks a teacher for the answers of the training part, and writes a dataset file with those that can be used.

    Every answer is kept on disk as it comes, beside `out`, until the file is whole: a run that was cut short goes on.

    Args:
        examples: what to ask; the other parts are copied.
        generator: the teacher.
        out: the dataset file, written whole or not at all.
        progress: is told of each answer.

    Raises:
        DatasetEmpty: no answer can be used.
        OSError: the disk is full; the answers so far are kept.
        RagError: the teacher fails.
    """
    report = Taught(generator.check())
    journal = _Journal(out.with_name(f".{out.name}.answers"))
    asked = [place for place, one in enumerate(examples) if one.part == "train"]
    found = {place: one for place, one in enumerate(examples) if one.part != "train"}
    for number, place in enumerate(asked, 1):
        example = examples[place]
        text, reason, known = journal.reply(generator, example)
        report.asked, report.again = number, report.again + known
        if fault := objection(example, text, reason):
            report.dropped[fault] += 1
        else:
            found[place] = taught(example, text, report.teacher)
        progress("answering", number, len(asked))
    report.held_out = len(examples) - len(asked)
    report.kept = len(found) - report.held_out
    if not report.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.most_common(3))
        raise DatasetEmpty(
            f"of {report.asked} answers of '{report.teacher}' none can be used ({reasons or 'no training part'}): give "
            "another teacher, or other examples"
        )
    write_examples((found[place] for place in sorted(found)), out)
    journal.remove()
    return report


def objection(example: Example, text: str, finish_reason: str = "stop") -> str:
    """Why an answer cannot be trained on; nothing if it can.

    Of a question, the answer has to stand in a passage, or to contain an answer that is known to be right.

    Args:
        example: what was asked.
        text: the teacher's answer.
        finish_reason: as in `Generator.stream`, or 'too long' of a prompt.
    """
    if finish_reason not in ("stop", ""):
        return {"length": "cut at max_tokens", "too long": "too long for the teacher's window"}.get(
            finish_reason, finish_reason
        )
    if not text.strip():
        return "empty"
    if example.task == "tool_use":
        return "no step of thought, action and input" if parse_step(text, dict(example.tools)).problem else ""
    if example.task != "question_answering":
        return ""
    if not example.answerable:
        return "" if declines(text) else "answered though the passages do not say"
    if declines(text):
        return "refused though there is an answer"
    supported = holds(text, example.golds) or any(holds(passage, [text]) for passage in example.passages)
    return "" if supported else "not supported by the passages"


def taught(example: Example, text: str, teacher: str) -> Example:
    """The example with a teacher's answer, which parses again; what counts as right in scoring stays the same."""
    answer = text.strip() if example.answerable else NOT_FOUND
    made = replace(example, answer=answer, references=example.golds, origin=f"{teacher} on {example.origin}")
    return example_of(json.loads(json.dumps(made.as_dict())), made.origin)


class _Journal:
    """Replies on disk, a line each, by what was asked of whom."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = dict(_lines(file))

    def reply(self, generator: Generator, example: Example) -> tuple[str, str, bool]:
        """Text and finish reason, and whether they were there already."""
        messages = example.messages()
        asked = [PROMPT_VERSION, generator.engine, generator.check(), generator.decoding.changed(), example.task]
        asked += [[message.role, message.content] for message in messages]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        known = key in self._known
        if not known:
            self._known[key] = _ask(generator, messages, ECHO if example.task != "tool_use" else "\nObservation:")
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([key, *self._known[key]]) + "\n")
        return *self._known[key], known

    def remove(self) -> None:
        """Once the answers stand elsewhere."""
        self._file.unlink(missing_ok=True)


def _lines(file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            key, text, reason = json.loads(line)
        except ValueError:  # the last one, of a run that was killed while it wrote
            continue
        yield key, (text, reason)


def _ask(generator: Generator, messages: Sequence[Message], stop: str) -> tuple[str, str]:
    """The teacher's reply without its reasoning, and why it ended."""
    reasoning, text, reason = Reasoning(), "", ""
    try:
        for chunk in generator.stream([(message.role, message.content) for message in messages], stop=[stop]):
            text += reasoning.feed(repaired(chunk.text))[1]
            reason = chunk.response_metadata.get("finish_reason") or reason
    except PromptTooLong:
        return "", "too long"
    return text + reasoning.finish(), reason
