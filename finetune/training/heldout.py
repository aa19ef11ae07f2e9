"""Questions that a run has not been trained on, in the form that `rag-app eval` takes. Trains and asks nothing.

They are kept beside the adapter, so that it can be measured against another wherever it is used.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.example import Example
from rag_app.adapters.manifest import HELDOUT

MOST = 200
"""Questions that are kept: differences of 0.1 in F1 show, and the file stays below a megabyte."""


def chosen(examples: Sequence[Example], seed: int) -> list[Example]:
    """The questions of the test part; where there are none, of the validation part, which has picked the checkpoint."""
    asked = [one for one in examples if one.task == "question_answering" and not one.history]
    for part in ("test", "validation"):
        if found := [one for one in asked if one.part == part]:
            return random.Random(seed).sample(found, min(MOST, len(found)))
    return []


def write(examples: Sequence[Example], folder: Path) -> None:
    """Writes a line for each, with its passages, into a folder that is being made; nothing where there are none."""
    if examples:
        lines = (json.dumps(_line(one), ensure_ascii=False) for one in examples)
        (folder / HELDOUT).write_text("\n".join(lines) + "\n", "utf-8")


def _line(example: Example) -> dict[str, Any]:
    passages = [
        {"paragraph_text": text, "is_supporting": number == example.golden}
        for number, text in enumerate(example.passages)
    ]
    return {
        "id": example.id,
        "question": example.question,
        "answers": list(example.golds),
        "answerable": example.answerable,
        "part": example.part,
        **({"paragraphs": passages} if passages else {}),
    }
