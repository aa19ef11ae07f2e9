"""The process that runs llama.cpp, spoken to in its own protocol."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from rag_app.models import locate
from tests.conftest import ROOT

CJK = "猫狗" * 20  # no token of the model is a whole one of these characters
ENDLESS = " ".join(str(number) for number in range(1, 30))


class Raw:
    """A worker and its two pipes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rag_app.engines.worker"],
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

    def begin(self, text: str, max_tokens: int) -> int:
        self.number += 1
        sampling = {"temperature": 0.0, "top_p": 0.95, "seed": 0, "repeat_penalty": 1.0}
        self.send(op="generate", id=self.number, segments=[[text, False]], max_tokens=max_tokens, **sampling)
        return self.number

    def rest(self) -> list[dict[str, Any]]:
        events = [self.next()]
        while events[-1]["event"] not in ("done", "error"):
            events.append(self.next())
        return events

    def write(self, text: str, max_tokens: int) -> str:
        self.begin(text, max_tokens)
        return "".join(event.get("text", "") for event in self.rest())


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    worker = Raw()
    worker.send(op="load", path=str(locate()), n_ctx=4096)
    assert worker.next()["event"] == "loaded"
    yield worker
    worker.process.kill()
    worker.process.communicate()


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


def test_characters_of_several_tokens_come_whole_or_not_at_all(raw: Raw) -> None:
    raw.begin(CJK, 16)
    *events, done = raw.rest()
    pieces = [event["text"] for event in events if event["event"] == "token"]
    long = "".join(pieces)
    assert "猫狗" in long
    assert len(pieces) < done["completion_tokens"] == 16  # a piece took several tokens, so
    for most in range(1, 4):  # some of these cut a character in two
        short = raw.write(CJK, most)
        assert long.startswith(short)
        assert "\ufffd" not in short


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
    number = raw.begin(ENDLESS * 40, 10)
    raw.send(op="cancel", id=number)  # with the request, in one write
    events = raw.rest()
    assert {event["event"] for event in events} <= {"reading", "done"}
    assert (events[-1]["reason"], events[-1]["completion_tokens"]) == ("cancelled", 0)


def test_what_was_cancelled_leaves_no_trace(raw: Raw) -> None:
    before = raw.write(CJK, 6)
    number = raw.begin(ENDLESS, 3000)
    raw.send(op="cancel", id=number)
    raw.send(op="cancel", id=number + 1000)
    raw.rest()
    assert raw.write(CJK, 6) == before


def test_a_prompt_beyond_the_window_is_refused_unread(raw: Raw) -> None:
    raw.begin(ENDLESS * 100, 10)
    (event,) = raw.rest()
    assert (event["event"], event["kind"]) == ("error", "too_long")
    assert raw.write(CJK, 3)


def test_whatever_goes_wrong_is_an_event_of_one_line_and_the_next_request_works(raw: Raw) -> None:
    raw.send(op="generate", id=77, segments="nonsense")
    event = raw.next()
    assert (event["event"], event["id"], event["kind"]) == ("error", 77, "failed")
    assert event["message"]
    assert "\n" not in event["message"]
    assert raw.write(CJK, 3)


def test_it_ends_when_nobody_listens_any_more() -> None:
    worker = Raw()
    worker.send(op="load", path=str(locate()), n_ctx=4096)
    worker.begin(ENDLESS, 3000)
    while worker.next()["event"] != "token":
        pass
    assert worker.process.stdin
    worker.process.stdin.close()
    assert worker.process.wait() == 0
    assert worker.process.stdout
    assert "done" not in worker.process.stdout.read()
