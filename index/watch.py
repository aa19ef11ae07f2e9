"""Paths that change below the roots, in batches. Knows nothing of documents; a build finds out what a batch means.

    with Watch(roots, leave_out) as watch:   # listens from here on: what changes during the first build is not missed
        build(...)
        for batch in watch.batches(stop):
            build(...)

A batch is not the whole truth, and need not be: it comes after the last change, and the build that follows looks
through everything. So a lost event does harm only if no batch comes after it. Whatever may lose one (a full queue, a
root that is replaced, a folder that moves) therefore counts as a change itself.
"""

import errno
import itertools
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from index.scan import IGNORE_FILES

TICK = 0.5
"""Seconds between two looks at the roots themselves, which no event tells of: a parent may have been renamed."""
LONGEST = 30.0
"""Seconds until a batch comes even though changes go on."""
POLL = 5.0
"""Seconds between two looks through all folders, where the system tells of no changes."""
# Changes by another machine raise no event on this one.
NETWORK = {"9p", "afs", "ceph", "cifs", "drvfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs"}
NETWORK |= {"fuse.sshfs", "fuse.vmhgfs-fuse", "lustre", "nfs", "nfs4", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs"}


def changes(
    roots: Sequence[Path],
    leave_out: Path,
    quiet: float = 1.0,
    stop: threading.Event | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[set[Path]]:
    """`Watch.batches` for a caller with nothing to do in between. Listens from the first `next` on."""
    with Watch(roots, leave_out, quiet, notice=notice) as watch:
        yield from watch.batches(stop)


class Watch:
    """Listens to changes from `__enter__` to `__exit__`.

    Args:
        roots: files and folders; one that does not exist is waited for.
        leave_out: a folder whose changes do not count (the index itself).
        quiet: seconds without a change that end a batch.
        poll: looks through the folders in place of asking the system to tell.
        poll_seconds: the time between two such looks.
        notice: told, once and in a line for a person, when the folders are looked through because the system does not
            tell: its limit of watches is reached, or a root is on a network file system.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        leave_out: Path,
        quiet: float = 1.0,
        *,
        poll: bool = False,
        poll_seconds: float = POLL,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self._roots = [os.path.abspath(root) for root in dict.fromkeys(roots)]  # noqa: PTH100  (keeps links)
        self._quiet, self._poll_seconds, self._notice = quiet, poll_seconds, notice
        self._changes = _Changes(set(self._roots), _spelled(self._roots, leave_out))
        self._poll = poll
        self._attached: dict[str, tuple[int, int] | None] = {}

    def __enter__(self) -> "Watch":
        self._listener: _Listener = self._start()
        self._attach_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.stop()

    def batches(self, stop: threading.Event | None = None) -> Iterator[set[Path]]:
        """Blocks, and yields what changed as soon as nothing more has for a while; ends when `stop` is set.

        A folder in a batch may stand for all that is in it. What changes while the caller works on a batch is in the
        next one.
        """
        stop = stop or threading.Event()
        while not stop.wait(self._changes.pause(self._quiet)):
            self._mend()
            if batch := self._changes.take(self._quiet):
                yield batch

    def _start(self) -> "_Listener":
        reason = next(filter(None, map(network, self._roots)), None)
        if not self._poll and not reason:
            try:
                return _Inotify(self._changes) if sys.platform == "linux" else _observing(self._changes)
            except (OSError, ImportError) as error:
                reason = f"the system does not tell of changes ({error})"
        if reason and self._notice:
            self._notice(f"{reason}: looking through the folders every {self._poll_seconds:g} s")
        self._poll = True
        return _polling(self._changes, self._poll_seconds)

    def _attach_all(self) -> None:
        self._attached = {}
        for root in self._roots:
            self._attach(root)
        if self._listener.broken and not self._poll:
            self._fall_back(self._listener.broken)

    def _attach(self, root: str) -> None:
        before = _identity(root)  # before it is listened to: replaced meanwhile, it will differ at the next look
        self._attached[root] = before if before and self._listener.attach(root) else None

    def _fall_back(self, reason: str) -> None:
        self._listener.stop()
        if self._notice:
            self._notice(f"{reason}: looking through the folders every {self._poll_seconds:g} s")
        self._poll = True
        self._listener = _polling(self._changes, self._poll_seconds)
        self._attach_all()

    def _mend(self) -> None:
        """Listens anew to what is not heard any more."""
        if self._listener.broken and not self._poll:
            self._fall_back(self._listener.broken)
            self._changes.add(*self._roots)
        elif self._listener.overflown:
            self._listener.stop()
            self._listener = self._start()
            self._attach_all()
            self._changes.add(*self._roots)
        for root in self._roots:
            if root in self._listener.lost or _identity(root) != self._attached[root]:
                self._listener.lost.discard(root)
                self._listener.detach(root)
                was = self._attached[root]
                self._attach(root)
                if was or self._attached[root]:  # not while it stays unreadable
                    self._changes.add(root)


class _Changes:
    """What has changed since the last batch. Filled by the listener's thread."""

    def __init__(self, roots: set[str], left_out: set[str]) -> None:
        self._roots, self._left_out = roots, left_out
        self._lock = threading.Lock()
        self._paths: set[str] = set()
        self._first = self._last = 0.0

    def counts(self, folder: str, name: str) -> bool:
        """Whether an entry of a folder can matter: hidden ones are no documents, but ignore files decide on some."""
        path = f"{folder}/{name}"
        return (name[:1] != "." or name in IGNORE_FILES or path in self._roots) and path not in self._left_out

    def add(self, *paths: str) -> None:
        with self._lock:
            self._last = time.monotonic()
            if not self._paths:
                self._first = self._last
            self._paths.update(paths)

    def pause(self, quiet: float) -> float:
        """Seconds to wait until the next look."""
        with self._lock:
            now = time.monotonic()
            due = min(self._last + quiet, self._first + LONGEST) - now if self._paths else quiet
        return min(max(due, 0.01), TICK)

    def take(self, quiet: float) -> set[Path] | None:
        with self._lock:
            now = time.monotonic()
            if not self._paths or (now < self._last + quiet and now < self._first + LONGEST):
                return None
            paths, self._paths = self._paths, set()
        return set(map(Path, paths))


class _Listener(Protocol):
    """What tells of changes."""

    broken: str | None
    """Why it cannot go on."""
    overflown: bool
    """Whether it has lost events."""
    lost: set[str]
    """Roots that it has stopped listening to."""

    def attach(self, root: str) -> bool:
        """Listens to a root from here on; False if it cannot be looked into."""

    def detach(self, root: str) -> None: ...

    def stop(self) -> None: ...


class _Inotify:
    """Linux tells of changes, folder by folder: each below the roots is watched, but for hidden ones and the index.

    watchdog's own recursive observer is not used: it goes on in silence where the limit of watches is reached or events
    are dropped, watches hidden folders too, and tells of each reading.
    """

    def __init__(self, changes: _Changes) -> None:
        from watchdog.observers.inotify_c import InotifyConstants as IN
        from watchdog.observers.inotify_c import InotifyFD

        self._changes = changes
        self._mask: Any = IN.IN_MODIFY | IN.IN_ATTRIB | IN.IN_CLOSE_WRITE | IN.IN_MOVE | IN.IN_CREATE | IN.IN_DELETE
        self._mask |= IN.IN_ONLYDIR
        self._no_link = IN.IN_DONT_FOLLOW
        self.broken: str | None = None
        self.overflown = False
        self.lost: set[str] = set()
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._watches: dict[tuple[str, str], tuple[Any, Any]] = {}  # (folder, only this name in it) to descriptor, id
        self._roots: dict[tuple[str, str], set[str]] = {}  # those of them that a root depends on
        self._fd = InotifyFD()
        self._fd.start()

    def attach(self, root: str) -> bool:
        if os.path.isdir(root):  # noqa: PTH112
            folder, only = root, ""
        else:
            folder, only = os.path.split(root)  # a file is replaced when it is saved: only its folder knows
        with self._lock:
            self._roots.setdefault((folder, only), set()).add(root)
            self._add(folder, only, 0)
            return (folder, only) in self._watches

    def detach(self, root: str) -> None:
        with self._lock:
            self._forget(root)
            for (folder, only), roots in list(self._roots.items()):
                if root in roots:
                    roots.discard(root)
                    if only:
                        self._remove((folder, only))

    def stop(self) -> None:
        self._fd.stop()
        with suppress(RuntimeError):
            self._fd.join()

    def _add(self, folder: str, only: str, no_link: int) -> None:
        """Watches a folder, and unless `only` one name in it counts, those below it."""
        waiting = [folder]
        while waiting and not self.broken:
            here = waiting.pop()
            if (here, only) in self._watches or not self._watch(here, only, no_link):
                continue
            no_link = self._no_link  # a root may be a link, nothing below it
            if only:
                break
            with suppress(OSError), os.scandir(here) as entries:  # listed once it is watched: nothing falls between
                for entry in entries:
                    if self._changes.counts(here, entry.name) and entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{here.rstrip('/')}/{entry.name}")

    def _watch(self, folder: str, only: str, no_link: int) -> bool:
        number: Any = next(self._numbers)
        try:
            told: Any = _Told(self, folder, only)
            descriptor = self._fd.add_callback(os.fsencode(folder), self._mask | no_link, told, number)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM):
                self.broken = "the limit of watched folders is reached (fs.inotify.max_user_watches)"
            return False  # else it is gone meanwhile, or a folder no more: its parent will tell
        if descriptor < 0:  # no permission; its parent tells when there is
            return False
        self._watches[folder, only] = descriptor, number
        return True

    def _forget(self, folder: str) -> None:
        """Stops watching a folder that has left its place, with all below."""
        below = folder.rstrip("/") + "/"
        for key in [key for key in self._watches if not key[1] and (key[0] == folder or key[0].startswith(below))]:
            self._remove(key)

    def _remove(self, key: tuple[str, str]) -> None:
        if key in self._watches:
            with suppress(OSError):
                self._fd.remove_callbacks([self._watches.pop(key)])

    def told(self, folder: str, only: str, event: Any) -> None:
        name = os.fsdecode(event.name)
        if (only and name != only) or (name and not only and not self._changes.counts(folder, name)):
            return
        path = f"{folder.rstrip('/')}/{name}" if name else folder
        with self._lock:
            if name and not only and event.is_directory:
                if event.is_moved_from:
                    self._forget(path)
                elif not event.is_delete:  # made, moved here, or another permission
                    self._add(path, "", self._no_link)
        self._changes.add(path)

    def ended(self, folder: str, only: str, descriptor: Any) -> None:
        with self._lock:
            if self._watches.get((folder, only), (None,))[0] == descriptor:
                del self._watches[folder, only]
                self.lost |= self._roots.get((folder, only), set())


class _Told:
    """What watchdog calls, in its thread, with the events of one folder."""

    def __init__(self, inotify: _Inotify, folder: str, only: str) -> None:
        self._inotify, self._folder, self._only = inotify, folder, only

    def on_event(self, event: Any) -> None:
        try:
            self._inotify.told(self._folder, self._only, event)
        except Exception as error:  # it would end the thread, and nothing would be heard any more
            self._inotify.broken = f"the system's report of changes cannot be followed ({error})"

    def on_watch_deleted(self, descriptor: Any) -> None:
        self._inotify.ended(self._folder, self._only, descriptor)

    def on_queue_overflow(self) -> None:
        self._inotify.overflown = True


class _Observed:
    """One of watchdog's observers: the polling one, or that of a system other than Linux."""

    broken: str | None = None
    overflown = False

    def __init__(self, observer: Any, changes: _Changes) -> None:
        self._observer, self._changes = observer, changes
        self.lost: set[str] = set()
        self._watches: dict[str, Any] = {}
        self._observer.start()

    def attach(self, root: str) -> bool:
        from watchdog.events import FileSystemEventHandler

        handler = FileSystemEventHandler()
        handler.on_any_event = lambda event: self._told(root, event)  # type: ignore[method-assign]
        try:
            self._watches[root] = self._observer.schedule(handler, root, recursive=True)
        except OSError:
            return False
        return True

    def detach(self, root: str) -> None:
        if watch := self._watches.pop(root, None):
            with suppress(KeyError):
                self._observer.unschedule(watch)

    def stop(self) -> None:
        self._observer.stop()
        self._observer.join()

    def _told(self, root: str, event: Any) -> None:
        if event.event_type in ("opened", "closed_no_write"):
            return
        for path in map(os.fsdecode, filter(None, (event.src_path, event.dest_path))):
            if path == root and event.event_type == "deleted":
                self.lost.add(root)
            if path == root or self._below(root, path):
                self._changes.add(path)

    def _below(self, root: str, path: str) -> bool:
        start = root.rstrip("/")
        if not path.startswith(start + "/"):
            return False  # beside a root that is a file
        for name in path[len(start) + 1 :].split("/"):
            if not self._changes.counts(start, name):
                return False
            start += f"/{name}"
        return True


def _polling(changes: _Changes, seconds: float) -> _Listener:
    from watchdog.observers.polling import PollingObserverVFS

    def entries(folder: str | None) -> Any:
        with os.scandir(folder) as found:
            return iter([entry for entry in found if changes.counts((folder or "").rstrip("/"), entry.name)])

    return _Observed(PollingObserverVFS(os.lstat, entries, polling_interval=seconds), changes)  # lstat: no link's loops


def _observing(changes: _Changes) -> _Listener:
    from watchdog.observers import Observer

    return _Observed(Observer(), changes)


def _identity(root: str) -> tuple[int, int] | None:
    """What is listened to for a root: the folder itself, or the one that a file is in. None while it is not there."""
    try:
        status = os.stat(root)  # noqa: PTH116
        if not stat.S_ISDIR(status.st_mode):
            status = os.stat(os.path.dirname(root))  # noqa: PTH116, PTH120
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _spelled(roots: Iterable[str], folder: Path) -> set[str]:
    """The paths under which a folder appears below the roots, which may have links in theirs."""
    real, result = os.path.realpath(folder), {os.path.abspath(folder)}  # noqa: PTH100
    for root in roots:
        real_root = os.path.realpath(root).rstrip("/")
        if real.startswith(real_root + "/"):
            result.add(root.rstrip("/") + real[len(real_root) :])
    return result


def network(root: str) -> str | None:
    """Why changes below a path may go unnoticed: its file system is one that other machines write to; else None."""
    real = os.path.realpath(root) + "/"
    nearest = ("", "")
    with suppress(OSError, ValueError), open("/proc/self/mountinfo", "rb") as mounts:  # noqa: PTH123
        for line in mounts:
            fields = os.fsdecode(line).split(" ")
            place = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\").rstrip("/") + "/"
            if real.startswith(place) and len(place) >= len(nearest[0]):
                nearest = place, fields[fields.index("-") + 1]
    return f"'{root}' is on a network file system ({nearest[1]})" if nearest[1] in NETWORK else None
