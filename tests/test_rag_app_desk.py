"""Answers in the background: kept whatever happens, at most one a conversation, and no follower ever left waiting."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from index import Hit, NoIndex, RagError
from rag_app.answer import Answer, Done, Event, Found, Query, Reading, Step, StepTaken, Thinking, Token, Waiting
from rag_app.chats import Chats, Turn
from rag_app.citations import Citation
from rag_app.desk import Desk, Run
from rag_app.errors import ChatsUnusable, WorkerDied
from rag_app.settings import Options

STEP = Step(1, "Look.", "search", "alpha", "[1] Alpha")
HIT = Hit(1, 0.9, "c1", "/docs/a.md", None, "A", 0, 5, "Alpha")
ANSWER = Answer("Q?", "Alpha. [1]", citations=[Citation(1, "/docs/a.md", None, 0, 5, "Alpha")], hits=[HIT])
PATIENCE = 60  # seconds; only how long a broken desk is waited for


class ScriptedBot:
    """Plays a script of events: an exception is raised, a function is called."""

    def __init__(self, *script: "Event | Exception | Callable[[], object]") -> None:
        self.script = script
        self.asked: list[str] = []
        self.histories: list[list[Turn]] = []
        self.options: list[Options | None] = []
        self.closed = 0
        self.model: Any = None

    def stream(self, question: str, history: Sequence[Turn] = (), options: Options | None = None) -> Iterator[Event]:
        self.asked.append(question)
        self.histories.append(list(history))
        self.options.append(options)
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    step()
                else:
                    yield step
        finally:
            self.closed += 1

    def check(self) -> None:
        for step in self.script:
            if isinstance(step, Exception):
                raise step

    load = check


class DeafModel:
    """Heeds no stop; only killing it ends its answer."""

    def __init__(self) -> None:
        self.gate = Gate()

    def kill(self) -> None:
        self.gate.opened.set()


class FullDisk(Chats):
    """Keeps questions; has no room for answers."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def add(self, chat: str, turn: Turn) -> None:
        if turn.role == "assistant":
            raise self.error
        super().add(chat, turn)


class Gate:
    """Holds a scripted bot at one place until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


def desk_of(*script: Any, chats: Chats | None = None) -> tuple[Desk, ScriptedBot]:
    bot = ScriptedBot(*script)
    return Desk(bot, chats or Chats()), bot  # type: ignore[arg-type]


def last(run: Run) -> tuple[str, str]:
    """Follows to the end; gives what was seen last."""
    return list(run.follow())[-1]


def followed(run: Run) -> tuple[threading.Thread, list[tuple[str, str]]]:
    """Follows in a thread of its own; what it sees is appended to the list."""
    seen: list[tuple[str, str]] = []

    def follow() -> None:
        seen.extend(run.follow())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread, seen


def test_the_question_is_kept_before_the_answer_is_begun() -> None:
    chats, kept = Chats(), list[Turn]()
    desk, _ = desk_of(lambda: kept.extend(chats.turns("a")), Found([HIT]), Token("Alpha."), Done(ANSWER))
    last(desk.ask("a", "Q?"))
    assert kept == [Turn("user", "Q?")]


def test_an_answer_is_kept_with_all_that_belongs_to_it() -> None:
    desk, bot = desk_of(Found([HIT]), Reading(), Token("Alpha."), Token(" [1]"), Done(ANSWER))
    run = desk.ask("a", "Q?")
    assert last(run) == ("", "Alpha. [1]")
    assert run.reply.so_far is ANSWER
    question, answer = desk.chats.turns("a")
    assert question == Turn("user", "Q?")
    assert (answer.role, answer.content) == ("assistant", "Alpha. [1]")
    assert answer.details == {**ANSWER.as_dict(), "error": "", "stopped": False}
    assert answer.details["citations"][0]["quote"] == "Alpha"
    assert (bot.asked, bot.closed) == (["Q?"], 1)


def test_what_is_kept_is_there_when_the_followers_are_let_go() -> None:
    desk, _ = desk_of(Found([HIT]), Token("Alpha."), Done(ANSWER))
    run = desk.ask("a", "Q?")
    last(run)
    assert len(desk.chats.turns("a")) == 2
    assert desk.running("a") is None


def test_stop_keeps_what_is_written_and_closes_the_bot() -> None:
    gate = Gate()
    desk, bot = desk_of(Found([HIT]), Token("Alpha "), gate, Token("beta "), Token("gamma"), Done(ANSWER))
    run = desk.ask("a", "Q?")
    assert gate.reached.wait(PATIENCE)
    run.stop()
    gate.opened.set()
    _, text = last(run)
    assert text in ("Alpha ", "Alpha beta ")
    (_, answer) = desk.chats.turns("a")
    assert answer.content == text
    assert (answer.details["stopped"], answer.details["error"]) == (True, "")
    assert [hit["source"] for hit in answer.details["hits"]] == ["/docs/a.md"]
    assert bot.closed == 1
    assert not run.reply.done


def test_stop_while_the_passages_are_read() -> None:
    gate = Gate()
    desk, bot = desk_of(Found([HIT]), gate, Reading(), Token("Alpha"), Done(ANSWER))
    run = desk.ask("a", "Q?")
    assert gate.reached.wait(PATIENCE)
    assert next(run.follow()) == ("Reading the passages …", "")
    run.stop()
    gate.opened.set()
    last(run)
    assert desk.chats.turns("a")[1].content == ""
    assert desk.chats.turns("a")[1].details["stopped"]
    assert bot.closed == 1


def test_a_model_that_heeds_no_stop_is_killed_and_that_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_app.desk.PATIENCE", 0.01)
    model = DeafModel()
    desk, bot = desk_of(Found([HIT]), Token("Alpha"), model.gate, WorkerDied("it was killed. Ask again"))
    bot.model = model
    run = desk.ask("a", "Q?")
    assert model.gate.reached.wait(PATIENCE)
    run.stop()
    last(run)
    (_, answer) = desk.chats.turns("a")
    assert (answer.content, answer.details["stopped"], answer.details["error"]) == ("Alpha", True, "")


def test_stop_after_the_last_word_keeps_the_whole_answer() -> None:
    gate = Gate()
    desk, _ = desk_of(Found([HIT]), Token("Alpha. [1]"), gate, Done(ANSWER))
    run = desk.ask("a", "Q?")
    assert gate.reached.wait(PATIENCE)
    run.stop()
    gate.opened.set()
    last(run)
    assert desk.chats.turns("a")[1].details == {**ANSWER.as_dict(), "error": "", "stopped": False}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (WorkerDied("the process ended. Ask again"), "the process ended. Ask again"),
        (ValueError("what nobody thought of"), "the answer failed (ValueError: what nobody thought of)"),
    ],
)
def test_an_error_is_kept_beside_what_was_written(error: Exception, line: str) -> None:
    desk, bot = desk_of(Found([HIT]), Token("Alpha"), error)
    run = desk.ask("a", "Q?")
    assert last(run) == ("", "Alpha")
    assert run.reply.error == line
    (_, answer) = desk.chats.turns("a")
    assert (answer.content, answer.details["error"], answer.details["stopped"]) == ("Alpha", line, False)
    bot.script = (Found([HIT]), Token("Alpha. [1]"), Done(ANSWER))
    last(desk.ask("a", "Q?"))
    assert [turn.content for turn in desk.chats.turns("a")] == ["Q?", "Alpha", "Q?", "Alpha. [1]"]


def test_an_error_before_anything_was_found() -> None:
    desk, _ = desk_of(NoIndex("there is no index. Build one"))
    last(desk.ask("a", "Q?"))
    (_, answer) = desk.chats.turns("a")
    assert (answer.content, answer.details["hits"]) == ("", [])
    assert answer.details["error"] == "there is no index. Build one"


def test_one_answer_at_a_time_in_a_conversation_and_any_number_beside_it() -> None:
    gate = Gate()
    desk, bot = desk_of(Found([HIT]), gate, Token("Alpha. [1]"), Done(ANSWER))
    run = desk.ask("a", "first")
    assert gate.reached.wait(PATIENCE)
    assert desk.ask("a", "second") is run
    assert desk.running("a") is run
    other = desk.ask("b", "third")
    assert other is not run
    gate.opened.set()
    last(run)
    last(other)
    assert [turn.content for turn in desk.chats.turns("a")] == ["first", "Alpha. [1]"]
    assert [turn.content for turn in desk.chats.turns("b")] == ["third", "Alpha. [1]"]
    assert sorted(bot.asked) == ["first", "third"]
    assert (desk.running("a"), desk.running("b")) == (None, None)


def test_many_threads_asking_at_once_begin_one_answer() -> None:
    gate, barrier = Gate(), threading.Barrier(8)
    desk, bot = desk_of(Found([HIT]), gate, Done(ANSWER))
    runs: list[Run] = []

    def ask() -> None:
        barrier.wait()
        runs.append(desk.ask("a", "Q?"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.opened.set()
    last(runs[0])
    assert len(set(map(id, runs))) == 1
    assert bot.asked == ["Q?"]
    assert len(desk.chats.turns("a")) == 2


def test_followers_from_two_threads_see_it_grow_and_end() -> None:
    gate = Gate()
    desk, _ = desk_of(Found([HIT]), Token("Alpha"), gate, Token(". [1]"), Done(ANSWER))
    run = desk.ask("a", "Q?")
    both = [followed(run), followed(run)]
    assert gate.reached.wait(PATIENCE)
    gate.opened.set()
    for thread, seen in both:
        thread.join(PATIENCE)
        assert seen[-1] == ("", "Alpha. [1]")
        texts = [text for _, text in seen]
        assert texts == sorted(texts, key=len)
        assert all("Alpha. [1]".startswith(text) for text in texts)


def test_a_page_reloaded_in_mid_answer_goes_on_where_it_is() -> None:
    gate = Gate()
    desk, _ = desk_of(Found([HIT]), Token("Alpha"), gate, Token(". [1]"), Done(ANSWER))
    first = desk.ask("a", "Q?").follow()
    next(first)
    assert gate.reached.wait(PATIENCE)
    first.close()  # type: ignore[attr-defined]
    run = desk.running("a")
    assert run
    again = run.follow()
    assert next(again) == ("", "Alpha")
    gate.opened.set()
    assert list(again)[-1] == ("", "Alpha. [1]")
    assert desk.chats.turns("a")[1].content == "Alpha. [1]"


def test_following_what_is_over_ends_at_once() -> None:
    desk, _ = desk_of(Found([HIT]), Token("Alpha. [1]"), Done(ANSWER))
    run = desk.ask("a", "Q?")
    last(run)
    assert list(run.follow()) == [("", "Alpha. [1]")]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ChatsUnusable("the disk is full: make room"), "the disk is full: make room"),
        (MemoryError("what nobody thought of"), "the answer could not be kept (MemoryError: what nobody thought of)"),
    ],
)
def test_an_answer_that_cannot_be_kept_is_said_and_the_next_one_works(error: Exception, line: str) -> None:
    desk, _ = desk_of(Found([HIT]), Token("Alpha. [1]"), Done(ANSWER), chats=FullDisk(error))
    run = desk.ask("a", "Q?")
    both = [followed(run), followed(run)]
    for thread, seen in both:
        thread.join(PATIENCE)
        assert seen[-1] == ("", "Alpha. [1]")
    assert run.unkept == line
    assert desk.running("a") is None
    desk.chats = Chats()
    again = desk.ask("a", "Q?")
    last(again)
    assert (again.unkept, len(desk.chats.turns("a"))) == ("", 3)


def test_a_question_that_cannot_be_kept_begins_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    desk, bot = desk_of(Done(ANSWER), chats=Chats(tmp_path / "file" / "chats.sqlite3"))
    with pytest.raises(ChatsUnusable):
        desk.ask("a", "Q?")
    assert desk.running("a") is None
    assert bot.asked == []


def test_the_problem_is_a_line_or_nothing() -> None:
    assert desk_of(Done(ANSWER))[0].problem() == ""
    assert desk_of(NoIndex("there is no index. Build one"))[0].problem() == "there is no index. Build one"


def test_warming_up_loads_in_the_background_and_leaves_errors_to_the_first_question() -> None:
    gate = Gate()
    desk, bot = desk_of()
    bot.load = gate  # type: ignore[method-assign,assignment]
    desk.warm_up()
    assert gate.reached.wait(PATIENCE)
    gate.opened.set()
    failed = threading.Event()

    def load() -> None:
        failed.set()
        raise RagError("no model")

    bot.load = load  # type: ignore[method-assign]
    desk.warm_up()
    assert failed.wait(PATIENCE)


# conversations and steps


def test_a_follow_up_is_asked_with_what_was_said_before_and_how_to_answer() -> None:
    desk, bot = desk_of(Found([HIT]), Token("Alpha."), Done(ANSWER))
    last(desk.ask("a", "Q?"))
    options = Options(strategy="react")
    last(desk.ask("a", "And then?", options))
    assert bot.histories[0] == []
    assert [(turn.role, turn.content) for turn in bot.histories[1]] == [("user", "Q?"), ("assistant", "Alpha. [1]")]
    assert bot.options == [None, options]


def test_the_stages_of_a_run_of_steps_are_seen() -> None:
    events = [Query("alpha?", True), Waiting(2), Thinking("Thought"), StepTaken(STEP)]
    stages = []
    for event in events:
        gate = Gate()
        desk, _ = desk_of(event, gate, Token("Alpha."), Done(ANSWER))
        run = desk.ask("a", "Q?")
        assert gate.reached.wait(PATIENCE)
        stages.append(run.stage)
        gate.opened.set()
        last(run)
    assert stages == ["Searching for: alpha?", "Waiting: 2 before you …", "Thinking …", "Step 1: search …"]


def test_the_steps_of_a_run_that_is_stopped_are_kept() -> None:
    gate = Gate()
    desk, _ = desk_of(Found([HIT]), StepTaken(STEP), gate, Thinking("more"), Token("never"), Done(ANSWER))
    run = desk.ask("a", "Q?")
    assert gate.reached.wait(PATIENCE)
    run.stop()
    gate.opened.set()
    last(run)
    assert desk.chats.turns("a")[1].details["steps"] == [asdict(STEP)]
