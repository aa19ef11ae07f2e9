"""Conversations on disk: kept in order, listed, rated, exported; files that are old, foreign, damaged or read-only."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from index import Hit, RagError
from rag_app import chats as module
from rag_app.answer import Answer, Step
from rag_app.chats import Chats, Turn, exchanges
from rag_app.citations import Citation
from rag_app.errors import ChatNotFound, ChatsUnusable, SettingInvalid
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


def test_the_file_lies_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Chats().add("a", Turn("user", "hi"))
    assert (Path(os.environ["RAG_HOME"]) / "chats.sqlite3").is_file()
    assert Chats().turns("a") == [Turn("user", "hi")]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAG_HOME", "~/own")
    Chats().add("a", Turn("user", "hi"))
    assert (tmp_path / "own" / "chats.sqlite3").is_file()


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


@pytest.mark.parametrize("broken", ["file", "file/below", "link", "home/link"])
def test_a_home_where_no_conversation_could_be_begun_is_not_taken_for_an_empty_one(tmp_path: Path, broken: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "home").mkdir()
    for link in (tmp_path / "link", tmp_path / "home" / "link"):
        link.symlink_to(tmp_path / "gone" / "x")
    path = tmp_path / broken if broken == "home/link" else tmp_path / broken / "chats.sqlite3"
    with pytest.raises(ChatsUnusable, match="cannot be read or kept"):
        Chats(path).add("a", Turn("user", "hi"))
    with pytest.raises(ChatsUnusable, match="cannot be read or kept"):
        Chats(path).chats()


def test_a_home_that_is_still_to_be_made_is_empty(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "other.sqlite3")
    for path in (tmp_path / "new" / "er" / "chats.sqlite3", tmp_path / "link"):
        assert Chats(path).chats() == []
        Chats(path).add("a", Turn("user", "hi\0you"))
        assert Chats(path).chats()[0].title == "hi\0you"


OLD = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, chat TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
                       details TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX messages_chat ON messages (chat);
INSERT INTO messages (chat, role, content, details, at) VALUES ('a', 'user', 'old?', '{}', 1.0);
INSERT INTO messages (chat, role, content, details, at) VALUES ('a', 'assistant', 'old.', '{"dropped": 1}', 2.0);
PRAGMA user_version = 1;
"""


def sql(path: Path, script: str) -> list[Any]:
    """Runs statements on a file as another program would; rows of the last one."""
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        *before, last = [statement for statement in script.split(";") if statement.strip()]
        for statement in before:
            db.execute(statement)
        return db.execute(last).fetchall()


def reply(question: str, **changes: Any) -> Turn:
    """An answer from three passages, of which the model read two."""
    hits = [Hit(n, 0.5, f"c{n}", f"/d/{n}.md", None, "H", 10, 17, f"passage {n}") for n in (1, 2, 3)]
    answer = Answer(
        question,
        "It is. [1]",
        query=f"{question} (alone)",
        hits=hits,
        dropped=1,
        strategy="react",
        model="m",
        adapters=["tax:0.5"],
    )
    answer.citations = [Citation(1, "/d/1.md", None, 10, 12, "pa")]
    answer.steps = [Step(1, "think", "search", "x", "found")]
    answer.prompt_version, answer.settings = 3, {"k": 2}
    return Turn("assistant", answer.answer, {**answer.as_dict(), "error": "", "stopped": False, **changes})


def talk(chats: Chats, chat: str, *questions: str, **changes: Any) -> list[Turn]:
    for question in questions:
        chats.add(chat, Turn("user", question))
        chats.add(chat, reply(question, **changes))
    return chats.turns(chat)


# --- listing, settings, ratings -------------------------------------------------------------------------------------


def test_conversations_are_listed_latest_first(path: Path) -> None:
    chats, began = Chats(path), time.time()
    assert chats.chats() == []
    talk(chats, "a", "First \n question?", "Second?")
    talk(chats, "b", "word " * 100)
    talk(chats, "c", "x" * 500)
    chats.add("a", Turn("user", "Third?"))
    chats.set_settings("b", {"strategy": "react", "stop": ["\n"], "temperature": 0.5})
    chats.set_settings("only settings", {"k": 1})
    a, c, b = chats.chats()
    assert (a.id, a.title, a.messages, a.settings) == ("a", "First question?", 5, {})
    assert began <= a.started < c.started < a.last <= time.time()
    assert b.settings == {"strategy": "react", "stop": ["\n"], "temperature": 0.5}
    assert b.title.endswith("word …") and 70 < len(b.title) <= 80
    assert c.title == "x" * 79 + "…"


def test_settings_belong_to_a_conversation(path: Path) -> None:
    chats = Chats(path)
    assert chats.settings("a") == {} and not chats.exists("a")
    chats.set_settings("a", {"k": 2})
    chats.set_settings("a", {"strategy": "pal"})
    assert chats.settings("a") == {"strategy": "pal"} and chats.exists("a")
    assert chats.settings("b") == {} and not chats.exists("b")
    sql(path, "UPDATE settings SET options = '{'")
    assert chats.settings("a") == {}


def test_the_latest_rating_counts_and_what_is_not_given_stays(path: Path) -> None:
    chats = Chats(path)
    question, answer = talk(chats, "a", "Why?")
    assert (answer.rating, answer.comment, answer.correction) == (0, "", "")
    chats.rate("a", answer.id, -1, "wrong page")
    chats.rate("a", answer.id, correction="Because. \ud800")
    chats.rate("a", answer.id, 1)
    rated = chats.turns("a")[1]
    assert (rated.rating, rated.comment, rated.correction) == (1, "wrong page", "Because. ?")
    assert rated == answer and chats.turns("a")[0].rating == 0
    chats.rate("a", answer.id, 0, "", "")
    assert (chats.turns("a")[1].rating, chats.turns("a")[1].comment) == (0, "")
    for chat, message in (("a", question.id), ("b", answer.id), ("a", 99)):
        with pytest.raises(ChatNotFound, match="there is no answer"):
            chats.rate(chat, message, 1)
    for rating in (2, "up", 0.5):
        with pytest.raises(SettingInvalid, match="give 1"):
            chats.rate("a", answer.id, rating)  # type: ignore[arg-type]


def test_a_deleted_conversation_is_gone_from_the_file(path: Path) -> None:
    chats = Chats(path)
    answer = talk(chats, "a", "What is in the confidential memorandum?")[1]
    talk(chats, "b", "Else?")
    chats.rate("a", answer.id, 1, "confidential remark")
    chats.set_settings("a", {"k": 9})
    assert chats.delete("a") == 2
    assert chats.delete("a") == 0
    assert [chat.id for chat in chats.chats()] == ["b"]
    assert not chats.exists("a") and chats.settings("a") == {}
    assert b"confidential" not in path.read_bytes()
    assert Chats(path.parent / "none.sqlite3").delete("a") == 0 and not (path.parent / "none.sqlite3").exists()


def test_a_conversation_is_found_by_the_beginning_of_its_id(path: Path) -> None:
    chats = Chats(path)
    for name in ("ab12", "ab34", "ab", "c"):
        chats.add(name, Turn("user", "hi"))
    assert [chats.find(name).id for name in ("ab1", "ab", "c")] == ["ab12", "ab", "c"]
    with pytest.raises(ChatNotFound, match=r"3 conversations begin with 'a' \(ab, ab34, ab12\): give more of the id"):
        chats.find("a")
    for name in ("x", "ab123", ""):
        with pytest.raises(ChatNotFound, match="'rag-app chats list' shows"):
            chats.find(name)


# --- export ---------------------------------------------------------------------------------------------------------


def test_an_answered_question_is_exported_whole(path: Path) -> None:
    chats = Chats(path)
    turns = talk(chats, "a", "One?", "Two?")
    chats.rate("a", turns[3].id, -1, "no", "Yes.")
    first, second = json.loads(json.dumps(list(chats.export())))
    assert first["id"] == "a/1" and first["history"] == [] and first["rating"] == 0
    assert second == {
        "id": "a/2",
        "chat": "a",
        "at": turns[3].at,
        "question": "Two?",
        "history": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "It is. [1]"}],
        "query": "Two? (alone)",
        "passages": [
            {
                "n": n,
                "source": f"/d/{n}.md",
                "page": None,
                "heading": "H",
                "text": f"passage {n}",
                "start": 10,
                "end": 17,
            }
            for n in (1, 2)
        ],
        "answer": "It is. [1]",
        "citations": [{"n": 1, "source": "/d/1.md", "page": None, "start": 10, "end": 12, "quote": "pa"}],
        "refused": False,
        "steps": [
            {"number": 1, "thought": "think", "action": "search", "input": "x", "observation": "found", "error": False}
        ],
        "strategy": "react",
        "model": "m",
        "adapters": ["tax:0.5"],
        "prompt_version": 3,
        "settings": {"k": 2},
        "rating": -1,
        "comment": "no",
        "correction": "Yes.",
    }


def test_failed_and_stopped_answers_are_exported_only_when_corrected(path: Path) -> None:
    chats = Chats(path)
    talk(chats, "a", "One?", stopped=True)
    talk(chats, "a", "Two?", error="the model ended")
    chats.add("a", Turn("user", "Three? (killed before the answer)"))
    talk(chats, "a", "Four?")
    assert [row["question"] for row in chats.export()] == ["Four?"]
    chats.rate("a", chats.turns("a")[3].id, correction="Two.")
    rows = list(chats.export(["a"]))
    assert [(row["id"], row["correction"]) for row in rows] == [("a/2", "Two."), ("a/4", "")]
    assert [turn["content"] for turn in rows[1]["history"]][-1] == "Three? (killed before the answer)"


def test_conversations_are_exported_oldest_first_or_as_named(path: Path) -> None:
    chats = Chats(path)
    for name in ("b", "a", "c"):
        talk(chats, name, f"{name}?")
    assert [row["chat"] for row in chats.export()] == ["b", "a", "c"]
    assert [row["chat"] for row in chats.export(["c", "b", "c"])] == ["c", "b"]
    assert list(chats.export([])) == []
    with pytest.raises(ChatNotFound, match="no conversation 'x'"):
        list(chats.export(["x"]))


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        '{"error": "", "stopped": false}',
        '{"error": "", "stopped": false, "hits": [1], "dropped": 0, "citations": [], "refused": false}',
        '{"error": "", "stopped": false, "hits": 7, "dropped": 0, "citations": [], "refused": false}',
        '{"error": "", "stopped": false, "hits": [], "dropped": "x", "citations": [], "refused": false}',
        '{"error": "", "stopped": false, "hits": [], "dropped": 0, "citations": [3], "refused": false}',
        "[" * 100_000,
    ],
)
def test_a_damaged_answer_is_skipped_with_a_note(path: Path, damage: str) -> None:
    chats, notes = Chats(path), list[str]()
    turns = talk(chats, "a", "One?", "Two?")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE messages SET details = ? WHERE id = ?", (damage, turns[1].id))
    assert [row["question"] for row in chats.export(note=notes.append)] == ["Two?"]
    assert notes == ["answer 1 of the conversation 'a' is skipped: its sources are damaged"]
    assert chats.chats()[0].messages == 4


def test_answers_of_schema_1_are_exported_with_what_was_kept_of_them(path: Path) -> None:
    details = {"hits": [], "dropped": 0, "citations": [], "refused": True, "error": "", "stopped": False}
    sql(path, OLD + f"UPDATE messages SET details = '{json.dumps(details)}' WHERE id = 2")
    (row,) = Chats(path).export()
    assert (row["query"], row["strategy"], row["steps"], row["refused"]) == ("old?", "zero-shot", [], True)


def test_questions_and_answers_are_paired(path: Path) -> None:
    roles = ["assistant", "user", "user", "assistant", "user", "assistant", "assistant"]
    turns = [Turn(role, str(n)) for n, role in enumerate(roles)]
    pairs = [(e.number, e.question.content, e.answer and e.answer.content) for e in exchanges(turns)]
    assert pairs == [(1, "1", None), (2, "2", "3"), (3, "4", "6")]


# --- other files ----------------------------------------------------------------------------------------------------


def test_an_old_file_is_read_as_it_is_and_migrated_by_the_first_write(path: Path) -> None:
    sql(path, OLD + "SELECT 1")
    before, chats = path.read_bytes(), Chats(path)
    old = [Turn("user", "old?"), Turn("assistant", "old.", {"dropped": 1})]
    assert chats.turns("a") == old and chats.settings("a") == {} and chats.exists("a")
    assert [(chat.id, chat.title, chat.started, chat.last) for chat in chats.chats()] == [("a", "old?", 1.0, 2.0)]
    assert path.read_bytes() == before
    chats.rate("a", 2, 1)
    chats.add("a", Turn("user", "new?"))
    assert chats.turns("a") == [*old, Turn("user", "new?")] and chats.turns("a")[1].rating == 1
    assert sql(path, "PRAGMA user_version") == [(2,)] and sql(path, "PRAGMA journal_mode") == [("wal",)]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_program_of_schema_1_that_still_runs_loses_nothing(path: Path) -> None:
    """It creates what it knows again and sets the number back, as it did at every message."""
    chats = Chats(path)
    answer = talk(chats, "a", "Why?")[1]
    chats.rate("a", answer.id, 1)
    chats.set_settings("a", {"k": 2})
    sql(path, "CREATE INDEX IF NOT EXISTS messages_chat ON messages (chat); PRAGMA user_version = 1")
    sql(path, "INSERT INTO messages (chat, role, content, details, at) VALUES ('a', 'user', 'old', '{}', 1e12)")
    assert chats.turns("a")[1].rating == 1 and chats.settings("a") == {"k": 2}
    chats.add("a", Turn("user", "new"))
    assert [turn.content for turn in chats.turns("a")] == ["Why?", "It is. [1]", "old", "new"]
    assert chats.turns("a")[1].rating == 1 and sql(path, "PRAGMA user_version") == [(2,)]


def test_a_migration_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql(path, OLD + "SELECT 1")
    monkeypatch.setitem(module.migrations.TABLES, "ratings", "(no columns,)")
    with pytest.raises(ChatsUnusable):
        Chats(path).add("a", Turn("user", "new?"))
    monkeypatch.undo()
    tables = sql(path, "SELECT name FROM sqlite_master ORDER BY name")
    assert tables == [("messages",), ("messages_chat",)] and sql(path, "PRAGMA user_version") == [(1,)]
    Chats(path).add("a", Turn("user", "new?"))
    assert len(Chats(path).turns("a")) == 3


FOREIGN = {
    "newer": (
        "PRAGMA user_version = 3",
        "its schema is 3, and this version of the program knows 2: update the program",
    ),
    "other tables": ("CREATE TABLE bookmarks (url)", "it belongs to another program: move it away"),
    "other version": ("CREATE TABLE messages (x); PRAGMA user_version = 2", "it belongs to another program"),
    "no version": ("CREATE TABLE messages (x)", "it belongs to another program"),
    "other id": ("CREATE TABLE messages (x); PRAGMA application_id = 7; PRAGMA user_version = 1", "another program"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_program_or_version_stays_as_it_is(path: Path, kind: str) -> None:
    chats = Chats(path)
    if kind == "newer":
        chats.add("a", Turn("user", "hi"))
    script, complaint = FOREIGN[kind]
    sql(path, script)
    before = path.read_bytes()
    for use in (
        chats.chats,
        lambda: chats.turns("a"),
        lambda: chats.add("a", Turn("user", "hi")),
        lambda: list(chats.export()),
    ):
        with pytest.raises(ChatsUnusable, match=complaint) as raised:
            use()
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_with_a_damaged_page_is_one_line(path: Path) -> None:
    chats = Chats(path)
    for number in range(50):
        chats.add("a", Turn("user", f"{number} " + "x" * 1000))
    damaged = bytearray(path.read_bytes())
    damaged[8192:] = b"\xff" * len(damaged[8192:])
    path.write_bytes(damaged)
    for use in (chats.chats, lambda: chats.turns("a"), lambda: chats.add("a", Turn("user", "hi"))):
        with pytest.raises(ChatsUnusable, match=r"malformed.*move a damaged file away"):
            use()


def test_a_locked_file_is_one_line_after_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = Chats(path)
    chats.add("a", Turn("user", "hi"))
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(ChatsUnusable, match=r"locked\): close the other program"):
            chats.add("a", Turn("user", "more"))
        assert 0.25 < time.monotonic() - began < 5
        assert chats.turns("a") == [Turn("user", "hi")]  # a writer stops no reader
    chats.add("a", Turn("user", "more"))
    assert len(chats.turns("a")) == 2


def test_a_reader_does_not_stop_a_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = Chats(path)
    chats.add("a", Turn("user", "hi"))
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (1,)
        chats.add("a", Turn("user", "more"))
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (1,)


def test_a_full_disk_is_one_line_and_loses_nothing(path: Path) -> None:
    chats = Chats(path)
    chats.add("a", Turn("user", "hi"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(ChatsUnusable, match="make room"):
            chats.add("a", Turn("user", "x" * 1_000_000))
        assert chats.turns("a") == [Turn("user", "hi")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    chats.add("a", Turn("user", "x" * 1_000_000))
    assert len(chats.turns("a")) == 2 and sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_network_drive_gets_the_default_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "network", lambda place: "it is on a network file system (nfs4)")
    chats = Chats(path)
    talk(chats, "a", "Why?")
    assert sql(path, "PRAGMA journal_mode") == [("delete",)]
    assert len(chats.turns("a")) == 2


def test_a_path_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "50% of? a#b äé" / "chats.sqlite3"
    talk(Chats(path), "a", "Why?")
    link = tmp_path / "link.sqlite3"
    link.symlink_to(path)
    assert len(Chats(link).turns("a")) == 2
    assert [file.name for file in path.parent.iterdir()] == ["chats.sqlite3"]


def test_words_that_cannot_be_stored_are_replaced(path: Path) -> None:
    Chats(path).add("a", Turn("user", "half \ud83d", {"x": "\udc00"}))
    assert Chats(path).turns("a") == [Turn("user", "half ?", {"x": "?"})]
    sql(path, "UPDATE messages SET content = CAST(x'ff41' AS TEXT)")
    assert Chats(path).turns("a")[0].content == "\ufffdA" and Chats(path).chats()[0].title == "\ufffdA"


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder for a user who may not write everywhere, whoever runs the tests."""
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("guarded", ["file", "folder", "both"])
def test_what_may_not_be_written_to_can_be_read(nobody: Path, guarded: str, schema: int) -> None:
    path = nobody / "chats.sqlite3"
    if schema == 1:
        sql(path, OLD + "SELECT 1")
    else:
        talk(Chats(path), "a", "old?")
    kept = Chats(path).turns("a")
    modes = [(path, 0o444, 0o644)] * (guarded != "folder") + [(nobody, 0o555, 0o755)] * (guarded != "file")
    for place, mode, _ in modes:
        place.chmod(mode)
    chats = Chats(path)
    assert chats.turns("a") == kept and chats.chats()[0].title == "old?" and chats.settings("a") == {}
    assert chats.find("a").messages == 2 and chats.exists("a") and not chats.exists("b")
    assert len(list(chats.export())) == schema - 1
    with pytest.raises(ChatsUnusable, match=r"\(it may not be written to\): .*check the permissions"):
        chats.add("a", Turn("user", "more"))
    assert os.listdir(nobody) == ["chats.sqlite3"]  # noqa: PTH208  (nothing left that later stops a writer)
    for place, _, mode in modes:
        place.chmod(mode)
    chats.add("a", Turn("user", "more"))
    assert len(chats.turns("a")) == 3


def test_what_a_killed_program_wrote_is_read_from_a_read_only_folder(nobody: Path) -> None:
    path = nobody / "chats.sqlite3"
    Chats(path).add("a", Turn("user", "before"))
    child = os.fork()
    if not child:
        try:
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("INSERT INTO messages VALUES (NULL, 'a', 'user', 'after', '', 1)")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (nobody / "chats.sqlite3-wal").stat().st_size
    nobody.chmod(0o555)
    assert [turn.content for turn in Chats(path).turns("a")] == ["before", "after"]
    nobody.chmod(0o755)
    Chats(path).add("a", Turn("user", "last"))
    assert [turn.content for turn in Chats(path).turns("a")] == ["before", "after", "last"]
