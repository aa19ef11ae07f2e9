"""RAFT's examples: where an answer stands, which passages a question is shown with, and who shares them."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from finetune.data.answers import answer_in, answered, bare, sentences, verbatim
from finetune.data.asked import Asked, asked_in, asked_of, distinct_ids, is_labelled, joined
from finetune.data.found import Found, alike, depth, find
from finetune.data.raft import MOST, Group, as_served, examples, shared, without_golden
from finetune.errors import RecordInvalid
from finetune.example import Example
from index import Hit, Index
from rag_app.bot import Bot
from rag_app.evaluate import index_corpus
from rag_app.prompt import NOT_FOUND
from rag_app.questions import Evidence
from rag_app.quotes import QuoteCheck
from rag_app.settings import Options
from tests.conftest import ScriptedModel, WordEncoder
from tests.test_rag_app_evaluate import ROWS, written

TOWER = "The tower was built in 1889.\nIt is 330 metres high, says Dr. Eiffel, and\nstands in Paris."


def hit(name: str, text: str, source: str = "", also: Sequence[str] = ()) -> Hit:
    return Hit(1, 1.0, name, source or name, None, "", 0, len(text), text, 0.5, 1.0, list(also))


def question(name: str, *golds: str, at: str | None = None) -> Asked:
    evidence = (Evidence((at,)),) if at else ()
    return Asked(name, f"What is {name}?", golds, evidence, (at,) if at else (), f"q.jsonl:{name}")


# where an answer stands


@pytest.mark.parametrize(
    ("golds", "stands"),
    [
        (["1889"], "1889"),
        (["the TOWER"], "The tower"),
        (["188", "89", "330 metres."], "330 metres"),
        (["Paris", "1889"], "Paris"),
        (["and stands in Paris"], "and\nstands in Paris"),
        (["Dr."], "Dr."),
        (["London"], None),
        (["", " . "], None),
        ([], None),
    ],
)
def test_an_answer_stands_there_as_whole_words(golds: list[str], stands: str | None) -> None:
    span = answer_in(TOWER, golds)
    assert (TOWER[slice(*span)] if span else None) == stands


def test_an_answer_ends_without_the_full_stop_of_its_sentence() -> None:
    assert [bare(text) for text in ("in  Paris.", "Dr.", "the U.S.", "14")] == ["in Paris", "Dr.", "the U.S.", "14"]


def test_a_sentence_ends_at_its_full_stop_or_its_block() -> None:
    text = "# Tower\n\nIt was built by Dr. Eiffel. It is\nhigh.\n- A lift\n- Stairs"
    assert [text[start:end] for start, end in sentences(text)] == [
        "Tower",
        "It was built by Dr. Eiffel.",
        "It is\nhigh.",
        "A lift",
        "Stairs",
    ]


def test_the_forms_of_an_answer() -> None:
    span = answer_in(TOWER, ["paris"])
    assert span
    assert answered("short", TOWER, span, 2) == "Paris"
    sentence = "It is 330 metres high, says Dr. Eiffel, and stands in Paris."
    assert answered("sentence", TOWER, span, 2) == sentence
    quoted = answered("quoted", TOWER, span, 2)
    assert quoted == f'Paris: "{sentence}" [2]'
    check = QuoteCheck([TOWER])
    assert check.feed(quoted) + check.finish() == quoted


@pytest.mark.parametrize(
    "passage",
    ['He said "stay" in Paris.', '[3] Paris is "big".', "Paris\n\n[2] is\n\n12″ big"],
)
def test_a_quotation_that_serving_would_change_is_none(passage: str) -> None:
    span = answer_in(passage, ["Paris"])
    assert span
    quoted = answered("quoted", passage, span, 1)
    assert quoted is None or QuoteCheck([passage]).feed(quoted) == quoted
    assert not verbatim('Rome: "Rome" [1]', "Rome", passage)


# questions from files


def test_a_question_says_what_it_rests_on() -> None:
    squad = {"question": "Where?", "answers": ["Paris"], "paragraph_id": "T#0", "title": "Tower", "id": 7}
    asked = asked_of(Path("q.jsonl"), 3, squad)
    assert asked == Asked("7", "Where?", ("Paris",), (Evidence(("T#0",)),), ("Tower", "T#0"), "q.jsonl:3")
    none = asked_of(Path("q.jsonl"), 4, {**squad, "answers": [], "answerable": False})
    assert (none.golds, none.evidence, none.documents) == ((), asked.evidence, asked.documents)
    own = asked_of(
        Path("q.jsonl"), 5, {"question": "?", "answer": "a", "source_file": "x.md", "supporting_sentence": "b a"}
    )
    assert (own.evidence, own.documents) == ((Evidence(("x.md",), "b a"),), ("x.md",))


@pytest.mark.parametrize(
    "row", [{"question": "Where?"}, {"question": " ", "answer": "a"}, {"question": "?", "answer": 3}]
)
def test_a_bad_question_is_told_by_its_line(row: dict[str, object]) -> None:
    with pytest.raises(RecordInvalid, match=r"^dir/q\.jsonl:9: \S"):
        asked_of(Path("dir/q.jsonl"), 9, row)


def test_records_that_bring_their_text_are_no_questions_of_documents_elsewhere() -> None:
    assert is_labelled({"question": "?", "answer": "a"})
    assert not is_labelled({"question": "?", "answer": "a", "context": "c"})
    assert not is_labelled({"question": "?", "answer": "1 + 1 = 2\n#### 2"})
    assert not is_labelled({"instruction": "?"})
    plain = Example("1", "question_answering", "Where?", "Paris", ("In Paris.",), origin="f:1")
    asked = asked_in(plain)
    assert asked and (asked.golds, asked.given, asked.placed) == (("Paris",), plain, True)
    assert asked_in(Example("1", "summarization", "Shorten.", "Paris", ("In Paris.",))) is None
    assert asked_in(Example("1", "question_answering", "Where?", "Paris", ("a", "b"))) is None


def test_ids_are_told_apart() -> None:
    given = [Asked("1", "?", (), origin="a/x.jsonl:1"), Asked("1", "?", (), origin="b/y.jsonl:1")]
    more = [Asked("1", "?", (), origin="c/y.jsonl:1"), Asked("2", "?", ())]
    assert [one.id for one in distinct_ids(given + more)] == ["1", "y/1", "1/2", "2"]


def test_documents_that_a_question_links_are_one() -> None:
    names = joined([["a", "b"], ["c"], ["d", "c"], ["b", "d"], [], ["e"]])
    assert len({names[0], names[1], names[2], names[3]}) == 1
    assert names[4] == ""
    assert names[5] == "e" != names[0]


# passages of one question


def test_its_own_passages_hold_no_copies_and_no_stray_answers() -> None:
    tower = "The tower of Paris was built in 1889 by men who were paid by the day and lived in barracks on the field."
    hits = [
        hit("stray", "A fair was held in 1889."),
        hit("copy", tower.replace("1889", "1887")),
        hit("golden", tower, "doc"),
        hit("far", "Lyon has a tower too."),
        hit("same", "Lyon has a tower too."),
        hit("rest", "Rome has none."),
    ]
    found = Found(question("q", "1889", at="doc"), tuple(hits))
    assert found.home == {"golden"}
    assert [one.chunk_id for one in found.own(3)] == ["golden", "far", "rest"]
    assert found.settled_by(hits[2:4])
    assert not found.settled_by([hits[0], hits[2]])
    assert not found.settled_by(hits[3:])


def test_a_golden_passage_is_put_in_where_it_is_asked_for() -> None:
    hits = (hit("a", "one"), hit("b", "two"), hit("golden", "1889", "doc"))
    found = Found(question("q", "1889", at="doc"), hits)
    assert [one.chunk_id for one in found.own(2)] == ["a", "b"]
    assert [one.chunk_id for one in found.own(2, insert_golden=True)] == ["a", "golden"]
    assert [one.chunk_id for one in found.own(3, insert_golden=True)] == ["a", "b", "golden"]


def test_near_copies() -> None:
    text = "one two three four five six seven eight nine ten"
    assert alike(hit("a", text), hit("b", text + " eleven"))
    assert not alike(hit("a", text), hit("b", "one two three and other words"))
    assert not alike(hit("a", "the"), hit("b", "of"))


def test_the_first_hits_are_those_of_serving(tmp_path: Path, encoder: WordEncoder) -> None:
    directory, _ = index_corpus(written(tmp_path / "corpus.jsonl", *ROWS), encoder)
    with Index.open(directory, encoder) as index:
        for k in (1, 2, 3):
            assert [one.chunk_id for one in index.search("oil and gills", depth(k))][:k] == [
                one.chunk_id for one in index.search("oil and gills", k)
            ]
    assert [depth(k) for k in (1, 4, 7, 20, 21)] == [3, 12, 20, 20, 63]


def test_yes_and_no_stand_in_no_passage() -> None:
    asked = Asked("q", "Is it?", ("yes",), (Evidence(("a",)), Evidence(("b",))))
    hits = (hit("1", "It is said.", "a"), hit("2", "No, yes.", "b"), hit("3", "Nothing.", "c"))
    found = Found(asked, hits)
    assert found.home == {"1"}
    assert found.settled_by(hits)
    assert not found.settled_by((hits[0], hits[2]))  # half of what it rests on
    [example] = examples([Group(hits, ((found, "answered"),))], "quoted", refuse_drops)
    assert (example.answer, example.golden) == ("yes", 0)


@pytest.mark.parametrize(
    ("asked", "texts", "reason"),
    [
        (question("q", "1889", at="doc"), [], "the index found no passages"),
        (question("q", "1889"), ["none"], "stands in no passage that was found"),
        (question("q", "1889", at="0"), ["none"], "stands in no passage of its document"),
        (question("q", "1889", at="doc"), ["none"], ""),
        (question("q", "1889", at="0"), ["in 1889"], ""),
        (question("q"), ["none"], ""),
    ],
)
def test_what_nothing_can_be_learnt_from(asked: Asked, texts: list[str], reason: str) -> None:
    hits = tuple(hit(str(n), text) for n, text in enumerate(texts))
    problem = Found(asked, hits).problem()
    assert reason in problem and bool(reason) == bool(problem)


# groups


def refuse_drops(found: Found, reason: str) -> None:
    raise AssertionError((found, reason))


def many(seed: int, count: int = 60) -> list[Found]:
    """Questions of some documents: each has the year of one of its passages as its answer, or none."""
    draws = random.Random(seed)
    years = range(1900, 1930)
    texts = {f"{d}.{c}": f"{d} {c} " + " ".join(map(str, draws.sample(years, 3))) for d in "ABCD" for c in "abc"}
    hits = [hit(name, text, name[0]) for name, text in texts.items()]
    result = []
    for n in range(count):
        golden = draws.choice(hits)
        golds = () if draws.random() < 0.3 else (draws.choice(golden.text.split()[2:]),)
        order = sorted(hits, key=lambda one: draws.random() + 0.7 * (one.source != golden.source))
        result.append(Found(question(f"q{n}", *golds, at=golden.source), tuple(order[:9])))
    return result


@pytest.fixture(params=range(4))
def questions(request: pytest.FixtureRequest) -> Iterator[list[Found]]:
    yield many(request.param)


def test_every_question_has_passages_that_settle_it(questions: list[Found]) -> None:
    groups = shared(questions, 3, rounds=3, seed=1)
    seen: Counter[str] = Counter()
    shown: dict[str, set[frozenset[str]]] = {}
    for group in groups:
        assert 0 < len(group.members) <= MOST
        assert len(group.passages) == 3
        for found, reason in group.members:
            seen[found.asked.id] += 1
            shown.setdefault(found.asked.id, set()).add(frozenset(one.chunk_id for one in group.passages))
            golden = [one for one in group.passages if found.is_golden(one)]
            stray = [one for one in group.passages if found.holds(one) and one not in golden]
            assert not stray
            expected = "answered" if golden else "missed" if found.asked.golds else "unanswerable"
            assert reason == expected
    assert set(seen) == {one.asked.id for one in questions}
    assert max(seen.values()) <= 3
    assert all(len(shown[name]) == count for name, count in seen.items())  # other passages each time
    assert sum(seen.values()) > len(questions)
    assert any([one.chunk_id for one in g.passages] != [one.chunk_id for one in g.members[0][0].own(3)] for g in groups)


def test_shared_passages_are_fewer(questions: list[Found]) -> None:
    alone, together = shared(questions, 3, most=1), shared(questions, 3)
    assert [len(group.members) for group in alone] == [1] * len(questions)
    assert 2 * len(together) < len(alone)
    assert sum(len(group.members) for group in together) == len(questions)


def test_the_same_seed_gives_the_same(questions: list[Found]) -> None:
    def made(seed: int) -> list[Example]:
        groups = shared(questions, 3, rounds=2, seed=seed)
        return list(examples([*groups, *without_golden(groups, 0.5, seed=seed)], "short", refuse_drops))

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_golden_passages_are_taken_out_up_to_a_share(questions: list[Found]) -> None:
    groups = shared(questions, 3)
    assert without_golden(groups, 0.0) == []
    twins = without_golden(groups, 0.5)
    reasons = [reason for group in [*groups, *twins] for _, reason in group.members]
    refusals = sum(reason != "answered" for reason in reasons)
    assert len(reasons) / 2 <= refusals <= len(reasons) / 2 + 1
    for group in twins:
        assert 1 <= len(group.passages) <= 3
        for found, reason in group.members:
            assert reason == "taken out"
            assert not any(found.holds(one) for one in group.passages)


def test_an_example_is_as_it_says(questions: list[Found]) -> None:
    groups = shared(questions, 3, rounds=2)
    made = list(examples([*groups, *without_golden(groups, 0.6)], "short", refuse_drops))
    assert len({one.id for one in made}) == len(made)
    by_name = {one.asked.id: one for one in questions}
    for one in made:
        found = by_name[one.id.partition("~")[0]]
        assert one.question == found.asked.question
        if one.answerable:
            assert one.golden is not None
            assert one.answer in one.passages[one.golden]
            assert one.golds == found.asked.golds
        else:
            assert (one.answer, one.golden, one.golds) == (NOT_FOUND, None, ())
    together = Counter(one.passages for one in made)
    assert max(together.values()) > 2


def test_quotations_that_cannot_be_verified_give_no_example() -> None:
    good, bad = hit("good", "It was built in 1889 by Eiffel.", "doc"), hit("bad", 'In "1889", a "novel".', "doc2")
    told: list[str] = []
    both = [Found(question(one.chunk_id, "1889", at=one.source), (one,)) for one in (good, bad)]
    groups = [Group(found.hits, ((found, "answered"),)) for found in both]
    made = list(examples(groups, "quoted", lambda found, reason: told.append(f"{found.asked.id}: {reason}")))
    assert [one.answer for one in made] == ['1889: "It was built in 1889 by Eiffel." [1]']
    assert told == ["bad: its quotation cannot be verified"]


# as served


def test_validation_shows_the_prompts_of_serving(tmp_path: Path, encoder: WordEncoder) -> None:
    directory, prefix = index_corpus(written(tmp_path / "corpus.jsonl", *ROWS), encoder)
    model = ScriptedModel("It", " is", " so.", window=4000)
    bot = Bot(model, directory, encoder, Options(min_confidence=0))
    rows = [
        {"question": "Where does the okapi live?", "answer": "the Ituri rainforest", "gold_titles": ["okapi"]},
        {"question": "Who pays for dinner?", "answerable": False},
        {"question": "What keeps its gills?", "answer": "the axolotl", "gold_titles": ["DC"]},
    ]
    with Index.open(directory, encoder) as index:
        asked = [asked_of(Path("q"), n, row) for n, row in enumerate(rows)]
        found = [find(one, lambda text: index.search(text, depth(4)), prefix) for one in asked]
    made = list(examples(as_served(found, 4), "short", refuse_drops))
    assert [one.answer for one in made] == ["the Ituri rainforest", NOT_FOUND, "The axolotl"]
    for one in made:
        bot.ask(one.question)
        assert model.prompts[-1] == one.messages()


def test_what_serving_finds_elsewhere_is_right_too() -> None:
    elsewhere = hit("1", "Built in 1889.", "other")
    [group] = as_served([Found(question("q", "1889", at="doc"), (elsewhere,))], 4)
    [example] = examples([group], "short", refuse_drops)
    assert (example.answer, example.golden, example.answerable) == ("1889", 0, True)
    [trained] = shared([Found(question("q", "1889", at="doc"), (elsewhere, hit("2", "Nothing.")))], 4)
    assert [one.chunk_id for one in trained.passages] == ["2"]
