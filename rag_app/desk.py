"""Answers in the background, for pages that come and go: a rerun, a reload or a closed tab never cuts one.

The page asks, follows, stops; the desk runs the bot in a thread per answer and writes each outcome to the chats.
"""

import threading
from collections.abc import Iterator, Sequence

from index import RagError
from rag_app.adapters.choice import chosen
from rag_app.answer import Answer, Event, Found, Query, StepTaken, Thinking, Token, Waiting
from rag_app.bot import Bot
from rag_app.chats import Chats, Turn
from rag_app.reply import Reply
from rag_app.settings import Options

PATIENCE = 8.0
"""Seconds that a stopped answer has to end before the model is killed."""


class Run:
    """One answer in the making."""

    def __init__(self, bot: Bot, question: str, history: Sequence[Turn] = (), options: Options | None = None) -> None:
        self.stage = "Getting ready …"
        self.text = ""
        self.reply = Reply(Answer(question, strategy=(options or Options()).strategy))
        self.stopped = False
        """Whether somebody stopped it."""
        self.unkept = ""
        """A line for a person, when the answer could not be written to the chats."""
        self._bot, self._question = bot, question
        self._history, self._options = history, options
        self._changed = threading.Condition()
        self._over = False

    def stop(self) -> None:
        """Asks for the end; what is written so far is kept. A model that does not heed it is killed."""
        self.stopped = True
        deadline = threading.Timer(PATIENCE, self._kill_model)
        deadline.daemon = True
        deadline.start()

    def _kill_model(self) -> None:
        if not self._over:
            self._bot.model.kill()

    def follow(self) -> Iterator[tuple[str, str]]:
        """Stage and text, at every change and five times a second, until the answer is complete, stopped or failed.

        The page needs the steady beat: it can take a click on its Stop button only between two of these.
        """
        seen = None
        over = False
        while not over:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._over or (self.stage, self.text) != seen, 0.2)  # type: ignore[misc]
                seen, over = (self.stage, self.text), self._over
            yield seen

    def work(self) -> Turn:
        """Makes the answer; gives what is to be kept of it. `finish` lets the followers go."""
        events = self._bot.stream(self._question, self._history, self._options)
        try:
            for event in events:
                self._take(event)
                if self.stopped and not self.reply.done:
                    break
        except RagError as error:
            self.reply.error = "" if self.stopped else str(error)
        except Exception as error:  # the page must say that something went wrong, whatever it was
            self.reply.error = f"the answer failed ({type(error).__name__}: {error})"
        finally:
            events.close()
        self.stopped = self.stopped and not self.reply.done
        return self.reply.turn()

    def _take(self, event: Event) -> None:
        self.reply.take(event)
        match event:
            case Query(text=text, rewritten=True):
                self._show(f"Searching for: {text}")
            case Found():
                self._show("Reading the passages …")
            case Waiting():
                self._show(f"Waiting: {event.place} before you …")
            case Thinking():
                self._show("Thinking …")
            case StepTaken(step=step):
                self._show(f"Step {step.number}: {step.action or 'thought'} …")
            case Token():
                self._show("", event.text)

    def finish(self) -> None:
        """Ends every `follow`."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _show(self, stage: str, text: str = "") -> None:
        with self._changed:
            self.stage = stage
            self.text += text
            self._changed.notify_all()


class Desk:
    """The answers being made, by conversation, at most one in each."""

    def __init__(self, bot: Bot, chats: Chats) -> None:
        self.bot, self.chats = bot, chats
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    def ask(self, chat: str, question: str, options: Options | None = None) -> Run:
        """Begins an answer; the question is kept first. While one is being made for this chat, gives that one."""
        with self._lock:
            if chat in self._runs:
                return self._runs[chat]
            history = self.chats.turns(chat)
            self.chats.add(chat, Turn("user", question))
            run = self._runs[chat] = Run(self.bot, question, history, options)
        threading.Thread(target=self._work, args=(chat, run), daemon=True).start()
        return run

    def running(self, chat: str) -> Run | None:
        """The answer being made for a conversation."""
        return self._runs.get(chat)

    def _work(self, chat: str, run: Run) -> None:
        try:
            self.chats.add(chat, run.work())
        except RagError as error:
            run.unkept = str(error)
        except Exception as error:  # as in `work`
            run.unkept = f"the answer could not be kept ({type(error).__name__}: {error})"
        finally:
            with self._lock:
                del self._runs[chat]
            run.finish()

    def problem(self) -> str:
        """Why no question can be answered now, with the remedy; empty when all is well."""
        try:
            self.bot.check()
        except RagError as error:
            return str(error)
        return ""

    def model_name(self) -> str:
        """Name of the model file in use."""
        return self.bot.model.check()

    def adapters(self) -> list[str]:
        """Names of the adapters that a conversation may choose; none where the engine takes none."""
        return self.bot.adapters.names() if "adapters" in self.bot.model.abilities else []

    def adapters_for(self, options: Options) -> str:
        """Those that a question is answered with; '' without any.

        Raises:
            RagError: those that are asked for are gone or do not fit the model.
        """
        return ", ".join(chosen(self.bot.model, options, self.bot.adapters).names)

    def warm_up(self) -> None:
        """Loads everything in the background, so that the first question does not wait for it."""

        def load() -> None:
            try:
                self.bot.load()
            except RagError:
                return  # the first question will say it

        threading.Thread(target=load, daemon=True).start()
