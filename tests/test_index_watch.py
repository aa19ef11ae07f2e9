"""Batches of changes: nothing is lost, nothing is told twice, and no test sleeps: each waits for what must come."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from index.watch import Watch, changes

NOWHERE = Path("/nonexistent-index")
DEADLINE = 30.0


class Listening:
    """A watch in a thread, as a caller has it. Its batches can be waited for."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._stop = watch, threading.Event()
        self.batches: list[set[Path]] = []
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for batch in self._watch.batches(self._stop):
            with self._came:
                self.batches.append(batch)
                self._came.notify_all()

    @property
    def paths(self) -> set[Path]:
        return set().union(*self.batches)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._came:
            assert self._came.wait_for(condition, DEADLINE), f"only these batches came: {self.batches}"

    def until(self, *paths: Path) -> None:
        self.wait(lambda: set(paths) <= self.paths)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


@pytest.fixture(params=["told by the system", "polling"])
def listen(request: pytest.FixtureRequest) -> Any:
    """Every promise is kept both ways."""
    poll = request.param == "polling"

    @contextmanager
    def listening(*roots: Path, leave_out: Path = NOWHERE, quiet: float = 0.05) -> Iterator[Listening]:
        with Watch(roots, leave_out, quiet, poll=poll, poll_seconds=0.05) as watch:
            result = Listening(watch)
            try:
                yield result
            finally:
                result.end()

    return listening


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def save(path: Path, text: str) -> None:
    """As editors do: another file, then its name."""
    write(path.with_name(f".{path.name}.swp"), text).replace(path)


def test_files_that_are_made_changed_renamed_and_removed(tmp_path: Path, listen: Any) -> None:
    old, gone, moved = (write(tmp_path / name) for name in ("old.md", "gone.md", "deep/er/moved.md"))
    with listen(tmp_path) as heard:
        new = write(tmp_path / "deep" / "new.md")
        heard.until(new)
        write(old, "longer")
        heard.until(old)
        gone.unlink()
        heard.until(gone)
        moved.rename(tmp_path / "there.md")
        heard.until(moved, tmp_path / "there.md")
        save(new, "saved by an editor")
        count = len(heard.batches)
        heard.wait(lambda: any(new in batch for batch in heard.batches[1:]) or len(heard.batches) > count)
        assert not any(".swp" in path.name for path in heard.paths)


def test_what_changes_between_the_start_and_the_first_look_is_in_the_first_batch(tmp_path: Path, listen: Any) -> None:
    with Watch([tmp_path], NOWHERE, 0.0) as watch:
        path = write(tmp_path / "during the build.md")
        assert path in next(watch.batches())


def test_folders_that_are_made_moved_in_and_moved_out(tmp_path: Path, listen: Any) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside / "sub" / "a.md")
    root.mkdir()
    with listen(root) as heard:
        write(root / "x" / "y" / "z" / "b.md")
        heard.until(root / "x")
        save(root / "x" / "y" / "z" / "c.md", "in a new folder")
        heard.wait(lambda: bool(heard.paths & {root / "x" / "y" / "z" / "c.md", root / "x" / "y" / "z"}))
        (outside / "sub").rename(root / "sub")
        heard.until(root / "sub")
        write(root / "sub" / "d.md")
        heard.until(root / "sub" / "d.md")
        (root / "sub").rename(root / "x" / "renamed")  # from one watched place to another
        heard.until(root / "x" / "renamed")
        write(root / "x" / "renamed" / "e.md")
        heard.until(root / "x" / "renamed" / "e.md")
        (root / "x").rename(outside / "x")
        heard.until(root / "x")
        write(outside / "x" / "y" / "not below the root.md")
        write(root / "last.md")
        heard.until(root / "last.md")
        assert not any(outside in path.parents for path in heard.paths)


def test_a_root_that_is_a_file(tmp_path: Path, listen: Any) -> None:
    root, beside = write(tmp_path / ".notes.md"), write(tmp_path / "beside.md")
    with listen(root) as heard:
        for text in ("written", "saved by an editor"):
            write(beside, text)
            save(root, text)
            heard.wait(lambda: len(heard.batches) > 0)
            heard.batches.clear()
        root.unlink()
        heard.until(root)
        heard.batches.clear()
        write(root, "back")
        heard.until(root)
        assert heard.paths == {root}


def test_a_root_that_is_deleted_and_comes_back(tmp_path: Path, listen: Any) -> None:
    root = tmp_path / "parent" / "root"
    write(root / "sub" / "a.md")
    with listen(root) as heard:
        for _ in range(3):
            shutil.rmtree(tmp_path / "parent")
            heard.until(root)
            heard.batches.clear()
            write(root / "sub" / "a.md")
            heard.until(root)
            heard.batches.clear()
            write(root / "sub" / "b.md")
            heard.wait(lambda: bool(heard.paths & {root, root / "sub" / "b.md"}))
            heard.batches.clear()
        (tmp_path / "parent").rename(tmp_path / "elsewhere")  # no event tells a folder of its parent
        heard.until(root)
        heard.batches.clear()
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "parent")
        heard.until(root)


def test_a_root_that_is_replaced_at_once_by_another_with_the_same_name(tmp_path: Path, listen: Any) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with listen(root) as heard:
        root.rmdir()
        root.mkdir()  # often with the same inode
        heard.until(root)
        path = write(root / "a.md")
        heard.wait(lambda: bool(heard.paths & {path}) or heard.batches.count({root}) > 1)


def test_a_root_that_does_not_exist_yet_and_one_that_is_a_link(tmp_path: Path, listen: Any) -> None:
    root, target = tmp_path / "later", tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with listen(root, tmp_path / "link") as heard:
        write(target / "a.md")
        heard.until(tmp_path / "link" / "a.md")
        write(root / "b.md")
        heard.until(root)
        (tmp_path / "other").mkdir()
        (tmp_path / "new link").symlink_to(tmp_path / "other")
        (tmp_path / "new link").replace(tmp_path / "link")  # how a release is made current
        heard.until(tmp_path / "link")
        write(tmp_path / "other" / "c.md")
        heard.until(tmp_path / "link" / "c.md")


def test_what_does_not_count(tmp_path: Path, listen: Any) -> None:
    index = tmp_path / "root" / "index"
    read = write(tmp_path / "root" / "read.md")
    write(index / "before.md")
    write(tmp_path / "root" / ".git" / "HEAD")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    with listen(tmp_path / "link", leave_out=index) as heard:
        write(index / "gen-1" / "a.md")
        write(tmp_path / "root" / ".git" / "refs" / "x")
        write(tmp_path / "root" / ".hidden.md")
        read.read_text()
        os.listdir(tmp_path / "root")  # noqa: PTH208
        write(tmp_path / "root" / ".gitignore", "*.tmp")
        heard.until(tmp_path / "link" / ".gitignore")
        assert heard.paths <= {tmp_path / "link" / ".gitignore", tmp_path / "link"}


def test_a_burst_comes_in_few_batches_and_nothing_is_lost(tmp_path: Path, listen: Any) -> None:
    paths = {tmp_path / f"{i % 40}" / f"{i % 7}" / f"{i}.md" for i in range(2000)}
    with listen(tmp_path, quiet=0.3) as heard:
        seen: set[Path] = set()
        for path in sorted(paths):
            write(path)
        last = write(tmp_path / "last.md")
        heard.until(last)
        # The promise: a build after each batch finds everything, whether its path was told or that of its folder.
        seen = set(tmp_path.rglob("*.md"))
        assert paths < seen
        assert all(heard.paths & {path, *path.parents} for path in paths)
        assert len(heard.batches) < 20


def test_more_events_than_the_system_keeps(tmp_path: Path) -> None:
    """The kernel's queue holds 16,384 and then drops; here nobody reads it meanwhile, as on a machine under load."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 20_000:
        pytest.skip("the system keeps too many events for a test")
    with Watch([tmp_path], NOWHERE, 0.05) as watch:
        listener: Any = watch._listener
        with listener._lock:  # its thread stops at the first event of a folder
            (tmp_path / "a").mkdir()
            for i in range(limit // 2 + 100):
                (tmp_path / f"{i}").mkdir()
                (tmp_path / f"{i}").rmdir()
            write(tmp_path / "dropped" / "b.md")
        heard = Listening(watch)
        try:
            heard.until(tmp_path)
            path = write(tmp_path / "dropped" / "c.md")
            heard.wait(lambda: any(path in batch or tmp_path / "dropped" in batch for batch in heard.batches))
        finally:
            heard.end()


@pytest.mark.parametrize("watches", [1, 2], ids=["from the start", "later on"])
def test_without_watches_left_the_folders_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watches: int
) -> None:
    from watchdog.observers.inotify_c import InotifyFD

    write(tmp_path / "sub" / "a.md")
    add, left = InotifyFD.add_callback, [0]

    def limited(self: Any, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return add(self, *arguments)

    monkeypatch.setattr(InotifyFD, "add_callback", limited)
    left[0] = watches
    said: list[str] = []
    with Watch([tmp_path], NOWHERE, 0.05, poll_seconds=0.05, notice=said.append) as watch:
        heard = Listening(watch)
        try:
            path = write(tmp_path / "new" / "b.md")
            heard.wait(lambda: bool(heard.paths & {path, tmp_path}))
            heard.until(write(tmp_path / "sub" / "c.md"))
        finally:
            heard.end()
    why = "the limit of watched folders is reached (fs.inotify.max_user_watches)"
    assert said == [f"{why}: looking through the folders every 0.05 s"]


def test_without_inotify_the_folders_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watchdog.observers.inotify_c import InotifyFD

    def none(*_: object) -> int:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(InotifyFD, "_create_inotify_fd", none)
    said: list[str] = []
    with Watch([tmp_path], NOWHERE, 0.0, poll_seconds=0.01, notice=said.append) as watch:
        path = write(tmp_path / "a.md")
        assert path in next(watch.batches())
    assert len(said) == 1 and "inotify instance limit reached" in said[0] and "\n" not in said[0]


def test_changes_that_go_on_do_not_hold_a_batch_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.watch.LONGEST", 0.1)
    with Watch([tmp_path], NOWHERE, quiet=3600) as watch:
        write(tmp_path / "a.md")
        assert next(watch.batches()) == {tmp_path / "a.md"}


def test_it_stops_at_once_and_leaves_no_thread(tmp_path: Path, listen: Any) -> None:
    before = set(threading.enumerate())
    stop = threading.Event()
    with listen(tmp_path):
        pass
    stop.set()
    assert list(changes([tmp_path], NOWHERE, 3600, stop)) == []
    stop.clear()
    batches = changes([tmp_path], NOWHERE, 0.0, stop)
    writer = threading.Timer(0.05, lambda: write(tmp_path / "a.md"))
    writer.start()
    assert next(batches)
    batches.close()  # type: ignore[attr-defined]
    writer.join()
    assert set(threading.enumerate()) <= before


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom index.watch import Watch\n"
        "with Watch([Path(sys.argv[1])], Path('/nonexistent')) as watch:\n"
        "    print('listening', flush=True)\n    for batch in watch.batches(): print(batch, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "listening\n"
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=DEADLINE)
    assert "KeyboardInterrupt" in errors and errors.count("Traceback") == 1
    assert time.monotonic() - began < DEADLINE / 2
