"""Repeats: sentences that come again, phrases that loop, and what must pass untouched."""

import pytest

from rag_app.repeats import Repeats


def through(text: str, size: int = 1) -> tuple[str, bool]:
    repeats = Repeats()
    shown = "".join(repeats.feed(text[i : i + size]) for i in range(0, len(text), size))
    return shown + repeats.finish(), repeats.looping


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "The okapi lives in the rainforest. The okapi lives in Congo. It is shy.",
        "Yes. No. Yes. No. Yes.",
        "- one\n- two\n\n1.5 and 1.5 are equal\n",
        "```\nx = f(a, b, c)\nx = f(a, b, c)\nx = f(a, b, c)\n```\nThat is all.",
        "",
        "no end of sentence",
    ],
)
def test_what_does_not_go_round_passes_unchanged(text: str, size: int) -> None:
    assert through(text, size) == (text, False)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_sentence_that_comes_again_is_not_shown_and_ends_the_answer(size: int) -> None:
    first = "The files must be stored as safetensors."
    shown, looping = through(f"{first} They are small.\n\n{first} They are small. More.", size)
    assert (shown.strip(), looping) == (f"{first} They are small.", True)


def test_a_repetition_cut_off_in_the_middle_is_not_shown() -> None:
    assert through("The files must be stored as safetensors. The files must be stored")[0].strip() == (
        "The files must be stored as safetensors."
    )


@pytest.mark.parametrize("phrase", ["la femme, ", "very ", "the model and the base and "])
def test_a_phrase_that_comes_over_and_over_ends_the_answer(phrase: str) -> None:
    shown, looping = through("It is " + phrase * 40)
    assert looping
    assert len(shown) < len("It is " + phrase * 12)


def test_a_digit_without_end_ends_the_answer() -> None:
    shown, looping = through("It has 2" + "0" * 500)
    assert looping
    assert len(shown) < 60


def test_a_short_line_may_come_three_times_but_not_for_ever() -> None:
    assert through("## API\n\n" * 3) == ("## API\n\n" * 3, False)
    shown, looping = through("## API\n\n" * 9)
    assert (shown.count("API"), looping) == (3, True)


def test_numbers_and_markers_make_no_other_sentence() -> None:
    repeats = Repeats()
    text = "[5] The weights are kept frozen always.\n[6] The weights are kept frozen always.\nMore."
    shown = repeats.feed(text) + repeats.finish()
    assert repeats.looping
    assert shown.count("frozen") == 1
