"""Quote marks stay only around what a passage says, however the stream is cut."""

import pytest

from rag_app.quotes import QuoteCheck

PASSAGES = [
    "The okapi lives in the\n  Ituri rainforest. Its tongue is 45 centimetres long, and it's blue.",
    'A 15" screen costs 90 euros. Set `name = "okapi"` first.\n\nHe said "stop" twice.',
    "奥卡皮鹿生活在伊图里雨林。",
]

ANSWERS = {
    # what stands in a passage keeps its marks, blanks and new lines aside
    'It "lives in the Ituri rainforest" today.': 'It "lives in the Ituri rainforest" today.',
    "It “lives in the\nIturi rainforest” today.": "It “lives in the\nIturi rainforest” today.",
    '"Its tongue is 45 centimetres long"': '"Its tongue is 45 centimetres long"',
    'so ("rainforest")': 'so ("rainforest")',
    "Es „lives in“ dort.": "Es „lives in“ dort.",
    "Il « lives in » là.": "Il « lives in » là.",
    '鹿"生活在伊图里雨林"吗': '鹿"生活在伊图里雨林"吗',
    '"The okapi" and "the Ituri"': '"The okapi" and "the Ituri"',
    # what does not, loses them and nothing else
    'It "lives in the Congo" today.': "It lives in the Congo today.",
    "It “lives in the Congo” today.": "It lives in the Congo today.",
    '"Okapis sleep." "The okapi lives"': 'Okapis sleep. "The okapi lives"',
    'It said,"okapis sleep" and:"never"': "It said,okapis sleep and:never",
    '"the  okapi"': "the  okapi",  # another case
    'An "art" is no part of it, "tong" neither.': "An art is no part of it, tong neither.",
    '"lives in … rainforest"': "lives in … rainforest",
    # a comma or full stop of the answer's own goes outside
    'It is "blue," he said, "The okapi."': 'It is "blue", he said, "The okapi".',
    '"lives in the Ituri rainforest."': '"lives in the Ituri rainforest."',
    '"cats," he said': "cats, he said",
    # never closed
    'It "lives in the Ituri': "It lives in the Ituri",
    'It "lives in the Congo': "It lives in the Congo",
    'It "lives in\n\nthe Ituri "rainforest"': 'It lives in\n\nthe Ituri "rainforest"',
    '- "lives on\n- "lives in"\n': '- lives on\n- "lives in"\n',
    'a "': "a ",
    # no quotations
    "It's 15\" wide and 20\" high, isn't it?": "It's 15\" wide and 20\" high, isn't it?",
    'A "15" screen" is 15" wide.': 'A "15" screen" is 15" wide.',
    "'lives in the Congo'": "'lives in the Congo'",
    'the empty "" stays': 'the empty "" stays',
    'a " b " c': 'a " b " c',
    # code
    'Set `x = "cats"` and "cats".': 'Set `x = "cats"` and cats.',
    '```py\nx = "cats"\n```\n"cats"': '```py\nx = "cats"\n```\ncats',
    'Do "this:\n```\nx = "cats"\n```\n"cats"': 'Do this:\n```\nx = "cats"\n```\ncats',
    '"Set `name = "okapi"` first"': '"Set `name = "okapi"` first"',
    # the question's own words
    'By "dark horse" is meant': 'By "dark horse" is meant',
    "": "",
    '"': "",
}


def check(pieces: list[str]) -> tuple[str, int]:
    quotes = QuoteCheck(PASSAGES, ['What is a "dark horse"?'])
    text = "".join([quotes.feed(piece) for piece in pieces]) + quotes.finish()
    return text, quotes.dropped


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_the_text_as_it_is_shown(answer: str, expected: str) -> None:
    assert check([answer])[0] == expected


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_way_to_cut_the_stream_shows_the_same(answer: str) -> None:
    whole = check([answer])
    assert check(list(answer)) == whole
    for cut in range(1, len(answer)):
        assert check([answer[:cut], "", answer[cut:]]) == whole


def test_dropped_quotations_are_counted_once() -> None:
    assert check(['"cats" and "dogs sleep" and "blue" and "never closed'])[1] == 3
    assert check(['"blue" `"cats"`'])[1] == 0


def test_an_invented_quotation_is_passed_on_as_soon_as_it_is_seen_to_be_one() -> None:
    quotes = QuoteCheck(PASSAGES)
    assert quotes.feed('It "lives in the ') == "It "
    assert quotes.feed("Con") == "lives in the Con"
    assert quotes.feed("go, far away") == "go, far away"
    assert quotes.feed('" from') == " from"


def test_a_true_quotation_is_held_until_it_closes() -> None:
    quotes = QuoteCheck(PASSAGES)
    assert quotes.feed('It "lives in the ') == "It "
    assert quotes.feed("Ituri") == ""
    assert quotes.feed('" f') == '"lives in the Ituri" f'


def test_without_passages_nothing_can_be_quoted() -> None:
    quotes = QuoteCheck([])
    assert quotes.feed('"x" “y”') + quotes.finish() == "x y"
