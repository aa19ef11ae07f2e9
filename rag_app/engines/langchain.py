"""Makes any LangChain chat model a Generator. Knows no model: it takes whatever has LangChain's `stream`.

The model's own object says how tokens are chosen. Stop texts and the most tokens are seen to here, by ending streams.
"""

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, PrivateAttr

from index.errors import RagError
from rag_app.decoding import Decoding
from rag_app.engines.outside import END, Tally, drain, estimate, neutral, neutral_turns, one_line
from rag_app.engines.stops import Stops
from rag_app.errors import ServerFailed, SettingInvalid
from rag_app.prompt import Message

BYTES = 4
"""Bytes of text that count as a token where the model does not count."""
LENGTH = frozenset({"length", "max_tokens", "MAX_TOKENS", "model_length"})
"""What models say when a reply was cut."""


class LangChainChat(BaseChatModel):
    """Any LangChain chat model. Threads may share it as far as they may share the model itself.

    Closing the iterator of `stream` ends the reply at once; a model that is silent learns of it with its next word.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    chat: BaseChatModel
    n_ctx: int = 4096
    """Context window in tokens, as LangChain's models do not tell it."""
    decoding: Decoding = Decoding()

    _running: "set[_Reply]" = PrivateAttr(default_factory=set)

    def model_post_init(self, context: Any, /) -> None:
        """Refuses settings that cannot be passed on."""
        if lacking := sorted(set(self.decoding.changed()) - {"max_tokens", "stop"}):
            raise SettingInvalid(f"the engine 'langchain' has no {', '.join(lacking)}: set it where the model is made")

    @classmethod
    def named(cls, name: str | None, n_ctx: int = 4096, decoding: Decoding | None = None) -> "LangChainChat":
        """The chat model that a name stands for, as in the settings.

        Args:
            name: module:attribute, of a chat model or of what makes one when it is called. The module may lie in the
                current folder, which is looked at last, so that no document there takes the place of a library.
            n_ctx: context window in tokens.
            decoding: only `max_tokens` and `stop` can be set.

        Raises:
            SettingInvalid: there is no such module or attribute, it fails, or it is no chat model.
        """
        if not name or ":" not in name:
            raise SettingInvalid(f"the engine 'langchain' has the model {name!r}: give --model module:name")
        with _current_folder_last():
            try:
                made = resolve_name(name)
                if not isinstance(made, BaseChatModel) and callable(made):
                    made = made()
            except (Exception, SystemExit) as error:  # somebody's module: it may do anything
                why = f"{type(error).__name__}: {one_line(error)}"
                raise SettingInvalid(
                    f"the model '{name}' cannot be had ({why}): check the name and the module"
                ) from error
        if not isinstance(made, BaseChatModel):
            raise SettingInvalid(f"the model '{name}' is {type(made).__name__}: give a LangChain chat model")
        return cls(chat=made, n_ctx=n_ctx, decoding=decoding or Decoding())

    @property
    def _llm_type(self) -> str:
        return "langchain"

    @property
    def engine(self) -> str:
        """'langchain'."""
        return "langchain"

    @property
    def abilities(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def check(self) -> str:
        """The model's name as far as its object tells one."""
        names = (getattr(self.chat, name, None) for name in ("model_name", "model", "model_id", "name"))
        return next((name for name in names if isinstance(name, str) and name), type(self.chat).__name__)

    def start(self) -> None:
        """Nothing to load."""

    def kill(self) -> None:
        """Ends every reply; who waits for one gets a ServerFailed."""
        for reply in list(self._running):
            reply.end(ServerFailed("the reply was ended: ask again"))

    def close(self) -> None:
        """Ends every reply; the model's object is left to who made it."""
        self.kill()

    def window(self) -> int:
        """`n_ctx`."""
        return self.n_ctx

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, rather too many."""
        return estimate([Message(m.role, neutral(m.content)) for m in messages])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if kwargs:
            raise SettingInvalid(f"the engine 'langchain' has no {', '.join(sorted(kwargs))}: leave it out")
        reply = _Reply()
        self._running.add(reply)  # before it begins: a kill meets it there
        try:
            reply.begin(self.chat, [(m.role, m.content) for m in neutral_turns(messages)])
            stops = Stops([*self.decoding.stop, *(stop or [])])
            yield from _chunks(reply.items(), stops, max_tokens or self.decoding.max_tokens)
        except RagError:
            raise
        except Exception as error:  # somebody's model: it may raise anything
            why = f"{type(error).__name__}: {one_line(error)}"
            raise ServerFailed(
                f"the model {self.check()} failed ({why}): ask again, or look at what runs it"
            ) from error
        finally:
            reply.end()
            self._running.discard(reply)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))


class _Reply:
    """A reply made in a thread of its own, so that it can be given up while the model is silent."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = False

    def begin(self, chat: BaseChatModel, messages: list[tuple[str, str]]) -> None:
        """Asks the model."""
        # A daemon: a model that never answers must not keep the program from ending.
        threading.Thread(target=self._make, args=(chat, messages), daemon=True).start()

    def items(self) -> Iterator[Any]:
        """The model's chunks; None is a beat."""
        return drain(self._items)

    def end(self, error: Exception | None = None) -> None:
        """Gives the reply up; `error` is for who waits for it."""
        self._ended = True
        if error:
            self._items.put(error)

    def _make(self, chat: BaseChatModel, messages: list[tuple[str, str]]) -> None:
        try:
            for chunk in chat.stream(messages):
                if self._ended:
                    break  # nobody holds the stream any longer: it closes
                self._items.put(chunk)
            self._items.put(END)
        except BaseException as error:
            self._items.put(error if isinstance(error, Exception) else RuntimeError(repr(error)))


def _chunks(items: Iterator[Any], stops: Stops, max_tokens: int) -> Iterator[ChatGenerationChunk]:
    """What the model says as chunks of ours, up to a stop text or the most tokens."""
    tally, usage, reason = Tally(), _Usage(), "stop"
    size, room = 0, BYTES * max_tokens
    for item in items:
        if item is None:
            yield tally.chunk()
            continue
        usage.add(item)
        text = stops.feed(_text(item))
        kept = _start(text, room - size)
        size += len(kept.encode("utf-8", "replace"))
        yield tally.chunk(kept, written=-(-size // BYTES))
        if kept != text or _was_cut(item):
            reason = "length"
        if kept != text or stops.ended:
            usage.written = 0  # the model had more to count
            break
    else:
        yield tally.chunk(_start(stops.rest(), room - size))
    yield tally.chunk(prompt=usage.prompt, written=usage.written, cached=usage.cached, reason=reason)


class _Usage:
    """The counts that chunks bring; over the chunks of a reply they add up."""

    def __init__(self) -> None:
        self.prompt = self.written = self.cached = 0

    def add(self, chunk: Any) -> None:
        usage = getattr(chunk, "usage_metadata", None) or {}
        self.prompt += usage.get("input_tokens") or 0
        self.written += usage.get("output_tokens") or 0
        self.cached += (usage.get("input_token_details") or {}).get("cache_read") or 0


def _was_cut(chunk: Any) -> bool:
    said = getattr(chunk, "response_metadata", {})
    return said.get("finish_reason", said.get("stop_reason")) in LENGTH


def _text(chunk: Any) -> str:
    """The words of a chunk, without reasoning, images or calls of tools."""
    return chunk if isinstance(chunk, str) else str(chunk.text)


def _start(text: str, size: int) -> str:
    """As much of a text as has `size` bytes."""
    return text.encode("utf-8", "replace")[: max(0, size)].decode("utf-8", "ignore")


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def _current_folder_last() -> Iterator[None]:
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
