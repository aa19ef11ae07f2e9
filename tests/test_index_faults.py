"""Builds that are killed, stopped, or run out of room at any instant: a whole index stays, no work is done twice."""

import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from index import Index, build
from index.lock import PENDING
from index.maintain import verify
from tests.conftest import ROOT, WordEncoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes in Linux's way"),
]
KILLS = 51
QUERIES = ("word3x7 word3x8", "other2x1", "fresh5x9 fresh5x10", "okapi")

# Imports once, then forks a build for each line on stdin: [docs, index, file size limit].
FORGE = """
import json, os, resource, signal, sys
import bm25s, faiss, filelock, numpy, Stemmer
from index import build
from tests.conftest import WordEncoder

class Thorough(WordEncoder):
    def encode(self, texts, progress=None):
        for _ in range(8):  # work, so that there is an instant to kill it at
            vectors = super().encode(texts, progress)
        return vectors

def tell(*words):
    os.write(1, (json.dumps(words) + "\\n").encode())

for line in iter(sys.stdin.readline, ""):
    docs, where = json.loads(line)
    child = os.fork()
    if not child:
        try:
            tell("pid", os.getpid())
            build([docs], where, encoder=Thorough(), progress=lambda stage, done, total: tell(stage, done))
            tell("end", "ok")
        except BaseException as error:
            tell("end", f"{type(error).__name__}: {error}")
        os._exit(0)
    os.waitpid(child, 0)
    tell("gone", child)
"""


class Forge:
    """Starts builds in processes of their own, and hears how far they are."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "FAULT_TEST": self.mark},
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._rest = b""

    def start(self, docs: Path, where: Path) -> int:
        self._in.write(json.dumps([str(docs), str(where)]).encode() + b"\n")
        self._in.flush()
        return int(self.next()[1])

    def next(self, seconds: float = 120) -> list[Any]:
        """What a build tells next; an empty list when it tells nothing for that long."""
        while b"\n" not in self._rest:
            if not self._poll.poll(1000 * seconds):
                return []
            data = os.read(self._out.fileno(), 65536)
            assert data, "the process that starts builds is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        told: list[Any] = json.loads(line)
        return told

    def until(self, instant: float, *stages: str, stage: str = "start") -> str:
        """Listens until an instant of the clock, or one of these stages; returns the last stage that was told."""
        while (left := instant - time.monotonic()) > 0:
            told = self.next(left)
            stage = told[0] if told else stage
            if stage in (*stages, "end", "gone"):
                break
        return stage

    def gone(self) -> str:
        """Waits for the build's process to be gone; returns what it said at its end, if it came to that."""
        said = ""
        while (told := self.next())[0] != "gone":
            said = told[1] if told[0] == "end" else said
        return said

    def close(self) -> None:
        self._in.close()
        self._out.close()
        self._process.wait()

    def no_worker_is_left(self) -> bool:
        """Whether the processes that read files have ended, those of a killed build too."""
        mark = f"FAULT_TEST={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                another = folder.name.isdigit() and int(folder.name) != self._process.pid
                if another and mark in (folder / "environ").read_bytes() and not _ends(int(folder.name)):
                    return False
        return True


def _ends(pid: int) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], 60)[0])
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    forge = Forge()
    yield forge
    forge.close()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    os.utime(path, ns=(0, time.time_ns() - 3600 * 10**9))


def sections(number: int, word: str) -> str:
    """A document of that many different sections, each a chunk of its own."""
    return "".join(f"# S{n}\n\n{' '.join(f'{word}{n}x{i}' for i in range(40))}\n\n" for n in range(number))


def answers(where: Path) -> list[list[tuple[str, str, float]]]:
    with Index.open(where, WordEncoder()) as index:
        return [[(hit.chunk_id, hit.source, hit.score) for hit in index.search(query, 5)] for query in QUERIES]


def left_in(where: Path) -> set[str]:
    return {path.name for path in where.iterdir()} - {"lock", "builder", "CURRENT.new"}


def saved(where: Path) -> int:
    """Vectors that an unfinished build has put on disk."""
    if not (where / PENDING).exists():
        return 0
    with closing(sqlite3.connect(where / PENDING)) as db:
        try:
            return int(db.execute("SELECT count(*) FROM vectors").fetchone()[0])
        except sqlite3.OperationalError:  # killed before it had a table
            return 0


@dataclass
class Case:
    """An index of two generations, documents that have changed since, and what the next build makes of them."""

    docs: Path
    base: Path
    old: list[Any]
    new: list[Any]
    needed: int
    """Vectors that the next build has to compute."""
    whole: float
    """Seconds that it takes."""
    reading: float
    """Seconds until it has read."""
    writing: float
    """Seconds until it writes."""
    copies: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Path:
        self.copies += 1
        return Path(shutil.copytree(self.base, self.base.with_name(f"copy{self.copies}")))

    def check(self, where: Path) -> None:
        """That a whole index serves, and that the next build does what is left to do and nothing twice."""
        assert verify(where)[1] == []
        found = answers(where)
        published = (where / "CURRENT").read_text().startswith("gen-000003 ")
        self.seen[f"new: {published}"] = self.seen.get(f"new: {published}", 0) + 1
        assert found == (self.new if published else self.old)
        had = saved(where)
        report = build([self.docs], where, encoder=WordEncoder())
        assert report.chunks_encoded == (0 if published else self.needed - had)
        assert answers(where) == self.new
        assert verify(where)[1] == []
        names = left_in(where)
        assert not any(name.startswith("draft-") for name in names)
        if not published:
            assert PENDING not in names and len(names) == 3  # the pointer and two generations
        shutil.rmtree(where)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, forge: Forge) -> Case:
    folder = tmp_path_factory.mktemp("faults")
    docs, base = folder / "docs", folder / "base"
    for number in range(3):
        write(docs / f"old{number}.md", sections(40, "word" if number else "other"))
    build([docs], base, encoder=WordEncoder())
    write(docs / "okapi.md", "# Okapi\n\nThe okapi lives in the Ituri rainforest.\n")
    build([docs], base, encoder=WordEncoder())
    (docs / "old2.md").unlink()
    write(docs / "old0.md", sections(30, "other") + sections(3, "changed"))
    for number in range(8):
        write(docs / f"new{number}.md", sections(100, f"fresh{number}x"))
    write(docs / "fresh.md", sections(100, "fresh"))
    whole = shutil.copytree(base, folder / "whole")
    forge.start(docs, whole)
    began, marks = time.monotonic(), {}
    while (told := forge.next())[0] != "gone":
        marks.setdefault(told[0], time.monotonic() - began)
        assert told[0] != "end" or told[1] == "ok", told
    needed = build([docs], shutil.copytree(base, folder / "counted"), encoder=WordEncoder()).chunks_encoded
    old, new = answers(base), answers(whole)
    assert old != new and needed > 3 * 256
    return Case(docs, base, old, new, needed, marks["end"], marks["encoding"], marks["writing"])


def test_a_build_killed_at_any_instant_leaves_a_whole_index(case: Case, forge: Forge) -> None:
    rng = random.Random(20)
    for number in range(KILLS):
        where = case.copy()
        pid = forge.start(case.docs, where)
        began, share = time.monotonic(), (number + rng.random()) / KILLS
        if number % 3:  # over the whole build
            stage = forge.until(began + share * case.whole)
        else:  # over its end, which is short: writing, publishing, removing an old generation
            forge.until(began + 120, "writing")
            stage = forge.until(time.monotonic() + share * 1.2 * (case.whole - case.writing), stage="writing")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if stage != "gone":
            forge.gone()
        assert forge.no_worker_is_left()
        case.seen[stage] = case.seen.get(stage, 0) + 1
        case.check(where)
    assert len(case.seen) >= 3  # a busy machine may be past a short stage at every kill


@pytest.mark.parametrize("stage", ["reading", "encoding", "writing"])
def test_a_build_stopped_by_ctrl_c_cleans_up(case: Case, forge: Forge, stage: str) -> None:
    where = case.copy()
    pid = forge.start(case.docs, where)
    forge.until(time.monotonic() + 120, stage)
    os.kill(pid, signal.SIGINT)
    said = forge.gone()
    assert said.startswith(("KeyboardInterrupt", "ok"))
    assert forge.no_worker_is_left()
    assert not any(name.startswith("draft-") for name in left_in(where))
    case.check(where)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_at_any_point_leaves_a_whole_index(case: Case, small_disk: Path) -> None:
    failures, free, room = 0, 0, shutil.disk_usage(small_disk).free
    while failures == 0 or free < 4_000_000:
        assert shutil.disk_usage(small_disk).free == room  # what a failed build removed is closed, too
        where = Path(shutil.copytree(case.base, small_disk / "index"))
        rest = shutil.disk_usage(small_disk).free
        free += 400_000
        if free < rest:
            (small_disk / "ballast").write_bytes(bytes(rest - free))
        try:
            build([case.docs], where, encoder=WordEncoder())
        except OSError as error:
            failures += 1
            assert str(error)
            assert verify(where)[1] == [] and answers(where) == case.old
            assert left_in(where) - {PENDING} == {"CURRENT", "gen-000001", "gen-000002"}
        else:
            assert answers(where) == case.new
            break
        finally:
            (small_disk / "ballast").unlink(missing_ok=True)
        encoder, had = WordEncoder(), saved(where)
        away = Path(shutil.move(where, small_disk.with_name(f"away{failures}")))
        build([case.docs], away, encoder=encoder)  # elsewhere there is room
        assert len(encoder.encoded) == case.needed - had
        assert answers(away) == case.new
        shutil.rmtree(away)
    assert failures >= 5


def test_a_first_build_without_room_gives_all_of_it_back(case: Case, small_disk: Path) -> None:
    room = shutil.disk_usage(small_disk).free
    for free in (8_192, 16_384, 32_768, 65_536, 131_072, 262_144):
        (small_disk / "ballast").write_bytes(bytes(room - free))
        with pytest.raises(OSError):
            build([case.docs], small_disk / "index", encoder=WordEncoder())
        (small_disk / "ballast").unlink()
        shutil.rmtree(small_disk / "index", ignore_errors=True)
        assert shutil.disk_usage(small_disk).free == room
    build([case.docs], small_disk / "index", encoder=WordEncoder())
    assert answers(small_disk / "index") == case.new
