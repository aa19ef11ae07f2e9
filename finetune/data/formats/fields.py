"""What every form reads from a row: texts, checked, and names that stay the same when lines are added around it."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from finetune.example import Example, Task


class Unusable(Exception):
    """A record is bad; the text says why, and what to do, but not where it stands."""


class LeftOut(Exception):
    """A record is in order, and there is nothing in it to train on; the text says why."""


def text(row: Mapping[str, Any], name: str) -> str:
    """The words of a field.

    Raises:
        Unusable: there are none.
    """
    value = optional(row, name)
    if not value:
        raise Unusable(f"no words in '{name}': write some")
    return value


def optional(row: Mapping[str, Any], name: str) -> str:
    """The words of a field; '' where it is missing, null or blank. A number is its digits.

    Raises:
        Unusable: it holds something else.
    """
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        return str(value)
    if value is not None and not isinstance(value, str):
        raise Unusable(f"'{name}' is no text: write one")
    return (value or "").strip()


def texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts of a list that have words in them; of a missing list none.

    Raises:
        Unusable: it is no list of texts.
    """
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Unusable(f"'{name}' is no list of texts: write one")
    return tuple(one.strip() for one in value if one.strip())


def digest(*parts: str) -> str:
    """A short name of texts: the same whenever and wherever they are read."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def name_of(row: Mapping[str, Any], *parts: str) -> str:
    """The row's own id; without one, or with a bare number that other files have too, with the digest of its texts."""
    own = row.get("id", row.get("_id"))
    if isinstance(own, str) and own.strip() and not own.strip().isdecimal():
        return own.strip()
    return digest(*parts)


def single(
    row: Mapping[str, Any], task: Task, question: str, answer: str, context: str = "", document: str = "", **more: Any
) -> Example:
    """An example with at most one passage. Those of one context belong to one document, unless it has a name."""
    return Example(
        id=name_of(row, question, context, answer),
        task=task,
        question=question,
        answer=answer,
        passages=(context,) if context else (),
        document=document or (digest(context) if context else ""),
        **more,
    )
