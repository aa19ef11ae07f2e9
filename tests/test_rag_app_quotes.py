"""Quote marks stay only around what a passage says, however the stream is cut."""

import random
from itertools import pairwise

import pytest

from rag_app.marks import MARKS, PAIRS, Line
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
    # marks of inches and of Hebrew abbreviations are told from quote marks by another sign
    "It's 15\" wide and 20\" high, isn't it?": "It's 15″ wide and 20″ high, isn't it?",
    'It is 5.5" or 3/4" or 5½", (7").': "It is 5.5″ or 3/4″ or 5½″, (7″).",
    'ארה"ב היא': "ארה״ב היא",
    'בארה"ב': "בארה״ב",
    'In 2020" we are bankrupt 2020"': "In 2020 we are bankrupt 2020",
    'In 2020"*we are bankrupt* 3"': "In 2020*we are bankrupt* 3",
    'In 20"*we are bankrupt* 3"': "In 20*we are bankrupt* 3",
    'In 20" we are bankrupt" today': "In 20″ we are bankrupt today",
    'א"we are bankrupt א"': "אwe are bankrupt א",
    'ב"שקר גמור" היום': "בשקר גמור היום",
    'x15" we are "bankrupt" now': "x15 we are bankrupt now",
    "'lives in the Congo'": "'lives in the Congo'",
    # with blanks inside, without any outside, doubled, or with a mark too few
    'the empty "" goes': "the empty  goes",
    'a " b " c': "a  b  c",
    'He said " we are bankrupt " today.': "He said  we are bankrupt  today.",
    '"\xa0we are bankrupt\xa0"': "\xa0we are bankrupt\xa0",
    'It " lives in " it': 'It " lives in " it',
    'In 2020"we are bankrupt".': "In 2020we are bankrupt.",
    '"."we are bankrupt"."': ".we are bankrupt.",
    '"" we are bankrupt ""': " we are bankrupt ",
    '""we are bankrupt""': "we are bankrupt",
    '""lives in"" it': '"lives in" it',
    '"“we are bankrupt”"': "we are bankrupt",
    '„we are bankrupt"': "we are bankrupt",
    "»we are bankrupt": "we are bankrupt",
    "we are bankrupt」 and』": "we are bankrupt and",
    # within another, as the passage has it
    'It says “Set `name = "okapi"` first”.': 'It says “Set `name = "okapi"` first”.',
    'It says “Set `name = "okapi"` last”.': "It says Set `name = okapi` last.",
    # code is what stands between lines of backticks
    'Set `x = "cats"` and "cats".': "Set `x = cats` and cats.",
    'It is ` "we are bankrupt"': "It is ` we are bankrupt",
    'It is ``` "we are bankrupt"\n"cats sleep"': "It is ``` we are bankrupt\ncats sleep",
    '```"we are bankrupt"``` and': "```we are bankrupt``` and",
    '```py\nx = "cats"\n```\n"cats"': '```py\nx = "cats"\n```\ncats',
    '> - ````py\n "cats"\n```\n"cats"\n  ```` x\n"cats"\n````\n"cats"': (
        '> - ````py\n "cats"\n```\n"cats"\n  ```` x\n"cats"\n````\ncats'
    ),
    '2020 ```\n"cats sleep"': "2020 ```\ncats sleep",
    '1. ```\n"cats sleep"': '1. ```\n"cats sleep"',
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
    assert check(['"blue" ```"cats"``` and `"blue"`'])[1] == 1
    assert check(['""cats sleep""'])[1] == check(['" cats sleep "'])[1] == 1
    assert check(['"blue" »'])[1] == 0


@pytest.mark.parametrize("opening", PAIRS)
def test_marks_of_all_kinds(opening: str) -> None:
    for closing in PAIRS[opening]:
        for blank in ("", " ", "\xa0"):
            invented = f"{blank}we are bankrupt{blank}"
            assert check([f"So {opening}{invented}{closing} it is"]) == (f"So {invented} it is", 1)
            true = f"So {opening}{blank}lives in{blank}{closing} it is"
            assert check([true]) == (true, 0)


def unmarked(text: str) -> str:
    """A text without what stands between marks of a kind; each of these has to stand in a passage."""
    left, sources = "", [" ".join(passage.split()) for passage in PASSAGES]
    while text:
        character, text = text[0], text[1:]
        if character in PAIRS:
            end = next(at for at, other in enumerate(text) if other in PAIRS[character])
            quote = " ".join(text[:end].split())
            assert any(map(str.isalnum, quote))
            assert any(quote in source for source in sources), quote
            text = text[end + 1 :]
        else:
            left += character
    return left


def test_no_mixture_of_marks_and_words_leaves_marks_round_what_no_passage_says() -> None:
    parts = [*sorted(MARKS), *'""""""``  \n\n', "```", *"15 .,-*3א(", " we are", " lives in the ", "okapi", "The okapi"]
    parts += ["Ituri", " said ", '"stop"', "bankrupt", "2020", "lives", "\xa0", "```\n", "\n\n"]
    chance = random.Random(0)
    kept = 0
    for _ in range(4000):
        answer = "".join(chance.choices(parts, k=chance.randint(1, 14)))
        cuts = sorted(chance.choices(range(len(answer) + 1), k=3))
        text, dropped = check([answer[a:b] for a, b in pairwise([0, *cuts, len(answer)])])
        assert (text, dropped) == check([answer])
        lines, place = "", Line()
        for character in text:
            lines += character if not place.fence else "\n"
            place = place.after(character)
        assert not MARKS & set(unmarked(lines)), (answer, text)
        kept += bool(MARKS & set(text))
    assert kept > 200


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
