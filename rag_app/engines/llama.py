"""A LangChain chat model on llama.cpp, which runs in a worker process (worker.py). Knows nothing of documents."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, NonNegativeFloat, PositiveInt, PrivateAttr

from index.errors import RagError
from rag_app.errors import ModelInvalid, PromptTooLong, WorkerDied
from rag_app.models import REMEDY, locate
from rag_app.prompt import Message, Role, render

PATIENCE = 5.0
"""Seconds that the worker has to heed a stop before it is killed."""
ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}


class LlamaCpp(BaseChatModel):
    """A GGUF model served by llama.cpp; greedy and seeded unless told otherwise.

    Threads may share it: answers are made one after the other. Closing the iterator of `stream` stops the answer.
    """

    model_config = ConfigDict(extra="forbid")

    path: str | None = None
    """The GGUF file; `$RAG_MODEL` or the bundled model by default."""
    n_ctx: PositiveInt = 4096
    """Context window in tokens; the model's own where that is smaller."""
    max_tokens: PositiveInt = 256
    """Most tokens of an answer."""
    temperature: NonNegativeFloat = 0.0
    top_p: float = 0.95
    seed: int = 0
    repeat_penalty: float = 1.0

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _starting: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _worker: "_Process | None" = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "llama.cpp"

    def check(self) -> Path:
        """The model file, not yet loaded.

        Raises:
            ModelNotFound: there is no such file.
            ModelInvalid: the file is not a GGUF.
        """
        return locate(self.path)

    def start(self) -> None:
        """Starts the worker and its loading of the model, without waiting for either.

        Raises:
            ModelNotFound: there is no such file.
            ModelInvalid: the file is not a GGUF.
        """
        with self._starting:
            if self._worker is None or not self._worker.alive():
                path = self.check()
                self._worker = _Process(path)
                self._worker.send({"op": "load", "path": str(path), "n_ctx": self.n_ctx})

    def window(self) -> int:
        """Context window in tokens, prompt and answer together; loads the model."""
        with self._lock:
            return int(self._ready().loaded["n_ctx"])

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model will read it, chat template included."""
        with self._lock:
            counted = self._ready().ask({"op": "count", "segments": self._segments(messages)}, "counted")
            return int(counted["tokens"])

    def pid(self) -> int | None:
        """Process id of the worker; None before the first use."""
        return self._worker.pid if self._worker else None

    def kill(self) -> None:
        """Ends the worker at once, whatever it does; an answer in the making fails with WorkerDied."""
        if self._worker:
            self._worker.kill()

    def close(self) -> None:
        """Ends the worker."""
        if self._worker:
            self._worker.end()

    def _ready(self) -> "_Process":
        self.start()
        assert self._worker is not None
        if not self._worker.loaded:
            try:
                self._worker.wait_until_loaded()
            except RagError:
                self._worker.end()  # it has no model; the next question starts another, perhaps on a mended file
                raise
        return self._worker

    def _segments(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        loaded = self._ready().loaded
        try:
            segments = render(messages, loaded["template"], loaded["bos"], loaded["eos"])
        except ValueError as error:
            raise ModelInvalid(f"the model '{self.check()}': {error}. {REMEDY}") from error
        return [(segment.text, segment.special) for segment in segments]

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if stop or kwargs:
            raise ValueError(f"not supported by this engine: {', '.join(['stop'] * bool(stop) + sorted(kwargs))}")
        turns = [Message(ROLES[m.type], str(m.text)) for m in messages]
        with self._lock:
            request = {
                "op": "generate",
                "segments": self._segments(turns),
                **self.model_dump(include={"max_tokens", "temperature", "top_p", "seed", "repeat_penalty"}),
            }
            chunks = _Chunks()
            for event in self._ready().events(request):
                chunk = chunks.of(event)
                if run_manager and event["event"] == "token":
                    run_manager.on_llm_new_token(event["text"], chunk=chunk)
                yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))


class _Chunks:
    """Events as LangChain's chunks, whose token counts add up to the totals however early the stream is closed."""

    def __init__(self) -> None:
        self._counted = {"prompt_tokens": 0, "completion_tokens": 0}

    def of(self, event: dict[str, Any]) -> ChatGenerationChunk:
        """A piece of text; or, while the prompt is read, an empty one, so that the answer can be stopped meanwhile."""
        prompt, written = self._more("prompt_tokens", event), self._more("completion_tokens", event)
        message = AIMessageChunk(
            content=event.get("text", ""),
            response_metadata={"finish_reason": event["reason"]} if event["event"] == "done" else {},
            usage_metadata={"input_tokens": prompt, "output_tokens": written, "total_tokens": prompt + written},
        )
        return ChatGenerationChunk(message=message)

    def _more(self, what: str, event: dict[str, Any]) -> int:
        more = int(event.get(what, self._counted[what])) - self._counted[what]
        self._counted[what] += more
        return more


class _Process:
    """The worker process and its two pipes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self.loaded: dict[str, Any] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            # -P: "-m" alone would import what lies in the current folder, which may be anybody's documents.
            [sys.executable, "-P", "-m", "rag_app.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for the program, which then closes the pipe; the worker must not die under it in mid-answer.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.pid = self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            raise self._died() from None

    def ask(self, request: dict[str, Any], answer: str) -> dict[str, Any]:
        self._number += 1
        self.send({**request, "id": self._number})
        return self._next(answer, self._number)

    def wait_until_loaded(self) -> None:
        try:
            self.loaded = self._next("loaded", None)
        except WorkerDied as error:
            raise ModelInvalid(
                f"the model '{self._path}' cannot be loaded: its file is damaged, or there is too little memory for it "
                f"({error}). {REMEDY}"
            ) from error

    def events(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a generation, `done` last. Closing the iterator cancels it."""
        self._number += 1
        number = self._number
        self.send({**request, "id": number})
        finished = False
        try:
            while not finished:
                event = self._next(None, number)
                finished = event["event"] == "done"
                yield event
        except RagError:
            finished = True
            raise
        finally:
            if not finished:
                self._cancel(number)

    def _cancel(self, number: int) -> None:
        """Stops a generation and waits for its end; a worker that does not heed it is killed."""
        deadline = threading.Timer(PATIENCE, self.kill)
        deadline.start()
        try:
            with suppress(RagError):  # it is ended all the same, and the next question starts another
                self.send({"op": "cancel", "id": number})
                while self._next(None, number)["event"] != "done":
                    pass
        finally:
            deadline.cancel()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        if self._process.stdin:
            with suppress(OSError):  # a dead worker has left something unread
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next(self, wanted: str | None, number: int | None) -> dict[str, Any]:
        assert self._process.stdout
        while line := self._process.stdout.readline():
            event: dict[str, Any] = json.loads(line)
            if event["id"] != number:
                continue  # the end of an answer that was given up
            if event["event"] == "error":
                raise self._refused(event)
            if wanted in (None, event["event"]):
                return event
        raise self._died()

    def _refused(self, event: dict[str, Any]) -> Exception:
        if event["kind"] == "no_template":
            return ModelInvalid(
                f"the model '{self._path}' has no chat template, so nobody knows how to ask it. Add one with "
                "gguf-new-metadata --chat-template (pip install gguf), or give another with --model"
            )
        if event["kind"] == "template":
            why = f"the chat template cannot be rendered: {event['message']}"
            return ModelInvalid(f"the model '{self._path}': {why}. {REMEDY}")
        if event["kind"] == "invalid":
            return ModelInvalid(
                f"the model '{self._path}' cannot be loaded: it is cut short, damaged, or of a kind that this "
                "llama.cpp does not know. Fetch it again, or give another with --model"
            )
        if event["kind"] == "too_long":
            return PromptTooLong(f"the prompt is too long: {event['message']}. Shorten it")
        return WorkerDied(f"the model failed ({event['message']}). Ask again")

    def _died(self) -> WorkerDied:
        code = self._process.wait()
        self.loaded = {}
        why = f"exit code {code}"
        if code < 0:
            why = signal.Signals(-code).name
        memory = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        return WorkerDied(f"the process that runs the model ended ({why}{memory}). Ask again: it is started anew")
