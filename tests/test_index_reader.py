"""The reader: order, limits, and files that take their process with them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from index.document import Block, Document, Word
from index.loaders import load, wire
from index.reader import Limits, Read, Reader

HOSTILE = """
import ctypes, os, sys, time
from index.loaders import LOADERS, worker

def swallow(source):
    kept = []
    while True:
        kept.append(bytes(b"x") * 10_000_000)

def grow(source):
    LOADERS.setdefault(".kept", []).append("x" * 200_000_000)
    return LOADERS[".txt"](source)

def hang(source):
    import re
    re.match(r"(a+)+$", "a" * 60 + "!")  # holds the interpreter's lock

def lie(source):
    os.write(worker_out, b"\\0" * 100)

def send(kind, data):
    out = os.fdopen(worker_out, "wb", buffering=0, closefd=False)
    worker._send(out, kind, data)

found = os.dup(1)
worker_out = found
LOADERS |= {
    ".segfault": lambda source: ctypes.string_at(0),
    ".abort": lambda source: os.abort(),
    ".exit": lambda source: os._exit(3),
    ".kill": lambda source: os.kill(os.getpid(), 9),
    ".swallow": swallow,
    ".grow": grow,
    ".hang": hang,
    ".sleep": lambda source: time.sleep(1000),
    ".deep": lambda source: [[0] * 10, LOADERS[".deep"](source)],
    ".error": lambda source: {}["no\\nkey"],
    ".lie": lie,
    ".huge": lambda source: send(b"D", b"") or os.write(worker_out, worker.FRAME.pack(b"D", 2**60)),
    ".print": lambda source: print("noise", flush=True) or print("noise", file=sys.stderr) or LOADERS[".txt"](source),
    ".write": lambda source: open(os.environ["HOME"] + "/written", "wb", 0).write(b"x"),
    ".change": lambda source: LOADERS[".txt"](source),
    ".pid": lambda source: LOADERS[".txt"](type(source)(source.name, str(os.getpid()).encode())),
}
if __name__ == "__main__":
    worker.main()
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that also know some formats that misbehave. No user can reach them."""
    program = tmp_path / "hostile.py"
    program.write_text(HOSTILE)
    monkeypatch.setattr(Reader, "_program", (str(program),))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "documents"
    path.mkdir()
    return path


def write(folder: Path, **files: str) -> list[Path]:
    """Files named `one.txt` for `one_txt`."""
    paths = [folder / name.replace("_", ".") for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    return paths


def read(*paths: Path, limits: Limits = Limits(), **options: Any) -> list[Read]:  # noqa: B008
    with Reader(limits, **options) as reader:
        return list(reader.read(paths))


def text(result: Read) -> str:
    assert not result.error
    return result.documents[0].text


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# --- what is read


def test_files_come_in_order_with_what_is_known_of_their_bytes(folder: Path) -> None:
    paths = write(folder, **{f"f{n}_txt": "x" * (1000 if n % 7 else 1_000_000) + str(n) for n in range(100)})
    results = read(*paths, workers=3)
    assert [result.path for result in results] == paths
    for path, result in zip(paths, results, strict=True):
        stat = path.stat()
        assert (result.size, result.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert len(result.sha256) == 64 and not result.again
        assert result.documents == load(path, path.read_bytes())


def test_no_file_starts_no_worker(folder: Path) -> None:
    reader = Reader()
    assert list(reader.read([])) == [] and not reader._all
    reader.close()


def test_one_file_starts_one_worker_and_is_quick(folder: Path) -> None:
    paths = write(folder, a_txt="The okapi.")
    with within(2.0), Reader(workers=8) as reader:  # 0.1 s on an idle machine
        assert [text(r) for r in reader.read(paths)] == ["The okapi."]
        assert len(reader._all) == 1


def test_relative_paths_and_links_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, a_txt="The okapi.")
    (folder / "b.txt").symlink_to("a.txt")
    with Reader() as reader:
        list(reader.read([folder / "a.txt"]))
        monkeypatch.chdir(folder)  # after the worker started elsewhere
        assert [text(r) for r in reader.read([Path("a.txt"), Path("b.txt")])] == ["The okapi."] * 2


@pytest.mark.parametrize("name", [b"new\nline.txt", b"esc\x1b[31m.txt", b"\xff\xfe.txt", b"quote\"'.txt", b"-rf.txt"])
def test_any_file_name_is_read(folder: Path, name: bytes) -> None:
    path = folder / os.fsdecode(name)
    path.write_text("The okapi.")
    assert [text(r) for r in read(path)] == ["The okapi."]


def test_a_second_round_reuses_the_workers(folder: Path) -> None:
    paths = write(folder, a_txt="The okapi.")
    with Reader(workers=1) as reader:
        list(reader.read(paths))
        before = set(reader._all)
        list(reader.read(paths))
        assert reader._all == before


def test_reading_may_be_given_up(folder: Path) -> None:
    paths = write(folder, **{f"f{n}_txt": "The okapi." for n in range(50)})
    with Reader() as reader:
        results = reader.read(paths)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert [text(r) for r in reader.read(paths[:2])] == ["The okapi."] * 2


# --- what is not


def test_reasons_why_a_file_cannot_be_opened(folder: Path) -> None:
    missing, loop = folder / "missing.txt", folder / "loop.txt"
    loop.symlink_to(loop)
    results = read(missing, loop, folder, folder / "nul\0.txt")
    assert [r.error.split(" (")[0] for r in results[:3]] == ["cannot be opened"] * 3
    assert all(r.again for r in results[:3]) and results[3].error
    assert all(not r.documents and not r.sha256 for r in results)


def test_special_files_never_block(folder: Path) -> None:
    import socket

    os.mkfifo(folder / "pipe.txt")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket.txt"))
    paths = [folder / "pipe.txt", folder / "socket.txt", Path("/dev/zero"), Path("/dev/tty")]
    with within(10):
        results = read(*paths)
    server.close()
    assert all(result.error for result in results)
    assert results[0].error == results[2].error == "is not a regular file"


def test_a_sparse_giant_is_refused_by_its_size(folder: Path) -> None:
    with (folder / "a.txt").open("wb") as file:
        file.truncate(2**40)
    with within(10):
        [result] = read(folder / "a.txt")
    assert result.error == "is larger (1.02e+03 GiB) than the 256 MiB that a file may be"
    assert result.size == 2**40 and result.mtime_ns and not result.again


def test_too_much_text_is_refused(folder: Path) -> None:
    a, b = read(*write(folder, a_txt="x" * 1001, b_txt="x" * 1000), limits=Limits(text=1000))
    assert a.error == "holds more than the 1,000 characters of text that a file may"
    assert not a.documents and a.sha256 and text(b)


def test_a_loaders_reason_is_passed_on(folder: Path) -> None:
    [result] = read(*write(folder, a_txt=""))
    assert result.error == "the file is empty" and result.sha256 and not result.again


def test_a_file_that_changes_while_it_is_read_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from index.loaders import worker

    [path] = write(folder, a_txt="The okapi.")
    fstat, looked = os.fstat, []

    def look_and_append(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if not looked:
            path.write_text("The okapi eats.")
        looked.append(descriptor)
        return found

    monkeypatch.setattr(worker.os, "fstat", look_and_append)
    data, about, again = worker._content(path, 1000)
    assert again and data == b"The okapi e" and about["size"] == 10
    assert not worker._content(path, 1000)[2]


# --- what takes its process with it


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("segfault", "crashes the program that reads it (SIGSEGV)"),
        ("abort", "crashes the program that reads it (SIGABRT)"),
        ("exit", "crashes the program that reads it (exit status 3)"),
        ("kill", "crashes the program that reads it (SIGKILL)"),
        ("swallow", "needs more than the 300 MiB of memory that a file may"),
        ("deep", "is nested too deep"),
        ("error", "cannot be read (KeyError: 'no\\nkey')"),
        ("lie", "the process that read it sent nonsense"),
        ("huge", "the process that read it sent nonsense"),
    ],
)
def test_a_bad_file_costs_itself_alone(folder: Path, suffix: str, reason: str) -> None:
    paths = write(folder, a_txt="before", **{f"b_{suffix}": "x"}, c_txt="after", **{f"d_{suffix}": "x"}, e_txt="last")
    results = read(*paths, workers=1, limits=Limits(memory=300 * 2**20))
    assert [text(results[n]) for n in (0, 2, 4)] == ["before", "after", "last"]
    assert [results[n].error for n in (1, 3)] == [reason] * 2
    assert [results[n].again for n in (1, 3)] == [suffix == "kill"] * 2
    assert len(results[1].sha256) == 64 and not results[1].documents


@pytest.mark.usefixtures("hostile")
def test_the_programs_own_memory_is_not_the_files(folder: Path) -> None:
    held = b"x" * 400_000_000
    [result] = read(*write(folder, a_segfault="x"), limits=Limits(memory=300 * 2**20))
    assert result.error == "crashes the program that reads it (SIGSEGV)" and held


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("suffix", ["hang", "sleep"])
def test_a_file_that_hangs_is_given_up(folder: Path, suffix: str) -> None:
    paths = write(folder, a_txt="before", **{f"b_{suffix}": "x"}, c_txt="after")
    with within(20):
        results = read(*paths, workers=1, limits=Limits(seconds=0.3))
    assert results[1].error == "takes longer than the 0.3 seconds that a file may"
    assert results[1].size == 1 and not results[1].again
    assert text(results[2]) == "after"


@pytest.mark.usefixtures("hostile")
def test_what_a_library_prints_goes_nowhere(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    [result] = read(*write(folder, a_print="The okapi."))
    assert text(result) == "The okapi." and capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("hostile")
def test_a_worker_can_write_to_no_file(folder: Path, tmp_path: Path) -> None:
    [result] = read(*write(folder, a_write="x"))
    assert "File too large" in result.error and not result.again
    assert not (tmp_path / "written").read_text()


@pytest.mark.usefixtures("hostile")
def test_memory_that_one_file_leaves_behind_is_not_the_next_ones_loss(folder: Path) -> None:
    paths = write(folder, **{f"f{n}_grow": "The okapi." for n in range(4)})
    assert [text(r) for r in read(*paths, workers=1, limits=Limits(memory=500 * 2**20))] == ["The okapi."] * 4


def test_a_worker_that_cannot_start_is_said_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "_program", ("-c", "raise SystemExit(1)"))
    [result] = read(*write(folder, a_txt="x"))
    assert result.error == "the process that reads files could not be started" and result.again


@pytest.mark.usefixtures("hostile")
def test_closing_ends_a_file_in_the_middle(folder: Path) -> None:
    paths = write(folder, a_txt="x", b_sleep="x", c_sleep="x")
    reader = Reader(workers=2)
    results = reader.read(paths)
    next(results)
    with within(10):
        reader.close()
    assert not any(alive(worker._process.pid) for worker in reader._all)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("suffix", ["pid", "sleep", "hang"])
def test_workers_die_with_the_program(folder: Path, tmp_path: Path, suffix: str) -> None:
    """Killed outright, while a worker is idle, or reads a file; one that cannot notice ends by its own clock."""
    paths = write(folder, a_pid="x", **{f"b_{suffix}": "x"})
    code = f"""
import sys; from pathlib import Path; from index.reader import Reader, Limits
Reader._program = ({str(tmp_path / "hostile.py")!r},)
results = Reader(Limits(seconds=1), workers=1).read([Path(p) for p in sys.argv[1:]])
print(next(results).documents[0].text, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin and program.stdout
    pid = int(program.stdout.readline())
    assert alive(pid)
    program.kill()
    program.communicate()
    deadline = time.monotonic() + 15
    while alive(pid) and time.monotonic() < deadline:
        select_nothing()
    assert not alive(pid)


def select_nothing() -> None:
    """A short wait for what another process does; no clock decides the outcome."""
    import select

    select.select([], [], [], 0.02)


def test_ctrl_c_is_for_the_program_alone(folder: Path) -> None:
    paths = write(folder, a_txt="The okapi.")
    with Reader(workers=1) as reader:
        list(reader.read(paths))
        [worker] = reader._all
        os.kill(worker._process.pid, signal.SIGINT)
        assert [text(r) for r in reader.read(paths)] == ["The okapi."]
        assert reader._all == {worker}


# --- how documents travel

DOCUMENTS = [
    Document("", ()),
    Document(
        "Täxt 🦓\nrow",
        (Block(0, 6, "heading", 2, "Täxt 🦓", 3), Block(7, 10, "table")),
        "A title",
        "record 1",
        (Word(0, 4, 3, (0.1, 2.5, 30.25, 1e-9)), Word(5, 6, 3, (1.0, 2.0, 3.0, 4.0))),
    ),
    Document("code", (Block(0, 4, "code"),)),
]


def test_documents_come_back_as_they_were() -> None:
    header, documents = wire.unpack(memoryview(wire.pack({"error": "é"}, DOCUMENTS)))
    assert documents == DOCUMENTS and header == {"error": "é"}


def test_bytes_that_are_not_documents_are_refused_or_harmless() -> None:
    """Every byte changed, and every cut: either a ValueError, or documents whose spans lie in their texts."""
    packed = wire.pack({"error": ""}, DOCUMENTS)
    damaged = [packed[:n] for n in range(len(packed))]
    damaged += [packed[:n] + bytes([packed[n] ^ bit]) + packed[n + 1 :] for n in range(len(packed)) for bit in (1, 64)]
    for data in damaged:
        try:
            _, documents = wire.unpack(memoryview(data))
        except ValueError:
            continue
        for document in documents:
            spans = [(b.start, b.end) for b in document.blocks] + [(w.start, w.end) for w in document.words]
            assert all(0 <= start <= end <= len(document.text) for start, end in spans)


FIELDS = MappingProxyType({"title": 0, "record": 1, "bytes": 2, "words": 3, "blocks": 4})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", 1),
        ("record", None),
        ("bytes", -1),
        ("bytes", 10**9),
        ("bytes", "4"),
        ("words", -1),
        ("words", 10**9),
        ("words", 1.5),
        ("blocks", [[0, 5, "code", 0, "", None]]),
        ("blocks", [[-1, 2, "code", 0, "", None]]),
        ("blocks", [[3, 2, "code", 0, "", None]]),
        ("blocks", [[0, 2, "image", 0, "", None]]),
        ("blocks", [[0, 2, "code", 0, None, None]]),
        ("blocks", [[0, 2, "code", 0, "", "1"]]),
        ("blocks", [[0, True, "code", 0, "", 1]]),
        ("blocks", [[0, 2, [], 0, "", 1]]),
        ("blocks", 7),
        ("blocks", {"a": 1}),
    ],
)
def test_a_worker_that_lies_is_found_out(field: str, value: Any) -> None:
    import json

    row = ["", "", 4, 0, [[0, 4, "code", 0, "", None]]]
    row[FIELDS[field]] = value
    head = json.dumps({"documents": [row]}).encode()
    with pytest.raises(ValueError):
        wire.unpack(memoryview(wire.LENGTH.pack(len(head)) + head + b"code"))
