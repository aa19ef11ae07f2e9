"""One thread that does jobs in turn, first come, first served, for threads that wait for them. Knows no models.

A job's pace is its own: a consumer that pauses holds nobody up, since what the job gives waits for it here. The thread
ends when there is nothing to do. A consumer may be closed by the garbage collector, in the middle of anything; that
only sets a flag.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rag_app.engines.outside import BEAT, END

Work = Callable[[Callable[[Any], None], Callable[[], bool]], None]
"""Does a job. Takes what gives an item to the consumer, and what tells whether the rest is unwanted."""


class _Job:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.left = self.stopped = False

    def unwanted(self) -> bool:
        return self.left or self.stopped


class Turns:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[_Job] = []
        self._serving = False
        self._thread: threading.Thread | None = None

    def take(self, work: Work) -> Iterator[tuple[Any, int]]:
        """Waits for its turn and has the work done.

        Yields:
            what the work gives, or None as a beat, and how many jobs are done before this one. What the work raises
            is raised here; closing the iterator makes the rest unwanted.
        """
        job = _Job(work)
        with self._lock:
            self._jobs.append(job)
            if not self._serving:
                self._serving = True
                self._thread = threading.Thread(target=self._serve, daemon=True)
                self._thread.start()
        try:
            if ahead := self._ahead(job):
                yield None, ahead
            yield from self._items(job)
        finally:
            job.left = True

    def stop(self) -> None:
        """Makes the rest of the job that is being done unwanted; its consumer gets what there is."""
        for job in self._jobs[:1]:
            job.stopped = True

    def wait(self, seconds: float) -> None:
        """Waits until the job that is being done has ended: native code that runs on at exit aborts the program."""
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _items(self, job: _Job) -> Iterator[tuple[Any, int]]:
        while True:
            try:
                item = job.items.get(timeout=BEAT)
            except queue.Empty:
                item = None
            if item is END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item, self._ahead(job) if item is None else 0

    def _ahead(self, job: _Job) -> int:
        jobs = self._jobs[:]
        return sum(not other.left for other in jobs[: jobs.index(job)]) if job in jobs else 0

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._jobs = [job for job in self._jobs if not job.left]
                if not self._jobs:
                    self._serving = False
                    return
                job = self._jobs[0]
            last: Any = END
            try:
                job.work(job.items.put, job.unwanted)
            except BaseException as error:  # whatever it is, the consumer gets it
                last = error
            with self._lock:
                self._jobs.remove(job)
            job.items.put(last)
