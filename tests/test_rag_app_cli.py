"""The command `rag-app ask`: what goes to which stream, exit codes, one line with the remedy for every bad input."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index.loaders import load
from rag_app.cli import main
from rag_app.models import locate
from tests.conftest import ROOT, copy_of
from tests.test_rag_app_engines_llama import edited

QUESTION = "What is the lunch allowance?"
SHORT = ("--max-tokens", "24")
COMMAND = [sys.executable, "-P", "-c", "import sys; from rag_app.cli import main; sys.exit(main())"]


@pytest.fixture
def home(real_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a copy of the real index; the current folder is empty."""
    copy_of(real_index, tmp_path / "rag-home" / "index")
    return empty_home(tmp_path, monkeypatch)


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_home(tmp_path, monkeypatch)


def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "rag-home"


class Ran:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that stdout holds."""
        assert self.out.count("\n") == 1
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `rag-app` in this process, with the real encoder and model."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(list(arguments))
        return Ran(code, *capsys.readouterr())

    return run


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file below, with its digest, and every folder; but not what was measured of the machine and the encoder."""
    paths = [path for folder in folders for path in [folder, *sorted(folder.rglob("*"))] if path.exists()]
    paths = [path for path in paths if path.name != "measured.json"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder" for path in paths}


# an answer


def test_the_answer_goes_to_stdout_with_its_sources_and_repeats_to_the_byte(home: Path, run: Any) -> None:
    first = run("ask", QUESTION, *SHORT)
    assert (first.code, first.err) == (0, "")
    answer, _, sources = first.out.partition("\n\nSources:\n")
    assert "14 euros" in answer
    assert re.search(r" \[\d\]", answer)
    assert re.search(r'^\[\d\] .*lunch\.txt: .*\n    ".*14 euros.*"$', sources, re.MULTILINE)
    assert run("ask", QUESTION, *SHORT).out == first.out


def test_json_is_one_object_with_verbatim_quotes(home: Path, run: Any) -> None:
    ran = run("ask", QUESTION, *SHORT, "--json")
    assert (ran.code, ran.err) == (0, "")
    given = ran.json
    keys = {"question", "answer", "citations", "hits", "refused", "dropped", "finish_reason", "usage", "timings"}
    keys |= {"strategy", "query", "steps", "confidence", "history_dropped", "notes", "model", "prompt_version"}
    keys |= {"adapters"}
    assert set(given) == {*keys, "settings"}
    assert given["question"] == QUESTION
    assert given["refused"] is False
    assert set(given["usage"]) == {"prompt_tokens", "cached_tokens", "completion_tokens"}
    assert 0 < given["usage"]["completion_tokens"] <= 24 < given["usage"]["prompt_tokens"]
    assert set(given["timings"]) == {"load_ms", "retrieve_ms", "first_token_ms", "total_ms"}
    hit_keys = {"rank", "score", "chunk_id", "source", "page", "heading", "start", "end", "text"}
    hit_keys |= {"cosine", "bm25", "also"}
    assert [set(hit) for hit in given["hits"]] == [hit_keys] * len(given["hits"])
    assert given["citations"]
    for citation in given["citations"]:
        assert set(citation) == {"n", "source", "page", "start", "end", "quote"}
        [document] = load(Path(citation["source"]), Path(citation["source"]).read_bytes())
        assert document.text[citation["start"] : citation["end"]] == citation["quote"]
        assert given["hits"][citation["n"] - 1]["source"] == citation["source"]
        assert f"[{citation['n']}]" in given["answer"]
    again = run("ask", QUESTION, *SHORT, "--json").json
    assert {**again, "timings": given["timings"]} == given


def test_what_a_tool_prints_does_not_reach_the_json(home: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("loud.py").write_text('print("imported")\ndef tool(x: str) -> str:\n    "Says x."\n    return x\n')
    ran = run("ask", QUESTION, "--json", "--strategy", "react", "--tool", "loud:tool", "--max-steps", "1", *SHORT)
    assert (ran.code, ran.err, ran.json["strategy"]) == (0, "imported\n", "react")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--examples", "none.jsonl"], r"the examples 'none\.jsonl' cannot be read"),
        (["--strategy", "react", "--tool", "nowhere:tool"], "the tool 'nowhere:tool' cannot be loaded"),
        (["--device", "cpu"], "device is a setting of the engine transformers"),
        (["--engine", "server", "--base-url", "http://[::1"], "base_url is"),
    ],
)
def test_what_is_named_is_looked_at_before_anything_is_loaded(
    arguments: list[str], says: str, no_home: Path, run: Any
) -> None:
    fails(run("ask", QUESTION, *arguments), 1, says)  # there is no index either, which would be told later


def test_a_refusal_is_a_success_that_shows_the_nearest_passages(home: Path, run: Any) -> None:
    question = "Quantum chromodynamics lattice gauge?"
    ran = run("ask", question)
    assert (ran.code, ran.err) == (0, "")
    assert "\n\nNearest passages:\n[1] " in ran.out
    given = run("ask", question, "--json").json
    assert (given["refused"], given["finish_reason"], given["citations"]) == (True, "refused", [])
    assert given["hits"]


def test_an_answer_cut_at_the_most_tokens_says_so(home: Path, run: Any) -> None:
    ran = run("ask", QUESTION, "--max-tokens", "1")
    assert "\n(cut at the most tokens allowed)\n" in ran.out
    assert "\n(no passage bears this answer out: read the nearest ones yourself)\n\nNearest passages:\n" in ran.out
    assert run("ask", QUESTION, "--max-tokens", "2", "--json").json["usage"]["completion_tokens"] == 2


def test_k_is_how_many_passages_are_read(home: Path, run: Any) -> None:
    assert len(run("ask", QUESTION, "-k", "1", "--max-tokens", "1", "--json").json["hits"]) == 1


def test_any_index_and_model_can_be_named(no_home: Path, real_index: Path, run: Any) -> None:
    ran = run("ask", QUESTION, *SHORT, "--index", str(real_index), "--model", str(locate()), "--json")
    assert (ran.code, "14" in ran.json["answer"]) == (0, True)
    assert not no_home.exists()


def test_an_answer_leaves_nothing_on_disk(home: Path, run: Any) -> None:
    before = snapshot(Path.cwd(), home)
    assert run("ask", QUESTION, "--max-tokens", "2").code == 0
    assert snapshot(Path.cwd(), home) == before


# bad input


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def rewrite_manifest(home: Path, change: Callable[[bytes], bytes]) -> None:
    """With the hash that the pointer has of it."""
    manifest = generation(home) / "manifest.json"
    rewritten(manifest, change)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (home / "index" / "CURRENT").write_text(f"{generation(home).name} {digest}\n", "utf-8")


def other_encoder(manifest: bytes) -> bytes:
    changed = json.loads(manifest)
    changed["encoder"] = {**changed["encoder"], "name": "bge-small", "fingerprint": "0123456789abcdef"}
    return json.dumps(changed).encode()


def generation(home: Path) -> Path:
    (found,) = (home / "index").glob("gen-*")
    return found


BROKEN_INDEXES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda home: shutil.rmtree(home), r"there is no index at '.*'\. Run: rag-index build FOLDER$"),
    "no pointer": (lambda home: (home / "index" / "CURRENT").unlink(), r"there is no index.*Run: rag-index build"),
    "pointer to nothing": (
        lambda home: rewritten(home / "index" / "CURRENT", lambda _: b"gen-000042\n"),
        r"is damaged: .*Run: rag-index build --rebuild",
    ),
    "garbage pointer": (
        lambda home: rewritten(home / "index" / "CURRENT", lambda _: b"\xff\x00../../etc"),
        r"is damaged: .*Run: rag-index build --rebuild",
    ),
    "cut manifest": (
        lambda home: rewritten(generation(home) / "manifest.json", lambda data: data[:50]),
        r"is damaged: .*manifest\.json.*Run: rag-index build --rebuild",
    ),
    "cut chunks": (
        lambda home: rewritten(generation(home) / "chunks.sqlite3", lambda data: data[: len(data) // 2]),
        r"is damaged: .*chunks\.sqlite3 is cut.*Run: rag-index build --rebuild",
    ),
    "overwritten chunks": (
        lambda home: rewritten(generation(home) / "chunks.sqlite3", lambda data: b"x" * len(data)),
        r"is damaged: .*chunks\.sqlite3 has changed.*Run: rag-index build --rebuild",
    ),
    "overwritten vectors": (
        lambda home: rewritten(generation(home) / "vectors.faiss", lambda data: b"x" * len(data)),
        r"is damaged: .*vectors\.faiss.*Run: rag-index build --rebuild",
    ),
    "missing vectors": (
        lambda home: (generation(home) / "vectors.faiss").unlink(),
        r"is damaged: .*vectors\.faiss is missing.*Run: rag-index build --rebuild",
    ),
    "newer schema": (
        lambda home: rewritten(
            generation(home) / "manifest.json", lambda data: data.replace(b'"schema": 2', b'"schema": 99')
        ),
        r"has schema 99, this program reads 2: update the program",
    ),
    "another encoder": (
        lambda home: rewrite_manifest(home, other_encoder),
        r"built with 'bge-small' .* is 'all-MiniLM-L6-v2' .*Run: rag-index build --rebuild",
    ),
}


def fails(ran: Ran, code: int, says: str) -> None:
    """One line on stderr that matches, and nothing on stdout."""
    assert ran.code == code
    assert ran.out == ""
    line = ran.err.removesuffix("\n")
    assert line.startswith(("rag-app: ", "rag-app ask: "))
    assert len(line.splitlines()) == 1
    assert re.search(says, line)
    assert "Traceback" not in line


def fails_as_json(ran: Ran, code: int, says: str) -> None:
    """The same line on stderr, and on stdout one JSON object with it."""
    line = ran.json["error"]
    assert set(ran.json) == {"error"}
    fails(Ran(ran.code, "", ran.err), code, says)
    assert ran.err.endswith(f": {line}\n")


@pytest.mark.parametrize("name", BROKEN_INDEXES)
def test_an_index_that_cannot_be_used(name: str, home: Path, run: Any) -> None:
    breaks, says = BROKEN_INDEXES[name]
    breaks(home)
    before = snapshot(Path.cwd(), home)
    fails(run("ask", QUESTION), 1, says)
    fails_as_json(run("ask", QUESTION, "--json"), 1, says)
    assert snapshot(Path.cwd(), home) == before


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("", r"the question is empty: write one$"),
        (" \n\t", r"the question is empty: write one$"),
        ("okapi " * 15_000, r"the question is [\d,]+ tokens long, at most [\d,]+ can be searched for: shorten it"),
        ("okapi " * 20_000, r"the question has 120,000 characters: ask in at most 100,000"),
        # short for the encoder, which knows no such character, and long for the model
        ("🦒 " * 1_500 + "Where does the okapi live?", r"the question is too long: [\d,]+ tokens .* Shorten it"),
    ],
)
def test_a_question_that_cannot_be_asked(question: str, says: str, home: Path, run: Any) -> None:
    before = snapshot(Path.cwd(), home)
    fails(run("ask", question), 1, says)
    fails_as_json(run("ask", question, "--json"), 1, says)
    assert snapshot(Path.cwd(), home) == before


@pytest.mark.parametrize("how", ["missing", "folder", "not a GGUF", "empty", "cut", "no template"])
@pytest.mark.parametrize("by", ["option", "setting"])
def test_a_model_that_cannot_be_served(
    how: str, by: str, home: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    if how == "folder":
        file.mkdir()
    elif how in ("not a GGUF", "empty"):
        file.write_bytes(b"PK\x03\x04" * (how == "not a GGUF"))
    elif how == "cut":
        shutil.copyfile(locate(), file)
        os.truncate(file, file.stat().st_size // 2)
    elif how == "no template":
        edited(file, b"tokenizer.chat_template", b"tokenizer.chat_tempXate")
    says = rf"the model '{re.escape(str(file))}' .*[Gg]ive another with --model"
    given = ["--model", str(file)] if by == "option" else []
    if by == "setting":
        monkeypatch.setenv("RAG_MODEL", str(file))
    before = snapshot(Path.cwd(), home)
    fails(run("ask", QUESTION, *given), 1, says)
    fails_as_json(run("ask", QUESTION, *given, "--json"), 1, says)
    assert snapshot(Path.cwd(), home) == before
    if file.is_file():
        file.unlink()  # pytest would keep 100 MB


def test_an_encoder_that_does_not_exist(home: Path, run: Any) -> None:
    fails(run("ask", QUESTION, "--encoder", "./none"), 1, r"no encoder at '\./none': give a sentence-transformers")
    fails_as_json(run("ask", QUESTION, "--encoder", "./none", "--json"), 1, r"no encoder at '\./none'")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["ask"], "QUESTION"),
        (["answer", "x"], "invalid choice: 'answer'"),
        (["ask", QUESTION, "--nonsense"], "--nonsense"),
        (["ask", QUESTION, "another"], "another"),
        (["ask", QUESTION, "-k", "two"], "'two'"),
        (["ask", QUESTION, "--max-tokens", "0"], "max_tokens is 0: give a number from 1 up"),
        (["ask", QUESTION, "--max-tokens=-5"], "max_tokens is -5: give a number from 1 up"),
        (["ask", QUESTION, "--temperature", "hot"], "'hot'"),
        (["ask", QUESTION, "--temperature", "nan"], "temperature is nan: give a number from 0 to 100"),
        (["ask", QUESTION, "--temperature", "inf"], "temperature is inf: give a number from 0 to 100"),
        (["ask", QUESTION, "--temperature=-0.1"], "temperature is -0.1: give a number from 0 to 100"),
        (["ask", QUESTION, "--seed", "x"], "'x'"),
        (["ask", QUESTION, "--model"], "--model"),
        (["ask", QUESTION, "-k", "0"], "k is 0: give a whole number from 1 to 1,000"),
        (["ask", QUESTION, "--strategy", "reakt"], "there is no strategy 'reakt': did you mean 'react'?"),
        (["ask", QUESTION, "--engine", "llama"], "there is no engine 'llama': did you mean 'llama.cpp'?"),
        (["ask", QUESTION, "--precision", "int3"], "there is no precision 'int3'"),
        (["ask", QUESTION, "--quotes", "perhaps"], "quotes is 'perhaps': give on or off"),
        (["ask", QUESTION, "--min-confidence", "2"], "min_confidence is 2.0: give a number from 0 to 1"),
        (["ask", QUESTION, "--top-p", "1.5"], "top_p is 1.5: give a number from 0 to 1"),
        (["ask", QUESTION, "--seed", "9" * 11], "give a number from 0 to 4294967295"),
        (["ask", QUESTION, "--examples", ""], "examples is '': give the name of a JSONL file"),
        (["ask", QUESTION, "--tool", "my:tool"], "a --tool is used by the strategy react alone"),
        (["ask", QUESTION, "--stop", ""], "stop is ('',): give texts that are not empty"),
    ],
)
def test_bad_usage(arguments: list[str], says: str, no_home: Path, run: Any) -> None:
    fails(run(*arguments), 2, f"{re.escape(says)}.*See: rag-app.* --help$")
    fails_as_json(run("--json", *arguments) if not arguments else run(*arguments[:1], "--json", *arguments[1:]), 2, "")
    assert snapshot(Path.cwd(), no_home) == {str(Path.cwd()): "folder"}


# as a program of its own


def test_a_hostile_folder_and_a_question_in_bytes_that_are_no_text(home: Path) -> None:
    """The current folder may hold anybody's documents: no Python file in it is imported. Nor are bytes all UTF-8."""
    for name in ("queue", "json", "codecs", "threading", "llama_cpp", "torch", "sitecustomize", "rag_app"):
        Path(f"{name}.py").write_text(f"open('ran', 'a').write('{name} ')\nraise SystemExit('{name} was run')\n")
    done = subprocess.run(
        [*map(os.fsencode, COMMAND), b"ask", b"caf\xe9 okapi?", b"--json", b"--max-tokens", b"1"], capture_output=True
    )
    assert not Path("ran").exists()
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["question"] == "caf\ufffd okapi?"


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET") or sys.platform == "darwin", reason="needs SOCK_SEQPACKET")
def test_the_answer_is_written_piece_by_piece(home: Path, run: Any) -> None:
    # This kind of socket keeps writes apart, so each flush is seen as such, however late it is read.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([*COMMAND, "ask", QUESTION, *SHORT], stdout=theirs, stderr=subprocess.PIPE, env=buffered)
    theirs.close()
    pieces = list(iter(lambda: ours.recv(100_000), b""))
    _, err = process.communicate()
    ours.close()
    assert (process.returncode, err) == (0, b"")
    answer = b"".join(pieces).partition(b"\n\nSources:")[0]
    assert b"14 euros" in answer
    assert answer.startswith(b"".join(pieces[:4]))
    assert len(answer) > len(b"".join(pieces[:4]))
    assert b"".join(pieces).decode() == run("ask", QUESTION, *SHORT).out  # another process, the same bytes


@pytest.fixture
def asking(home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`rag-app ask` in the middle of an answer."""
    question = "Where does the okapi live, and how long is its tongue? Describe both at length."
    process = subprocess.Popen(
        [*COMMAND, "ask", question, "--temperature", "1.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
        bufsize=0,
    )
    assert process.stdout
    assert process.stdout.read(1)
    yield process
    process.kill()
    process.communicate()


def worker_of(process: "subprocess.Popen[bytes]") -> int:
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return next(pid for pid in pids if b"rag_app.engines.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in /proc: Linux only")
def test_interrupted_in_mid_answer_is_one_line_and_leaves_no_process(asking: "subprocess.Popen[bytes]") -> None:
    pid = worker_of(asking)
    os.kill(pid, signal.SIGSTOP)  # holds the answer where it is
    asking.send_signal(signal.SIGINT)
    os.kill(pid, signal.SIGCONT)
    _, err = asking.communicate()
    assert asking.returncode == 130
    assert err == b"rag-app: interrupted; nothing is lost, run it again to go on\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in /proc: Linux only")
def test_a_worker_killed_in_mid_answer_is_one_line(asking: "subprocess.Popen[bytes]") -> None:
    os.kill(worker_of(asking), signal.SIGKILL)
    out, err = asking.communicate()
    assert asking.returncode == 1
    assert re.fullmatch(rb"rag-app: the process that runs the model ended \(SIGKILL.*Ask again.*\n", err)
    assert out.endswith(b"\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in ((["--help"], "ask"), (["ask", "--help"], "--max-tokens"), (["--version"], "rag-app ")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        assert says in capsys.readouterr().out


def test_the_program_is_installed() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "rag-app", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("rag-app ")
