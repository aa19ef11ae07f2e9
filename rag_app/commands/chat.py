"""`rag-app chat`: a conversation in the terminal, or through a pipe; every question and answer is kept.

Knows the bot as a stream of events (answer.py), the screen (terminal.py) and the conversations (chats.py).
"""

import argparse
import difflib
import inspect
import io
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from typing import Any, Protocol, TextIO, get_args

from index import console
from index.errors import RagError
from rag_app.answer import Answer, Event
from rag_app.chats import Chats, Turn, exchanges
from rag_app.commands import flags
from rag_app.decoding import Decoding
from rag_app.errors import ChatNotFound, SettingInvalid
from rag_app.preferences import Preferences
from rag_app.reply import Reply
from rag_app.settings import Options, Strategy, make_generator
from rag_app.terminal import Screen, passages

PATIENCE = 8.0
"""Seconds that a stopped answer has to end before the model is killed."""
PROMPT = "> "
LISTED = 20
"""Conversations that /chats shows."""
HELP = {
    "/help": "this list",
    "/strategy [NAME]": f"how to answer in this conversation: {', '.join(get_args(Strategy))}",
    "/sources [N]": "the passages of the last answer in full, or the one of that number",
    "/history": "this conversation so far",
    "/new": "begin another conversation",
    "/chats": "the latest conversations",
    "/open ID": "go on with a conversation; the beginning of its id will do",
    "/rate + or - [COMMENT]": "the last answer is good, or bad",
    "/correct TEXT": "what the last answer should have been",
    "/set [NAME [VALUE]]": "a setting of this conversation, such as adapter or k; 'default' takes it back",
    "/quit": "end; so does Ctrl-D",
}


def add(commands: Any) -> None:
    """Adds the command."""
    chat = commands.add_parser("chat", help="ask in a conversation, on a terminal or through a pipe")
    which = chat.add_mutually_exclusive_group()
    which.add_argument("--chat", type=console.words, metavar="ID", help="go on with this one; the beginning will do")
    which.add_argument("--new", action="store_true", help="begin a conversation (the default)")
    chat.set_defaults(run=run)
    console.add_index(chat)
    flags.add_generator(chat)
    flags.add_decoding(chat)
    flags.add_answer(chat, changing=True)


def run(options: argparse.Namespace) -> None:
    """Asks until the input ends."""
    settings, chats = flags.settings(options), Chats()
    chat = chats.find(options.chat).id if options.chat is not None else None
    names = [f.name for table in (Options, Decoding) for f in fields(table)]
    given = {name for name in names if getattr(options, name, None) is not None}
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")

    def check(decoding: Decoding) -> None:
        make_generator(replace(settings, decoding=decoding))  # refuses what the engine lacks; nothing is loaded

    bot, generator = flags.make_bot(options)
    try:
        screen = Screen(sys.stdout, sys.stderr)
        Terminal(bot, chats, screen, sys.stdin or io.StringIO(), Preferences(settings, given=given), check).run(chat)
    finally:
        generator.close()


class Bot(Protocol):
    """What a conversation needs of rag_app.bot.Bot."""

    model: Any

    def check(self) -> None:
        """Raises a RagError when no question can be answered."""

    def load(self) -> None:
        """Loads everything; the same errors."""

    def stream(self, question: str, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        """The answer as it is made."""
        ...


class Terminal:
    """One conversation at a time, and the commands that change it."""

    def __init__(
        self,
        bot: Bot,
        chats: Chats,
        screen: Screen,
        source: TextIO,
        preferences: Preferences,
        check: Callable[[Decoding], None] = lambda decoding: None,
    ) -> None:
        """Takes what it works with.

        Args:
            source: where questions and commands are read from, a line each.
            preferences: those of a new conversation.
            check: raises SettingInvalid when the engine has not what a decoding asks for.
        """
        self._bot, self._chats, self._screen, self._check = bot, chats, screen, check
        self._interactive = source.isatty() and screen.terminal
        self._read = _reader(source, PROMPT if self._interactive else "")
        self._first = self._preferences = preferences
        self._chat = ""
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/strategy": lambda text: self._set(f"strategy {text}"),
            "/sources": self._sources,
            "/history": self._history,
            "/new": self._new,
            "/chats": self._list,
            "/open": self._open,
            "/rate": self._rate,
            "/correct": self._correct,
            "/set": self._set,
            "/quit": self._quit,
        }
        self._over = False

    def run(self, chat: str | None = None) -> None:
        """Reads and answers until the input ends, /quit, or Ctrl-C twice.

        Args:
            chat: the conversation to go on with; a new one by default.

        Raises:
            RagError: through a pipe, something failed.
        """
        if self._interactive:
            self._greet()
        if chat:
            self._open(chat)
        else:
            self._begin()
        failed = 0
        for line in self._lines():
            try:
                self._command(line) if line.startswith("/") else self._ask(line.strip())
            except RagError as error:
                failed += 1
                self._screen.warn(str(error))
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._screen.aside("(interrupted)")
            if self._over:
                break
        if failed and not self._interactive:
            raise RagError(f"{failed} of the lines failed: see above")

    def _greet(self) -> None:
        self._screen.aside("Ask about your documents. /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.")
        try:
            self._bot.check()
        except RagError as error:  # it may be mended meanwhile
            self._screen.warn(str(error))
            return

        def load() -> None:
            with suppress(RagError):  # the first question will say it
                self._bot.load()

        threading.Thread(target=load, daemon=True).start()

    def _lines(self) -> Iterator[str]:
        """What is typed, without empty lines."""
        interrupted = False
        while True:
            try:
                line = self._read()
            except EOFError:
                if self._interactive:
                    self._screen.say()
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._screen.say()
                if interrupted:
                    return
                interrupted = True
                self._screen.aside("(Ctrl-C once more ends; so do Ctrl-D and /quit)")
                continue
            interrupted = False
            if line.strip():
                yield line

    # --- answers ----------------------------------------------------------------------------------------------------

    def _ask(self, question: str) -> None:
        """Answers a question. It is kept before that, and whatever came of the answer is kept after."""
        options, decoding = self._preferences.options(), self._decoding(self._preferences)
        history = self._chats.turns(self._chat)
        self._chats.add(self._chat, Turn("user", question))
        if not history:
            self._keep_settings()
        self._bot.model.decoding = decoding
        reply = Reply(Answer(question, strategy=options.strategy))
        with _stoppable(self._bot.model.kill, self._interactive) as stopped:
            try:
                self._stream(reply, history, options, stopped)
            except RagError as error:
                reply.error = str(error)
            except Exception as error:  # whatever it was, it ends one answer and not the conversation
                reply.error = f"the answer failed ({type(error).__name__}: {error})"
            finally:
                self._screen.end()
                self._chats.add(self._chat, reply.turn())
        if reply.error:
            raise RagError(reply.error)
        if not reply.done:
            self._screen.aside("(stopped)")

    def _stream(self, reply: Reply, history: Sequence[Turn], options: Options, stopped: threading.Event) -> None:
        events = self._bot.stream(reply.so_far.question, history, options)
        try:
            for event in events:
                reply.take(event)
                self._screen.show(event)
                if stopped.is_set():
                    break
        except Exception:
            if not stopped.is_set():  # else it did not heed the stop, and was killed
                raise
        finally:
            if inspect.isgenerator(events):
                events.close()

    def _last(self) -> Turn:
        """The last answer."""
        answers = [turn for turn in self._chats.turns(self._chat) if turn.role == "assistant"]
        if not answers:
            raise ChatNotFound("there is no answer yet: ask a question first")
        return answers[-1]

    # --- commands ---------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, text = line.strip().partition(" ")
        if name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SettingInvalid(
                f"there is no command {name}: {hint}/help lists them; a question may begin with a blank before the /"
            )
        self._commands[name](text.strip())

    def _help(self, _: str) -> None:
        room = max(map(len, HELP)) + 2
        for usage, text in HELP.items():
            self._screen.say(f"{usage:{room}}{text}", "    ")

    def _quit(self, _: str) -> None:
        self._over = True

    def _sources(self, text: str) -> None:
        hits = passages(self._last().details)
        chosen = [hit for hit in hits if not text or str(hit["rank"]) == text.strip("[]")]
        if not chosen:
            there = ", ".join(str(hit["rank"]) for hit in hits)
            raise ChatNotFound(
                f"the last answer has no passage {text}: there are {there}"
                if hits
                else "the last answer has no passages"
            )
        for hit in chosen:
            self._screen.passage(hit)

    def _history(self, _: str) -> None:
        for exchange in exchanges(self._chats.turns(self._chat)):
            self._screen.exchange(exchange)

    def _list(self, _: str) -> None:
        self._screen.chats(self._chats.chats()[:LISTED])

    def _begin(self) -> None:
        self._chat, self._preferences = uuid.uuid4().hex[:12], self._first

    def _new(self, _: str) -> None:
        self._begin()
        self._screen.aside("a new conversation")

    def _open(self, text: str) -> None:
        if not text:
            raise SettingInvalid("/open wants the id of a conversation: /chats lists them")
        chat = self._chats.find(text)
        self._chat, self._preferences = chat.id, replace(self._first, own=chat.settings)
        _remember(exchange.question.content for exchange in exchanges(self._chats.turns(chat.id)))
        self._screen.aside(f"{chat.id}, {chat.messages} messages: {chat.title}")

    def _rate(self, text: str) -> None:
        sign, _, comment = text.partition(" ")
        if sign not in ("+", "-"):
            raise SettingInvalid("/rate wants + or -, and a comment if you like: /rate - cites the wrong page")
        self._chats.rate(self._chat, self._last().id, 1 if sign == "+" else -1, comment.strip() or None)
        self._screen.aside("rated")

    def _correct(self, text: str) -> None:
        if not text:
            raise SettingInvalid("/correct wants what the answer should have been: /correct It is 7,500 kilometres.")
        self._chats.rate(self._chat, self._last().id, correction=text)
        self._screen.aside("corrected")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if value:
            changed = self._preferences.with_text(name, value.strip())
            self._decoding(changed)
            if name in ("adapter", "examples", "tools"):
                flags.find_named(changed.options())
            self._preferences = changed
            if self._chats.exists(self._chat):
                self._keep_settings()
        values = self._preferences.values()
        if name and name not in values:
            self._preferences.with_text(name, "")  # says so
        for each in [name] if name else values:
            self._screen.say(f"{each}: {'(not set)' if values[each] in (None, ()) else values[each]}", "    ")

    def _decoding(self, preferences: Preferences) -> Decoding:
        """That of preferences, which the engine can do."""
        decoding = preferences.decoding()
        if decoding != preferences.program.decoding:
            self._check(decoding)
        return decoding

    def _keep_settings(self) -> None:
        own = dict(self._preferences.own)
        if own != self._chats.settings(self._chat):
            self._chats.set_settings(self._chat, own)


def _reader(source: TextIO, prompt: str) -> Callable[[], str]:
    """What reads a line, with editing and a history where a person types; it raises EOFError at the end."""
    if prompt and source is sys.stdin:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (its import makes `input` edit)
        return lambda: input(prompt)

    def read() -> str:
        line = source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    return read


def _remember(questions: Iterator[str]) -> None:
    """Lets the up arrow bring earlier questions back."""
    if readline := sys.modules.get("readline"):
        for question in questions:
            readline.add_history(" ".join(question.split()))


@contextmanager
def _stoppable(kill: Callable[[], None], interactive: bool) -> Iterator[threading.Event]:
    """Lets Ctrl-C set an event, so that an answer ends between two of its own; a second one kills the model.

    So does time, where the first is not heeded. A third one abandons the answer wherever it is. Elsewhere than on a
    terminal nothing is changed.
    """
    stopped, presses, over = threading.Event(), list[int](), threading.Event()

    def end() -> None:
        if not over.is_set():
            kill()

    def press(number: int, _: Any) -> None:
        presses.append(number)
        if len(presses) > 2:
            raise KeyboardInterrupt
        wait = threading.Timer(PATIENCE if len(presses) == 1 else 0, end)
        wait.daemon = True
        wait.start()
        stopped.set()

    catch = interactive and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, press) if catch else None
    try:
        yield stopped
    finally:
        over.set()
        if catch:
            signal.signal(signal.SIGINT, before)
