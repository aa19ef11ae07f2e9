"""Rated answers, as `rag-app chats export` writes them (docs/chats.md): what people found good, or have corrected."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.formats.fields import LeftOut, Unusable, digest, name_of, optional, text
from finetune.example import Example
from rag_app.citations import MARKER
from rag_app.followup import needs_context
from rag_app.prompt import NOT_FOUND
from rag_app.scores import normalised


def feedback(row: Mapping[str, Any]) -> Example:
    """An answer that was rated good, or its correction, which goes before whatever the rating.

    A refusal that was rated good is an example of refusing. The conversation before is in the prompt only where it was
    when the answer was given: where the question leans on it.

    Raises:
        LeftOut: nobody rated it, or it was rated bad and not corrected.
        Unusable: a field is missing or of the wrong kind.
    """
    rating, correction = row.get("rating", 0), optional(row, "correction")
    if isinstance(rating, bool) or rating not in (-1, 0, 1):
        raise Unusable("'rating' is none of 1, 0 and -1: write one")
    if not correction and rating < 1:
        raise LeftOut("rated bad, and not corrected" if rating else "not rated")
    question, passages = text(row, "question"), _objects(row, "passages")
    refused = not correction and row.get("refused") is True
    answer = correction or (NOT_FOUND if refused else _unmarked(text(row, "answer"), _cited(row)))
    if normalised(answer) == normalised(NOT_FOUND):
        refused, answer = True, NOT_FOUND
    before = _turns(row)
    places = [place for place, one in enumerate(passages) if one.get("n") in _cited(row)[:1] and not refused]
    source = passages[places[0] if places else 0] if passages else {}
    return Example(
        id=name_of(row, question, answer),
        task="question_answering",
        question=question,
        answer=answer,
        passages=tuple(text(one, "text") for one in passages),
        history=before if before and needs_context(question, before) else (),
        answerable=not refused,
        document=optional(source, "source") or optional(row, "chat") or digest(question),
        golden=places[0] if places else None,
    )


def _objects(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = row.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Unusable(f"'{name}' is no list of objects: write one")
    return value


def _cited(row: Mapping[str, Any]) -> list[Any]:
    """Numbers of the passages that the answer cites, in its order."""
    return [one.get("n") for one in _objects(row, "citations")]


def _unmarked(answer: str, cited: Sequence[Any]) -> str:
    """Without the markers of citations, which the program puts there, not the model."""
    names = {str(number) for number in cited}

    def left(marker: re.Match[str]) -> str:
        return "" if set(re.findall(r"\d+", marker[0])) <= names else marker[0]

    return MARKER.sub(left, answer).strip()


def _turns(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Earlier questions with their answers; those that got none are left out."""
    pairs, asked = list[tuple[str, str]](), ""
    for turn in _objects(row, "history"):
        said = optional(turn, "content")
        if turn.get("role") == "user":
            asked = said
        elif asked and said:
            pairs.append((asked, said))
            asked = ""
    return tuple(pairs)
