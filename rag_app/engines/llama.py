"""A LangChain chat model on llama.cpp, which runs in a worker process (worker.py). Knows nothing of documents."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PositiveInt, PrivateAttr

from rag_app.adapters.manifest import GGUF
from rag_app.decoding import Decoding
from rag_app.engines.checkpoints import find
from rag_app.engines.line import Line
from rag_app.engines.process import Event
from rag_app.errors import AdapterInvalid, SettingInvalid, WorkerDied
from rag_app.fingerprint import fingerprint
from rag_app.models import locate
from rag_app.prompt import Message, Role

if TYPE_CHECKING:
    from rag_app.adapters.registry import Entry

ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}
ABLE = frozenset(
    {"top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
)
"""Settings of `Decoding` that this engine has, beside those of every engine."""
PER_REPLY = frozenset({"max_tokens", "grammar", "quotes", "adapters"})
"""Keyword arguments of `stream` and `invoke`."""


class LlamaCpp(BaseChatModel):
    """A GGUF model served by llama.cpp; greedy unless told otherwise.

    Threads may share it: replies are made one after the other, first come, first served. Closing the iterator of
    `stream` stops the reply. The same prompt gives the same reply, whatever was asked before.
    """

    model_config = ConfigDict(extra="forbid")

    path: str | None = None
    """The GGUF file; `$RAG_MODEL` or the bundled model by default."""
    n_ctx: PositiveInt = 4096
    """Context window in tokens; the model's own where that is smaller."""
    decoding: Decoding = Field(default_factory=Decoding)
    """How the next token is chosen. No beam search and no contrastive search here."""

    _line: Line = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Refuses settings that this engine lacks."""
        self.decoding.check(self.engine, ABLE)
        self._line = Line(self.path, self.n_ctx)
        weakref.finalize(self, self._line.abandon)

    @property
    def _llm_type(self) -> str:
        return self.engine

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "llama.cpp"

    @property
    def abilities(self) -> frozenset[str]:
        """What `stream` takes beside `stop` and `max_tokens`."""
        return frozenset({"grammar", "quotes", "adapters"})

    def check(self) -> str:
        """The model's file name, without loading it.

        Raises:
            ModelNotFound: there is no such file.
            ModelInvalid: the file is not a GGUF.
        """
        return self.file().name

    def file(self) -> Path:
        """The model file; raises as `check` does."""
        return locate(self.path)

    def fingerprint(self) -> str:
        """Tells the model's weights from others (rag_app.fingerprint); raises as `check` does."""
        return fingerprint(find(str(self.file())))

    def adapter(self, entry: "Entry") -> str:
        """What `stream` takes for an adapter: its GGUF file.

        Raises:
            AdapterInvalid: it has none.
        """
        if entry.gguf is None:
            raise AdapterInvalid(
                f"the adapter '{entry.name}' has no {GGUF} for llama.cpp: make one with rag-finetune export RUN --to "
                "gguf-lora, then add it again with --force"
            )
        return str(entry.gguf)

    def start(self) -> None:
        """Starts the worker and its loading of the model, without waiting for either; raises as `check` does."""
        self._line.start()

    def window(self) -> int:
        """Context window in tokens, prompt and reply together; loads the model."""
        return int(self._line.loaded()["n_ctx"])

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model will read it, chat template included; waits for nobody's reply."""
        return int(self._line.ask(op="count", messages=[[m.role, m.content] for m in messages])["tokens"])

    def forget(self) -> None:
        """Drops the kept beginnings of prompts, after the reply that is being made."""
        self._line.ask(op="forget")

    def pid(self) -> int | None:
        """Process id of the worker; None where there is none."""
        return self._line.pid()

    def kill(self) -> None:
        """Ends the worker at once, whatever it does; the reply in the making fails, those that wait are made."""
        self._line.kill()

    def close(self) -> None:
        """Ends the worker; whatever it does or has to do fails."""
        self._line.close()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        chunks, heard = _Chunks(), False
        try:
            for event in self._line.reply(**request):
                heard = True
                chunk = chunks.of(event)
                if run_manager and chunk.text:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        except WorkerDied as error:
            if heard or not request["adapters"]:
                raise
            # twice by now: reading an adapter that llama.cpp does not bear ends it each time
            names = ", ".join(Path(path).parent.name for path, _ in request["adapters"])
            raise WorkerDied(f"{error}. If it ends again, leave out {names}: rag-app adapters off") from error

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Event:
        if unknown := sorted(set(kwargs) - PER_REPLY):
            allowed = ", ".join(["stop", *sorted(PER_REPLY)])
            raise SettingInvalid(f"not supported by the engine '{self.engine}': {', '.join(unknown)}. Give {allowed}")
        if other := sorted({m.type for m in messages} - set(ROLES)):
            raise SettingInvalid(f"no messages of type {', '.join(other)} here: give {', '.join(ROLES)}")
        given = {"max_tokens": kwargs["max_tokens"]} if kwargs.get("max_tokens") is not None else {}
        stops = (*self.decoding.stop, *([stop] if isinstance(stop, str) else stop or ()))
        settings = Decoding(**{**asdict(self.decoding), **given, "stop": stops})
        return {
            "op": "generate",
            "messages": [[ROLES[m.type], str(m.text)] for m in messages],
            "settings": asdict(settings),
            "grammar": kwargs.get("grammar"),
            "quotes": None if kwargs.get("quotes") is None else list(kwargs["quotes"]),
            "adapters": [[str(path), float(weight)] for path, weight in kwargs.get("adapters") or ()],
        }


class _Chunks:
    """Events as LangChain's chunks, whose token counts add up to the totals however early the stream is closed."""

    def __init__(self) -> None:
        self._counted = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}

    def of(self, event: Event) -> ChatGenerationChunk:
        """A piece of text; or an empty one, so that the reply can be stopped before its first and after its last."""
        prompt, cached, written = (self._more(what, event) for what in self._counted)
        metadata: dict[str, Any] = {}
        if event["event"] == "done":
            metadata["finish_reason"] = event["reason"]
        elif event.get("place"):
            metadata["place"] = event["place"]
        message = AIMessageChunk(
            content=event.get("text", ""),
            response_metadata=metadata,
            usage_metadata={
                "input_tokens": prompt,
                "output_tokens": written,
                "total_tokens": prompt + written,
                "input_token_details": {"cache_read": cached},
            },
            chunk_position="last" if event["event"] == "done" else None,
        )
        return ChatGenerationChunk(message=message)

    def _more(self, what: str, event: Event) -> int:
        more = int(event.get(what, self._counted[what])) - self._counted[what]
        self._counted[what] += more
        return more
