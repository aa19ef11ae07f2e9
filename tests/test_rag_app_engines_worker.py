"""The process that runs llama.cpp, spoken to in its own protocol."""

import json
import mmap
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rag_app.decoding import Decoding
from rag_app.models import locate
from tests.conftest import ROOT

ENDLESS = "Write a very long story about a king who had many sons."  # greedy, it never comes to an end
SIGNS = 'root ::= "猫狗猫狗猫🦒" [猫狗]*'  # no token of the model is a whole one of these characters


class Raw:
    """A worker and its two pipes."""

    def __init__(self, *code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *(code or ("-m", "rag_app.engines.worker"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            text=True,
            encoding="utf-8",
        )
        self.number = 0

    def send(self, **request: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")

    def flush(self) -> None:
        assert self.process.stdin
        self.process.stdin.flush()

    def next(self) -> dict[str, Any]:
        self.flush()
        assert self.process.stdout
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def load(self, path: str | Path | None = None, n_ctx: int = 4096) -> dict[str, Any]:
        self.send(op="load", path=str(locate(path)), n_ctx=n_ctx)
        return self.next()

    def begin(self, text: str, max_tokens: int, grammar: str | None = None, quotes: Any = None, **settings: Any) -> int:
        self.number += 1
        self.send(
            op="generate",
            id=self.number,
            messages=[["user", text]],
            settings=asdict(Decoding(max_tokens=max_tokens, **settings)),
            grammar=grammar,
            quotes=quotes,
        )
        return self.number

    def rest(self) -> list[dict[str, Any]]:
        events = [self.next()]
        while events[-1]["event"] not in ("done", "error"):
            events.append(self.next())
        return events

    def write(self, text: str, max_tokens: int, **more: Any) -> str:
        self.begin(text, max_tokens, **more)
        return "".join(event.get("text", "") for event in self.rest())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    worker = Raw()
    assert worker.load()["event"] == "loaded"
    yield worker
    worker.end()


def test_events_come_in_order_and_count_up(raw: Raw) -> None:
    number = raw.begin(ENDLESS, 5)
    events = raw.rest()
    *kinds, last = [event["event"] for event in events]
    assert last == "done"
    assert kinds == sorted(kinds)  # first every 'reading', then every 'token'
    assert {event["id"] for event in events} == {number}
    assert [e["completion_tokens"] for e in events if e["event"] == "token"] == [1, 2, 3, 4, 5]
    assert (events[-1]["reason"], events[-1]["completion_tokens"]) == ("length", 5)
    assert events[0]["prompt_tokens"] == events[-1]["prompt_tokens"] > 29


def test_what_was_read_before_is_not_read_again_until_it_is_forgotten(raw: Raw) -> None:
    def cached() -> tuple[int, int]:
        raw.begin("What was read before?", 1)
        done = raw.rest()[-1]
        return done["cached_tokens"], done["prompt_tokens"]

    cached()
    again, whole = cached()
    assert again == whole
    raw.send(op="forget", id=9999)
    assert raw.next() == {"id": 9999, "event": "forgotten"}
    assert cached() == (0, whole)


# text


def test_characters_of_several_tokens_come_whole_or_not_at_all(raw: Raw) -> None:
    raw.begin("Cats?", 24, SIGNS)
    *events, done = raw.rest()
    pieces = [event["text"] for event in events if event["event"] == "token"]
    long = "".join(pieces)
    assert long.startswith("猫狗猫狗猫🦒")
    assert len(pieces) < done["completion_tokens"] == 24  # a piece took several tokens, so
    for most in range(1, 5):  # some of these cut a character in two
        short = raw.write("Cats?", most, grammar=SIGNS)
        assert long.startswith(short)
        assert "\ufffd" not in short


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["o thr"], "one tw"),
        (["one"], ""),
        ([" "], "one"),
        (["🦒"], "one two three "),
        (["four!"], "one two three 🦒 four"),
        (["four"], "one two three 🦒 "),
        ([f"stop number {number}" for number in range(10_000)] + ["ee"], "one two thr"),
    ],
)
def test_a_stop_text_ends_the_reply_and_is_not_shown(raw: Raw, stop: list[str], expected: str) -> None:
    raw.begin("Count!", 64, 'root ::= "one two three 🦒 four"', stop=tuple(stop))
    events = raw.rest()
    assert "".join(event.get("text", "") for event in events) == expected
    assert events[-1]["reason"] == "stop"


def test_what_was_held_back_is_shown_where_the_reply_is_cut(raw: Raw) -> None:
    whole = raw.write(ENDLESS, 6)
    assert raw.write(ENDLESS, 6, stop=(whole[-3:] + "\0",)) == whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_between_quote_marks_stands_only_what_a_passage_says(raw: Raw, temperature: float) -> None:
    passage = "The okapi lives in the Ituri rainforest."
    grammar = 'root ::= "It says \\"" [^"\\n]{5,200} "\\"" [.]'
    text = raw.write("Say something", 60, grammar=grammar, quotes=[passage], temperature=temperature)
    assert text.startswith('It says "')
    assert text.split('"')[1].strip() in passage


def test_a_grammar_without_sense_is_refused_and_the_next_request_works(raw: Raw) -> None:
    raw.begin("Hi", 3, "root ::= [")
    (event,) = raw.rest()
    assert (event["event"], event["kind"]) == ("error", "grammar")
    assert raw.write("Hi", 3)


# ends


def test_cancelled_in_the_middle(raw: Raw) -> None:
    most = 3000
    number = raw.begin(ENDLESS, most)
    while raw.next()["event"] != "token":
        pass
    raw.send(op="cancel", id=number)
    done = raw.rest()[-1]
    assert done["reason"] == "cancelled"
    assert 1 <= done["completion_tokens"] < most


def test_cancelled_while_the_prompt_is_read(raw: Raw) -> None:
    number = raw.begin(ENDLESS * 100, 10)
    raw.send(op="cancel", id=number)  # with the request, in one write
    events = raw.rest()
    assert {event["event"] for event in events} <= {"reading", "done"}
    assert (events[-1]["reason"], events[-1]["completion_tokens"]) == ("cancelled", 0)


def test_what_was_cancelled_leaves_no_trace(raw: Raw) -> None:
    before = raw.write("Hi", 6)
    number = raw.begin(ENDLESS, 3000)
    raw.send(op="cancel", id=number)
    raw.send(op="cancel", id=number + 1000)
    raw.rest()
    assert raw.write("Hi", 6) == before


def test_counting_waits_for_nobodys_reply(raw: Raw) -> None:
    number = raw.begin(ENDLESS, 3000)
    raw.send(op="count", id=7000, messages=[["user", "Hi"]])
    counted = raw.next()
    while counted["id"] == number:
        assert counted["event"] != "done"
        counted = raw.next()
    assert (counted["event"], counted["id"]) == ("counted", 7000)
    raw.send(op="cancel", id=number)
    assert raw.rest()[-1]["reason"] == "cancelled"
    raw.begin("Hi", 1)
    assert raw.rest()[-1]["prompt_tokens"] == counted["tokens"]


def test_a_prompt_beyond_the_window_is_refused_unread(raw: Raw) -> None:
    raw.begin(ENDLESS * 400, 10)
    (event,) = raw.rest()
    assert (event["event"], event["kind"]) == ("error", "too_long")
    assert raw.write("Hi", 3)


def test_whatever_goes_wrong_is_an_event_of_one_line_and_the_next_request_works(raw: Raw) -> None:
    raw.send(op="generate", id=77, messages="nonsense")
    event = raw.next()
    assert (event["event"], event["id"], event["kind"]) == ("error", 77, "failed")
    assert event["message"]
    assert "\n" not in event["message"]
    assert raw.write("Hi", 3)


def test_it_ends_when_nobody_listens_any_more() -> None:
    worker = Raw()
    worker.load()
    worker.begin(ENDLESS, 3000)
    while worker.next()["event"] != "token":
        pass
    assert worker.process.stdin
    worker.process.stdin.close()
    assert worker.process.wait() == 0
    assert worker.process.stdout
    assert "done" not in worker.process.stdout.read()


# model files


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A copy of the bundled model, freed at once: pytest would keep 100 MB each."""
    path = tmp_path / "model.gguf"
    shutil.copyfile(locate(), path)
    yield path
    path.unlink()


def edit(file: Path, old: bytes, new: bytes) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as data:
        place = data.find(old)
        assert place >= 0
        data[place : place + len(old)] = new.ljust(len(old))


@pytest.mark.parametrize(
    "loop",
    [
        b"' }}{% for a in 'a' * 10**8 %}{% endfor %}",
        b"' }}{{ 9 ** (9 ** 9) }}",  # one step of Python
    ],
)
@pytest.mark.parametrize("op", ["count", "generate"])
def test_a_template_that_does_not_come_to_an_end_ends_the_process(file: Path, loop: bytes, op: str) -> None:
    edit(file, b"named SmolLM, trained by Hugging Face<|im_end|>\n' }}", loop)
    raw = Raw("-c", "from rag_app.engines import worker; worker.TEMPLATE_LIMIT = 0.2; worker.main()")
    raw.load(file)
    raw.send(op=op, id=1, messages=[["user", "Hi"]], settings={}, grammar=None, quotes=None)
    raw.flush()
    assert raw.process.wait() == -signal.SIGALRM
    raw.end()


@pytest.mark.parametrize(
    ("length", "window"), [(0, 500), (1, 500), (256, 256), (2**31 - 1, 500), (2**31, 500), (2**32 - 1, 500)]
)
def test_a_window_that_cannot_be_is_not_believed(file: Path, length: int, window: int) -> None:
    key = b"llama.context_length" + (4).to_bytes(4, "little")  # the value is a uint32
    edit(file, key + (8192).to_bytes(4, "little"), key + length.to_bytes(4, "little"))
    raw = Raw()
    loaded = raw.load(file, 500)
    assert loaded["n_ctx"] == window
    assert raw.write("Hi", 2)
    raw.end()
