"""Files of examples, of any form, to `Example`s that can be trained on. What cannot be is told by file and line.

    examples   our own JSON Lines (finetune.example)
    squad      SQuAD 1.1 and 2.0: the official JSON; rows with `context`, or with `paragraph_id` and a corpus beside
    dolly      instruction, context, response, category
    alpaca     instruction, input, output
    chat       `messages` (OpenAI) or `conversations` (ShareGPT), with tools or without
    csv        columns by their names: a table, or JSON rows
    feedback   rated answers, from `rag-app chats export`
    mixed      task, instruction, context, response, references
    gsm8k      question and worked solution

Questions alone, without answers, are no examples: `rag_app.questions.read_questions` reads those, and RAFT
(finetune.data.raft) makes examples of them. Of any form above it can take an Example's question, answer and document.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from finetune.config import Config, Data, Format
from finetune.data.duplicates import distinct
from finetune.data.formats import instructions, squad
from finetune.data.formats.chat import chat
from finetune.data.formats.feedback import feedback
from finetune.data.formats.fields import LeftOut, Unusable, digest
from finetune.data.formats.rows import Row, rows
from finetune.data.report import Report
from finetune.errors import ConfigInvalid, DatasetEmpty, RecordInvalid
from finetune.example import Example, example_of
from rag_app.engines.pieces import END_NAMES
from rag_app.prompt import INVISIBLE

Reader = Callable[[Mapping[str, Any]], list[Example]]

LONGEST = 1_000_000
"""Characters of an example; no model reads so many at once."""
LOOKED_AT = 20
"""Records by which a form is known."""
_BLANK = re.compile(f"[{INVISIBLE}]*")
_BEGINNINGS = {"<|im_start|>", "<|start_header_id|>", "<|begin_of_text|>", "<start_of_turn>", "[INST]", "<<SYS>>"}
MARK = re.compile("|".join(map(re.escape, sorted(_BEGINNINGS | END_NAMES - {"</s>"}))) + "|</s>$")
"""What only a chat template writes; </s> within a text may be HTML."""
_SIGNS: tuple[tuple[Format, tuple[set[str], ...]], ...] = (
    ("examples", ({"task", "question", "answer"},)),
    ("squad", ({"data"}, {"question", "paragraph_id"}, {"question", "context", "answers"})),
    ("feedback", ({"question", "answer", "passages", "rating"},)),
    ("mixed", ({"task", "instruction", "response"},)),
    ("dolly", ({"instruction", "response"},)),
    ("alpaca", ({"instruction", "output"},)),
    ("chat", ({"messages"}, {"conversations"})),
    ("gsm8k", ({"question", "solution"},)),
)
"""The keys that a form is known by; the first form of which a record has all of a set."""


def load_examples(data: Sequence[Data], config: Config) -> tuple[list[Example], Report]:
    """All examples of several files, each once, with the parts that the files give them, and what there is to tell.

    Raises:
        RecordInvalid: a record cannot be used, and `on_bad_record` is stop; the text begins with its file and line.
        DatasetEmpty: a file cannot be read, or nothing is left.
        ConfigInvalid: a file is of no known form.
    """
    report = Report()
    examples = [example for one in data for example in read_records(one, config.on_bad_record, report)]
    if not examples:
        where = ", ".join(f"'{one.path}'" for one in data)
        reason = f": {report.dropped[0][0]}: {report.dropped[0][1]}" if report.dropped else ""
        raise DatasetEmpty(f"no example is left of {where or 'no file: name one under datasets'}{reason}")
    report.examples = distinct(examples, report)
    return report.examples, report


def read_records(
    data: Data, on_bad: Literal["stop", "skip"] = "stop", report: Report | None = None
) -> Iterator[Example]:
    """The examples of one file, in its order; a record that is left out is told to `report`.

    A record is used whole or not at all. `stop` ends at the first bad one, `skip` goes on behind it.

    Raises:
        RecordInvalid, DatasetEmpty, ConfigInvalid: as `load_examples`.
    """
    report = Report() if report is None else report
    file = Path(data.path)
    read = _reader(_form(file, data), file, data)
    empty = True
    for row in (one for whole in rows(file) for one in squad.questions(whole)):
        empty = False
        try:
            yield from _checked(row, read)
        except LeftOut as reason:
            report.dropped.append((row.place, str(reason)))
        except Unusable as reason:
            if on_bad == "stop":
                raise RecordInvalid(_line(f"{row.place}: {reason}")) from None
            report.dropped.append((row.place, _line(str(reason))))
    if empty:
        raise DatasetEmpty(f"'{file}' holds no example: is it the right file?")


def _line(text: str) -> str:
    return " ".join(text.split())


def _form(file: Path, data: Data) -> Format:
    """What a file holds, by its first records that can be read.

    Raises:
        ConfigInvalid: none of the known forms; the text tells what was seen.
    """
    if data.type != "auto":
        return data.type
    if data.question or data.answer:
        return "csv"
    first = list(islice(rows(file), LOOKED_AT))
    for row in first:
        if form := _known(row.value):
            return form
    if not first:
        raise DatasetEmpty(f"'{file}' holds no example: is it the right file?")
    seen = next((row for row in first if not row.problem), None)
    if seen is None:
        raise RecordInvalid(_line(f"{first[0].place}: {first[0].problem}"))
    names = ", ".join(f"'{name}'" for name in islice(seen.value, 12)) or "no fields"
    raise ConfigInvalid(
        _line(f"'{file}' is of no known form: its first record has {names}. Give its type, or name the columns of")
        + " question and answer"
    )


def _known(row: Mapping[str, Any]) -> Format | None:
    for form, sets in _SIGNS:
        if any(keys <= set(row) for keys in sets):
            return form
    if not {"question", "answer"} <= {name.lower() for name in row}:
        return None
    return "gsm8k" if re.search("^#### ", str(row.get("answer")), re.MULTILINE) else "csv"


def _checked(row: Row, read: Reader) -> list[Example]:
    """The examples of a record, all of them or none."""
    if row.problem:
        raise Unusable(row.problem)
    return [_named(_usable(example), row.place) for example in read(row.value)]


def _usable(example: Example) -> Example:
    for name, text in (("question", example.question), ("answer", example.answer)):
        if _BLANK.fullmatch(text):
            raise Unusable(f"no words in '{name}': write some")
    if mark := MARK.search(example.answer.strip()):
        raise Unusable(f"'{mark[0]}' in the answer: take out what a chat template wrote, it is put there in training")
    texts = (example.question, example.answer, *example.passages, *(text for pair in example.history for text in pair))
    if (length := sum(map(len, texts))) > LONGEST:
        raise Unusable(f"{length:,} characters, at most {LONGEST:,} are read: cut it in several")
    return example


def _named(example: Example, place: str) -> Example:
    """With its place, and a name that stays the same when lines are added before it."""
    own = example.id or digest(example.question, *example.passages, example.answer)
    return replace(example, id=own, origin=example.origin or place)


def _reader(form: Format, file: Path, data: Data) -> Reader:
    """What makes examples of a record of a form."""
    match form:
        case "squad":
            question = squad.reader(file)
            return lambda row: [question(row)]
        case "dolly":
            return lambda row: [instructions.dolly(row, data)]
        case "alpaca":
            return lambda row: [instructions.alpaca(row, data)]
        case "mixed":
            return lambda row: [instructions.mixed(row, data)]
        case "gsm8k":
            return lambda row: [instructions.gsm8k(row, data)]
        case "csv":
            return lambda row: [instructions.columns(row, data)]
        case "feedback":
            return lambda row: [feedback(row)]
        case "chat":
            return lambda row: chat(row, data)
        case _:
            return lambda row: [_own(row, data)]


def _own(row: Mapping[str, Any], data: Data) -> Example:
    named = {"task": data.task, **row} if data.task else row
    try:
        return example_of(named, "")
    except RecordInvalid as error:
        raise Unusable(str(error).removeprefix(": ")) from None
