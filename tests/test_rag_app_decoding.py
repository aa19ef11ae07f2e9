"""Decoding settings: what is allowed, what is told of what is not, what an engine lacks."""

import math
from typing import Any

import pytest

from rag_app.decoding import EVERYWHERE, RANGES, Decoding
from rag_app.errors import SettingInvalid


def test_the_defaults_are_greedy_and_change_nothing() -> None:
    assert Decoding().temperature == 0
    assert Decoding().changed() == {}
    assert Decoding(temperature=0.7, stop=("END",), top_k=0).changed() == {"temperature": 0.7, "stop": ("END",)}


def test_every_number_has_a_range() -> None:
    numbers = {name for name in Decoding.__dataclass_fields__ if name != "stop"}
    assert {name for name, _, _ in RANGES} == numbers
    for name, low, high in RANGES:
        assert low <= getattr(Decoding(), name) <= high


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_ends_of_a_range_are_allowed_and_what_lies_beyond_is_not(name: str, low: float, high: float) -> None:
    def make(value: Any) -> Decoding:
        return Decoding(**{name: value})

    make(low)
    for value in (low - 1, *([] if high == math.inf else [high + 1]), math.nan, -math.inf, math.inf, True, "1", None):
        with pytest.raises(SettingInvalid, match=f"^{name} is .*: give a (whole )?number") as caught:
            make(value)
        assert repr(value) in str(caught.value)
    if high < math.inf:
        make(high)


@pytest.mark.parametrize("name", ["max_tokens", "top_k", "num_beams", "seed"])
def test_whole_numbers_are_whole(name: str) -> None:
    with pytest.raises(SettingInvalid, match=f"{name} is 2.0: give a whole number"):
        Decoding(**{name: 2.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", ["END", ["END"], ("",), (1,), None])
def test_stops_are_texts(stop: Any) -> None:
    with pytest.raises(SettingInvalid, match="give texts that are not empty"):
        Decoding(stop=stop)


def test_an_engine_refuses_by_name_what_it_lacks() -> None:
    Decoding(temperature=1.0, seed=3, stop=("x",), max_tokens=1).check("any", ())
    Decoding(top_k=40).check("some", {"top_k"})
    with pytest.raises(SettingInvalid, match="the engine 'some' has no min_p, num_beams: leave it out"):
        Decoding(top_k=40, num_beams=3, min_p=0.1).check("some", {"top_k"})
    assert set(Decoding.__dataclass_fields__) >= EVERYWHERE
