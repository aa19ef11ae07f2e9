"""The process that runs llama.cpp: requests come in on stdin, events go out on stdout, a JSON object a line.

It knows tokens and nothing of questions or passages. It lives apart from the program so that a crash or an
out-of-memory kill in native code ends one answer and no more. Requests, and the events that answer each:

    {"op": "load", "path", "n_ctx"}             loaded {template, n_ctx, special, bos, eos}
    {"op": "count", "segments"}                 counted {tokens}
    {"op": "generate", "id", "segments", …}     reading {prompt_tokens} …, token {text, completion_tokens} …,
                                                done {reason, prompt_tokens, completion_tokens}
    {"op": "cancel", "id"}                      ends that generation early, with reason 'cancelled'

Anything may be answered by `error {kind, message}` instead. When stdin closes, the process ends at once.
"""

import codecs
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

PREFILL = 256
"""Prompt tokens between two looks at whether the answer is still wanted."""


class Worker:
    """One loaded model and the loop that serves it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancelled: set[int] = set()
        self._llama: Any = None
        self._n_ctx = 0

    def serve(self) -> None:
        """Answers requests, one after the other, until stdin closes."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            request = self._requests.get()
            try:
                getattr(self, f"_{request['op']}")(request)
            except Exception as error:  # whatever llama.cpp raises becomes an event; only a crash ends the process
                kind, message = error.args if isinstance(error, _Refused) else ("failed", error)
                self._send(request, "error", kind=kind, message=" ".join(str(message).split()))

    def _read(self) -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "cancel":
                self._cancelled.add(request["id"])
            else:
                self._requests.put(request)
        os._exit(0)  # the program is gone: nobody wants the rest of an answer

    def _send(self, request: dict[str, Any], event: str, **values: Any) -> None:
        self._out.write(json.dumps({"id": request.get("id"), "event": event, **values}) + "\n")
        self._out.flush()

    def _load(self, request: dict[str, Any]) -> None:
        import llama_cpp
        from jinja2 import TemplateError

        try:
            llama = llama_cpp.Llama(request["path"], n_ctx=64, vocab_only=True, verbose=False)
            trained = int(llama.metadata.get(f"{llama.metadata.get('general.architecture')}.context_length", 2048))
            template = llama.metadata.get("tokenizer.chat_template")
            llama.close()
            if not template:
                raise _Refused("no_template", "no chat template")
            n_ctx = self._n_ctx = min(request["n_ctx"], trained)
            threads = _cores()
            self._llama = llama_cpp.Llama(
                request["path"], n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
            )
        except TemplateError as error:  # llama_cpp compiles the template for itself
            raise _Refused("template", error) from error
        except (ValueError, OSError) as error:
            raise _Refused("invalid", error) from error
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        special = {i: self._piece(i) for i in range(self._llama.n_vocab()) if self._is_special(i)}
        bos, eos = (special.get(token, "") for token in (self._llama.token_bos(), self._llama.token_eos()))
        special_texts = sorted(text for text in special.values() if text)
        self._send(request, "loaded", template=template, n_ctx=n_ctx, special=special_texts, bos=bos, eos=eos)

    def _is_special(self, token: int) -> bool:
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def _piece(self, token: int) -> str:
        import llama_cpp

        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode("utf-8", errors="replace")

    def _count(self, request: dict[str, Any]) -> None:
        self._send(request, "counted", tokens=len(self._tokens(request["segments"])))

    def _tokens(self, segments: list[list[Any]]) -> list[int]:
        """Token ids of text segments `[text, special]`; in segments not `special`, control tokens are plain text."""
        import llama_cpp

        tokens: list[int] = []
        for text, special in segments:
            tokens += self._llama.tokenize(text.encode(), add_bos=False, special=special)
        bos = self._llama.token_bos()
        if llama_cpp.llama_vocab_get_add_bos(self._vocab) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _generate(self, request: dict[str, Any]) -> None:
        prompt = self._tokens(request["segments"])
        room = min(request["max_tokens"], self._n_ctx - len(prompt))  # llama.cpp's own window may be rounded up
        if room < 1:
            raise _Refused("too_long", f"{len(prompt):,} tokens in a window of {self._n_ctx:,}")
        written = 0
        reason = "cancelled"
        if self._prefill(prompt, request["id"]):
            reason = "length"
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for written, token in enumerate(self._sample(prompt, request), 1):
                text = decoder.decode(self._llama.detokenize([token], prev_tokens=prompt))
                if text:
                    self._send(request, "token", text=text, completion_tokens=written)
                if request["id"] in self._cancelled:
                    reason = "cancelled"
                    break
                if written == room:
                    break
            else:
                reason = "stop"
        self._cancelled.discard(request["id"])
        usage = {"prompt_tokens": len(prompt), "completion_tokens": written}
        self._send(request, "done", reason=reason, **usage)

    def _prefill(self, prompt: list[int], number: int) -> bool:
        """Reads the prompt but for its last token; False when the answer was cancelled meanwhile.

        Nothing is reused from the answer before: the same question must give the same answer, and a reused prefix
        would be computed in batches of another shape, with other rounding.
        """
        self._llama.reset()
        for first in range(0, len(prompt) - 1, PREFILL):
            if number in self._cancelled:
                return False
            self._send({"id": number}, "reading", prompt_tokens=len(prompt))
            self._llama.eval(prompt[first : min(first + PREFILL, len(prompt) - 1)])
        return True

    def _sample(self, prompt: list[int], request: dict[str, Any]) -> Iterator[int]:
        """The answer's tokens, up to and without the one that ends it."""
        import llama_cpp

        self._llama.set_seed(request["seed"])
        for token in self._llama.generate(
            prompt,
            temp=request["temperature"],
            top_p=request["top_p"],
            top_k=40,
            min_p=0.0,
            repeat_penalty=request["repeat_penalty"],
        ):
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return
            yield token


class _Refused(Exception):
    """An error that the program explains in its own words; the first argument is its kind."""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Serves until stdin closes."""
    # llama.cpp and Python packages print to stdout at will: keep the pipe for events, send the rest to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    Worker(out).serve()


if __name__ == "__main__":
    main()
