"""Conversations on disk: messages kept a second by 1 and by 8 programs, and how long 1,000 conversations take to list.

Run: .venv/bin/python -m bench.chats

Each write is on disk (fsync) when it returns, so the figures are the disk's as much as the program's. A message is an
answer with four passages, 6 kB, as the program keeps them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.machine import machine
from index.console import say
from rag_app.chats import Chats, Turn

RESULTS = Path(__file__).parent / "results"
SECONDS, WRITERS, CHATS, MESSAGES, REPEATS = 5.0, 8, 1000, 20, 9
DETAILS = {"hits": [{"rank": n, "text": "x" * 1400, "source": "/docs/a.md"} for n in range(4)], "error": ""}


def write(path: Path, chat: str) -> None:
    """Adds messages for SECONDS; prints how many."""
    chats, end, count = Chats(path), time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        chats.add(chat, Turn("assistant", "An answer. [1]", DETAILS))
        count += 1
    say(str(count))


def writes(writers: int) -> float:
    """Messages a second of that many programs together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.chats", f"{folder}/chats.sqlite3"]
        started = [
            subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(writers)
        ]
        return sum(int(process.communicate()[0]) for process in started) / SECONDS


def listing() -> dict[str, float]:
    """Milliseconds to list CHATS conversations of MESSAGES messages, and to read one."""
    with tempfile.TemporaryDirectory() as folder:
        chats = Chats(Path(folder) / "chats.sqlite3")

        def fill(db: object) -> None:
            sql = "INSERT INTO messages (chat, role, content, details, at) VALUES (?, ?, ?, ?, ?)"
            text = json.dumps(DETAILS)
            for number in range(CHATS * MESSAGES):
                role = "assistant" if number // CHATS % 2 else "user"
                row = (f"{number % CHATS:012x}", role, f"What is {number}? " * 5, text, float(number))
                db.execute(sql, row)  # type: ignore[attr-defined]

        chats._write(fill)  # one transaction: 20,000 would take minutes
        assert len(chats.chats()) == CHATS and chats.chats()[0].messages == MESSAGES
        return {"list_ms": milliseconds(chats.chats), "read_ms": milliseconds(lambda: chats.turns(f"{7:012x}"))}


def milliseconds(work: object) -> float:
    """Median of REPEATS."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 2)


def main() -> None:
    """Measures, prints and writes results/chats.json."""
    if len(sys.argv) == 3:
        write(Path(sys.argv[1]), sys.argv[2])
        return
    found = {"machine": machine(), "writes_per_s": {n: round(writes(n), 1) for n in (1, WRITERS)}, **listing()}
    print(json.dumps(found, indent=1))
    RESULTS.joinpath("chats.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
