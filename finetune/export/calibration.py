"""Texts such as a model will be asked, by which GPTQ rounds its weights: prompts in tokens. Knows no weights."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import ExportInvalid
from finetune.example import Example
from rag_app.confidence import PASSAGES
from rag_app.engines.layout import Layout

COUNT = 128
"""Texts, as Frantar et al. 2022 take."""
ENOUGH = 16_384
"""Tokens after which no further text is taken."""
LONGEST = 1024
"""Tokens of a text; the rest is left out."""
SUBJECT = 8
"""Words of a passage without a heading that stand for what it is about."""


def draw(place: Path, layout: Layout, count: int = COUNT, seed: int = 42) -> list[list[int]]:
    """Prompts from a file of examples, with their answers, or about the passages of an index.

    Args:
        place: a file that `datasets` may name in a recipe, or the folder of an index.
        layout: the model's.
        count: how many at most.
        seed: others with another.

    Raises:
        ExportInvalid: there are none.
        DatasetEmpty, RecordInvalid, ConfigInvalid: the file cannot be read.
        NoIndex, IndexDamaged: the folder holds no index.
    """
    chance = random.Random(seed)
    if place.is_dir():
        from index.maintain import passages

        asked = _about(_sample(passages(place), PASSAGES * count, chance))
    else:
        from finetune.config import Config, Data
        from finetune.data.records import load_examples

        examples, _ = load_examples((Data(path=str(place)),), Config(on_bad_record="skip"))
        asked = _sample([one for one in examples if one.part == "train"] or examples, count, chance)
    return rows(asked, layout, place)


def rows(examples: Iterable[Example], layout: Layout, place: Path | str) -> list[list[int]]:
    """Their prompts and answers in tokens, until there are enough.

    Raises:
        ExportInvalid: there are none; `place` is named.
    """
    found: list[list[int]] = []
    for one in examples:
        answer = layout.answer(one.answer) if one.answer else []
        found.append([*layout.prompt(one.messages()), *answer][:LONGEST])
        if sum(map(len, found)) >= ENOUGH:
            break
    if not found:
        raise ExportInvalid(f"'{place}' holds no text to calibrate on: give examples, or an index with documents")
    return found


def _about(passages: Sequence[dict[str, Any]]) -> list[Example]:
    """A question about some passages at a time, which nobody has answered."""
    found = []
    for start in range(0, len(passages), PASSAGES):
        some = passages[start : start + PASSAGES]
        subject = some[0]["title"] or " ".join(some[0]["text"].split()[:SUBJECT])
        question = f"What do the documents say about {subject}?"
        found.append(Example("", "question_answering", question, "", tuple(one["text"] for one in some)))
    return found


def _sample(items: Iterable[Any], count: int, chance: random.Random) -> list[Any]:
    """So many of them at random, in random order, whatever their number; no more than those are kept in memory."""
    kept: list[Any] = []
    for number, item in enumerate(items):  # Waterman's algorithm R (Knuth, TAOCP 2, 3.4.2)
        if number < count:
            kept.append(item)
        elif (at := chance.randrange(number + 1)) < count:
            kept[at] = item
    chance.shuffle(kept)
    return kept
