"""Reasoning is told from the reply, however the text is cut into pieces."""

import pytest

from rag_app.reasoning import Reasoning


def split(pieces: list[str]) -> tuple[str, str]:
    reasoning = Reasoning()
    parts = [reasoning.feed(piece) for piece in pieces]
    return "".join(thought for thought, _ in parts), "".join(reply for _, reply in parts) + reasoning.finish()


@pytest.mark.parametrize(
    ("text", "thought", "reply"),
    [
        ("Paris.", "", "Paris."),
        ("<think>I look.</think>\n\nParis.", "I look.", "Paris."),
        ("\n<think>a < b </thin </think>Paris.", "a < b </thin ", "Paris."),
        ("<think></think>Paris.", "", "Paris."),
        ("<think>never ends", "never ends", ""),
        ("<think>half a tag </thi", "half a tag ", ""),
        ("Paris <think>no</think>.", "", "Paris <think>no</think>."),
        ("<thin ice>", "", "<thin ice>"),
        ("<th", "", "<th"),
        ("", "", ""),
    ],
)
def test_any_cut_gives_the_same(text: str, thought: str, reply: str) -> None:
    assert split([text]) == (thought, reply)
    assert split(list(text)) == (thought, reply)
    for place in range(len(text)):
        assert split([text[:place], text[place:]]) == (thought, reply)
