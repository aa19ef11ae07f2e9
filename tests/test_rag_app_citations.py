"""What an answer cites: verbatim quotes, markers only where a passage bears the sentence out, however it is cut."""

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest

from index import Hit
from rag_app.citations import Citation, Citer

OKAPI = "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long."
AXOLOTL = "\n  The axolotl keeps its gills for life.\nIt lives in Lake Xochimilco near Mexico City.  \n"
CODE = "Set the rank like this:\n\nmodel = build(r=16)\nlayers = model[0]\n"
PEOPLE = "Dr. Jane R. Goodall saw them, e.g. in 1960. About 2.5 metres, i.e. Very tall. 3 of them slept."
CJK = "奥卡皮鹿生活在伊图里雨林。它的舌头长四十五厘米。"
START = 1000
QUESTION = "Where does the okapi live?"


def passages(*texts: str) -> list[Hit]:
    spans = [(START * n, START * n + len(text)) for n, text in enumerate(texts, 1)]
    return [
        Hit(n, 0.9, f"c{n}", f"/docs/{n}.md", n if n > 1 else None, "", *spans[n - 1], text)
        for n, text in enumerate(texts, 1)
    ]


HITS = passages(OKAPI, AXOLOTL, CODE, PEOPLE, CJK)


def cite(pieces: str | Sequence[str], hits: Sequence[Hit] = HITS) -> tuple[str, list[Citation]]:
    citer = Citer(QUESTION, hits)
    shown = [citer.feed(piece) for piece in ([pieces] if isinstance(pieces, str) else pieces)]
    return "".join(shown) + citer.finish(), citer.citations


def shown(text: str, hits: Sequence[Hit] = HITS) -> str:
    return cite(text, hits)[0]


ANSWERS = {
    # a marker stands after the sentence that a passage bears out, and after no other
    "The okapi lives in the Ituri rainforest. Cats are nice. Its tongue is 45 centimetres long.": (
        "The okapi lives in the Ituri rainforest. [1] Cats are nice. Its tongue is 45 centimetres long. [1]"
    ),
    "Okapis live in the rainforest of Ituri! Axolotls keep gills for life?": (
        "Okapis live in the rainforest of Ituri! [1] Axolotls keep gills for life? [2]"
    ),
    "Nothing here is known to anybody.": "Nothing here is known to anybody.",
    "The full stop: the axolotl keeps its gills": "The full stop: the axolotl keeps its gills [2]",
    '"The okapi lives in the Ituri rainforest." It does.': '"The okapi lives in the Ituri rainforest." [1] It does.',
    # what a model writes as markers: moved behind the sentence when true, gone when not
    "The okapi lives in the Ituri rainforest [1]. Cats are nice [1].": (
        "The okapi lives in the Ituri rainforest. [1] Cats are nice."
    ),
    "The okapi lives in the Ituri rainforest. [1] Its tongue is 45 centimetres long. [1]": (
        "The okapi lives in the Ituri rainforest. [1] Its tongue is 45 centimetres long. [1]"
    ),
    "The okapi[1][2] lives in the Ituri rainforest[1, 2].": "The okapi lives in the Ituri rainforest. [1]",
    "The axolotl keeps its gills for life [9]. Cats [77] are nice [0].": (
        "The axolotl keeps its gills for life. [2] Cats are nice."
    ),
    "The axolotl keeps its gills for life [9, 12,2].": "The axolotl keeps its gills for life. [2]",
    "[2]": "",
    "[2] The axolotl keeps its gills for life.": " The axolotl keeps its gills for life. [2]",
    # a marker that the end cuts in two is not shown
    "The okapi lives in the Ituri rainforest [1": "The okapi lives in the Ituri rainforest [1]",
    "Cats are nice [1, ": "Cats are nice",
    "Cats are nice [": "Cats are nice",
    # where sentences end, and where they do not
    "Dr. Jane R. Goodall saw them in 1960.": "Dr. Jane R. Goodall saw them in 1960. [4]",
    "They were seen, e.g. in 1960, by J. Goodall et al. in Dr. Who. Cats are nice.": (
        "They were seen, e.g. in 1960, by J. Goodall et al. in Dr. Who. Cats are nice."
    ),
    "They are about 2.5 metres, i.e. very tall.": "They are about 2.5 metres, i.e. very tall. [4]",
    "1. The okapi lives in the Ituri rainforest.\n2. Its tongue is 45 centimetres long.\n3. Cats are nice.": (
        "1. The okapi lives in the Ituri rainforest. [1]\n2. Its tongue is 45 centimetres long. [1]\n3. Cats are nice."
    ),
    "- The okapi lives in the Ituri rainforest\n- Cats\n* The axolotl keeps its gills\n": (
        "- The okapi lives in the Ituri rainforest [1]\n- Cats\n* The axolotl keeps its gills [2]\n"
    ),
    "\n\nIts tongue is 45 centimetres long.\n\n\nCats.\n": "\n\nIts tongue is 45 centimetres long. [1]\n\n\nCats.\n",
    "Its tongue is 45 centimetres long.\r\nCats.": "Its tongue is 45 centimetres long. [1]\r\nCats.",
    # code is left as it is, and what follows it is cited again
    "Set the rank like this:\n```py\nmodel = build(r=16)\nlayers = model[0]\n```\nAxolotls keep gills.": (
        "Set the rank like this: [3]\n```py\nmodel = build(r=16)\nlayers = model[0]\n```\nAxolotls keep gills. [2]"
    ),
    "```\nlayers = model[0]\n": "```\nlayers = model[0]\n",
    "- ```\n  layers = model[0]\n  ```\n- The axolotl keeps its gills [7]": (
        "- ```\n  layers = model[0]\n  ```\n- The axolotl keeps its gills [2]"
    ),
    "The okapi lives in `rainforest[0]. Ituri`. Cats [1].": "The okapi lives in `rainforest[0]. Ituri`. [1] Cats.",
    "```one line[0]``` and the axolotl keeps its gills [1].": (
        "```one line[0]``` and the axolotl keeps its gills. [2]"
    ),
    # short answers have their marker; yes and no say nothing that a passage could bear out
    "45 centimetres": "45 centimetres [1]",
    "**45 centimetres**": "**45 centimetres** [1]",
    "In Lake Xochimilco.": "In Lake Xochimilco. [2]",
    "r=16": "r=16 [3]",
    "Yes.": "Yes.",
    "No, it does not.": "No, it does not.",
    "Yes, the okapi lives in the Ituri rainforest.": "Yes, the okapi lives in the Ituri rainforest. [1]",
    # what belongs to the layout has none
    "> [!TIP]\n> The axolotl keeps its gills.": "> [!TIP]\n> The axolotl keeps its gills. [2]",
    "[NOTE]\n## Axolotl\n**Axolotl gills:**\n<br>\nCats": "[NOTE]\n## Axolotl\n**Axolotl gills:**\n<br>\nCats",
    # whatever looks like a marker is one that the model wrote, and what is left of it is no other
    "Cats [1-2] [1–2][1 ] [ 1] [1;2] [1 , 2] [1,] [1.] [0001] [^1] 【1】［1］ [\u200b1] [**1**] \\[1\\] [1\n] sleep": (
        "Cats sleep"
    ),
    "Cats [[9]1][1[9]] [[1]] ([1]) ([1], [2]) [[1], [2]][1](x) [1](http://a/b) [1][2] sleep": "Cats sleep",
    "Cats [1](": "Cats(",
    "Cats [1](not a link": "Cats(not a link",
    "The axolotl keeps its gills for life 【9】.": "The axolotl keeps its gills for life. [2]",
    # brackets that are no markers
    "Cats [link](x) a[i] [12345] [a1] [] [1.5] ![x](y) [[x]] [see 1] a[-1] [2020] (1) f(x) ( [x] \\": (
        "Cats [link](x) a[i] [12345] [a1] [] [1.5] ![x](y) [[x]] [see 1] a[-1] [2020] (1) f(x) ( [x] \\"
    ),
    # code keeps its brackets where it closes in its line, and what only begins like code has none
    "Take `list[1]` or ``a ` [1]`` there": "Take `list[1]` or ``a ` [1]`` there",
    "martians ` [1] and": "martians ` and",
    "martians ` [1]\nlist[1]` `x": "martians `\nlist` `x",
    "martians \\` [1] ` and": "martians \\` ` and",
    "martians ``` [1]\n [1]": "martians ```\n",
    "```py [1]\nlist[1]\n``` [1]\nlist[1]\n```\nmartians [1]": "```py\nlist[1]\n``` [1]\nlist[1]\n```\nmartians",
    # other scripts, and nothing at all
    "奥卡皮鹿生活在伊图里雨林。": "奥卡皮鹿生活在伊图里雨林。 [5]",
    "它的舌头长四十五厘米\n猫很好 [1]。": "它的舌头长四十五厘米 [5]\n猫很好。",
    "🦒 The okapi lives in the Ituri rainforest 👩‍👩‍👧.": "🦒 The okapi lives in the Ituri rainforest 👩‍👩‍👧. [1]",
    "": "",
    " \n \n": " \n \n",
    "... !!! ???": "... !!! ???",
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_the_text_as_it_is_shown(answer: str, expected: str) -> None:
    assert shown(answer) == expected


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_way_to_cut_the_stream_shows_the_same(answer: str) -> None:
    whole = cite(answer)
    assert cite(list(answer)) == whole
    for cut in range(1, len(answer)):
        assert cite([answer[:cut], answer[cut:]]) == whole
        assert cite([answer[:cut], "", answer[cut:]]) == whole


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_shown_meanwhile_is_the_beginning_of_the_whole(answer: str) -> None:
    """Nothing shown is ever taken back, so no half marker can stand on the screen."""
    whole = shown(answer)
    citer, so_far = Citer(QUESTION, HITS), ""
    for character in answer:
        so_far += citer.feed(character)
        assert whole.startswith(so_far)
        halves = [m for m in re.finditer(r"\[\d{1,3}\]", whole) if m.start() < len(so_far) < m.end()]
        assert not halves or "`" in answer  # in code, brackets are no markers


def test_nothing_is_held_back_but_what_might_become_a_marker_or_code() -> None:
    answer = "Cats sleep. They sleep in 2.5 [beds] (or so) and\n\n```\ndo[nothing] `\n```\nElse."
    citer, given, out = Citer(QUESTION, HITS), "", ""
    for character in answer:
        given += character
        out += citer.feed(character)
        assert out in (given, re.sub(r" ?[(\[]?$|`+$", "", given))
    assert citer.feed(" [1, 2") == ""
    assert citer.feed("x") == " [1, 2x"
    assert citer.feed(" `list[1]") == " "
    assert citer.feed("` and") == "`list[1]` and"
    assert citer.feed(" `" + "x" * 500) == " `" + "x" * 500


LOOKS_CITED = re.compile(r"[\[［【]\^?0*\d{1,3}(?:[,;–-]0*\d{1,3})*[,.]?[\]］】]")


def test_no_mixture_of_brackets_leaves_what_looks_like_a_marker() -> None:
    parts = [*"[[[]]]］［【】()()11290 ,;.-–*^`\\x", "\u200b", "[1]", " [9]", "](x)", "```", "\n", " is "]
    chance = random.Random(0)
    for _ in range(6000):
        answer = "".join(chance.choices(parts, k=chance.randint(1, 12)))
        cuts = sorted(chance.choices(range(len(answer) + 1), k=3))
        text = cite([answer[a:b] for a, b in pairwise([0, *cuts, len(answer)])], [])[0]
        assert text == cite(answer, [])[0]
        if "`" not in answer:
            assert not LOOKS_CITED.search(re.sub(r"[\s*_\\\u200b]", "", text)), (answer, text)


LUNCH = passages("The lunch allowance is 14 euros a day.")


@pytest.mark.parametrize(
    ("sentence", "cited"),
    [
        ("The lunch allowance is 14 euros a day.", True),
        ("14 euros", True),
        ("1. The lunch allowance is 14 euros a day.", True),
        ("2) The lunch allowance is 14 euros a day.", True),
        ("The lunch allowance is 99 euros a day.", False),  # the question's figure in the passage's place
        ("The lunch allowance is 9 euros a day.", False),
        ("The lunch allowance is 14,5 euros a day.", False),
        ("The lunch allowance is 14.5 euros a day.", False),
        ("The lunch allowance is 14/9 euros a day.", False),
        ("The lunch allowance is 14:9 euros a day.", False),
        ("The lunch allowance is -14 euros a day.", False),
        ("The lunch allowance is 14 million euros a day.", False),
    ],
)
def test_figures_are_borne_out_whole(sentence: str, cited: bool) -> None:
    assert bool(Citer("Is the lunch allowance 99 euros?", LUNCH).cite(sentence)) == cited


def test_a_figure_of_the_question_need_not_stand_in_a_quote_without_figures() -> None:
    hits = passages("The allowance is paid to everybody at lunch.")
    assert Citer("To whom is the allowance paid in 2024?", hits).cite("In 2024 it is paid to everybody at lunch.")


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_quote_is_verbatim_and_every_marker_has_one(answer: str) -> None:
    text, citations = cite(answer)
    for citation in citations:
        hit = HITS[citation.n - 1]
        assert (citation.source, citation.page) == (hit.source, hit.page)
        assert hit.text[citation.start - hit.start : citation.end - hit.start] == citation.quote
        assert citation.quote == citation.quote.strip() != ""
        assert f" [{citation.n}]" in text
    assert len(set(citations)) == len(citations)


def test_the_quote_is_the_sentence_that_says_it() -> None:
    _, citations = cite("It lives in Lake Xochimilco near Mexico City.", passages(OKAPI, AXOLOTL))
    quote = "It lives in Lake Xochimilco near Mexico City."
    start = 2 * START + AXOLOTL.index(quote)
    assert citations == [Citation(2, "/docs/2.md", 2, start, start + len(quote), quote)]
    assert citations[0].as_dict() == {
        "n": 2,
        "source": "/docs/2.md",
        "page": 2,
        "start": start,
        "end": start + len(quote),
        "quote": quote,
    }


def test_a_sentence_said_twice_is_cited_twice_and_quoted_once() -> None:
    text, citations = cite("Cats. The axolotl keeps its gills for life. The axolotl keeps its gills for life.")
    assert text.count(" [2]") == 2
    assert len(citations) == 1


def test_a_sentence_drawn_from_two_that_follow_each_other_is_quoted_from_both() -> None:
    text, (citation,) = cite("The axolotl of Lake Xochimilco near Mexico City keeps its gills for life.")
    assert text.endswith(" [2]")
    assert citation.quote == "The axolotl keeps its gills for life.\nIt lives in Lake Xochimilco near Mexico City."


def test_a_marker_of_the_model_decides_between_passages_that_say_the_same() -> None:
    twice = passages(OKAPI, "Unlike others, the okapi lives in the Ituri rainforest. It hides.")
    sentence = "The okapi lives in the Ituri rainforest"
    assert shown(f"{sentence}.", twice) == f"{sentence}. [1]"
    assert shown(f"{sentence} [2].", twice) == f"{sentence}. [2]"
    assert shown(f"{sentence} [3, 2].", twice) == f"{sentence}. [2]"
    # It counts for its own sentence only.
    assert shown(f"{sentence} [2]. {sentence}.", twice) == f"{sentence}. [2] {sentence}. [1]"


def test_a_marker_of_the_model_does_not_make_a_passage_say_what_it_does_not() -> None:
    text, citations = cite("The axolotl keeps its gills for life [1].", passages(OKAPI, AXOLOTL))
    assert text == "The axolotl keeps its gills for life. [2]"
    assert [citation.n for citation in citations] == [2]


def test_no_passages_no_markers() -> None:
    assert cite("The okapi lives in the Ituri rainforest [1].", []) == ("The okapi lives in the Ituri rainforest.", [])


def test_words_that_say_nothing_are_no_support() -> None:
    assert cite("This is what they have been. It is so.", passages("This is what they have been. It is so.")) == (
        "This is what they have been. It is so.",
        [],
    )


def test_a_passage_of_one_long_line_and_an_answer_of_many_sentences() -> None:
    words = " ".join(f"word{n}" for n in range(3000))
    text, citations = cite("word7 word8 word9 word10. " * 50, passages(words))
    assert text.count(" [1]") == 50
    assert [citation.quote for citation in citations] == [words]


def test_a_number_that_no_passage_has_is_not_borne_out() -> None:
    hits = passages("Our policy number is HX-4471-B with Nordwind Mutual.")
    assert cite("The policy number is 12-34-56.", hits) == ("The policy number is 12-34-56.", [])
    text, citations = cite("The policy number is HX-4471-B.", hits)
    assert (text, [c.n for c in citations]) == ("The policy number is HX-4471-B. [1]", [1])


INSURANCE = passages(
    "Household policy. The deductible is 275 euros per claim. Bicycles are covered.",
    "Car policy. The deductible is 900 euros per claim.",
    "The annual fee of the club is 31 euros.",
)
DEDUCTIBLE = "What is the deductible of the household insurance?"


@pytest.mark.parametrize(
    ("sentence", "n"),
    [
        ("The deductible of the household insurance is 275 euros.", 1),  # more words of the question than of the quote
        ("275 euros", 1),
        ("The deductible of the household insurance is 900 euros.", 2),  # the version that bears it out
        ("The deductible of the household insurance is 450 euros.", None),
        ("The deductible of the household insurance is waived for pensioners.", None),
        ("The deductible of the household insurance is Berlin.", None),  # what is new decides, not the question's words
        ("The deductible of the household insurance is 31 euros.", None),  # a passage on something else
        ("The documents do not say.", None),
    ],
)
def test_what_the_question_does_not_have_decides(sentence: str, n: int | None) -> None:
    citer = Citer(DEDUCTIBLE, INSURANCE)
    expected = f"{sentence} [{n}]" if n else sentence
    assert citer.feed(sentence) + citer.finish() == expected
    found = Citer(DEDUCTIBLE, INSURANCE).cite(sentence)
    assert (found.n if found else None) == n
    assert ([found] if found else []) == citer.citations


def test_the_refusal_is_not_cited_whatever_the_passages_say() -> None:
    assert shown("The documents do not say.", passages("The documents do not say who wrote them.")) == (
        "The documents do not say."
    )


def test_a_short_answer_is_tied_to_the_sentence_that_fits_the_question() -> None:
    hits = passages("In 1960 a zoo opened. The okapi lives in Epulu.", "Epulu has a market.")
    assert shown("Epulu", hits) == "Epulu [1]"
    assert [c.quote for c in cite("Epulu", hits)[1]] == ["The okapi lives in Epulu."]


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("It is 33 yards.", "It was a 33-yard field goal."),
        ("It costs 1200 euros.", "The price: it costs 1,200 euros."),
        ("It costs 1,200 euros.", "The price: it costs 1200 euros."),
        ("It costs -3 euros.", "The price: it costs -3 euros."),
        ("There are 3 rooms there.", "There are three rooms."),
        ("It was in the 1960s.", "It was 1960."),
        ("It takes 14 days.", "It takes 10-14 days."),
    ],
)
def test_figures_may_be_written_otherwise(answer: str, passage: str) -> None:
    assert Citer("What?", passages(passage)).cite(answer)


def test_evidence_holds_what_was_reckoned_with() -> None:
    hits = passages(
        "Rent is 1,200 euros a month. Heating is 80.50 euros. A discount of 15% is given.",
        "Nordwind Mutual insures it. There are three rooms. The year has 12 months.",
    )

    def quotes(*literals: str) -> list[str]:
        return [citation.quote for citation in Citer("What is the rent of a year?", hits).evidence(literals)]

    assert quotes("1200", "12") == ["Rent is 1,200 euros a month.", "The year has 12 months."]
    assert quotes("1200.0") == quotes("1_200") == quotes("-1200") == ["Rent is 1,200 euros a month."]
    assert quotes("0.15") == ["A discount of 15% is given."]
    assert quotes("80.5") == ["Heating is 80.50 euros."]
    assert quotes("3") == ["There are three rooms."]
    assert quotes("Nordwind Mutual") == quotes("nordwind mutual", "Nordwind") == ["Nordwind Mutual insures it."]
    # neighbours that hold two of them are quoted together
    assert quotes("1200", "80.5") == ["Rent is 1,200 euros a month. Heating is 80.50 euros."]
    assert quotes("7", "Cats", "", "nan", "inf", "1e999", "the") == []
    assert Citer("What?", []).evidence(["1200"]) == []


def test_evidence_counts_as_citations() -> None:
    citer = Citer(QUESTION, HITS)
    (found,) = citer.evidence(["45"])
    assert citer.evidence(["45"]) == citer.citations == [found]
    assert found.n == 1


def test_a_long_line_without_full_stops_is_read_once() -> None:
    """Twenty times the text takes about twenty times as long, not four hundred times."""
    line = "word [x] `code` and so on " * 4000
    citer = Citer(QUESTION, HITS)
    out = [citer.feed(line[at : at + 5]) for at in range(0, len(line), 5)]
    assert "".join(out) + citer.finish() == line


def test_random_answers_cut_at_random_show_the_same_and_no_half_marker() -> None:
    parts = [
        "The axolotl keeps its gills",
        "45 centimetres",
        ". ",
        "? ",
        "\n",
        " [1]",
        " [2, 4]",
        "[",
        "]",
        "`",
        "```",
        "1.",
        " ",
    ]
    chance = random.Random(0)
    for _ in range(400):
        answer = "".join(chance.choices(parts, k=chance.randint(1, 9)))
        cuts = sorted(chance.choices(range(len(answer) + 1), k=4))
        pieces = [answer[a:b] for a, b in pairwise([0, *cuts, len(answer)])]
        whole = cite(answer)
        assert cite(pieces) == whole
        citer, so_far = Citer(QUESTION, HITS), ""
        for piece in pieces:
            so_far += citer.feed(piece)
            assert whole[0].startswith(so_far)
            assert "`" in answer or not re.search(r" \[\d{1,3}$", so_far)


def test_the_question_over_again_is_not_cited() -> None:
    citer = Citer("Where do okapis live?", HITS)
    given = citer.feed("Where do okapis live? Okapis live in the rainforest of Ituri.") + citer.finish()
    assert given == "Where do okapis live? Okapis live in the rainforest of Ituri. [1]"


@pytest.mark.parametrize(
    ("question", "passage", "sentence"),
    [
        (
            "Who signs expenses above 80 euros?",
            "Landlord: Peter Brandt.",
            "The landlord signs expenses above 80 euros.",
        ),
        ("Are dogs allowed?", "Dogs need the landlord's written consent.", "No, dogs are not allowed."),
        ("What does E24 mean?", "E24: the filter has to be rinsed.", "The filter is not a water filter."),
    ],
)
def test_what_a_passage_does_not_say_so_is_not_cited(question: str, passage: str, sentence: str) -> None:
    citer = Citer(question, passages(passage, "Expenses above 80 euros are signed by the head of department."))
    assert citer.feed(sentence) + citer.finish() == sentence


def test_what_is_denied_in_a_passage_too_is_cited() -> None:
    citer = Citer("Are dogs allowed?", passages("Dogs are not allowed in the flat."))
    assert citer.feed("No, dogs are not allowed.") + citer.finish() == "No, dogs are not allowed. [1]"
