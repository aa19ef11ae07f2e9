"""Examples of questions with their answers, for few-shot prompts: from a file of one's own, or the bundled one.

JSONL, a row {"question", "answer", "passages": ["…", …]}; `passages` may be left out, other keys are ignored.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_app.errors import SettingInvalid
from rag_app.halves import repaired

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BUNDLED = Path(__file__).with_name("examples.jsonl")
WORD = re.compile(r"\w+")

Encode = Callable[[Sequence[str]], Any]
"""Texts to unit vectors, (texts, dimension); `index.Encoder.encode`."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question answered the way that answers should be."""

    question: str
    answer: str
    passages: tuple[str, ...] = ()
    """What the answer was drawn from, and what was found beside it."""


def load_examples(path: str | None = None) -> list[Example]:
    """The examples of a JSONL file, in its order; the bundled ones without a path.

    Raises:
        SettingInvalid: the file cannot be read, is empty, or a row of it is no example.
    """
    file = Path(path) if path else BUNDLED
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise SettingInvalid(f"the examples '{file}' cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise SettingInvalid(f"the examples '{file}' are no UTF-8 text: save them as JSONL in UTF-8") from error
    examples = [_example(line, f"'{file}', line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise SettingInvalid(f"the examples '{file}' are empty: write a row {FORM} a line")
    return examples


FORM = '{"question": "…", "answer": "…", "passages": ["…"]}'


def _example(line: str, place: str) -> Example:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingInvalid(f"{place} is no JSON ({error}): write a row {FORM} a line") from error
    if not isinstance(row, dict):
        raise SettingInvalid(f"{place} is {type(row).__name__}, not an object: write a row {FORM} a line")
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise SettingInvalid(f"{place} has no {name}: write a row {FORM} a line")
    passages = row.get("passages") or []
    if not isinstance(passages, list) or not all(isinstance(passage, str) for passage in passages):
        raise SettingInvalid(f"{place} has passages that are no list of texts: write a row {FORM} a line")
    return Example(repaired(row["question"]).strip(), repaired(row["answer"]).strip(), tuple(map(repaired, passages)))


def pick(question: str, examples: Sequence[Example], n: int, encode: Encode | None = None) -> list[Example]:
    """The `n` examples whose questions are most like this one, the most alike last, nearest to the question.

    The question itself is never among them, so that its answer is not given away; of examples with the same question
    only the first counts.

    Args:
        question: what is asked.
        examples: where to pick from.
        n: how many at most.
        encode: texts to unit vectors, for likeness by meaning; by shared words without.
    """
    asked = _folded(question)
    others = list({_folded(e.question): e for e in reversed(examples) if _folded(e.question) != asked}.values())[::-1]
    if n < 1 or not others:
        return []
    questions = tuple(example.question for example in others)
    likeness = _by_words(question, questions) if encode is None else _by_meaning(question, questions, encode)
    # sorted is stable: of examples that are equally alike, those that stand first in the file win
    best = sorted(range(len(others)), key=lambda place: -likeness[place])[:n]
    return [others[place] for place in reversed(best)]


def _by_meaning(question: str, questions: tuple[str, ...], encode: Encode) -> list[float]:
    vectors = _encoded(encode, questions)
    (vector,) = encode([question])
    likeness: list[float] = (vectors @ vector).tolist()
    return likeness


@lru_cache(maxsize=8)
def _encoded(encode: Encode, questions: tuple[str, ...]) -> "npt.NDArray[np.float32]":
    """(questions, dimension) float32, unit-norm; kept, for the same examples serve every question."""
    vectors: npt.NDArray[np.float32] = encode(questions)
    return vectors


def _by_words(question: str, questions: tuple[str, ...]) -> list[float]:
    """Jaccard's index of the sets of words."""
    asked = set(_folded(question).split())
    sets = [set(_folded(other).split()) for other in questions]
    return [len(asked & other) / max(len(asked | other), 1) for other in sets]


def _folded(text: str) -> str:
    return " ".join(WORD.findall(text.casefold()))
