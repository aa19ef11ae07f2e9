"""Conversations under fire: programs that begin or migrate one file at the same moment, or are killed at any."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path

import pytest

from rag_app.chats import Chats, Turn
from tests.conftest import ROOT
from tests.test_rag_app_chats import OLD, sql

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")]
WRITERS, KILLS, FILES = 8, 24, 20

# Writes one message to each of many files, in step with the other processes.
STAMPEDE = f"""
import multiprocessing, pathlib, sys
from rag_app.chats import Chats, Turn

def write(folder, name, barrier, failed):
    for number in range({FILES}):
        barrier.wait(60)
        try:
            chats = Chats(pathlib.Path(folder, f"{{number}}.sqlite3"))
            chats.turns("a")
            chats.add("a", Turn("user", str(name)))
            assert str(name) in [turn.content for turn in chats.turns("a")]
        except BaseException as error:
            failed.put(repr(error))

context = multiprocessing.get_context("fork")
barrier, failed = context.Barrier({WRITERS}), context.Queue()
writers = [context.Process(target=write, args=(sys.argv[1], n, barrier, failed)) for n in range({WRITERS})]
[writer.start() for writer in writers]
[writer.join() for writer in writers]
while not failed.empty():
    print(failed.get())
"""

# Forks a writer for each line on stdin, which tells each message once it is kept: process, conversation, number, id.
FORGE = """
import os, pathlib, signal, sys
from rag_app.chats import Chats, Turn
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for chat in iter(sys.stdin.readline, ""):
    chat = chat.strip()
    if os.fork():
        continue
    try:
        chats = Chats(pathlib.Path(sys.argv[1]))
        for number in range(10**6):
            kept = chats.add(chat, Turn("assistant", str(number), {"text": "x" * (number * 997 % 20_000)}))
            os.write(1, f"{os.getpid()} {chat} {number} {kept}\\n".encode())
            chats.rate(chat, kept, 1, str(number))
            chats.set_settings(chat, {"number": number})
    except BaseException as error:
        os.write(1, f"failed {chat} {type(error).__name__} {error}\\n".encode())
    os._exit(1)
"""


@pytest.mark.parametrize("begun", [False, True])
def test_programs_begin_or_migrate_a_file_at_the_same_moment(tmp_path: Path, begun: bool) -> None:
    """A switch to the write-ahead log that another program is in the way of fails at once; no write may."""
    files = [tmp_path / f"{number}.sqlite3" for number in range(FILES)]
    for file in files if begun else ():
        sql(file, OLD + "SELECT 1")
    done = subprocess.run(
        [sys.executable, "-c", STAMPEDE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.stderr) == ("", "")
    old = ["old.", "old?"] if begun else []
    for file in files:
        assert sorted(turn.content for turn in Chats(file).turns("a")) == sorted([*map(str, range(WRITERS)), *old])
        assert sql(file, "PRAGMA integrity_check") == [("ok",)]
        assert sql(file, "PRAGMA user_version") == [(2,)]
        Chats(file).add("a", Turn("user", "alone"))  # whoever was in the way of the switch no longer is
        assert sql(file, "PRAGMA journal_mode") == [("wal",)]


def test_eight_writers_killed_again_and_again_lose_nothing_they_told(tmp_path: Path) -> None:
    path, rng = tmp_path / "chats.sqlite3", random.Random(7)
    forge = subprocess.Popen(
        [sys.executable, "-c", FORGE, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert forge.stdin and forge.stdout
    told: dict[str, dict[int, int]] = defaultdict(dict)  # conversation -> number -> id
    living: dict[str, int] = {}  # conversation -> process
    killed: list[str] = []
    failed: list[str] = []

    def hear(line: str) -> None:
        process, chat, number, kept = line.split(maxsplit=3)
        if process == "failed":
            failed.append(line)
            return
        told[chat][int(number)] = int(kept)
        if chat not in killed:
            living[chat] = int(process)

    def kill(chat: str) -> None:
        killed.append(chat)
        with suppress(ProcessLookupError):
            os.kill(living.pop(chat), signal.SIGKILL)

    try:
        for number in range(WRITERS + KILLS):
            forge.stdin.write(f"chat{number}\n")
            if number >= WRITERS:
                for _ in range(rng.randrange(1, 40)):
                    hear(forge.stdout.readline())
                kill(rng.choice(sorted(living)))
    finally:
        forge.stdin.close()
        while living or len(killed) < WRITERS + KILLS:  # those that have told nothing yet, too
            line = forge.stdout.readline()
            if not line:
                break
            hear(line)
            for chat in list(living):
                kill(chat)
    for line in forge.stdout:
        hear(line)
    assert forge.wait(10) == 0
    assert failed == []
    assert len(killed) == WRITERS + KILLS
    _check(path, told)


def _check(path: Path, told: dict[str, dict[int, int]]) -> None:
    """That everything told is there, nothing is there twice, and the file is whole and can be written to."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    chats = Chats(path)
    for chat, messages in told.items():
        turns = chats.turns(chat)
        assert [turn.content for turn in turns] == [str(number) for number in range(len(turns))]
        assert len(turns) - 1 <= len(messages) <= len(turns)  # the last may have been kept and not told
        assert all(turns[number].id == kept for number, kept in messages.items())
        assert all(turn.rating == 1 and turn.comment == turn.content for turn in turns[:-2])
        assert chats.settings(chat).get("number", -1) >= len(messages) - 2
    assert sum(map(len, told.values())) > KILLS
    chats.add("after", Turn("user", "hi"))
    assert chats.turns("after") == [Turn("user", "hi")]
