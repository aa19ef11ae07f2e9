"""The worker process (worker.py) and its two pipes. Knows nothing of whose turn it is."""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rag_app.errors import AdapterInvalid, ModelInvalid, PromptTooLong, SettingInvalid, WorkerDied
from rag_app.models import REMEDY

PATIENCE = 5.0
"""Seconds that the worker has to heed a stop, or to take a request off its pipe, before it is killed."""

Event = dict[str, Any]


class Process:
    """A worker process. `send` never blocks; what the worker says is told to `hear` in a thread of its own.

    Args:
        path: the model file, for messages.
        hear: called with every event, and with None when the process has ended.
    """

    def __init__(self, path: Path, hear: Callable[["Process", Event | None], None]) -> None:
        self._path, self._hear = path, hear
        # put from finalisers, too, which may run in the middle of anything: a SimpleQueue bears that
        self._outbox: queue.SimpleQueue[tuple[Event, threading.Event | None] | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            # -P: "-m" alone would import what lies in the current folder, which may be anybody's documents.
            [sys.executable, "-P", "-m", "rag_app.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # daemon threads that hold the lock of a buffer at exit would end Python with an abort
            # Ctrl-C is for the program, which then closes the pipe; the worker must not die under it in mid-answer.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.pid = self._process.pid
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True, name=f"llama.cpp {work.__name__}").start()

    def send(self, request: Event) -> None:
        """Sends a request, in time."""
        self._outbox.put((request, None))

    def cancel(self, number: int, over: threading.Event) -> None:
        """Asks for the end of a generation; a worker that does not heed it, so that `over` is set, is killed."""
        self._outbox.put(({"op": "cancel", "id": number}, over))

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def leave(self) -> None:
        """Closes its stdin, upon which it ends."""
        self._outbox.put(None)

    def end(self) -> None:
        """Ends it and waits for that; it leaves off in the middle of anything."""
        self.leave()
        try:
            self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def died(self) -> Exception:
        """Why it ended."""
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return self.refused({"kind": "template", "message": "it does not come to an end"})
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        memory = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        return WorkerDied(f"the process that runs the model ended ({why}{memory}). Ask again: it is started anew")

    def refused(self, event: Event) -> Exception:
        """An error that the worker reported."""
        kind, message = event["kind"], event["message"]
        if kind == "no_template":
            return ModelInvalid(
                f"the model '{self._path}' has no chat template, so nobody knows how to ask it. Add one with "
                "gguf-new-metadata --chat-template (pip install gguf), or give another with --model"
            )
        if kind == "template":
            return ModelInvalid(f"the model '{self._path}': {_TEMPLATE}{message.removeprefix(_TEMPLATE)}. {REMEDY}")
        if kind == "invalid":
            return ModelInvalid(
                f"the model '{self._path}' cannot be loaded: it is cut short, damaged, or of a kind that this "
                "llama.cpp does not know. Fetch it again, or give another with --model"
            )
        if kind == "adapter":
            return AdapterInvalid(
                f"the adapter cannot be used with this model: {message}. Take another with rag-app adapters use, or "
                "none with rag-app adapters off"
            )
        if kind == "memory":
            return ModelInvalid(f"the model '{self._path}' cannot be loaded: {message}. Make n_ctx smaller")
        if kind == "too_long":
            return PromptTooLong(f"the prompt is too long: {message}. Shorten it")
        if kind == "grammar":
            return SettingInvalid(f"the grammar cannot be used: {message}. Give one in GBNF with a rule 'root'")
        return WorkerDied(f"the model failed ({message}). Ask again")

    def unloadable(self, error: Exception) -> Exception:
        """The same error, where it came while the model was being loaded."""
        if not isinstance(error, WorkerDied):
            return error
        return ModelInvalid(
            f"the model '{self._path}' cannot be loaded: its file is damaged, or there is too little memory for it "
            f"({error}). {REMEDY}"
        )

    def _read(self) -> None:
        for line in self._lines():
            self._hear(self, json.loads(line))
        self._process.wait()
        self._outbox.put(None)
        self._hear(self, None)

    def _lines(self) -> Iterator[bytes]:
        assert self._process.stdout
        rest = b""
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
        self._process.stdout.close()

    def _write(self) -> None:
        assert self._process.stdin
        pipe = self._process.stdin.fileno()
        os.set_blocking(pipe, False)
        with suppress(OSError):  # of a dead worker; `_read` notices
            for request, over in iter(self._outbox.get, None):
                self._push(pipe, json.dumps(request).encode() + b"\n")
                if over and not over.wait(PATIENCE):
                    self.kill()
        self._process.stdin.close()

    def _push(self, pipe: int, data: bytes) -> None:
        while data:
            if not select.select([], [pipe], [], PATIENCE)[1]:
                self.kill()
                return
            data = data[os.write(pipe, data) :]


_TEMPLATE = "the chat template cannot be rendered: "
