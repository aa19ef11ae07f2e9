"""Questions from a file as examples with the passages that serving would show. Knows no model, and makes no answers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.asked import Asked, asked_of, distinct_ids
from finetune.errors import DatasetEmpty
from finetune.example import Example, rows
from index import Index
from index.embedding import Progress
from rag_app.confidence import PASSAGES


def read(file: Path) -> list[Asked]:
    """The questions of a file in any form that `rag_app.questions` reads, with their right answers.

    Raises:
        RecordInvalid, DatasetInvalid: a line is no question, or says nothing of the answer; the text names the line.
        DatasetEmpty: there is none, or the file cannot be read.
    """
    found = distinct_ids(asked_of(file, number, row) for number, row in rows(file))
    if not found:
        raise DatasetEmpty(f"'{file}' holds no question: write one JSON object a line, with 'question' and 'answer'")
    return found


def examples(questions: Sequence[Asked], index: Index, k: int, progress: Progress | None = None) -> list[Example]:
    """Each question with the first `k` hits of the search that serving makes.

    Whether it can be answered is what its file says, also where the search did not find the answer.
    """
    found = []
    for number, asked in enumerate(questions):
        if progress:
            progress("searching", number, len(questions))
        hits = index.search(asked.question, max(k, PASSAGES))[:k]
        found.append(replace(asked.example(), passages=tuple(hit.text for hit in hits)))
    return found
