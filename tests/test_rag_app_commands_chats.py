"""`rag-app chats`: what it lists, shows, exports, deletes and rates, for people and for programs."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from index import console
from rag_app.chats import Chats, Turn
from rag_app.commands import chats as command
from tests.test_rag_app_chats import reply, talk

Capture = pytest.CaptureFixture[str]


def run(*arguments: str) -> int:
    root = console.parser("rag-app", "")
    command.add(root.add_subparsers(required=True))
    return console.run(root, ["chats", *arguments])


@pytest.fixture
def kept() -> Chats:
    """Three conversations, two of which begin alike."""
    chats = Chats()
    talk(chats, "aa11", "What is \x1b[31mLoRA?", "And QLoRA?")
    talk(chats, "aa22", "How?")
    talk(chats, "b", "Why?")
    return chats


def as_json(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


def test_conversations_are_listed(kept: Chats, capsys: Capture) -> None:
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["b", "aa22", "aa11"]
    assert lines[2].endswith("  4  What is \ufffd[31mLoRA?")
    assert run("list", "--json") == 0
    assert [chat["title"] for chat in as_json(capsys)["chats"]] == ["Why?", "How?", "What is \x1b[31mLoRA?"]


def test_no_conversations_are_no_error_and_make_no_file(capsys: Capture) -> None:
    assert run("list") == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "'rag-app chat' begins one" in printed.err
    assert run("export") == 0 and capsys.readouterr().out == ""
    assert run("list", "--json") == 0 and as_json(capsys) == {"chats": []}
    assert not Path(os.environ["RAG_HOME"]).exists()


def test_a_conversation_is_shown_with_numbers_ratings_and_sources(kept: Chats, capsys: Capture) -> None:
    kept.rate("aa11", kept.turns("aa11")[3].id, -1, "wrong", "It is \x07not.")
    kept.set_settings("aa11", {"strategy": "react"})
    kept.add("aa11", Turn("user", "Lost?"))
    kept.add("aa11", Turn("user", "Cut?"))
    kept.add("aa11", reply("Cut?", stopped=True, error="the model ended"))
    assert run("show", "aa11") == 0
    out = capsys.readouterr().out
    assert "strategy: react" in out
    assert "1. What is \ufffd[31mLoRA?\n   It is. [1]\n   (with tax:0.5)\n\nSources:\n[1] /d/1.md: H\n" in out
    assert '    "pa"' in out and "passage 2" not in out
    assert "2. And QLoRA?\n   It is. [1]\n   (with tax:0.5)\n   rated: - wrong\n   corrected: It is \ufffdnot." in out
    assert "3. Lost?\n   (no answer was kept)" in out
    assert "4. Cut?\n   It is. [1]\n   (stopped)\n   (the model ended)" in out
    assert run("show", "aa11", "--json") == 0
    shown = as_json(capsys)
    assert shown["id"] == "aa11" and shown["settings"] == {"strategy": "react"}
    assert [message["role"] for message in shown["messages"]][:2] == ["user", "assistant"]
    assert shown["messages"][3]["correction"] == "It is \x07not."


@pytest.mark.parametrize("arguments", [["show"], ["rate", "--up"], ["delete", "--yes"], ["export"]])
def test_ids_that_are_unknown_or_begin_several_are_one_line(kept: Chats, arguments: list[str], capsys: Capture) -> None:
    name, *rest = arguments
    number = ["1"] if name == "rate" else []
    assert run(name, "aa", *number, *rest) == 1
    assert "2 conversations begin with 'aa' (aa22, aa11): give more of the id" in capsys.readouterr().err
    assert run(name, "x\x1b", *number, *rest, "--json") == 1
    printed = capsys.readouterr()
    assert "there is no conversation 'x\ufffd': 'rag-app chats list' shows those there are" in printed.err
    assert printed.err.count("\n") == 1 and "no conversation" in json.loads(printed.out)["error"]
    assert len(kept.chats()) == 3


def test_export_prints_lines_of_json(kept: Chats, capsys: Capture) -> None:
    assert run("export") == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == ["aa11/1", "aa11/2", "aa22/1", "b/1"]
    assert "\x1b" not in out and rows[0]["question"] == "What is \x1b[31mLoRA?"
    assert run("export", "b", "aa2") == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["b/1", "aa22/1"]
    assert run("export", "b", "--json") == 0
    assert as_json(capsys) == {"rows": [rows[3]], "skipped": []}


def test_export_to_a_file_is_whole_and_overwrites_only_when_told(kept: Chats, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "rows.jsonl"
    assert run("export", "--out", str(out)) == 0
    assert "4 answered questions are in" in capsys.readouterr().err
    assert len([json.loads(line) for line in out.read_text("ascii").splitlines()]) == 4
    out.write_text("mine")
    assert run("export", "--out", str(out)) == 1
    assert "is there already: name another file, or overwrite it with --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run("export", "b", "--out", str(out), "--force", "--json") == 0
    assert as_json(capsys) == {"out": str(out), "rows": 1, "skipped": []}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["rows.jsonl"]


def test_an_export_goes_through_links_and_into_what_is_no_regular_file(
    kept: Chats, tmp_path: Path, capsys: Capture
) -> None:
    target, link, pipe, device = (tmp_path / name for name in ("rows.jsonl", "link", "pipe", "device"))
    link.symlink_to(target)
    device.symlink_to("/dev/null")
    os.mkfifo(pipe)
    assert run("export", "--out", str(link)) == 0 and link.is_symlink()  # leads nowhere yet
    assert run("export", "b", "--out", str(link)) == 1
    assert run("export", "b", "--out", str(link), "--force") == 0
    assert link.is_symlink() and len(target.read_text("ascii").splitlines()) == 1
    assert run("export", "--out", str(device), "--force") == 0
    assert device.is_symlink() and Path("/dev/null").is_char_device()
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run("export", "b", "--out", str(pipe)) == 0 and pipe.is_fifo()
    assert json.loads(os.read(read, 1 << 16))["id"] == "b/1"
    os.close(read)
    capsys.readouterr()
    assert run("export", "--out", "/dev/full", "--json") == 1
    assert "'/dev/full' cannot be written (No space left on device)" in as_json(capsys)["error"]


def test_a_place_that_cannot_be_written_to_is_told_by_its_name(kept: Chats, tmp_path: Path, capsys: Capture) -> None:
    for out, code, told in (
        (str(tmp_path / "none" / "rows.jsonl"), 1, "none' for"),
        (str(tmp_path), 1, "is a folder: name a file in it"),
        (str(tmp_path / ("x" * 300)), 1, "x' cannot be written (File name too long)"),
        ("", 2, "it is empty: name a file"),
    ):
        assert run("export", "--out", out, "--force") == code
        printed = capsys.readouterr().err
        assert told in printed and printed.count("\n") == 1 and ".rows-" not in printed
    assert list(tmp_path.glob("*.jsonl")) == []


def test_an_export_that_fails_leaves_the_old_file(
    kept: Chats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("mine")
    monkeypatch.setattr(Chats, "export", lambda *_: iter([{"id": 1}, {"id": {1}}]))  # the second is no JSON
    with pytest.raises(TypeError):
        run("export", "--out", str(out), "--force")
    assert out.read_text() == "mine" and [path.name for path in tmp_path.iterdir() if path.is_file()] == ["rows.jsonl"]


def test_export_tells_what_it_skips(kept: Chats, capsys: Capture) -> None:
    kept.add("b", Turn("user", "Broken?"))
    kept.add("b", Turn("assistant", "…", {"hits": "?"}))
    assert run("export", "b") == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and "answer 2 of the conversation 'b' is skipped" in printed.err
    assert run("export", "b", "--json") == 0 and len(as_json(capsys)["skipped"]) == 1


class Typed(io.StringIO):
    """What somebody types on a terminal."""

    def isatty(self) -> bool:
        return True


def test_deleting_asks_first(kept: Chats, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("n\n"))
    assert run("delete", "b", "aa1") == 1
    printed = capsys.readouterr()
    assert "Why?" in printed.err and "Delete 2 for good? [y/N]" in printed.err and "nothing was deleted" in printed.err
    assert len(kept.chats()) == 3
    monkeypatch.setattr(sys, "stdin", Typed("y\n"))
    assert run("delete", "b", "aa1", "b", "--json") == 0
    assert as_json(capsys) == {"deleted": ["b", "aa11"], "messages": 6}
    assert [chat.id for chat in kept.chats()] == ["aa22"]


def test_deleting_without_a_terminal_wants_yes(kept: Chats, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run("delete", "b") == 2
    assert "say --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)  # closed by who started the program
    assert run("delete", "b") == 2
    assert "say --yes" in capsys.readouterr().err
    assert run("delete", "b", "x", "--yes") == 1  # all or none
    assert len(kept.chats()) == 3
    capsys.readouterr()
    assert run("delete", "b", "--yes") == 0
    assert capsys.readouterr().out == "deleted: b\n" and len(kept.chats()) == 2


def test_rating(kept: Chats, capsys: Capture) -> None:
    assert run("rate", "aa1", "2", "--down", "--comment", "wrong page") == 0
    assert "2. And QLoRA?" in capsys.readouterr().out
    assert run("rate", "aa1", "2", "--correction", "4 bits", "--json") == 0
    said = {"rating": -1, "comment": "wrong page", "correction": "4 bits"}
    assert as_json(capsys) == {"chat": "aa11", "number": 2, **said}
    assert run("rate", "aa1", "2", "--up", "--comment", "", "--json") == 0
    assert as_json(capsys) == {"chat": "aa11", "number": 2, "rating": 1, "comment": "", "correction": "4 bits"}
    assert run("rate", "aa1", "2", "--clear", "--json") == 0
    assert as_json(capsys) == {"chat": "aa11", "number": 2, "rating": 0, "comment": "", "correction": ""}
    assert run("rate", "aa1", "3", "--up") == 1
    assert "has no answer 3: give one of 1, 2" in capsys.readouterr().err
    kept.add("c", Turn("user", "Lost?"))
    assert run("rate", "c", "1", "--up") == 1
    assert "has no answers yet: there is nothing to rate" in capsys.readouterr().err
    for wrong in (["1"], ["1", "--up", "--down"], ["one", "--up"]):
        assert run("rate", "aa1", *wrong) == 2


def test_a_damaged_file_is_one_line(kept: Chats, capsys: Capture) -> None:
    (Path(os.environ["RAG_HOME"]) / "chats.sqlite3").write_bytes(b"no database" * 100)
    for arguments in (["list"], ["show", "b"], ["export"], ["delete", "b", "--yes"], ["rate", "b", "1", "--up"]):
        assert run(*arguments) == 1
        assert "move a damaged file away" in capsys.readouterr().err
