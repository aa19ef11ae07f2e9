"""Stop texts, however the text is cut into pieces."""

import itertools

import pytest

from rag_app.engines.stops import Stops


def shown(pieces: list[str], *stops: str) -> tuple[str, bool]:
    """What is shown of a text, and whether a stop ended it."""
    feed = Stops(stops)
    text = ""
    for piece in pieces:
        text += feed.feed(piece)
        if feed.ended:
            return text, True
    return text + feed.rest(), False


def cuts(text: str) -> list[list[str]]:
    """Every way to cut a text into pieces."""
    result = []
    for places in itertools.product([False, True], repeat=len(text) - 1):
        ends = [place for place, cut in enumerate(places, 1) if cut]
        result.append([text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])])
    return result


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", ["x"], ("one two", False)),
        ("one two", [" tw"], ("one", True)),
        ("one two", ["one"], ("", True)),
        ("one two", ["two"], ("one ", True)),
        ("one two", ["two!"], ("one two", False)),
        ("aab", ["ab"], ("a", True)),
        ("ababc", ["abc"], ("ab", True)),
        ("abab", ["abc", "b"], ("a", True)),
        ("a\n\nb", ["\n\n"], ("a", True)),
        ("hé🦒x", ["🦒"], ("hé", True)),
    ],
)
def test_the_text_ends_where_a_stop_would_come_however_it_is_cut(
    text: str, stops: list[str], expected: tuple[str, bool]
) -> None:
    for pieces in cuts(text):
        assert shown(pieces, *stops) == expected


def test_the_first_that_is_complete_ends_the_text() -> None:
    feed = Stops(["abcX", "b"])
    assert feed.feed("ab") == "a"
    assert feed.ended


def test_what_cannot_begin_a_stop_is_shown_at_once() -> None:
    feed = Stops(["\nQuestion:"])
    assert feed.feed("All is well.") == "All is well."
    assert feed.feed(" Yes\nQu") == " Yes"
    assert feed.feed("ite") == "\nQuite"
    assert feed.feed("\n") == ""
    assert feed.rest() == "\n"


def test_without_stops_everything_is_shown() -> None:
    assert shown(["a", "", "b"]) == ("ab", False)


def test_a_hundred_thousand_stops_and_a_long_one() -> None:
    stops = [f"stop number {number};" for number in range(100_000)] + ["x" * 10**6]
    assert shown(["and ", "stop num", "ber 7", "x; stop number 99", "999", "; more"], *stops) == (
        "and stop number 7x; ",
        True,
    )
