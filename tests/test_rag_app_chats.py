"""Conversations on disk: in order, from several writers at once, whole after a kill, and no file without a message."""

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from index import RagError
from rag_app.chats import Chats, Turn
from rag_app.errors import ChatsUnusable
from tests.conftest import ROOT

WRITER = """
import sys
from pathlib import Path
from rag_app.chats import Chats, Turn
chats = Chats(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    chats.add(sys.argv[2], Turn("user", str(number), {"text": "x" * 5000}))
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "chats.sqlite3"


def writer(path: Path, chat: str, count: int) -> "subprocess.Popen[str]":
    """Another program that adds messages once it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), chat, str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def test_messages_come_back_in_order_as_they_were(path: Path) -> None:
    turns = [
        Turn("user", "What is LoRA? 🦒 \x00 'quoted'; DROP TABLE messages"),
        Turn("assistant", "", {"hits": [{"page": None, "score": 0.5}], "stopped": False, "ä": ["奥", "\ue000"]}),
        Turn("user", "x" * 1_000_000),
    ]
    for turn in turns:
        Chats(path).add("a", turn)
    Chats(path).add("b", Turn("user", "elsewhere"))
    assert Chats(path).turns("a") == turns
    assert Chats(path).turns("b") == [Turn("user", "elsewhere")]


@pytest.mark.parametrize("chat", ["unknown", "", "a' OR '1'='1", "%"])
def test_an_unknown_conversation_is_empty(path: Path, chat: str) -> None:
    chats = Chats(path)
    chats.add("a", Turn("user", "hi"))
    assert chats.turns(chat) == []


def test_reading_makes_no_file(path: Path) -> None:
    assert Chats(path).turns("a") == []
    assert not path.parent.exists()


def test_the_file_lies_in_the_home_folder() -> None:
    Chats().add("a", Turn("user", "hi"))
    assert (Path(os.environ["RAG_HOME"]) / "chats.sqlite3").is_file()
    assert Chats().turns("a") == [Turn("user", "hi")]


def test_threads_and_a_second_program_write_a_new_file_at_once(path: Path) -> None:
    count, threads = 10, 4
    other = writer(path, "other", count)
    barrier = threading.Barrier(threads + 1)
    failed: list[Exception] = []

    def write(name: str) -> None:
        barrier.wait()
        try:
            for number in range(count):
                Chats(path).add(name, Turn("user", str(number)))
        except Exception as error:
            failed.append(error)

    started = [threading.Thread(target=write, args=(f"thread {number}",)) for number in range(threads)]
    for thread in started:
        thread.start()
    go(other)
    barrier.wait()
    for thread in started:
        thread.join()
    other.communicate()
    assert not failed
    assert other.returncode == 0
    for name in ["other", *(f"thread {number}" for number in range(threads))]:
        assert [turn.content for turn in Chats(path).turns(name)] == [str(number) for number in range(count)]


def test_reading_while_another_begins_the_file(path: Path) -> None:
    """No reader ever meets a file that is there and holds no tables yet."""
    barrier = threading.Barrier(2)

    def write() -> None:
        barrier.wait()
        Chats(path).add("a", Turn("user", "hi"))

    thread = threading.Thread(target=write)
    thread.start()
    barrier.wait()
    seen: list[Turn] = []
    while not seen:
        seen = Chats(path).turns("a")
    thread.join()
    assert seen == [Turn("user", "hi")]


def test_all_that_was_said_to_be_kept_is_there_after_a_kill(path: Path) -> None:
    process = writer(path, "a", 100_000)
    go(process)
    assert process.stdout
    kept = [process.stdout.readline() for _ in range(10)]
    process.kill()
    rest, _ = process.communicate()
    told = len(kept) + rest.count("\n")
    chats = Chats(path)
    contents = [turn.content for turn in chats.turns("a")]
    assert contents[:told] == [str(number) for number in range(told)]
    assert len(contents) <= told + 1
    chats.add("a", Turn("user", "after"))
    assert chats.turns("a")[-1] == Turn("user", "after")
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("begun", [b"", "empty database"])
def test_a_writer_killed_before_its_first_message_leaves_an_empty_conversation(path: Path, begun: bytes | str) -> None:
    path.parent.mkdir()
    if isinstance(begun, bytes):
        path.write_bytes(begun)
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA journal_mode = WAL")
    chats = Chats(path)
    assert chats.turns("a") == []
    chats.add("a", Turn("user", "hi"))
    assert chats.turns("a") == [Turn("user", "hi")]


@pytest.mark.parametrize("details", ["", "{", "null", "[1]", "7", None, b"\xff"])
def test_damaged_details_lose_no_words(path: Path, details: object) -> None:
    chats = Chats(path)
    for turn in (Turn("user", "hi"), Turn("assistant", "hello", {"dropped": 1})):
        chats.add("a", turn)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other AS SELECT * FROM messages")  # without its constraints
        db.execute("UPDATE other SET details = ? WHERE role = 'assistant'", (details,))
        db.execute("DROP TABLE messages")
        db.execute("ALTER TABLE other RENAME TO messages")
    assert chats.turns("a") == [Turn("user", "hi"), Turn("assistant", "hello")]


@pytest.mark.parametrize("use", ["turns", "add"])
def test_a_file_that_is_no_database_is_one_line_and_stays_as_it_is(path: Path, use: str) -> None:
    path.parent.mkdir()
    path.write_bytes(b"precious, but no database " * 100)
    with pytest.raises(ChatsUnusable, match=r"cannot be read or kept.*move a damaged file away") as raised:
        Chats(path).turns("a") if use == "turns" else Chats(path).add("a", Turn("user", "hi"))
    assert isinstance(raised.value, RagError)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == b"precious, but no database " * 100


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChatsUnusable, match="check the permissions"):
        Chats(tmp_path / "file" / "chats.sqlite3").add("a", Turn("user", "hi"))
    assert Chats(tmp_path / "file" / "chats.sqlite3").turns("a") == []
