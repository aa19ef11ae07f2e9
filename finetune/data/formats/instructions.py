"""Rows of one instruction and one answer: Dolly, Alpaca, mixed tasks, GSM8K, and columns by their names."""

import re
from collections.abc import Mapping
from typing import Any

from finetune.config import Data
from finetune.data.formats.fields import Unusable, optional, single, text, texts
from finetune.example import TASKS, Example, Task
from rag_app.prompt import NOT_FOUND

DOLLY: dict[str, Task] = {
    "closed_qa": "question_answering",
    "information_extraction": "question_answering",
    "summarization": "summarization",
}
"""Categories that are no text_generation."""
MIXED: dict[str, Task] = {
    "closed_qa": "question_answering",
    "unanswerable_qa": "question_answering",
    "summarization": "summarization",
    "data_to_text": "text_generation",
    "arithmetic": "text_generation",
    "instruction": "text_generation",
}
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's notes for a calculator that nobody is given."""


def dolly(row: Mapping[str, Any], data: Data) -> Example:
    """Dolly: instruction, context, response, category. Without a context nothing is answered from passages."""
    context = optional(row, "context")
    task = DOLLY.get(optional(row, "category"), data.task or "text_generation")
    if task == "question_answering" and not context:
        task = data.task or "text_generation"
    return single(row, task, text(row, "instruction"), text(row, "response"), context)


def alpaca(row: Mapping[str, Any], data: Data) -> Example:
    """Alpaca: instruction, input, output."""
    return single(
        row, data.task or "text_generation", text(row, "instruction"), text(row, "output"), optional(row, "input")
    )


def mixed(row: Mapping[str, Any], data: Data) -> Example:
    """Rows that name their task, ours or one of MIXED: task, instruction, context, response, references.

    Of arithmetic the references are left: they are the bare number, and the response works it out.
    """
    name = optional(row, "task")
    task = next((one for one in TASKS if one == name), None) or MIXED.get(name)
    if task is None:
        raise Unusable(f"the task '{name}' is none of {', '.join(dict.fromkeys([*TASKS, *MIXED]))}")
    question, context = text(row, "instruction"), optional(row, "context")
    if name == "unanswerable_qa":
        return single(row, task, question, NOT_FOUND, context, answerable=False)
    golden = 0 if task == "question_answering" and context else None
    references = () if name == "arithmetic" else texts(row, "references")
    return single(row, task, question, text(row, "response"), context, golden=golden, references=references)


def gsm8k(row: Mapping[str, Any], data: Data) -> Example:
    """GSM8K: question and the worked solution, in `solution` or (official) `answer`; it ends in '#### number'."""
    solution = text(row, "solution" if "solution" in row else "answer")
    return single(row, data.task or "text_generation", text(row, "question"), CALCULATOR.sub("", solution))


def columns(row: Mapping[str, Any], data: Data) -> Example:
    """Any row, by the names of its columns. With a context a question is answered from it, without one by heart."""
    found = {use: _column(row, getattr(data, use), use) for use in ("question", "answer", "context", "document")}
    question, answer = (text(row, found[use] or use) for use in ("question", "answer"))
    context, document = (optional(row, found[use] or use) for use in ("context", "document"))
    task = data.task or ("question_answering" if context else "text_generation")
    return single(row, task, question, answer, context, document)


def _column(row: Mapping[str, Any], named: str | None, use: str) -> str | None:
    """The column for a use: the one that was named, else the one of that name in whatever case."""
    if named is not None:
        if named not in row:
            raise Unusable(f"no column '{named}' for the {use}: there are {', '.join(map(str, row)) or 'none'}")
        return named
    found = next((name for name in row if isinstance(name, str) and name.strip().lower() == use), None)
    if found is None and use in ("question", "answer"):
        raise Unusable(f"no column '{use}': name it by '{use}:', there are {', '.join(map(str, row)) or 'none'}")
    return found
