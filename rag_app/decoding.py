"""How the next token is chosen, for every engine alike. Knows no engine: each says by name what it cannot do."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from rag_app.errors import SettingInvalid

EVERYWHERE = frozenset({"max_tokens", "temperature", "seed", "stop"})
"""Settings that every engine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Greedy unless told otherwise; every default means "off"."""

    max_tokens: int = 256
    """Most tokens of one reply."""
    temperature: float = 0.0
    """0 is greedy; above, tokens are drawn at random (multinomial sampling)."""
    top_k: int = 0
    """Draws among this many of the likeliest tokens; 0 among all."""
    top_p: float = 1.0
    """Nucleus: draws among the fewest tokens whose probabilities add up to this."""
    min_p: float = 0.0
    """Draws among tokens at least this share as likely as the likeliest."""
    typical_p: float = 1.0
    """Locally typical sampling (Meister et al. 2022): the mass of tokens nearest to the expected surprise."""
    num_beams: int = 1
    """Beam search with this many beams."""
    penalty_alpha: float = 0.0
    """Contrastive search (Su et al. 2022): weight of the degeneration penalty, with `top_k` candidates."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that have occurred (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the reply holds already, as OpenAI's."""
    frequency_penalty: float = 0.0
    """The same, times how often."""
    stop: tuple[str, ...] = ()
    """Ends the reply where one of these texts would come; it is not shown."""
    seed: int = 0
    """For temperatures above 0."""

    def __post_init__(self) -> None:
        for name, low, high in RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                most = f" to {high}" if high < math.inf else " up"
                raise SettingInvalid(f"{name} is {shown(value)}: give a number from {low}{most}")
            if name in WHOLE and not isinstance(value, int):
                raise SettingInvalid(f"{name} is {value!r}: give a whole number")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise SettingInvalid(f"stop is {shown(self.stop)}: give texts that are not empty")

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def check(self, engine: str, able: Collection[str]) -> None:
        """Refuses by name what an engine lacks.

        Args:
            engine: its name, for the message.
            able: the settings that it has, beside those of EVERYWHERE.

        Raises:
            SettingInvalid: a setting is changed that the engine would have to ignore.
        """
        lacking = sorted(set(self.changed()) - set(able) - EVERYWHERE)
        if lacking:
            raise SettingInvalid(
                f"the engine '{engine}' has no {', '.join(lacking)}: leave it out, or choose another engine"
            )


WHOLE = frozenset({"max_tokens", "top_k", "num_beams", "seed"})
RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 1, math.inf),
    ("temperature", 0, 100),
    ("top_k", 0, math.inf),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("typical_p", 0, 1),
    ("num_beams", 1, 64),
    ("penalty_alpha", 0, 1),
    ("repetition_penalty", 0.01, 100),
    ("presence_penalty", -10, 10),
    ("frequency_penalty", -10, 10),
    ("seed", 0, 2**32 - 1),
)


def shown(value: object) -> str:
    """A value as a message quotes it: short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, lists in lists
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


SHOWN = 100
"""Most characters of a value in a message."""
