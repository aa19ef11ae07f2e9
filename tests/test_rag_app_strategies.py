"""From question and passages to an answer: what each strategy asks the model, does with its replies, and shows."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from index import Index, build
from rag_app.answer import Answer, Done, Event, Found, Reading, Step, StepTaken, Thinking, Token
from rag_app.bot import Bot
from rag_app.errors import PromptTooLong, SettingInvalid
from rag_app.prompt import FIRST_THOUGHT, NOT_FOUND, PAL, SYSTEM, question_prompt
from rag_app.settings import Options
from rag_app.strategies.pal import figures
from tests.conftest import ScriptedModel, WordEncoder

OKAPI = "Where does the okapi live?"
LIVES = "The okapi lives in the Ituri rainforest."


@pytest.fixture
def directory(facts: Path, tmp_path: Path) -> Path:
    build([facts], tmp_path / "index", encoder=WordEncoder())
    return tmp_path / "index"


def asked(directory: Path, model: ScriptedModel, question: str = OKAPI, tools: Any = (), **options: Any) -> list[Event]:
    return list(Bot(model, directory, WordEncoder(), Options(**options), tools).stream(question))


def answer_of(events: Sequence[Event]) -> Answer:
    done = events[-1]
    assert isinstance(done, Done)
    shown = "".join(event.text for event in events if isinstance(event, Token))
    assert shown.strip() == done.answer.answer
    assert [event.step for event in events if isinstance(event, StepTaken)] == done.answer.steps
    return done.answer


def roles(model: ScriptedModel, prompt: int = -1) -> str:
    return "".join(message.role[0] for message in model.prompts[prompt])


# few-shot


def test_examples_come_before_the_question_as_turns(directory: Path) -> None:
    model = ScriptedModel.saying("the Ituri rainforest", window=4000)
    answer = answer_of(asked(directory, model, strategy="few-shot", shots=2))
    assert roles(model) == "suauau"
    assert model.prompts[0][0].content == SYSTEM
    assert model.prompts[0][-1].content.endswith(f"as few words as possible: {OKAPI}")
    assert (answer.answer, answer.citations[0].quote) == ("the Ituri rainforest [1]", LIVES)


def test_no_examples_is_zero_shot(directory: Path) -> None:
    model = ScriptedModel.saying(LIVES, window=4000)
    answer = answer_of(asked(directory, model, strategy="few-shot", shots=0))
    assert model.prompts == [question_prompt(OKAPI, [hit.text for hit in answer.hits])]


def test_the_examples_that_are_most_alike_stand_next_to_the_question(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(
        '{"question": "Who signs the bill?", "answer": "Ann"}\n'
        '{"question": "Where does the quokka live?", "answer": "Rottnest"}\n'
        '{"question": "Where is the okapi shown?", "answer": "Bronx"}\n'
    )
    model = ScriptedModel.saying(LIVES, window=4000)
    answer_of(asked(directory, model, strategy="few-shot", shots=2, examples=str(file)))
    assert [message.content for message in model.prompts[0] if message.role == "assistant"] == ["Bronx", "Rottnest"]


def test_examples_that_do_not_fit_are_left_out_and_that_is_said(directory: Path) -> None:
    model = ScriptedModel.saying(LIVES, window=200)
    answer = answer_of(asked(directory, model, strategy="few-shot", shots=8))
    left = len([m for m in model.prompts[0] if m.role == "assistant"])
    assert left < 8
    assert f"{8 - left} examples did not fit the model's window" in answer.notes
    assert sum(len(message.content.split()) for message in model.prompts[0]) <= 200 - 16


def test_a_file_of_examples_that_does_not_parse(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    with pytest.raises(SettingInvalid, match=r"bad\.jsonl.*2") as raised:
        asked(directory, ScriptedModel.saying("x"), strategy="few-shot", examples=str(tmp_path / "bad.jsonl"))
    assert "\n" not in str(raised.value)


# chain of thought


def test_the_reasoning_is_a_step_and_the_answer_stands_alone(directory: Path) -> None:
    model = ScriptedModel.saying(f"The first passage tells of it.\nAnswer: {LIVES}")
    events = asked(directory, model, strategy="cot")
    answer = answer_of(events)
    assert answer.answer == f"{LIVES} [1]"
    assert answer.steps == [Step(1, "The first passage tells of it.", "", "", "")]
    assert (
        "".join(e.text for e in events if isinstance(e, Thinking)) == "The first passage tells of it.\nAnswer: " + LIVES
    )


@pytest.mark.parametrize("reply", [LIVES, f"Answer: {LIVES}", f"{LIVES} Answer:"])
def test_a_reply_without_reasoning_or_without_a_mark_is_the_answer(directory: Path, reply: str) -> None:
    answer = answer_of(asked(directory, ScriptedModel.saying(reply), strategy="cot"))
    assert (answer.answer, answer.steps) == (f"{LIVES} [1]", [])


# ReAct


def test_a_run_searches_first_then_does_what_the_model_says(directory: Path) -> None:
    model = ScriptedModel.saying(
        "Thought: I look for its tongue.\nAction: lookup\nInput: tongue",
        "Thought: I know it.\nAction: finish\nInput: Its tongue is 45 centimetres long.",
        window=4000,
        max_tokens=40,
    )
    events = asked(directory, model, "How long is the okapi's tongue?", strategy="react")
    answer = answer_of(events)
    assert answer.answer == "Its tongue is 45 centimetres long. [1]"
    first, second, third = answer.steps
    assert (first.number, first.thought, first.action) == (1, FIRST_THOUGHT, "search")
    assert first.input == "How long is the okapi's tongue?"
    assert "Its tongue is 45 centimetres long" in first.observation
    assert (second.action, second.input, second.error) == ("lookup", "tongue", False)
    assert "tongue is 45 centimetres" in second.observation
    assert (third.action, third.input) == ("finish", "Its tongue is 45 centimetres long.")
    assert (answer.finish_reason, answer.notes) == ("stop", [])
    assert model.prompts[1][:-2] == model.prompts[0]  # nothing before is changed, so nothing is read twice
    assert model.prompts[1][-2].content == "Thought: I look for its tongue.\nAction: lookup\nInput: tongue"
    assert model.prompts[1][-1].content == f"Observation: {second.observation}"


def test_passages_of_later_searches_are_numbered_on_and_can_be_cited(directory: Path) -> None:
    model = ScriptedModel.saying(
        "Thought: Now the oil.\nAction: search\nInput: engine oil",
        "Thought: Done.\nAction: finish\nInput: Change the oil every 7500 kilometres.",
        window=4000,
        max_tokens=40,
    )
    events = asked(directory, model, OKAPI, strategy="react", k=1)
    answer = answer_of(events)
    assert [hit.rank for hit in answer.hits] == [1, 2]
    assert answer.citations[0].n == 2
    assert answer.citations[0].source.endswith("engine.html")
    assert "[2] " in answer.steps[1].observation
    found = [event.hits for event in events if isinstance(event, Found)]
    assert found[-1] == answer.hits


@pytest.mark.parametrize(
    "reply",
    ["I do not know what to do.", "Thought: Hm.\nAction: fly\nInput: away", "Thought: Hm.\nAction: search", ""],
)
def test_what_cannot_be_done_is_an_observation_and_the_run_goes_on(directory: Path, reply: str) -> None:
    model = ScriptedModel.saying(reply, f"Thought: So.\nAction: finish\nInput: {LIVES}", window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, strategy="react"))
    assert answer.answer == f"{LIVES} [1]"
    assert [step.error for step in answer.steps] == [False, True, False]
    assert answer.steps[1].observation


def test_a_run_that_never_finishes_ends_with_the_best_answer_so_far(directory: Path) -> None:
    wanders = [f"Thought: More.\nAction: search\nInput: okapi {n}" for n in range(3)]
    model = ScriptedModel.saying(*wanders, LIVES, window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, strategy="react", max_steps=4))
    assert len(answer.steps) == 4
    assert (answer.answer, answer.finish_reason) == (f"{LIVES} [1]", "steps")
    assert answer.notes == ["the run was ended after 4 steps, the most allowed; this is the best answer so far"]
    assert model.prompts[-1][-1].content.endswith(f"answer in one short sentence: {OKAPI}")


def test_a_run_that_repeats_itself_is_told_and_then_ended(directory: Path) -> None:
    again = "Thought: Again.\nAction: search\nInput: okapi tongue"
    model = ScriptedModel.saying(again, again, again, LIVES, window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, strategy="react", max_steps=50))
    assert [step.error for step in answer.steps] == [False, False, True, True]
    assert "already" in answer.steps[2].observation
    assert (answer.answer, answer.finish_reason) == (f"{LIVES} [1]", "repeated")


def test_a_run_ends_at_its_budget(directory: Path) -> None:
    wanders = [f"Thought: More of all this.\nAction: search\nInput: okapi number {n}" for n in range(30)]
    model = ScriptedModel.saying(*wanders, window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, strategy="react", max_steps=100, budget=100))
    assert answer.finish_reason == "budget"
    assert answer.usage["completion_tokens"] <= 100
    assert "at its budget of 100 tokens" in answer.notes[0]


def test_old_observations_make_room_for_new_ones(directory: Path) -> None:
    wanders = [f"Thought: More.\nAction: search\nInput: okapi {n} oil lunch axolotl" for n in range(8)]
    model = ScriptedModel.saying(*wanders, f"Thought: So.\nAction: finish\nInput: {LIVES}", window=420, max_tokens=30)
    answer = answer_of(asked(directory, model, strategy="react", max_steps=20))
    assert answer.answer == f"{LIVES} [1]"
    assert all(sum(len(m.content.split()) for m in prompt) <= 420 - 30 for prompt in model.prompts)


def test_a_tool_of_ones_own_and_one_that_raises(directory: Path) -> None:
    @tool
    def weather(city: str) -> str:
        """Today's weather in a city."""
        if city == "Nowhere":
            raise ValueError("no such city")
        return f"sunny in {city}"

    model = ScriptedModel.saying(
        "Thought: One.\nAction: weather\nInput: Nowhere",
        "Thought: Two.\nAction: weather\nInput: Leven",
        "Thought: Done.\nAction: finish\nInput: It is sunny in Leven.",
        window=4000,
        max_tokens=40,
    )
    answer = answer_of(asked(directory, model, "zzz Leven?", [weather], strategy="react"))
    assert "- weather: " in model.prompts[0][0].content
    assert [step.error for step in answer.steps] == [False, True, False, False]
    assert "no such city" in answer.steps[1].observation
    assert answer.steps[2].observation == "sunny in Leven"
    assert (answer.answer, answer.refused) == ("It is sunny in Leven.", False)


def test_a_run_whose_passages_are_far_from_the_question_refuses(directory: Path) -> None:
    model = ScriptedModel.saying("Thought: Easy.\nAction: finish\nInput: Paris.", window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, "zzz?", strategy="react"))
    assert (answer.answer, answer.refused, answer.citations) == (NOT_FOUND, True, [])


def test_a_grammar_is_asked_for_only_where_the_engine_has_one(directory: Path) -> None:
    finish = f"Thought: So.\nAction: finish\nInput: {LIVES}"
    for abilities in (frozenset({"grammar"}), frozenset[str]()):
        model = ScriptedModel.saying(finish, window=4000, max_tokens=40)
        model.abilities = abilities
        asked(directory, model, strategy="react")
        assert ("grammar" in model.settings[0]) == bool(abilities)


# PAL


def program(code: str) -> str:
    return f"```python\n{code}\n```"


def test_the_value_of_the_program_is_the_answer(directory: Path) -> None:
    model = ScriptedModel.saying(program("allowance = 14\nanswer = 5 * allowance"), window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, "What is the lunch allowance for 5 days?", strategy="pal"))
    assert answer.answer.startswith("70")
    assert answer.steps == [Step(1, "", "python", "allowance = 14\nanswer = 5 * allowance", "70")]
    assert ["14 euros" in citation.quote for citation in answer.citations] == [True]
    assert answer.answer == f"70 [{answer.citations[0].n}]"
    assert model.prompts[0][0].content == PAL


def test_a_program_that_fails_is_shown_its_error(directory: Path) -> None:
    model = ScriptedModel.saying(
        program("answer = 1 / 0"), program("answer = 'the Ituri rainforest'"), window=4000, max_tokens=40
    )
    answer = answer_of(asked(directory, model, strategy="pal"))
    assert [step.error for step in answer.steps] == [True, False]
    assert "ZeroDivisionError" in answer.steps[0].observation
    assert "ZeroDivisionError" in model.prompts[1][-1].content
    assert answer.answer == "the Ituri rainforest [1]"


@pytest.mark.slow
@pytest.mark.parametrize("code", ["while True: pass", "a = []\nwhile True: a += [a] * 1000", "def f(): f()\nf()"])
def test_a_program_without_end_is_an_error_and_the_question_is_answered_directly(directory: Path, code: str) -> None:
    model = ScriptedModel.saying(*[program(code)] * 3, LIVES, window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, strategy="pal"))
    assert [step.error for step in answer.steps] == [True] * 3
    assert answer.answer == f"{LIVES} [1]"
    assert "no program gave a value; this is a direct answer" in answer.notes


def test_a_program_may_say_that_the_documents_do_not(directory: Path) -> None:
    model = ScriptedModel.saying(program(f'answer = "{NOT_FOUND}"'), window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, strategy="pal"))
    assert (answer.answer, answer.refused, answer.citations) == (NOT_FOUND, True, [])


def test_what_a_program_is_made_of() -> None:
    assert figures("a = 14\nb = 'Ituri'\nc = True\nanswer = a * 2.5 + 14") == ["14", "2.5"]
    assert figures("this is no program (") == []


def test_a_text_that_no_passage_holds_is_not_cited_for_the_numbers_in_its_program(directory: Path) -> None:
    model = ScriptedModel.saying(program("limit = 14\nanswer = 'The CEO took 999 euros'"), window=4000, max_tokens=40)
    answer = answer_of(asked(directory, model, "What is the lunch allowance for 5 days?", strategy="pal"))
    assert (answer.answer, answer.citations) == ("The CEO took 999 euros", [])


def test_a_value_is_not_quoted_that_nobody_said(directory: Path) -> None:
    for strategy, reply in (
        ("pal", program("answer = '\"We are done\" said the okapi'")),
        ("cot", 'The point. ```\nAnswer: "We are done" said the okapi'),
        ("react", 'Thought: ```\nAction: finish\nInput: "We are done" said the okapi'),
    ):
        model = ScriptedModel.saying(reply, window=4000, max_tokens=60)
        model.abilities = frozenset({"quotes"})
        answer = answer_of(asked(directory, model, strategy=strategy))
        assert answer.answer.startswith("We are done said the okapi")


def test_programs_that_fill_the_window_end_in_a_direct_answer(directory: Path) -> None:
    long = program("x = 'many words ' + " + " + ".join(["1"] * 100))
    model = ScriptedModel.saying(long, LIVES, window=300, max_tokens=150)
    answer = answer_of(asked(directory, model, strategy="pal"))
    assert answer.answer == f"{LIVES} [1]"
    assert answer.steps[0].error


def test_steps_that_fill_the_window_make_room_or_end_the_run(directory: Path) -> None:
    code = "x = 1\n" * 40
    wanders = [f"Thought: More.\nAction: python\nInput:\n```python\n{code}answer = {n}\n```" for n in range(8)]
    model = ScriptedModel.saying(*wanders, f"Thought: So.\nAction: finish\nInput: {LIVES}", window=700, max_tokens=200)
    answer = answer_of(asked(directory, model, strategy="react", max_steps=20, budget=100_000))
    assert answer.answer == f"{LIVES} [1]"
    assert all(sum(len(m.content.split()) for m in prompt) <= 700 - 175 for prompt in model.prompts)
    model = ScriptedModel.saying(LIVES, window=200, max_tokens=50)
    answer = answer_of(asked(directory, model, strategy="react"))
    assert (answer.answer, answer.finish_reason) == (f"{LIVES} [1]", "window")


def test_a_run_that_is_ended_cites_the_passages_that_it_shows(directory: Path) -> None:
    model = ScriptedModel.saying(
        "Thought: Oil.\nAction: search\nInput: engine oil kilometres",
        "Change the oil every 7500 kilometres.",
        window=4000,
        max_tokens=40,
    )
    answer = answer_of(
        asked(directory, model, "what about lunch, and how often the oil?", strategy="react", max_steps=2, k=1)
    )
    for citation in answer.citations:
        assert answer.hits[citation.n - 1].source == citation.source
        assert citation.quote in answer.hits[citation.n - 1].text
    assert [hit.rank for hit in answer.hits] == [1]


def test_a_sum_on_the_side_makes_no_answer_known(directory: Path) -> None:
    model = ScriptedModel.saying(
        "Thought: Hm.\nAction: calculator\nInput: 1 + 1",
        "Thought: So.\nAction: finish\nInput: Ulaanbaatar.",
        window=4000,
        max_tokens=40,
    )
    assert answer_of(asked(directory, model, "zzz?", strategy="react")).answer == NOT_FOUND
    model = ScriptedModel.saying(
        "Thought: Hm.\nAction: calculator\nInput: 6 * 7", "Thought: So.\nAction: finish\nInput: It is 42.", window=4000
    )
    assert answer_of(asked(directory, model, "zzz, 6 * 7?", strategy="react")).answer == "It is 42."


# conversations


def turns(*texts: str) -> Any:
    from rag_app.chats import Turn

    return [Turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]


def test_a_follow_up_is_searched_for_with_what_it_is_about(directory: Path) -> None:
    model = ScriptedModel.saying("Its tongue is 45 centimetres long.", window=4000)
    history = turns(OKAPI, f"{LIVES} [1]")
    bot = Bot(model, directory, WordEncoder())
    answer = bot.ask("How long is its tongue?", history)
    assert "okapi" in answer.query.lower()
    assert roles(model) == "suau"
    assert [message.content for message in model.prompts[0][1:3]] == [OKAPI, f"{LIVES} [1]"]
    assert bot.ask("How long is its tongue?", history, Options(rewrite="off")).query == "How long is its tongue?"
    assert bot.ask("Where does the axolotl live?", history).query == "Where does the axolotl live?"
    assert roles(model) == "su"  # it stands alone, and is asked alone


def test_a_model_may_rewrite_the_follow_up(directory: Path) -> None:
    model = ScriptedModel.saying("How long is the okapi's tongue?", "Its tongue is 45 centimetres long.", window=4000)
    answer = Bot(model, directory, WordEncoder()).ask(
        "How long is its tongue?", turns(OKAPI, LIVES), Options(rewrite="model")
    )
    assert answer.query == "How long is the okapi's tongue?"
    assert answer.answer == "Its tongue is 45 centimetres long. [1]"
    assert len(model.prompts) == 2


def test_a_model_that_rewrites_a_follow_up_to_nothing_is_not_heeded(directory: Path) -> None:
    model = ScriptedModel.saying("", "Its tongue is 45 centimetres long.", window=4000)
    history = turns(OKAPI, LIVES)
    answer = Bot(model, directory, WordEncoder()).ask("How long is its tongue?", history, Options(rewrite="model"))
    assert "okapi" in answer.query.lower()


def test_the_oldest_of_a_long_conversation_is_left_out_and_that_is_said(directory: Path) -> None:
    history = turns(*[f"{text} {number}" for number in range(40) for text in ("What of okapis", "Many things, " * 5)])
    model = ScriptedModel.saying(LIVES, window=600)
    answer = Bot(model, directory, WordEncoder()).ask("Where do they live?", history)
    kept = model.prompts[0][1:-1]
    assert kept[-1].content == "Many things, Many things, Many things, Many things, Many things,  39"
    assert 0 < len(kept) // 2 == 40 - answer.history_dropped
    assert (
        f"{answer.history_dropped} earlier questions and their answers did not fit the model's window" in answer.notes
    )
    assert sum(len(message.content.split()) for message in model.prompts[0]) <= 600 - 16


def test_questions_that_failed_and_answers_that_are_empty_are_no_history(directory: Path) -> None:
    from rag_app.chats import Turn

    history = [
        Turn("user", "Lost?"),
        Turn("user", "Failed?"),
        Turn("assistant", "half an", {"error": "it died"}),
        Turn("user", "Stopped?"),
        Turn("assistant", ""),
        Turn("assistant", "nobody asked"),
    ]
    model = ScriptedModel.saying(LIVES, window=4000)
    Bot(model, directory, WordEncoder()).ask("Where do they live, the okapi?", history)
    assert roles(model) == "su"


@pytest.mark.parametrize("strategy", ["zero-shot", "few-shot", "cot", "react", "pal"])
def test_a_window_too_small_for_one_passage_is_a_clear_line(directory: Path, strategy: str) -> None:
    model = ScriptedModel.saying(program("x"), window=30)
    with pytest.raises(PromptTooLong, match="too long") as raised:
        asked(directory, model, strategy=strategy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("strategy", ["zero-shot", "few-shot", "cot", "pal"])
def test_what_the_index_is_unsure_of_is_refused_without_the_model(directory: Path, strategy: str) -> None:
    model = ScriptedModel.saying("never")
    answer = answer_of(asked(directory, model, strategy=strategy, min_confidence=1.0))
    assert (answer.refused, model.prompts) == (True, [])
    assert len(Index.open(directory, WordEncoder()).search(OKAPI)) == len(answer.hits)


def test_a_run_can_be_stopped_while_a_tool_takes_its_time(directory: Path) -> None:
    release = threading.Event()

    def slow(word: str) -> str:
        """Takes its time."""
        release.wait(60)
        return word

    model = ScriptedModel.saying("Thought: Hm.\nAction: slow\nInput: okapi", window=4000, max_tokens=40)
    stream = Bot(model, directory, WordEncoder(), Options(strategy="react"), [slow]).stream(OKAPI)
    for event in stream:
        if isinstance(event, Reading) and len(model.prompts) == 1 and model.closed == 1:
            break  # the model has written its step, and the tool is at work
    stream.close()
    release.set()
    assert len(model.prompts) == 1
