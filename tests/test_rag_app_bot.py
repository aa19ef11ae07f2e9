"""A question in, a cited answer out: what is said in which order, what fits the window, when the model is not asked."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from index import Index, IndexDamaged, IndexMismatch, NoIndex, QueryInvalid, build
from index.loaders import load
from rag_app.answer import Answer, Cited, Done, Event, Found, Query, Reading, Token
from rag_app.bot import Bot
from rag_app.confidence import DEFAULT
from rag_app.decoding import Decoding
from rag_app.engines.llama import LlamaCpp
from rag_app.errors import ModelNotFound, PromptTooLong, WorkerDied
from rag_app.generator import Generator
from rag_app.prompt import NO_PASSAGES, NOT_FOUND, PROMPT_VERSION, question_prompt
from rag_app.run import NOTHING, declines
from rag_app.settings import Options
from tests.conftest import ScriptedModel, WordEncoder, copy_of

OKAPI = "Where does the okapi live?"
REPLY = ["The okapi lives", " in the Ituri", " rainforest", " [1].", " It is shy."]
CITED = "The okapi lives in the Ituri rainforest. [1] It is shy."


@pytest.fixture
def directory(facts: Path, encoder: WordEncoder, tmp_path: Path) -> Path:
    """An index of the three small documents by the encoder of words."""
    build([facts], tmp_path / "index", encoder=encoder)
    return tmp_path / "index"


def bot_of(model: Generator, directory: Path, encoder: Any = None, **options: Any) -> Bot:
    return Bot(model, directory, encoder or WordEncoder(), Options(**options))


def answer_of(events: Sequence[Event]) -> Answer:
    done = events[-1]
    assert isinstance(done, Done)
    return done.answer


# what is said, in which order


def test_first_what_was_found_then_the_text_then_the_answer(directory: Path) -> None:
    events = list(bot_of(ScriptedModel(*REPLY), directory).stream(OKAPI))
    kinds = [type(event) for event in events]
    tokens = kinds.count(Token)
    assert tokens > 3
    assert kinds[:4] == [Query, Found, Reading, Reading]
    assert set(kinds[4:-1]) == {Token, Cited}
    assert kinds[-1] is Done
    answer = answer_of(events)
    assert events[0] == Query(OKAPI, rewritten=False)
    assert isinstance(events[1], Found)
    assert events[1].hits == answer.hits
    marker = next(place for place, event in enumerate(events) if isinstance(event, Token) and "[1]" in event.text)
    assert events[marker + 1] == Cited(answer.citations[0])
    assert "".join(event.text for event in events if isinstance(event, Token)).strip() == answer.answer == CITED


def test_ask_gives_the_same_answer_as_the_stream(directory: Path) -> None:
    streamed = answer_of(list(bot_of(ScriptedModel(*REPLY), directory).stream(OKAPI)))
    asked = bot_of(ScriptedModel(*REPLY), directory).ask(OKAPI)
    streamed.timings = asked.timings
    assert asked == streamed


def test_the_answer_quotes_the_document_where_it_says_so(directory: Path) -> None:
    answer = bot_of(ScriptedModel(*REPLY), directory).ask(OKAPI)
    (citation,) = answer.citations
    [document] = load(Path(citation.source), Path(citation.source).read_bytes())
    assert document.text[citation.start : citation.end] == citation.quote == "The okapi lives in the Ituri rainforest."
    hit = answer.hits[citation.n - 1]
    assert (hit.rank, hit.source) == (citation.n, citation.source)


def test_the_model_reads_the_passages_best_first(directory: Path) -> None:
    model = ScriptedModel(*REPLY)
    answer = bot_of(model, directory, k=2).ask(OKAPI)
    assert len(answer.hits) == 2
    assert model.prompts == [question_prompt(OKAPI, [hit.text for hit in answer.hits])]
    assert "The okapi lives in the Ituri rainforest" in answer.hits[0].text


def test_what_json_gets(directory: Path) -> None:
    given = json.loads(json.dumps(bot_of(ScriptedModel(*REPLY), directory).ask(OKAPI).as_dict()))
    assert list(given) == [
        "question",
        "answer",
        "strategy",
        "query",
        "steps",
        "citations",
        "hits",
        "refused",
        "confidence",
        "dropped",
        "history_dropped",
        "finish_reason",
        "notes",
        "model",
        "adapters",
        "prompt_version",
        "settings",
        "usage",
        "timings",
    ]
    assert set(given["citations"][0]) == {"n", "source", "page", "start", "end", "quote"}
    assert set(given["timings"]) == {"load_ms", "retrieve_ms", "first_token_ms", "total_ms"}
    assert all(value >= 0 for value in given["timings"].values())
    assert given["timings"]["total_ms"] >= max(given["timings"].values())
    assert given["usage"]["completion_tokens"] == len(REPLY)
    assert given["usage"]["prompt_tokens"] > len(OKAPI.split())
    assert given["finish_reason"] == "stop"
    assert given["refused"] is False
    assert (given["strategy"], given["query"], given["steps"], given["notes"]) == ("zero-shot", OKAPI, [], [])
    assert (given["model"], given["prompt_version"]) == ("scripted.gguf", PROMPT_VERSION)
    assert given["settings"] == {"max_tokens": 16}


def test_a_stream_closed_in_the_middle_closes_that_of_the_model(directory: Path) -> None:
    model = ScriptedModel(*REPLY)
    stream = bot_of(model, directory).stream(OKAPI)
    for event in stream:
        if isinstance(event, Token):
            break
    stream.close()
    assert model.closed == 1
    assert model.read < len(REPLY)


def test_a_stream_closed_before_the_first_token(directory: Path) -> None:
    model = ScriptedModel(*REPLY)
    stream = bot_of(model, directory).stream(OKAPI)
    assert [type(next(stream)) for _ in range(3)] == [Query, Found, Reading]
    stream.close()
    assert (model.closed, model.read) == (1, 0)


def test_an_error_of_the_model_comes_through_and_the_next_question_works(directory: Path) -> None:
    model = ScriptedModel("The okapi", WorkerDied("it ended. Ask again"))
    bot = bot_of(model, directory)
    seen: list[Event] = []
    with pytest.raises(WorkerDied, match="Ask again"):
        seen.extend(bot.stream(OKAPI))
    model.replies = [REPLY]
    assert bot.ask(OKAPI).answer == CITED


def test_an_answer_that_repeats_itself_is_ended(directory: Path) -> None:
    model = ScriptedModel(*["The okapi lives in the Ituri rainforest. "] * 20)
    answer = bot_of(model, directory).ask(OKAPI)
    assert answer.answer == "The okapi lives in the Ituri rainforest. [1]"
    assert (answer.finish_reason, model.closed) == ("repeated", 1)
    assert model.read < 5


# the window


@pytest.mark.parametrize(("extra", "kept"), [(19, 1), (37, 1), (38, 2), (57, 3), (75, 3), (76, 4), (500, 4)])
def test_as_many_passages_as_the_window_holds_beside_the_answer(tmp_path: Path, extra: int, kept: int) -> None:
    for number in range(6):
        words = " ".join(f"word{number}{place}" for place in range(13))
        (tmp_path / f"{number}.txt").write_text(f"The okapi lives in place{number}. {words}\n")
    build([tmp_path], tmp_path / "index", encoder=WordEncoder())
    question = "The okapi lives in which place?"
    # A passage with its number is 19 words: 13, 5 and 1.
    room = ScriptedModel().count_tokens(question_prompt(question, [])) - len(NO_PASSAGES.split()) + extra
    model = ScriptedModel("The okapi lives in place0. The okapi lives in place5.", window=room + 10, max_tokens=10)
    events = list(bot_of(model, tmp_path / "index").stream(question))
    answer = answer_of(events)
    assert isinstance(events[1], Found)
    assert len(events[1].hits) == len(answer.hits) == 4
    assert answer.dropped == 4 - kept
    assert model.prompts == [question_prompt(question, [hit.text for hit in answer.hits[:kept]])]
    assert answer.usage["prompt_tokens"] <= room
    assert {citation.n for citation in answer.citations} <= set(range(1, kept + 1))


def test_a_question_that_leaves_no_room_for_a_passage_is_refused_in_a_line(directory: Path) -> None:
    model = ScriptedModel(*REPLY, window=100)
    with pytest.raises(PromptTooLong, match=r"the question is too long: 1\d\d tokens .* Shorten it") as raised:
        bot_of(model, directory).ask("okapi " * 100)
    assert "\n" not in str(raised.value)
    assert model.prompts == []


def test_a_long_answer_is_allowed_for_by_a_quarter_of_the_window_at_most(directory: Path) -> None:
    model = ScriptedModel(*REPLY, window=200, max_tokens=100_000)
    answer = bot_of(model, directory).ask(OKAPI)
    assert (answer.answer, answer.dropped) == (CITED, 0)


@pytest.mark.parametrize(("spare", "dropped"), [(0, 0), (-1, 1)])
def test_the_real_prompt_fits_the_real_window_to_the_token(
    real_index: Path, real_encoder: Any, real_model: LlamaCpp, spare: int, dropped: int
) -> None:
    texts = [hit.text for hit in Index.open(real_index, real_encoder).search(OKAPI)]
    whole = real_model.count_tokens(question_prompt(OKAPI, texts))
    model = LlamaCpp(n_ctx=whole + 4 + spare, decoding=Decoding(max_tokens=4))
    answer = Bot(model, real_index, real_encoder).ask(OKAPI)
    assert answer.dropped == dropped
    read = question_prompt(OKAPI, texts[: len(texts) - dropped])
    assert answer.usage["prompt_tokens"] == model.count_tokens(read) <= model.window() - 4
    assert 1 <= answer.usage["completion_tokens"] <= 4
    model.close()


# when the model is not asked


@pytest.mark.parametrize("question", ["Quarterly turnover, please!", "zzz"])
def test_where_nothing_is_near_the_model_is_not_asked(directory: Path, question: str) -> None:
    model = ScriptedModel(*REPLY)
    events = list(bot_of(model, directory).stream(question))
    assert [type(event) for event in events] == [Query, Found, Token, Done]
    answer = answer_of(events)
    assert max(hit.cosine or 0.0 for hit in answer.hits) < DEFAULT
    assert (answer.answer, answer.refused, answer.finish_reason) == (NOT_FOUND, True, "refused")
    assert (answer.citations, answer.usage) == ([], {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0})
    assert len(answer.hits) > 1
    assert set(answer.timings) == {"load_ms", "retrieve_ms", "first_token_ms", "total_ms"}
    assert model.prompts == []


def test_a_model_that_declines_has_refused(directory: Path) -> None:
    answer = bot_of(ScriptedModel(*NOT_FOUND.split(" ")[0:1], NOT_FOUND[NOT_FOUND.index(" ") :]), directory).ask(OKAPI)
    assert (answer.answer, answer.refused, answer.finish_reason) == (NOT_FOUND, True, "stop")


def test_a_model_that_declines_and_goes_on_is_ended(directory: Path) -> None:
    for pieces in ([f"{NOT_FOUND} But okapis are shy.", " They hide."], [*NOT_FOUND, " But", " okapis are shy."]):
        model = ScriptedModel(*pieces, max_tokens=60)
        events = list(bot_of(model, directory).stream(OKAPI))
        answer = answer_of(events)
        assert (answer.answer, answer.refused, answer.citations) == (NOT_FOUND, True, [])
        assert "".join(event.text for event in events if isinstance(event, Token)) == NOT_FOUND
        assert model.closed == 1


@pytest.mark.parametrize("pieces", [[], [""], [" ", "\n"], ["[1", "]"]])
def test_a_model_that_says_nothing_has_refused(directory: Path, pieces: list[str]) -> None:
    events = list(bot_of(ScriptedModel(*pieces), directory).stream(OKAPI))
    answer = answer_of(events)
    assert (answer.answer, answer.refused, answer.citations) == (NOTHING, True, [])
    assert "".join(event.text for event in events if isinstance(event, Token)).strip() == NOTHING


@pytest.mark.parametrize(
    ("answer", "declined"),
    [
        (NOT_FOUND, True),
        (NOT_FOUND.upper(), True),
        (NOT_FOUND.rstrip(".") + ", alas.", True),
        (f"{NOT_FOUND} But okapis are shy.", True),
        (NOTHING, True),
        (f"Okapis are shy. {NOT_FOUND}", False),
        (NOT_FOUND[:-5], False),
        ("42", False),
    ],
)
def test_declining_is_known_by_its_words(answer: str, declined: bool) -> None:
    assert declines(answer) is declined


@pytest.mark.parametrize("question", ["", " ", "\n\t "])
def test_an_empty_question_is_refused_before_anything_is_looked_for(tmp_path: Path, question: str) -> None:
    with pytest.raises(QueryInvalid, match="empty"):
        bot_of(ScriptedModel(*REPLY), tmp_path / "nothing here").ask(question)


# the index


def test_a_rebuilt_index_is_taken_up_without_loading_the_encoder_again(directory: Path, tmp_path: Path) -> None:
    made: list[WordEncoder] = []

    def encoder() -> WordEncoder:
        made.append(WordEncoder())
        return made[-1]

    bot = bot_of(ScriptedModel("The quokka sleeps at noon."), directory, encoder)
    question = "When does the quokka sleep?"
    assert "quokka" not in " ".join(hit.text for hit in bot.ask(question).hits)
    (tmp_path / "new.txt").write_text("The quokka sleeps at noon.\n")
    build([tmp_path / "new.txt"], directory, encoder=WordEncoder())
    answer = bot.ask(question)
    assert answer.hits[0].text == "The quokka sleeps at noon."
    assert answer.answer == "The quokka sleeps at noon. [1]"
    assert len(made) == 1


def test_an_index_that_appears_and_vanishes(facts: Path, tmp_path: Path) -> None:
    bot = bot_of(ScriptedModel(*REPLY), tmp_path / "index")
    for use in (bot.check, bot.load, lambda: bot.ask(OKAPI)):
        with pytest.raises(NoIndex, match="Run: rag-index build"):
            use()
    build([facts], tmp_path / "index", encoder=WordEncoder())
    bot.check()
    assert bot.ask(OKAPI).answer == CITED
    (tmp_path / "index" / "CURRENT").unlink()
    with pytest.raises(NoIndex):
        bot.ask(OKAPI)


def test_an_index_damaged_later(directory: Path) -> None:
    bot = bot_of(ScriptedModel(*REPLY), directory)
    assert bot.ask(OKAPI).answer == CITED
    (directory / "CURRENT").write_text("gen-000099\n")
    with pytest.raises(IndexDamaged, match="--rebuild"):
        bot.ask(OKAPI)


def test_an_index_of_another_encoder_is_refused_and_the_model_not_asked(directory: Path) -> None:
    model = ScriptedModel(*REPLY)
    with pytest.raises(IndexMismatch, match=r"'words' .* 'other'"):
        bot_of(model, directory, WordEncoder("other")).ask(OKAPI)
    assert model.prompts == []


def test_an_index_rebuilt_with_another_encoder_is_refused(facts: Path, directory: Path) -> None:
    bot = bot_of(ScriptedModel(*REPLY), directory)
    assert bot.ask(OKAPI).answer == CITED
    build([facts], directory, encoder=WordEncoder("other"), rebuild=True)
    with pytest.raises(IndexMismatch, match=r"'other' .* 'words'"):
        bot.ask(OKAPI)


def test_a_missing_model_is_said_before_the_encoder_is_loaded(directory: Path, tmp_path: Path) -> None:
    def encoder() -> WordEncoder:
        raise AssertionError("loaded for nothing")

    bot = bot_of(LlamaCpp(path=str(tmp_path / "none.gguf")), directory, encoder)
    for use in (bot.check, bot.load, lambda: bot.ask(OKAPI)):
        with pytest.raises(ModelNotFound):
            use()


def test_threads_share_a_bot(directory: Path) -> None:
    made: list[WordEncoder] = []

    def encoder() -> WordEncoder:
        made.append(WordEncoder())
        return made[-1]

    bot, barrier = bot_of(ScriptedModel(*REPLY), directory, encoder), threading.Barrier(6)
    answers: list[str] = []

    def ask() -> None:
        barrier.wait()
        answers.append(bot.ask(OKAPI).answer)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [CITED] * 6
    assert len(made) == 1


# all of it, real


def test_a_real_answer_is_cited_and_repeats(real_index: Path, real_encoder: Any, real_model: LlamaCpp) -> None:
    bot = Bot(real_model, real_index, real_encoder)
    events = list(bot.stream("What is the lunch allowance?"))
    answer = answer_of(events)
    assert "14" in answer.answer
    assert answer.citations
    for citation in answer.citations:
        [document] = load(Path(citation.source), Path(citation.source).read_bytes())
        assert document.text[citation.start : citation.end] == citation.quote
    assert "".join(event.text for event in events if isinstance(event, Token)).strip() == answer.answer
    assert bot.ask("Where does the axolotl live?").answer != answer.answer
    assert bot.ask("What is the lunch allowance?").answer == answer.answer
    assert answer.usage["completion_tokens"] > 0
    assert answer.timings["load_ms"] <= answer.timings["total_ms"]


def test_two_homes_one_after_the_other(real_index: Path, real_encoder: Any, tmp_path: Path) -> None:
    """An index is found again wherever it was moved to."""
    moved = copy_of(real_index, tmp_path / "moved")
    bot = Bot(ScriptedModel("The lunch allowance is 14 euros."), moved, real_encoder)
    assert bot.ask("What is the lunch allowance?").answer == "The lunch allowance is 14 euros. [1]"


def test_confidence_does_not_depend_on_how_many_passages_are_read(directory: Path) -> None:
    few, many = (bot_of(ScriptedModel(*REPLY), directory, k=k).ask("What is the oil of the okapi?") for k in (1, 3))
    assert (len(few.hits), len(many.hits)) == (1, 3)
    assert few.hits == many.hits[:1]
    assert few.confidence == many.confidence > 0
