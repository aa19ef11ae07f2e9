"""Questions as examples with the passages that serving would show. Knows no files and no model."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.data.asked import Asked
from finetune.example import Example
from index import Index
from index.embedding import Progress
from rag_app.confidence import PASSAGES


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
