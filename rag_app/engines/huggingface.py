"""A LangChain chat model on Transformers, in this process. Knows nothing of documents, and leaves tensors to others."""

import codecs
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PositiveInt, PrivateAttr

from index.errors import RagError
from rag_app.adapters.manifest import WEIGHTS
from rag_app.decoding import Decoding
from rag_app.engines import checkpoints
from rag_app.engines.decoder import Batch, cut
from rag_app.engines.forward import Forward
from rag_app.engines.layout import Layout
from rag_app.engines.outside import Tally, one_line
from rag_app.engines.pieces import ends, pieces, spaced
from rag_app.engines.quoting import QuoteMask, Vocabulary
from rag_app.engines.stops import Stops
from rag_app.engines.tuned import Use
from rag_app.engines.turns import Turns
from rag_app.errors import AdapterInvalid, PromptTooLong, SettingInvalid, WorkerDied
from rag_app.fingerprint import fingerprint
from rag_app.prompt import Message, Role

if TYPE_CHECKING:
    from rag_app.adapters.registry import Entry

ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}
ABLE = frozenset(asdict(Decoding()))
PER_REPLY = frozenset({"max_tokens", "quotes", "adapters"})
"""Keyword arguments of `stream` and `invoke`, beside `stop`."""


LAST_STEP = 60.0
"""Seconds that closing waits for the step of the model that is being computed."""


class TransformersChat(BaseChatModel):
    """A causal language model in PyTorch; greedy unless told otherwise.

    Threads may share it: replies are made one after the other, first come, first served. Closing the iterator of
    `stream` stops the reply. The same prompt gives the same reply, whatever was asked before.
    """

    model_config = ConfigDict(extra="forbid")

    path: str | None = None
    """A folder, a Hub id or a GGUF file; `$RAG_MODEL` or the bundled model by default."""
    n_ctx: PositiveInt = 4096
    """Context window in tokens; the model's own where that is smaller."""
    precision: Literal["auto", "16-bit", "nf4"] = "auto"
    """16-bit: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU. nf4: 4 bits by bitsandbytes. auto:
    what the files are quantised to, else 16-bit."""
    device: str = "auto"
    """As PyTorch names it; auto takes a GPU where there is one."""
    decoding: Decoding = Field(default_factory=Decoding)
    """How the next token is chosen. A reply by beams comes in one piece, at its end."""

    _turns: Turns = PrivateAttr(default_factory=Turns)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _loading: "Future[_Loaded] | None" = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Refuses settings that cannot be combined."""
        _check(self.decoding)

    @property
    def _llm_type(self) -> str:
        return self.engine

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "transformers"

    @property
    def abilities(self) -> frozenset[str]:
        """What `stream` takes beside `stop` and `max_tokens`."""
        return frozenset({"quotes", "adapters"})

    def check(self) -> str:
        """The model's name, without loading it.

        Raises:
            ModelNotFound: there is no such file or folder, or the Hub may not be asked for what is not here.
            ModelInvalid: the file is no GGUF, the folder no model's.
        """
        return checkpoints.find(self.path).name

    def fingerprint(self) -> str:
        """Tells the model's weights from others (rag_app.fingerprint); '' where they are on the Hub and not here yet.

        Raises:
            ModelNotFound, ModelInvalid: as `check`.
        """
        try:
            return fingerprint(checkpoints.find(self.path))
        except FileNotFoundError:
            return ""

    def adapter(self, entry: "Entry") -> str:
        """What `stream` takes for an adapter: its folder.

        Raises:
            AdapterInvalid: it has no form for Transformers.
        """
        if entry.peft is None:
            raise AdapterInvalid(
                f"the adapter '{entry.name}' has no {WEIGHTS} for Transformers: add the run that it was exported from, "
                "with --force"
            )
        return str(entry.peft)

    def start(self) -> None:
        """Begins to load the model without waiting for it; raises as `check` does."""
        self._begin()

    def window(self) -> int:
        """Context window in tokens, prompt and reply together; waits until the model is loaded."""
        return self._loaded().window

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model will read it, chat template included; waits for nobody's reply."""
        return sum(map(len, self._loaded().prompt(messages)))

    def kill(self) -> None:
        """Ends the reply in the making after its next token, as 'cancelled'; those that wait are made."""
        self._turns.stop()

    def close(self) -> None:
        """Gives the model's memory back, once the reply in the making is ended; the next question loads it again."""
        self.kill()
        self._turns.wait(LAST_STEP)
        with self._lock:
            self._loading = None
        checkpoints.tidy()

    def _begin(self) -> "Future[_Loaded]":
        source = checkpoints.find(self.path)
        with self._lock:
            # What could not be loaded is tried again: its files may have been mended.
            if self._loading is None or (self._loading.done() and self._loading.exception()):
                self._loading = Future()
                threading.Thread(target=self._load, args=(source, self._loading), daemon=True).start()
            return self._loading

    def _load(self, source: checkpoints.Source, loading: "Future[_Loaded]") -> None:
        try:
            model, tokenizer = checkpoints.load(source, self.precision, self.device)
            loading.set_result(_Loaded(source.name, model, tokenizer, self.n_ctx))
        except BaseException as error:
            loading.set_exception(error)

    def _loaded(self) -> "_Loaded":
        loading = self._loading
        if loading and loading.done() and not loading.exception():
            return loading.result()
        return self._begin().result()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._reply(messages, stop, kwargs)
        tally = Tally()
        for counts, ahead in self._turns.take(reply):
            chunk = tally.chunk(**(counts or {}))
            message: Any = chunk.message
            message.chunk_position = "last" if (counts or {}).get("reason") else None
            if ahead:
                message.response_metadata["place"] = ahead
            if run_manager and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    def _reply(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> "_Reply":
        if unknown := sorted(set(kwargs) - PER_REPLY):
            allowed = ", ".join(["stop", *sorted(PER_REPLY)])
            raise SettingInvalid(f"not supported by the engine '{self.engine}': {', '.join(unknown)}. Give {allowed}")
        if other := sorted({m.type for m in messages} - set(ROLES)):
            raise SettingInvalid(
                f"messages of type {', '.join(other)} cannot be put to this engine: give {list(ROLES)}"
            )
        given = {"max_tokens": kwargs["max_tokens"]} if kwargs.get("max_tokens") is not None else {}
        stops = (*self.decoding.stop, *([stop] if isinstance(stop, str) else stop or ()))
        decoding = Decoding(**{**asdict(self.decoding), **given, "stop": stops})
        turns = [Message(ROLES[m.type], str(m.text)) for m in messages]
        adapters = [(str(folder), float(weight)) for folder, weight in kwargs.get("adapters") or ()]
        return _Reply(self._loaded, turns, decoding, kwargs.get("quotes"), adapters)


def _check(decoding: Decoding) -> None:
    decoding.check("transformers", ABLE)
    together = [name for name in ("num_beams", "penalty_alpha", "temperature") if name in decoding.changed()]
    if len(together) > 1:
        raise SettingInvalid(f"{' and '.join(together)} cannot be combined: each is a way to choose; leave one out")
    if decoding.penalty_alpha and decoding.top_k < 2:
        raise SettingInvalid("penalty_alpha needs candidates to choose from: give --top-k 2 or more, 4 for a start")


class _Loaded:
    """A model in memory and what is known of it."""

    def __init__(self, name: str, model: Any, tokenizer: Any, n_ctx: int) -> None:
        self._layout = Layout(name, tokenizer)
        config = model.config.get_text_config()
        self.window = min(n_ctx, getattr(config, "max_position_embeddings", None) or n_ctx)
        self.pieces = pieces(tokenizer, config.vocab_size)
        self.ends = ends(tokenizer, model)
        self.spaced = spaced(tokenizer)
        self.forward = Forward(model, self.ends)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """For quotes."""
        return Vocabulary(self.pieces, self.ends)

    def prompt(self, messages: Sequence[Message]) -> list[Batch]:
        """The prompt's tokens in batches; what is not the template's is plain text, whatever it looks like."""
        return cut(self._layout.pieces(messages))


class _Reply:
    """One generation."""

    def __init__(
        self,
        loaded: Callable[[], _Loaded],
        messages: Sequence[Message],
        decoding: Decoding,
        quotes: Sequence[str] | None,
        adapters: Sequence[Use],
    ) -> None:
        self._load, self._messages, self._decoding, self._quotes = loaded, messages, decoding, quotes
        self._adapters = adapters

    def __call__(self, put: Callable[[Any], None], unwanted: Callable[[], bool]) -> None:
        """Makes it; gives arguments of `Tally.chunk`."""
        loaded = self._load()
        import torch

        try:
            with torch.inference_mode():
                self._make(loaded, put, unwanted)
        except RagError:
            raise
        except Exception as error:
            loaded.forward.forget()
            text = f"{type(error).__name__}: {one_line(error)}"
            if "memory" in text.lower() or isinstance(error, MemoryError):
                raise WorkerDied(f"the model ran out of memory ({text}). Ask again with a smaller --n-ctx") from error
            raise WorkerDied(f"the model failed ({text}). Ask again") from error

    def _make(self, loaded: _Loaded, put: Callable[[Any], None], unwanted: Callable[[], bool]) -> None:
        prompt = loaded.prompt(self._messages)
        length = sum(map(len, prompt))
        room = min(self._decoding.max_tokens, loaded.window - length)
        if room < 1:
            raise PromptTooLong(
                f"the prompt is too long: {length:,} tokens in a window of {loaded.window:,}. Shorten it"
            )
        decoding = Decoding(**{**asdict(self._decoding), "max_tokens": room})
        for number, done in enumerate(loaded.forward.read(prompt, decoding, unwanted, self._adapters)):
            put({"prompt": length, "cached": done if number == 0 else 0})
        written, reason = 0, "cancelled"
        if not unwanted():
            mask = None if self._quotes is None else QuoteMask(loaded.vocabulary, self._quotes)
            tokens = loaded.forward.tokens(prompt, decoding, mask, unwanted)
            for written, text, ending in self._write(loaded, tokens, room, unwanted):
                reason = ending
                if text:
                    put({"text": text, "written": written})
        put({"reason": reason, "written": written})

    def _write(
        self, loaded: _Loaded, tokens: Iterator[int], room: int, unwanted: Callable[[], bool]
    ) -> Iterator[tuple[int, str, str]]:
        """Tokens so far and a piece of text, with the reason for the end if it is the last one; it may be empty."""
        stops = Stops(self._decoding.stop)
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        written = 0
        for written, token in enumerate(tokens, 1):
            text = characters.decode(loaded.pieces[token])
            if written == 1 and loaded.spaced:
                text = text.removeprefix(" ")
            text = stops.feed(text)
            if stops.ended:
                yield written, text, "stop"
                return
            if written == room:
                yield written, text + stops.rest(), "length"
                return
            yield written, text, "cancelled"
            if unwanted():
                return
        yield written, stops.rest(), "cancelled" if unwanted() else "stop"
