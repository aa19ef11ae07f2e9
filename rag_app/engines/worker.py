"""The process that runs llama.cpp: requests come in on stdin, events go out on stdout, a JSON object a line.

It knows messages and tokens, and nothing of questions or passages. It lives apart from the program so that a crash or
an out-of-memory kill in native code ends one answer and no more. Requests, and the events that answer each:

    {"op": "load", "path", "n_ctx"}        loaded {n_ctx, slots}
    {"op": "count", "id", "messages"}      counted {tokens}; at once, whatever else is being done
    {"op": "forget", "id"}                 forgotten: no beginning of a prompt is kept any more
    {"op": "generate", "id", "messages", "settings", "grammar", "quotes", "adapters"}
                                           reading {prompt_tokens, cached_tokens} …, token {text, completion_tokens} …,
                                           done {reason, prompt_tokens, cached_tokens, completion_tokens}
    {"op": "cancel", "id"}                 ends that generation early, with reason 'cancelled'

`messages` are [role, content]; `settings` are those of `Decoding`; `adapters` are [GGUF file, weight]. Anything may be
answered by `error {kind, message}` instead. A chat template that does not come to an end within TEMPLATE_LIMIT seconds
ends the process by SIGALRM: it is a program that came with the model, and nothing else stops one that loops in native
code. When stdin closes, the process ends at once.
"""

import codecs
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TextIO

from rag_app.engines.decoder import Batch, Decoder, cut
from rag_app.engines.native import Model, Refused
from rag_app.engines.quoting import QuoteMask, Vocabulary
from rag_app.engines.sampler import Sampler
from rag_app.engines.stops import Stops
from rag_app.prompt import Message, Segment, render

TEMPLATE_LIMIT = 5.0
"""Seconds that a chat template may take."""

Request = dict[str, Any]


class Worker:
    """One loaded model and the loop that serves it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._sending = threading.Lock()
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        """Answers requests, one after the other, until stdin closes."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            self._answer(self._requests.get())

    def _read(self) -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "cancel":
                self._cancelled.add(request["id"])
            elif request["op"] == "count":  # answered here: who counts does not wait for the replies of others
                self._answer(request)
            else:
                self._requests.put(request)
        os._exit(0)  # the program is gone: nobody wants the rest of an answer

    def _answer(self, request: Request) -> None:
        try:
            getattr(self, f"_{request['op']}")(request)
        except Exception as error:  # whatever llama.cpp raises becomes an event; only a crash ends the process
            kind, message = error.args if isinstance(error, Refused) else ("failed", f"{type(error).__name__}: {error}")
            self._send(request, "error", kind=kind, message=" ".join(str(message).split()))

    def _send(self, request: Request, event: str, **values: Any) -> None:
        line = json.dumps({"id": request.get("id"), "event": event, **values}) + "\n"
        with self._sending:
            self._out.write(line)
            self._out.flush()

    def _load(self, request: Request) -> None:
        self._model = Model(request["path"], request["n_ctx"])
        self._decoder = Decoder(self._model)
        self._send(request, "loaded", n_ctx=self._model.n_ctx, slots=self._model.slots)

    def _count(self, request: Request) -> None:
        self._send(request, "counted", tokens=sum(map(len, self._prompt(request))))

    def _forget(self, request: Request) -> None:
        self._decoder.forget()
        self._send(request, "forgotten")

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary([self._model.piece(token) for token in range(self._model.n_vocab)], self._model.ends)

    def _prompt(self, request: Request) -> list[Batch]:
        messages = [Message(role, content) for role, content in request["messages"]]
        try:
            with _time_limit():
                segments = render(messages, self._model.template, self._model.bos, self._model.eos)
        except ValueError as error:
            raise Refused("template", error) from error
        return tokenise(self._model, segments)

    def _generate(self, request: Request) -> None:
        reply = _Reply(self._model, request, self._prompt(request), self._quotes(request))
        for event, values in reply.events(self._decoder, lambda: request["id"] in self._cancelled):
            self._send(request, event, **values)
        self._cancelled.discard(request["id"])

    def _quotes(self, request: Request) -> QuoteMask | None:
        quotes = request.get("quotes")
        return None if quotes is None else QuoteMask(self._vocabulary, quotes)


def tokenise(model: Model, segments: Sequence[Segment]) -> list[Batch]:
    """The prompt's tokens in batches; what is not the template's is plain text, whatever it looks like."""
    pieces = [(model.tokens(segment.text, segment.special), not segment.special) for segment in segments]
    first = next((tokens for tokens, _ in pieces if tokens), [])
    if first[:1] != model.begin:  # a template may write it, too
        pieces.insert(0, (model.begin, False))
    return cut(pieces)


class _Reply:
    """One generation."""

    def __init__(self, model: Model, request: Request, prompt: list[Batch], mask: QuoteMask | None) -> None:
        self._model, self._prompt = model, prompt
        tokens = [token for batch in prompt for token in batch]
        settings = request["settings"]
        # llama.cpp's own window may be rounded up
        self._room = min(settings["max_tokens"], model.n_ctx - len(tokens))
        if self._room < 1:
            raise Refused("too_long", f"{len(tokens):,} tokens in a window of {model.n_ctx:,}")
        self._adapters = [(path, weight) for path, weight in request.get("adapters") or ()]
        self._sampler = Sampler(model, settings, tokens, request.get("grammar"), mask)
        self._stops = Stops(settings["stop"])
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._counts = {"prompt_tokens": len(tokens), "cached_tokens": 0}
        self._written = 0

    def events(self, decoder: Decoder, unwanted: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of a generation, with their values."""
        for number, done in enumerate(decoder.read(self._prompt, unwanted, self._adapters)):
            if number == 0:
                self._counts["cached_tokens"] = done
            yield "reading", self._counts
        reason = "cancelled"
        if not unwanted():
            for text, reason in self._write(decoder, unwanted):  # noqa: B007
                if text:
                    yield "token", {"text": text, "completion_tokens": self._written}
        yield "done", {"reason": reason, **self._counts, "completion_tokens": self._written}

    def _write(self, decoder: Decoder, unwanted: Any) -> Iterator[tuple[str, str]]:
        """Pieces of text, each with the reason for the end if it is the last one; that may be empty."""
        while True:
            token = self._sampler.next(decoder.logits())
            if token is None or token in self._model.ends:
                yield self._stops.rest(), "stop"
                return
            self._sampler.accept(token)
            self._written += 1
            text = self._stops.feed(self._characters.decode(self._model.piece(token)))
            if self._stops.ended:
                yield text, "stop"
                return
            if self._written == self._room:
                yield text + self._stops.rest(), "length"
                return
            yield text, "cancelled"
            if unwanted():
                return
            decoder.write(token)


@contextmanager
def _time_limit() -> Iterator[None]:
    # No handler: Python runs those between two of its own steps only, and a power of a power is one step.
    if not hasattr(signal, "setitimer"):
        yield
        return
    with _RENDERING:
        signal.setitimer(signal.ITIMER_REAL, TEMPLATE_LIMIT)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


_RENDERING = threading.Lock()
"""There is one timer, and counting happens beside a generation."""


def main() -> None:
    """Serves until stdin closes."""
    # llama.cpp and Python packages print to stdout at will: keep the pipe for events, send the rest to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent may have had it ignored
    Worker(out).serve()


if __name__ == "__main__":
    main()
