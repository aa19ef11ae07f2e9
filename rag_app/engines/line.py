"""Many threads, one model: whose turn it is, and which worker process serves. Knows nothing of LangChain.

Replies are made one after the other, first come, first served. The model's pace is its own: a consumer that pauses or
forgets its stream holds nobody up, because events wait for it here, at most those of one reply. When the process dies,
the reply in the making fails, and those that wait get a new process.

Streams may be closed by the garbage collector, in the middle of anything; that path (`_leave`) takes no lock.
"""

import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

from index.errors import RagError
from rag_app.engines.process import Event, Process
from rag_app.errors import WorkerDied
from rag_app.models import locate

BEAT = 0.2
"""Seconds after which a consumer that waits hears something, so that it can be stopped."""

_numbers = itertools.count(1)


class _Job:
    """A request and what has come of it. Without a request, it waits for the model to be loaded."""

    def __init__(self, request: Event | None) -> None:
        self.number = next(_numbers)
        self.request = request
        self.events: queue.SimpleQueue[Event | Exception | None] = queue.SimpleQueue()
        """None only wakes the consumer."""
        self.process: Process | None = None
        """That it was sent to."""
        self.heard = self.left = self.again = False
        self.over = threading.Event()

    def finish(self, last: Event | Exception) -> None:
        self.over.set()
        self.events.put(last)


class Line:
    """Serves one model to many threads.

    Args:
        path: the model file, as for `locate`.
        n_ctx: context window in tokens.
    """

    def __init__(self, path: str | None, n_ctx: int) -> None:
        self._path, self._n_ctx = path, n_ctx
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._loaded: Event | None = None
        self._waiting: list[_Job] = []
        self._active: _Job | None = None
        self._asked: list[_Job] = []

    def start(self) -> None:
        """Starts the worker and its loading of the model, without waiting for either.

        Raises:
            ModelNotFound: there is no such file.
            ModelInvalid: the file is not a GGUF.
        """
        with self._lock:
            self._start()

    def loaded(self) -> Event:
        """What the worker says of the model; waits until it is loaded."""
        return self._loaded or self._ask(None)

    def ask(self, **request: Any) -> Event:
        """What is answered at once, whatever reply is being made."""
        try:
            return self._ask(request)
        except WorkerDied:  # under the reply of another, most likely
            return self._ask(request)

    def reply(self, **request: Any) -> Iterator[Event]:
        """The events of a generation, `done` last; before its turn, `waiting {place}`. Closing it cancels."""
        job = _Job(request)
        with self._lock:
            self._waiting.append(job)
            self._advance()
        try:
            if ahead := self._ahead(job):
                yield {"event": "waiting", "place": ahead}
            while True:
                event = self._next(job)
                yield event
                if event["event"] == "done":
                    return
        finally:
            self._leave(job)

    def pid(self) -> int | None:
        """Process id of the worker; None where there is none."""
        process = self._process
        return process.pid if process else None

    def kill(self) -> None:
        """Ends the worker at once; the reply in the making fails."""
        if process := self._process:
            process.kill()

    def abandon(self) -> None:
        """Lets the worker end by itself, for when nobody has a use for this any more; takes no lock."""
        if process := self._process:
            process.leave()

    def close(self) -> None:
        """Ends the worker, and every reply."""
        with self._lock:
            process, self._process, self._loaded = self._process, None, None
            self._fail(WorkerDied("the model was closed before it could answer. Ask again: it is started anew"))
        if process:
            process.end()

    # What consumers do

    def _ask(self, request: Event | None) -> Event:
        job = _Job(request)
        with self._lock:
            self._asked.append(job)
            self._advance()
        while (event := job.events.get()) is None:
            continue
        if isinstance(event, Exception):
            raise event
        return event

    def _next(self, job: _Job) -> Event:
        try:
            event = job.events.get(timeout=BEAT)
        except queue.Empty:
            event = None
        if isinstance(event, Exception):
            raise event
        return event or {"event": "waiting", "place": self._ahead(job)}

    def _ahead(self, job: _Job) -> int:
        """How many replies are made before this one."""
        active, waiting = self._active, self._waiting[:]
        if job not in waiting:
            return 0
        before = [*([active] if active else []), *waiting[: waiting.index(job)]]
        return sum(not other.left for other in before)

    def _leave(self, job: _Job) -> None:
        if job.over.is_set():
            return
        job.left = True
        if job.process:
            job.process.cancel(job.number, job.over)
        self._wake()

    def _wake(self) -> None:
        for other in self._waiting[:]:
            other.events.put(None)

    # What the worker does; `_lock` is held by all but `_hear`

    def _start(self) -> None:
        if self._process is None:  # a dead one is replaced when `_hear` has buried it, with what it was doing
            path = locate(self._path)
            self._loaded = None
            self._process = Process(path, self._hear)
            self._process.send({"op": "load", "path": str(path), "n_ctx": self._n_ctx})

    def _advance(self) -> None:
        """Sends what can be sent."""
        self._waiting = [job for job in self._waiting if not job.left]
        if not self._asked and not self._waiting:
            return
        try:
            self._start()
        except RagError as error:
            self._fail(error)
            return
        if not self._loaded:
            return
        for job in self._asked:
            if not job.request:
                job.finish(self._loaded)
            elif not job.process:
                self._send(job)
        self._asked = [job for job in self._asked if not job.over.is_set()]
        if not self._active and self._waiting:
            self._active = self._waiting.pop(0)
            self._send(self._active)
            self._wake()

    def _send(self, job: _Job) -> None:
        assert self._process
        assert job.request
        job.process = self._process
        job.process.send({**job.request, "id": job.number})
        if job.left:  # between the look at the queue and now
            job.process.cancel(job.number, job.over)

    def _hear(self, process: Process, event: Event | None) -> None:
        if event and event["event"] in ("token", "reading"):  # most of them: no lock
            job = self._active
            if job and job.number == event["id"]:
                job.heard = True
                job.events.put(event)
            return
        with self._lock:
            if process is not self._process:
                return  # closed meanwhile
            if event is None:
                self._buried(process)
            elif event["event"] == "loaded":
                self._loaded = event
            elif event["id"] is None:
                self._process = None
                self._fail(process.refused(event))
                process.end()
            else:
                self._finished(process, event)
            self._advance()

    def _finished(self, process: Process, event: Event) -> None:
        last = process.refused(event) if event["event"] == "error" else event
        for job in [*([self._active] if self._active else []), *self._asked]:
            if job.number == event["id"]:
                job.finish(last)
                self._active = None if job is self._active else self._active
        self._asked = [job for job in self._asked if not job.over.is_set()]

    def _buried(self, process: Process) -> None:
        """The process has ended: what it was doing fails, what it had not begun is done by the next one."""
        error, loaded = process.died(), self._loaded
        self._process, self._loaded = None, None
        if not loaded:
            self._fail(process.unloadable(error))
            return
        job, self._active = self._active, None
        if job and not job.heard and not job.again and not job.left and isinstance(error, WorkerDied):
            job.again, job.process = True, None
            self._waiting.insert(0, job)
        elif job:
            job.finish(error)
        asked, self._asked = self._asked, []
        for job in asked:
            job.finish(error)

    def _fail(self, error: Exception) -> None:
        """Ends everything."""
        jobs = [*([self._active] if self._active else []), *self._waiting, *self._asked]
        self._active, self._waiting, self._asked = None, [], []
        for job in jobs:
            job.finish(error)
