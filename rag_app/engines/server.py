"""A LangChain chat model on any OpenAI-compatible server. Knows no HTTP (wire.py) and nothing of documents.

What a server can do beyond OpenAI's interface is told by the `owned_by` of its model list: vLLM, llama.cpp's
llama-server and llama-cpp-python's server are known, each other one has what OpenAI documents and no more.
"""

import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, PrivateAttr

from rag_app.decoding import Decoding
from rag_app.engines.outside import PER_MESSAGE, PER_PROMPT, Tally, estimate, neutral, neutral_turns, one_line
from rag_app.engines.wire import Failure, Piece, Wire, count
from rag_app.errors import AdapterInvalid, PromptTooLong, ServerFailed, SettingInvalid
from rag_app.prompt import Message

if TYPE_CHECKING:
    from rag_app.adapters.registry import Entry

STANDARD = ("top_p", "presence_penalty", "frequency_penalty", "seed")
"""Settings that OpenAI documents, beside max_tokens, temperature and stop."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server: what it takes beyond OpenAI's interface."""

    name: str
    takes: dict[str, str] = field(default_factory=dict)
    """Our settings and its names for them."""
    grammar: bool = False
    """Whether it takes a GBNF grammar."""
    counts: str = ""
    """The path, beside /v1, that counts tokens."""


KINDS = {
    "vllm": Kind(
        "vLLM",
        {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
        counts="/tokenize",
    ),
    "llamacpp": Kind(
        "llama-server",
        {"top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p", "repetition_penalty": "repeat_penalty"},
        grammar=True,
        counts="/v1/chat/completions/input_tokens",
    ),
    "me": Kind(
        "llama-cpp-python",
        {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
        grammar=True,
        counts="/extras/tokenize/count",
    ),
}
"""By `owned_by`."""
PLAIN = Kind("of another kind")
TAKEN_SOMEWHERE = {*STANDARD, *(name for kind in KINDS.values() for name in kind.takes)}


@dataclass
class Facts:
    """What is asked of a server once."""

    kind: Kind
    model: str
    window: int
    models: list[str]
    lacks: set[str] = field(default_factory=set)
    """What it has refused although nobody set it: names of the request, 'count', 'system'."""


class ServerChat(BaseChatModel):
    """A model behind an OpenAI-compatible server; greedy unless told otherwise.

    Threads may share it; the server makes their answers side by side or one after the other. Closing the iterator of
    `stream` closes the connection, upon which servers stop generating.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str | None = None
    """The name that the server has for the model; the first that it lists by default."""
    base_url: str = "http://localhost:8080/v1"
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a server without keys needs none."""
    n_ctx: int = 4096
    """Context window in tokens where the server does not tell its own."""
    timeout: float = 60.0
    """Seconds without a word from the server that count as failure; comments and empty pieces are no words."""
    retries: int = 3
    """How often a request that failed for a passing reason is sent again, as long as no text has come."""
    decoding: Decoding = Decoding()

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _wire: Wire = PrivateAttr()
    _facts: Facts | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Refuses what no server has; what this one lacks is refused when it is first asked."""
        self.decoding.check(self.engine, TAKEN_SOMEWHERE)
        self._wire = Wire(self.base_url, self.api_key_env, self.timeout, self.retries)

    @property
    def _llm_type(self) -> str:
        return "server"

    @property
    def engine(self) -> str:
        """'server'."""
        return "server"

    @property
    def abilities(self) -> frozenset[str]:
        """'adapters'; 'grammar' once the server is known, by `window` or any other request, to take GBNF."""
        return frozenset({"adapters", *(("grammar",) if self._facts and self._facts.kind.grammar else ())})

    def check(self) -> str:
        """The model's name, or the server's address where the server chooses; makes no request."""
        return self.model or self._wire.address

    def fingerprint(self) -> str:
        """'': nobody but the server knows its weights."""
        return ""

    def adapter(self, entry: "Entry") -> str:
        """What `stream` takes for an adapter: its name, by which the server knows it."""
        return entry.name

    def start(self) -> None:
        """Nothing to load."""

    def kill(self) -> None:
        """Ends every request under way; who waits for one gets a ServerFailed."""
        self._wire.kill()

    def close(self) -> None:
        """Ends every request and forgets the server; the next one begins anew."""
        self._wire.close()
        self._facts = None

    def window(self) -> int:
        """The server's context window in tokens, `n_ctx` where it tells none.

        Raises:
            ServerFailed: it does not answer.
            SettingInvalid: it lacks a setting of `decoding`, or has no model.
        """
        return self._known().window

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt: vLLM and llama-server count them exactly, elsewhere rather too many.

        Raises:
            ServerFailed: the server does not answer.
        """
        facts = self._known()
        turns = [Message(m.role, neutral(m.content)) for m in messages]
        if not facts.kind.counts or "count" in facts.lacks:
            return estimate(turns)
        try:
            return self._counted(facts, turns) or estimate(turns)
        except Failure as failure:
            if failure.passing or failure.status in (0, 401, 403):
                raise
            if failure.status in (404, 405, 501):
                facts.lacks.add("count")  # an older one
            return estimate(turns)  # vLLM refuses to count what does not fit

    def _counted(self, facts: Facts, turns: list[Message]) -> int:
        text_only = facts.kind is KINDS["me"]
        what: dict[str, Any] = {"messages": _as_json(facts, turns)}
        if text_only:
            what = {"input": "\n".join(turn.content for turn in turns)}
        answer = self._wire.ask(self._wire.root + facts.kind.counts, {"model": facts.model, **what})
        told = count(_field(answer, "count")) or count(_field(answer, "input_tokens"))
        around = PER_PROMPT + PER_MESSAGE * len(turns) if text_only else 0
        return told and told + around

    def _known(self) -> Facts:
        with self._lock:
            if self._facts is None:
                facts = self._learn()
                self.decoding.check(f"server ({facts.kind.name})", {*STANDARD, *facts.kind.takes})
                self._facts = facts
            return self._facts

    def _learn(self) -> Facts:
        try:
            listed = self._wire.ask("/models")
        except Failure as failure:
            if failure.status not in (404, 405, 501) or not self.model:
                raise
            listed = {}  # it serves without a list
        data = _field(listed, "data")
        entries = [e for e in data if isinstance(_field(e, "id"), str)] if isinstance(data, list) else []
        models = [e["id"] for e in entries]
        model = self.model or (models[0] if models else "")
        if not model:
            raise SettingInvalid(f"{self._wire.address} lists no model: name one with --model")
        entry = next((e for e in entries if e["id"] == model), entries[0] if entries else {})
        kind = KINDS.get(str(entry.get("owned_by")), PLAIN)
        return Facts(kind, model, self._window_of(kind, entry) or self.n_ctx, models)

    def _window_of(self, kind: Kind, entry: dict[str, Any]) -> int:
        told = count(entry.get("max_model_len")) or count(entry.get("context_length"))  # vLLM and SGLang; OpenRouter
        if kind is KINDS["llamacpp"]:
            try:
                settings = _field(self._wire.ask(f"{self._wire.root}/props"), "default_generation_settings")
                told = count(_field(settings, "n_ctx"))
            except Failure as failure:
                if failure.passing or failure.status == 0:
                    raise
        return told

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        max_tokens: int | None = None,
        grammar: str | None = None,
        adapters: Sequence[tuple[str, float]] = (),
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        facts = self._known()
        lacking = sorted(kwargs) + (["grammar"] if grammar and not facts.kind.grammar else [])
        if lacking:
            raise SettingInvalid(f"the engine 'server' ({facts.kind.name}) has no {', '.join(lacking)}: leave it out")
        most = max_tokens or self.decoding.max_tokens
        body = self._body(facts, most, [*self.decoding.stop, *(stop or [])])
        if grammar:
            body["grammar"] = grammar
        if adapters:
            body["model"] = self._served(adapters)
        try:
            with closing(self._pieces(facts, body, neutral_turns(messages))) as pieces:
                yield from _chunks(pieces, most)
        except Failure as failure:
            self._facts = None  # it may come back as another
            raise self._explained(failure, facts) from failure

    def _served(self, adapters: Sequence[tuple[str, float]]) -> str:
        """The name that the server has for a model with an adapter: the adapter's, as with vLLM.

        Raises:
            AdapterInvalid: it has none of that name, or more than that is wanted.
        """
        (name, weight), *more = adapters
        if more or weight != 1:
            raise AdapterInvalid(
                "a server applies one adapter at a time, as it was trained: choose one without a weight, or merge them"
            )
        if name not in self._known().models:
            with self._lock:
                self._facts = self._learn()  # it may have been loaded since
            if name not in self._facts.models:
                raise AdapterInvalid(
                    f"{self._wire.address} serves no '{name}': start vLLM with --enable-lora --lora-modules "
                    f"{name}=FOLDER, or take none with rag-app adapters off"
                )
        return name

    def _body(self, facts: Facts, max_tokens: int, stop: list[str]) -> dict[str, Any]:
        """Everything of a request but the messages. To servers that are known, also what is off: theirs is other."""
        values, changed = asdict(self.decoding), self.decoding.changed()
        body = {
            "model": facts.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": values["temperature"],
        }
        body |= {name: values[name] for name in STANDARD if name in changed or facts.kind is not PLAIN}
        body |= {theirs: values[ours] for ours, theirs in facts.kind.takes.items()}
        if body.get("top_k") == 0 and facts.kind is KINDS["vllm"]:
            body["top_k"] = -1  # which is "off" in its older versions too
        return body | ({"stop": stop} if stop else {})

    def _pieces(self, facts: Facts, body: dict[str, Any], turns: list[Message]) -> Generator[Piece | None]:
        """The reply; what the server refuses although nobody set it is left out from then on."""
        while True:
            known = set(facts.lacks)
            try:
                yield from self._wire.chat({**_without(body, known), "messages": _as_json(facts, turns)})
                return
            except Failure as failure:
                facts.lacks |= self._refused_defaults(failure, body)
                if facts.lacks == known:
                    raise

    def _refused_defaults(self, failure: Failure, body: dict[str, Any]) -> set[str]:
        if failure.status not in (400, 422, 500):
            return set()
        said = failure.said.lower()
        optional = {"stream_options", *(set(STANDARD) | {"temperature"}) - set(self.decoding.changed())}
        lacking = {name for name in optional & set(body) if re.search(rf"\b{name}\b", said)}
        if "max_completion_tokens" in said:  # OpenAI's reasoning models
            lacking.add("max_tokens")
        if "system role" in said or "only user and assistant roles" in said:  # a template that has none
            lacking.add("system")
        return lacking

    def _explained(self, failure: Failure, facts: Facts) -> ServerFailed | PromptTooLong:
        said = failure.said.lower()
        if failure.status in (400, 413, 422) and "context" in said and ("length" in said or "size" in said):
            return PromptTooLong(
                f"the prompt does not fit the model's window ({one_line(failure.said)}): shorten the question, or tell "
                "the window with --n-ctx"
            )
        if failure.status == 404 and facts.models and facts.model not in facts.models:
            return ServerFailed(
                f"{self._wire.address} has no model '{facts.model}': choose by --model one of "
                f"{one_line(', '.join(facts.models))}"
            )
        return failure

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))


def _chunks(pieces: Iterator[Piece | None], max_tokens: int) -> Iterator[ChatGenerationChunk]:
    """Pieces as LangChain's chunks; ends a reply that goes on beyond `max_tokens`, as a server without limits would."""
    tally, last, written, size = Tally(), Piece(), 0, 0
    for piece in pieces:
        if piece is None:
            yield tally.chunk()
            continue
        written += bool(piece.text or piece.thinks)
        size += len(piece.text.encode("utf-8", "replace"))
        # Pieces are tokens as a rule, but a server may send several at once, or one in parts: a token has 4 bytes then.
        if written > max_tokens and (piece.thinks or size > 4 * max_tokens):
            last = Piece(finish="length", written=max_tokens)
            break
        if piece.finish or piece.written:
            last = Piece(
                finish=piece.finish or last.finish,
                prompt=piece.prompt or last.prompt,
                written=piece.written or last.written,
                cached=piece.cached or last.cached,
            )
        yield tally.chunk(piece.text, written=written)
    reason = "length" if last.finish == "length" else "stop"
    yield tally.chunk(prompt=last.prompt, written=last.written, cached=last.cached, reason=reason)


def _as_json(facts: Facts, turns: list[Message]) -> list[dict[str, str]]:
    if "system" in facts.lacks and len(turns) > 1 and turns[0].role == "system":
        turns = [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]
    return [asdict(turn) for turn in turns]


def _without(body: dict[str, Any], lacks: set[str]) -> dict[str, Any]:
    left = {name: value for name, value in body.items() if name not in lacks}
    return left | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in lacks else {})


def _field(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, dict) else None
