"""Which adapters are in use, and which were before, as text and as JSON. Reads no files, knows no folders."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from rag_app.adapters.manifest import NAME
from rag_app.errors import AdapterInvalid

OFF = ("off", "base")
"""What stands for no adapter at all; the first is written."""
MOST = 8
"""Adapters in use at once."""
STRONGEST = 10.0
"""Of weights, with either sign."""
STATES = 100
"""Earlier states that are kept."""
VERSION = 1


@dataclass(frozen=True, slots=True)
class Use:
    """An adapter, and how strongly it is applied: 1 as it was trained, 0.5 half as much."""

    name: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}:{float(self.weight)!r}".removesuffix(".0")


Uses = tuple[Use, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What is in use now, and what was before."""

    active: Uses = ()
    """Nothing: the base model as it is."""
    chosen: bool = False
    """Whether a person chose it; otherwise it is the bundled adapter, where there is one."""
    history: tuple[Uses | None, ...] = ()
    """Earlier ones, oldest first; None where nothing was chosen."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without the history."""
        return {"active": [asdict(use) for use in self.active], "chosen": self.chosen}


def parsed(text: str) -> Uses:
    """What 'NAME', 'NAME,OTHER:0.5' or 'off' means.

    Raises:
        AdapterInvalid: it means nothing.
    """
    return () if text in OFF else checked(tuple(_use(part) for part in text.split(",")))


def shown(uses: Uses) -> str:
    """As `parsed` reads it."""
    return ",".join(map(str, uses)) or OFF[0]


def checked(uses: Uses) -> Uses:
    """The same.

    Raises:
        AdapterInvalid: a weight is out of range, a name comes twice or is none, or there are too many.
    """
    names = [use.name for use in uses]
    for use in uses:
        if use.name in OFF or not NAME.fullmatch(use.name):
            raise AdapterInvalid(
                f"'{use.name[:100]}' is no adapter's name: 'rag-app adapters list' shows those there are"
            )
        if not math.isfinite(use.weight) or not 0 < abs(use.weight) <= STRONGEST:
            raise AdapterInvalid(
                f"the weight of '{use.name}' is {use.weight}: give a number from {-STRONGEST:g} to {STRONGEST:g}, not "
                "0, as in 0.5"
            )
        if names.count(use.name) > 1:
            raise AdapterInvalid(f"'{use.name}' is there twice: name it once, with one weight")
    if len(uses) > MOST:
        raise AdapterInvalid(f"{len(uses)} adapters are too many at once: name at most {MOST}")
    return uses


def _use(text: str) -> Use:
    name, colon, weight = text.strip().partition(":")
    try:
        return Use(name, float(weight) if colon else 1.0)
    except ValueError:
        raise AdapterInvalid(f"the weight of '{name}' is '{weight[:100]}': give a number, as in {name}:0.5") from None


def encoded(active: Uses | None, history: tuple[Uses | None, ...]) -> str:
    """What the file holds; None stands for what was not chosen."""
    states = [None if uses is None else [asdict(use) for use in uses] for uses in (*history[-STATES:], active)]
    return json.dumps({"version": VERSION, "active": states[-1], "history": states[:-1]}, indent=1) + "\n"


def decoded(text: str) -> tuple[Uses | None, tuple[Uses | None, ...]]:
    """What `encoded` was given.

    Raises:
        ValueError: it is something else; says whether it is damaged or of a later version of the program.
    """
    try:
        stored = json.loads(text)
        version = stored["version"]
        if version == VERSION:
            return _uses(stored["active"]), tuple(map(_uses, stored["history"]))[-STATES:]
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, AdapterInvalid) as error:
        raise ValueError("damaged") from error
    later = isinstance(version, int) and version > VERSION
    raise ValueError("of a later version of this program" if later else "damaged")


def _uses(stored: Any) -> Uses | None:
    return None if stored is None else checked(tuple(Use(str(one["name"]), float(one["weight"])) for one in stored))
