"""`rag-app chat`: what is shown, kept, stopped and set; piped, on terminals wide and narrow, and in a real one."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from index import Hit, QueryInvalid, RagError, console
from rag_app.answer import Answer, Cited, Done, Event, Found, Query, Reading, Step, StepTaken, Thinking, Token, Waiting
from rag_app.chats import Chats, Turn
from rag_app.citations import Citation
from rag_app.commands.chat import Terminal
from rag_app.decoding import Decoding
from rag_app.errors import ChatsUnusable, SettingInvalid, WorkerDied
from rag_app.preferences import Preferences
from rag_app.settings import Options, Settings
from rag_app.terminal import Screen
from tests.conftest import ROOT

PASSAGE = "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long."
HITS = [
    Hit(1, 0.9, "c1", "/docs/animals.md", 3, "Animals > Okapi", 20, 20 + len(PASSAGE), PASSAGE),
    Hit(2, 0.5, "c2", "/docs/lunch.txt", None, "Lunch", 0, 12, "14 euros\x1b[31m."),
]
CITATION = Citation(1, "/docs/animals.md", 3, 61, 95, "Its tongue is 45 centimetres long.")


def script(question: str) -> list[Event | Exception | int]:
    """An answer that has everything: a rewritten query, a queue, steps, citations and notes."""
    answer = Answer(question, "It is 45\x07 cm. [1]", "react", "okapi tongue", [], [CITATION], HITS)
    answer.notes = ["1 of 3 passages did not fit"]
    answer.steps = [
        Step(1, "I must look", "search", "okapi", "Found " + "x" * 400),
        Step(2, "", "add", "1", "no", True),
    ]
    answer.finish_reason = "length"
    return [
        Query("okapi tongue", True),
        Found(HITS),
        Waiting(2),
        Reading(),
        Thinking("I must "),
        Thinking("look"),
        *map(StepTaken, answer.steps),
        Reading(),
        Token("It is"),
        Token(" 45\x07 cm. [1]"),
        Cited(CITATION),
        Done(answer),
    ]


class Scripted:
    """A bot that replays events; an exception among them is raised, a number sent to the process as a signal."""

    def __init__(self, make: Callable[[str], Sequence[Event | Exception | int]] = script) -> None:
        self.make, self.asked, self.closed, self.killed = make, list[Any](), 0, 0
        self.model = SimpleNamespace(decoding=Decoding(), kill=self.kill)
        self.problem: RagError | None = None

    def kill(self) -> None:
        self.killed += 1

    def check(self) -> None:
        if self.problem:
            raise self.problem

    def load(self) -> None:
        self.check()

    def stream(self, question: str, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        self.asked.append((question, [turn.content for turn in history], options, self.model.decoding))
        try:
            for event in self.make(question):
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, int):
                    signal.raise_signal(event)
                    continue
                yield event
        finally:
            self.closed += 1


class Tty(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


class Talk:
    """A conversation with a scripted bot: what was typed goes in, what was shown and kept comes out."""

    def __init__(self, bot: Scripted | None = None, tty: bool = False, chats: Chats | None = None) -> None:
        self.bot, self.chats, self.tty = bot or Scripted(), chats or Chats(), tty
        self.settings, self.given = Settings(), set[str]()
        self.refused: str = ""
        self.chat = ""
        self.failed = ""

    def check(self, decoding: Decoding) -> None:
        if self.refused in decoding.changed():
            raise SettingInvalid(f"the engine has no {self.refused}")

    def type(self, *lines: str, chat: str | None = None) -> str:
        kind = Tty if self.tty else io.StringIO
        self.out, self.err = kind(), io.StringIO()
        preferences = Preferences(self.settings, given=self.given)
        source = kind("".join(f"{line}\n" for line in lines))
        terminal = Terminal(self.bot, self.chats, Screen(self.out, self.err), source, preferences, self.check)
        try:
            terminal.run(chat)
        except RagError as error:
            self.failed = str(error)
        self.chat = terminal._chat
        return self.out.getvalue()

    def turns(self) -> list[Turn]:
        return self.chats.turns(self.chat)


# --- through a pipe -------------------------------------------------------------------------------------------------


def test_a_piped_question_gives_the_answer_and_its_sources_alone() -> None:
    talk = Talk()
    assert talk.type("How long is it?") == (
        "It is 45\ufffd cm. [1]\n(cut at the most tokens allowed)\n\nSources:\n[1] /docs/animals.md, page 3: "
        'Animals > Okapi\n    "Its tongue is 45 centimetres long."\n'
    )
    err = talk.err.getvalue().splitlines()
    assert err[:3] == ["searching for: okapi tongue", "Thought: I must look", "Action: search: okapi"]
    assert err[3] == "Observation: Found " + "x" * 294 + " …"
    assert err[4:] == ["Action: add: 1", "Error: no", "(1 of 3 passages did not fit)"]
    assert "\x1b" not in talk.err.getvalue() and not talk.failed


def test_question_and_answer_are_kept_whole() -> None:
    talk = Talk()
    talk.type("  How long is it?  ")
    question, answer = talk.turns()
    assert question == Turn("user", "How long is it?")
    kept = script(question.content)[-1]
    assert isinstance(kept, Done)
    assert answer == Turn("assistant", kept.answer.answer, {**kept.answer.as_dict(), "error": "", "stopped": False})
    (row,) = talk.chats.export()
    assert row["question"] == "How long is it?" and len(row["passages"]) == 2


def test_the_question_is_kept_before_the_answer_begins() -> None:
    talk = Talk()
    seen: list[list[Turn]] = []

    def look(question: str) -> list[Any]:
        seen.append(talk.chats.turns(talk.chats.chats()[0].id))
        return script(question)

    talk.bot.make = look
    talk.type("Why?")
    assert seen == [[Turn("user", "Why?")]]


def test_lines_are_questions_of_one_conversation() -> None:
    talk = Talk()
    talk.type("One?", "", "   ", "Two?")
    assert [(question, history) for question, history, *_ in talk.bot.asked] == [
        ("One?", []),
        ("Two?", ["One?", "It is 45\x07 cm. [1]"]),
    ]
    talk.type("Three?", chat=talk.chat[:6])
    assert len(talk.turns()) == 6 and len(talk.bot.asked[2][1]) == 4
    assert len(talk.chats.chats()) == 1


@pytest.mark.parametrize("error", [WorkerDied("the model ended: ask again"), ValueError("oh\nno")])
def test_an_error_is_one_line_and_the_chat_goes_on(error: Exception) -> None:
    talk = Talk(Scripted(lambda question: script(question) if question == "Two?" else [Token("It"), error]))
    out = talk.type("One?", "Two?")
    assert out.startswith("It\nIt is 45")
    line = "the model ended: ask again" if isinstance(error, RagError) else "the answer failed (ValueError: oh no)"
    assert talk.err.getvalue().splitlines()[0] == line
    assert talk.failed == "1 of the lines failed: see above"  # a program that reads it must know
    kept = talk.turns()[1]
    assert kept.content == "It" and not kept.details["stopped"] and " ".join(kept.details["error"].split()) == line


def test_what_cannot_be_kept_is_not_answered(tmp_path: Path) -> None:
    (tmp_path / "chats.sqlite3").write_bytes(b"no database" * 100)
    talk = Talk(chats=Chats(tmp_path / "chats.sqlite3"))
    talk.type("One?", "/chats")
    assert talk.err.getvalue().count("move a damaged file away") == 2 and talk.bot.asked == []
    assert "2 of the lines failed" in talk.failed


def test_an_answer_that_cannot_be_kept_is_shown_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk, add = Talk(tty=True), Chats.add

    def full(chats: Chats, chat: str, turn: Turn) -> int:
        if turn.role == "assistant":
            raise ChatsUnusable("no room: make room")
        return add(chats, chat, turn)

    monkeypatch.setattr(Chats, "add", full)
    out = talk.type("One?", "/history")
    assert "It is 45" in out and "no room: make room" in out and "(no answer was kept)" in out


# --- on a terminal --------------------------------------------------------------------------------------------------


def test_a_terminal_shows_steps_dimmed_and_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    talk = Talk(tty=True)
    out = talk.type("How long?")
    assert talk.err.getvalue() == ""
    assert "\x1b[2mThought: I must look\x1b[0m\n\x1b[2mAction: search: okapi\x1b[0m\n" in out
    for status in ("waiting: 2 before you", "reading …", "thinking: I must", "thinking: I must look"):
        assert f"{status}\r{' ' * len(status)}\r" in out  # it vanishes
    assert "/help lists the commands" in out
    assert shown(out).count("reading …") == 0


def shown(out: str) -> str:
    """What is left on the terminal, without colours."""
    lines = re.sub(r"\x1b\[\d+m", "", out).split("\n")
    return "\n".join(line.split("\r")[-1] for line in lines)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    out = Talk(tty=True).type("How long?")
    assert "\x1b" not in out and "Thought: I must look\n" in out


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    talk = Talk(tty=True)
    out = talk.type(
        "One?",
        "/sources",
        "/history",
        "/rate - cites  nothing",
        "/correct 45 cm.",
        "/rate +",
        "/history",
        "/quit",
        "Two?",
    )
    assert f"[1] /docs/animals.md, page 3: Animals > Okapi (characters 20 to {20 + len(PASSAGE)})" in " ".join(
        out.split()
    )
    assert f"    {PASSAGE[:60]}" in out and "14 euros\ufffd[31m." in out
    assert "1. One?\n   It is 45\ufffd cm. [1]\n" in out
    assert "rated: + cites  nothing\n   corrected: 45 cm.\n" in out
    assert len(talk.bot.asked) == 1
    answer = talk.turns()[1]
    assert (answer.rating, answer.comment, answer.correction) == (1, "cites  nothing", "45 cm.")


def test_help_names_every_command() -> None:
    out = Talk().type("/help")
    terminal = Terminal(
        Scripted(), Chats(), Screen(io.StringIO(), io.StringIO()), io.StringIO(), Preferences(Settings())
    )
    assert all(re.search(rf"^{name}\b", out, re.MULTILINE) for name in terminal._commands)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/histroy", "there is no command /histroy: did you mean /history? /help lists them"),
        ("/xyzzy", "there is no command /xyzzy: /help lists them"),
        ("/", "there is no command /: /help lists them"),
        ("/sources", "there is no answer yet: ask a question first"),
        ("/rate +", "there is no answer yet"),
        ("/rate", "/rate wants + or -"),
        ("/rate ++", "/rate wants + or -"),
        ("/correct", "/correct wants what the answer should have been"),
        ("/open", "/open wants the id"),
        ("/open nothing", "there is no conversation 'nothing'"),
        ("/strategy rect", "there is no strategy 'rect': did you mean 'react'?"),
        ("/set temprature 1", "there is no setting 'temprature': did you mean 'temperature'?"),
        ("/set adapter gruonded", "there is no adapter 'gruonded'"),
        ("/set temprature", "there is no setting 'temprature': did you mean 'temperature'?"),
        ("/set k many", "k is 'many': give a value of type int"),
        ("/set k 0", "k is 0: give a whole number from 1"),
        ("/set temperature -1", "temperature is -1"),
        ("/set top_k 3", "the engine has no top_k"),
        ("/set temperature " + "9" * 400, "99…: give a smaller number"),
        ("/set temperature " + "9" * 5000, "99…: give a value of type float"),
        ("/set k " + "[" * 50_000, "it is nested too deeply"),
        ('/set stop ["a", ""]', "stop is ('a', ''): give texts that are not empty"),
        ("/set tools 5", "tools is 5: give a list of texts"),
        ('/set examples ""', "examples is '': give the name"),
    ],
)
def test_a_wrong_command_is_one_line(line: str, complaint: str) -> None:
    talk = Talk()
    talk.refused = "top_k"
    talk.type(line, "One?")
    assert complaint in talk.err.getvalue().splitlines()[0]
    assert talk.bot.asked[0][2:] == (Options(), Decoding())


def test_a_question_may_begin_with_a_slash() -> None:
    talk = Talk()
    talk.type(" /etc/fstab holds what?", "/etc/fstab holds what?")
    assert [asked[0] for asked in talk.bot.asked] == ["/etc/fstab holds what?"]
    assert "a question may begin with a blank" in talk.err.getvalue()


def test_a_passage_that_is_not_there() -> None:
    talk = Talk(Scripted(lambda question: [Done(Answer(question, "No."))] if question == "None?" else script(question)))
    talk.type("One?", "/sources 7", "/sources [2]", "None?", "/sources")
    assert "the last answer has no passage 7: there are 1, 2" in talk.err.getvalue()
    assert "the last answer has no passages" in talk.err.getvalue()
    assert "14 euros" in talk.out.getvalue()


def test_settings_belong_to_the_conversation_and_are_kept() -> None:
    talk = Talk()
    out = talk.type(
        "/strategy react",
        "/set temperature 0.5",
        '/set stop ["\\ud800"]',
        "/set stop END",
        "/set min_confidence 0.25",
        "/set quotes false",
        "One?",
        "/set k 2",
        "/new",
        "Two?",
    )
    assert "strategy: react\n" in out and "stop: ('END',)\n" in out and "stop: ('\ufffd',)\n" in out
    first, second = talk.bot.asked
    assert first[2:] == (
        Options(strategy="react", min_confidence=0.25, quotes=False),
        Decoding(temperature=0.5, stop=("END",)),
    )
    assert second[2:] == (Options(), Decoding())
    own = {"strategy": "react", "temperature": 0.5, "stop": ["END"], "min_confidence": 0.25, "quotes": False, "k": 2}
    latest, older = talk.chats.chats()
    assert (older.settings, latest.settings) == (own, {})
    talk.type("Three?", "/set strategy default", "/set min_confidence null", "Four?", chat=older.id)
    assert talk.bot.asked[2][2].strategy == "react" and talk.bot.asked[2][3].stop == ("END",)
    assert talk.bot.asked[3][2] == Options(quotes=False, k=2)
    assert "strategy" not in talk.chats.settings(older.id)


def test_the_command_line_goes_before_what_a_conversation_kept_until_it_is_set_again() -> None:
    talk = Talk()
    talk.type("/strategy react", "/set k 2", "One?")
    talk.settings, talk.given = Settings(answer=Options(strategy="cot", k=9)), {"strategy"}
    talk.type("Two?", "/strategy pal", "Three?", chat=talk.chat)
    assert [(asked[2].strategy, asked[2].k) for asked in talk.bot.asked[1:]] == [("cot", 2), ("pal", 2)]
    assert talk.chats.settings(talk.chat) == {"strategy": "pal", "k": 2}


def test_settings_of_another_version_do_not_count() -> None:
    talk = Talk()
    talk.type("One?")
    talk.chats.set_settings(talk.chat, {"k": "two", "speed": 3, "strategy": "telepathy", "shots": 5})
    talk.type("Two?", "/set k 3", chat=talk.chat)
    assert talk.bot.asked[1][2] == Options(shots=5) and not talk.err.getvalue().replace(talk.chat, "").count("k is")


def test_strategy_and_set_alone_tell_what_counts() -> None:
    talk = Talk()
    out = talk.type("/strategy", "/set", "/set k")
    lines = out.splitlines()
    assert lines[0] == "strategy: zero-shot" and lines[-1] == "k: 4" and "temperature: 0.0" in lines
    assert talk.chats.chats() == [] and not talk.failed


def test_conversations_are_listed_opened_and_begun() -> None:
    talk = Talk()
    talk.type("One?")
    first = talk.chat
    out = talk.type("/new", "Two?", "/chats", f"/open {first[:5]}", "Three?", "/history")
    assert [line.split()[0] for line in out.splitlines() if "  2  " in line and ":" in line][1:] == [first]
    assert talk.chat == first and [turn.content for turn in talk.turns()][::2] == ["One?", "Three?"]
    assert f"{first}, 2 messages: One?" in talk.err.getvalue()


def test_nothing_is_kept_of_a_conversation_without_a_question() -> None:
    talk = Talk()
    talk.type("/strategy react", "/new", "/history", "/help")
    assert not Path(os.environ["RAG_HOME"]).exists()


def test_a_terminal_says_at_once_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(tty=True)
    talk.bot.problem = QueryInvalid("there is no index: build one")
    assert "there is no index: build one\n" in talk.type("/help")
    assert talk.failed == ""


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_and_keeps_what_came() -> None:
    talk = Talk(
        Scripted(lambda question: [*script(question)[:8], Token("It"), signal.SIGINT, Token(" is"), Token("!")]), True
    )
    before = signal.getsignal(signal.SIGINT)
    out = shown(talk.type("One?", "/history"))
    assert "It is\n(stopped)\n" in out and "!" not in out
    kept = talk.turns()[1]
    assert kept.content == "It is" and kept.details["stopped"] and not kept.details["error"]
    assert (
        len(kept.details["hits"]) == 2 and len(kept.details["steps"]) == 2 and kept.details["query"] == "okapi tongue"
    )
    assert talk.bot.closed == 1 and talk.bot.killed == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_kills_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    bot = Scripted()

    def stuck(question: str) -> Iterator[Any]:
        yield Token("It")
        yield signal.SIGINT
        yield signal.SIGINT
        while not bot.killed:
            time.sleep(0.001)
        yield WorkerDied("the model ended")

    bot.make = stuck  # type: ignore[assignment]
    talk = Talk(bot, tty=True)
    out = shown(talk.type("One?", "/history"))
    assert "(stopped)" in out and "the model ended" not in out
    assert talk.turns()[1].details["stopped"] and not talk.turns()[1].details["error"]


def test_an_answer_that_is_done_when_ctrl_c_comes_is_whole() -> None:
    talk = Talk(Scripted(lambda question: [*script(question)[:-1], signal.SIGINT, script(question)[-1]]), True)
    out = shown(talk.type("One?"))
    assert "Sources:" in out and "(stopped)" not in out and not talk.turns()[1].details["stopped"]


class Keys(Tty):
    """A terminal on which Ctrl-C is typed."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        line = super().readline()
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


def test_a_third_ctrl_c_abandons_the_answer() -> None:
    talk = Talk(Scripted(lambda question: [Token("It"), *[signal.SIGINT] * 3, Token("!")]), tty=True)
    out = shown(talk.type("One?", "/history"))
    assert "It\n(interrupted)\n" in out and "   It\n   (stopped)" in out and "!" not in out


def test_through_a_pipe_ctrl_c_ends_and_keeps_what_came() -> None:
    talk = Talk(Scripted(lambda question: [Token("It"), signal.SIGINT, Token("!")]))
    with pytest.raises(KeyboardInterrupt):
        talk.type("One?", "Two?")
    (chat,) = talk.chats.chats()
    answer = talk.chats.turns(chat.id)[1]
    assert answer.content == "It" and answer.details["stopped"] and len(talk.bot.asked) == 1


def test_ctrl_c_at_the_prompt_ends_only_the_second_time() -> None:
    def asked(*lines: str) -> int:
        bot, out = Scripted(), Tty()
        source = Keys("".join(f"{line}\n" for line in lines))
        Terminal(bot, Chats(), Screen(out, out), source, Preferences(Settings())).run()
        assert "Ctrl-C once more ends" in out.getvalue()
        return len(bot.asked)

    assert asked("^C", "One?", "^C", "Two?") == 2
    assert asked("One?", "^C", "^C", "Two?") == 1


# --- narrow, wide and real terminals ----------------------------------------------------------------------------------


@pytest.fixture
def open_pty() -> Iterator[Callable[[int], tuple[int, int]]]:
    opened: list[int] = []

    def make(columns: int) -> tuple[int, int]:
        ours, theirs = pty.openpty()
        opened.extend((ours, theirs))
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        return ours, theirs

    yield make
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("columns", [20, 33, 200, 0])
def test_lines_keep_to_the_width(columns: int, open_pty: Callable[[int], tuple[int, int]], monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = open_pty(columns)
    width = columns or 80
    with os.fdopen(os.dup(theirs), "w") as stream:
        screen = Screen(stream, sys.stderr)
        screen.status("thinking: " + "日本語 okapi " * 40)
        screen.sources(script("?")[-1].answer.as_dict())  # type: ignore[union-attr]
        screen.passage(HITS[0].as_dict())
        screen.aside("Observation: " + "word " * 60)
    written = b""
    while select.select([ours], [], [], 0)[0]:
        written += os.read(ours, 65536)
    lines = [line.split("\r")[-1] for line in written.decode().replace("\r\n", "\n").split("\n")]
    assert max(map(len, lines)) <= width
    status = written.decode().split("\r")[0]
    assert len(status) + sum(character in "日本語" for character in status) == width - 1
    assert PASSAGE in " ".join(" ".join(lines).split())


PROGRAM = """
import sys
from index import console
from rag_app.commands import chat
root = console.parser("rag-app", "")
chat.add(root.add_subparsers(required=True))
sys.exit(console.run(root, ["chat", *sys.argv[1:]]))
"""


class Real:
    """The command in a terminal of its own."""

    def __init__(self, ours: int, theirs: int, *arguments: str) -> None:
        self._ours, self.text = ours, ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # type: ignore[arg-type,return-value]
        )

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read(self) -> None:
        """Waits a second at most for more to be shown."""
        if select.select([self._ours], [], [], 1)[0]:
            self.text += os.read(self._ours, 65536).decode("utf-8", "replace")

    def until(self, wanted: str, seconds: float = 120) -> str:
        """Reads until a text is shown; returns what came before it, since the last call."""
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < end and self.process.poll() is None, f"no {wanted!r} in {self.text!r}"
            self.read()
        seen, _, self.text = self.text.partition(wanted)
        return seen


@pytest.mark.slow
def test_a_conversation_in_a_real_terminal(real_index: Path, open_pty: Callable[[int], tuple[int, int]]) -> None:
    real = Real(*open_pty(60), "--index", str(real_index), "--max-tokens", "40")
    try:
        real.until("> ")
        real.type("/hlep\r")
        real.until("did you mean /help?")
        real.until("> ")
        real.type("How long is the tongue of the okapi?\r")
        answer = real.until("\n> ")
        assert "animals.md" in answer and "[1]" in answer
        real.type("/rate + fine\r")
        real.until("rated")
        real.type("\x1b[A\x1b[A\r")  # the question again, from the history
        real.until("okapi?\r\n")
        while not real.text.strip():
            real.read()
        real.type("\x03")
        real.until("\n> ")
        real.type("\x04")
        assert real.process.wait(60) == 0
    finally:
        real.process.kill()
        real.process.wait()
    (chat,) = Chats().chats()
    turns = Chats().turns(chat.id)
    assert [turn.content for turn in turns][::2] == ["How long is the tongue of the okapi?"] * 2
    assert turns[1].rating == 1 and turns[1].comment == "fine" and turns[1].details["citations"]
    assert turns[3].details["stopped"] or turns[3].content


@pytest.mark.slow
def test_a_question_through_a_real_pipe(real_index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--index", str(real_index), "--max-tokens", "40"],
        cwd=ROOT,
        input=b"How long is the tongue of the okapi?\n\xff\n",
        capture_output=True,
    )
    out = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "animals.md" in out and not re.search("^> ", out, re.MULTILINE) and "\x1b" not in out
    assert Chats().chats()[0].messages == 4


def run(*arguments: str) -> int:
    from rag_app.commands import chat

    root = console.parser("rag-app", "")
    chat.add(root.add_subparsers(required=True))
    return console.run(root, ["chat", *arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--chat", "none"], 1, "there is no conversation 'none'"),
        (["--chat", "a", "--new"], 2, "not allowed with"),
        (["--strategy", "rect"], 2, "did you mean 'react'?"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str], code: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    printed = capsys.readouterr()
    assert complaint in printed.err and printed.err.count("\n") == 1 and printed.out == ""
