"""The command rag-index: what it prints for people and for programs, exit codes, progress bars, broken pipes."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from index import BuildReport, IndexBusy, NoDocuments, build
from index.cli import BUSY, main, reports
from tests.conftest import WordEncoder, copy_of

RAG_INDEX = str(Path(sys.executable).with_name("rag-index"))

BUILD_KEYS = {
    *("generation", "files_seen", "files_indexed", "files_unchanged", "files_removed", "files_failed", "files_skipped"),
    *("warnings", "chunks", "chunks_encoded", "seconds"),
}
HIT_KEYS = {
    *("rank", "score", "chunk_id", "source", "page", "heading", "start", "end", "text", "cosine", "bm25", "also"),
    "boxes",
}
STATUS_KEYS = {
    *("index", "generation", "files", "files_failed", "chunks", "roots", "encoder", "chunker", "faiss", "bytes"),
    *("built_at", "lexical", "passages", "patterns", "removed"),
}


def rag_index(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [RAG_INDEX, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command within this process: exit code, stdout, stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def one_object(out: str) -> dict[str, Any]:
    """The JSON object on stdout, which must stand alone there."""
    assert out.endswith("}\n") and out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.fixture
def words(facts: Path, tmp_path: Path) -> Path:
    """An index of the small documents and of one that fails, by the tiny encoder; for `status`, which needs none."""
    docs = copy_of(facts, tmp_path / "docs")
    (docs / "naïve.pdf").write_bytes(b"no PDF")
    (docs / "table.xyz").write_text("a,b")
    build([docs], tmp_path / "words", encoder=WordEncoder())
    return tmp_path / "words"


# --- for programs


def test_build_json(facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs, directory = copy_of(facts, tmp_path / "docs"), tmp_path / "index"
    (docs / "broken.pdf").write_bytes(b"no PDF")
    (docs / "table.xyz").write_text("a,b")
    code, out, err = run(capsys, "build", docs, "--index", directory, "--json")
    report = one_object(out)
    assert (code, err, set(report)) == (0, "", BUILD_KEYS)
    assert report["files_failed"] == [{"path": str(docs / "broken.pdf"), "error": "the content is not a PDF"}]
    assert report["files_skipped"] == [{"path": str(docs / "table.xyz"), "reason": "files of type '.xyz' are not read"}]
    assert (report["generation"], report["files_seen"], report["files_indexed"]) == ("gen-000001", 4, 3)
    assert report["chunks"] == report["chunks_encoded"] >= 3 and report["seconds"] > 0

    (docs / "lunch.txt").unlink()
    code, out, err = run(capsys, "build", "--json", "--index", directory)
    report = one_object(out)
    assert (code, err, report["files_removed"], report["files_unchanged"]) == (0, "", 1, 2)
    code, out, err = run(capsys, "build", "--json", "--index", directory, "--rebuild", docs / "animals.md")
    assert (code, err, one_object(out)["files_seen"]) == (0, "", 1)


def test_search_json(real_index: Path, facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "How long is the okapi's tongue – in centimètres?"
    code, out, err = run(capsys, "search", question, "-k", "2", "--index", real_index, "--json")
    answer = one_object(out)
    assert (code, err, set(answer), answer["query"]) == (0, "", {"query", "mode", "hits"}, question)
    assert [set(hit) for hit in answer["hits"]] == [HIT_KEYS] * 2
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2]
    first = answer["hits"][0]
    assert first["source"] == str(facts / "animals.md") and "45 centimetres" in first["text"]
    assert (facts / "animals.md").read_text()[first["start"] : first["end"]] == first["text"]


def test_status_json(words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "status", "--index", words, "--json")
    status = one_object(out)
    assert (code, err, set(status)) == (0, "", STATUS_KEYS)
    assert (status["files"], status["index"], status["generation"]) == (3, str(words), "gen-000001")
    assert status["files_failed"] == [
        {"path": str(words.parent / "docs" / "naïve.pdf"), "error": "the content is not a PDF"}
    ]


# --- for people


def test_build_text(facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    docs = copy_of(facts, tmp_path / "docs")
    (docs / "broken.pdf").write_bytes(b"no PDF")
    for name in ("table.xyz", "other.xyz", "thing.unknown"):
        (docs / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "build", "docs")
    first, *rest = out.splitlines()
    assert (code, err) == (0, "")
    assert first.startswith("gen-000001: ") and "3 files read, 0 unchanged, 0 removed, 1 failed, in " in first
    assert rest == [
        "  failed: docs/broken.pdf: the content is not a PDF",
        "  passed over: 3 files of other kinds (2 .xyz, 1 .unknown)",
    ]
    assert (tmp_path / "rag-home" / "index" / "CURRENT").exists()


def test_search_text(real_index: Path, facts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(facts)
    code, out, err = run(capsys, "search", "engine oil change", "--index", real_index, "-k", "1")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("[1] 1.000  ") and lines[0].endswith("  engine.html · Engine > Oil")
    assert "    Change the oil every 7500 kilometres." in lines


def test_status_text(words: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(words.parent)
    code, out, err = run(capsys, "status", "--index", words)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith(f"{words}: gen-000001 of 2") and lines[0].endswith(" MB")
    assert lines[1].startswith("  3 files, ") and lines[1].endswith(" passages, under docs")
    assert lines[2:] == [
        "  encoder words, 64 dimensions, fp32; SQfp16",
        "  failed: docs/naïve.pdf: the content is not a PDF",
    ]


def test_documents_cannot_command_the_terminal(
    tmp_path: Path, real_encoder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "docs" / "bad\x1b[2Jname.md"
    path.parent.mkdir()
    path.write_text(
        "# Title \x1b]0;owned\n\nred \x1b[31m text \x9b2J with \u202e words\n" + "More words of no colour.\n" * 40
    )
    build([path.parent], tmp_path / "index", encoder=real_encoder)
    code, out, _ = run(capsys, "search", "red text", "--index", tmp_path / "index")
    assert code == 0 and "text" in out
    assert all(c.isprintable() or c == "\n" for c in out)


# --- failures


FAILURES = [
    (["search", "okapi", "--index", "{tmp}/none"], "there is no index at '{tmp}/none'. Run: rag-index build FOLDER"),
    (["status", "--index", "{tmp}/none"], "there is no index at '{tmp}/none'. Run: rag-index build FOLDER"),
    (["status"], "there is no index at '{tmp}/rag-home/index'. Run: rag-index build FOLDER"),
    (["build"], "no folder to index is given. Run: rag-index build FOLDER"),
    (["build", "{tmp}/none"], "'{tmp}/none' does not exist: check the path"),
    (["build", "{tmp}/one\ntwo"], "'{tmp}/one two' does not exist: check the path"),
    (["build", "{tmp}/empty"], "no document under '{tmp}/empty': give a folder with"),
    (["build", "{tmp}/docs", "--encoder", "./none"], "no encoder at './none': give a sentence-transformers folder"),
    (["build", "{tmp}/docs", "--index", "{tmp}/docs/lunch.txt"], "'{tmp}/docs/lunch.txt' is a file: name a folder"),
    (
        ["search", "okapi", "--index", "{tmp}/words"],
        "the index was built with 'words' (64), the encoder is 'all-MiniLM",
    ),
    (["build", "{tmp}/docs", "--rebuild", "--index", "{tmp}/words", "--encoder", "/none"], "no encoder at '/none'"),
    (["search", " ", "--index", "{tmp}/words"], "the question is empty: write one"),
    (["search", "okapi", "-k", "0", "--index", "{tmp}/words"], "0 passages are asked for: ask for at least 1"),
    (["search", "word " * 20_000, "--index", "{real}"], "the question is 20,000 tokens long, at most 2,032"),
    (["status", "--index", "{tmp}/harmed"], "the index at '{tmp}/harmed' is damaged: its pointer names 'x', which"),
    (["search", "okapi", "--index", "{tmp}/harmed"], "Run: rag-index build --rebuild FOLDER --index {tmp}/harmed"),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("arguments", "told"), FAILURES)
def test_a_failure_is_one_line_and_exit_code_1(
    words: Path, real_index: Path, capsys: pytest.CaptureFixture[str], as_json: bool, arguments: list[str], told: str
) -> None:
    tmp = words.parent
    (tmp / "empty").mkdir()
    (tmp / "harmed").mkdir()
    (tmp / "harmed" / "CURRENT").write_text("x")
    filled = [argument.replace("{tmp}", str(tmp)).replace("{real}", str(real_index)) for argument in arguments]
    code, out, err = run(capsys, *filled, *(["--json"] if as_json else []))
    assert code == 1
    assert err.startswith("rag-index: ") and err.count("\n") == 1 and err.endswith("\n")
    assert told.replace("{tmp}", str(tmp)) in err
    if as_json:
        assert one_object(out) == {"error": err.removeprefix("rag-index: ").rstrip("\n")}
    else:
        assert out == ""


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    ("arguments", "prog"),
    [
        ([], "rag-index"),
        (["nonsense"], "rag-index"),
        (["search"], "rag-index search"),
        (["search", "okapi", "-k", "many"], "rag-index search"),
        (["search", "two", "questions"], "rag-index"),
        (["build", "--nonsense"], "rag-index"),
        (["status", "--index"], "rag-index status"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], as_json: bool, arguments: list[str], prog: str
) -> None:
    given = ["--json", *arguments] if as_json and not arguments else [*arguments, *(["--json"] if as_json else [])]
    code, out, err = run(capsys, *given)
    assert code == 2
    assert err.startswith(f"{prog}: ") and err.count("\n") == 1 and err.endswith(f" See: {prog} --help\n")
    if as_json:
        assert one_object(out) == {"error": err.removeprefix(f"{prog}: ").rstrip("\n")}
    else:
        assert out == ""


# --- as a process


def test_exit_codes_of_the_process(words: Path, tmp_path: Path) -> None:
    done = rag_index("status", "--index", words, "--json")
    assert (done.returncode, done.stderr, set(one_object(done.stdout))) == (0, "", STATUS_KEYS)
    done = rag_index("status", "--json")
    assert (done.returncode, set(one_object(done.stdout)), done.stderr.count("\n")) == (1, {"error"}, 1)
    done = rag_index("nonsense")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["search", "--help"], ["status", "--help"]])
def test_help_names_the_command_and_its_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: " + " ".join(["rag-index", *arguments[:-1]])) and err == ""
    assert all(
        option in out for option in (["--json", "--index"] if len(arguments) > 1 else ["build", "search", "status"])
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_any_encoding_of_the_terminal_is_served(words: Path, encoding: str, as_json: list[str]) -> None:
    (words.parent / "docs" / "→日本.pdf").write_bytes(b"no PDF")
    build([], words, encoder=WordEncoder())
    command = [RAG_INDEX, "status", "--index", str(words), *as_json]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    if as_json:
        assert [Path(row["path"]).name for row in one_object(out)["files_failed"]] == ["naïve.pdf", "→日本.pdf"]
    else:
        assert out.count("failed: ") == 2 and (encoding != "utf-8" or "→日本.pdf" in out)


def test_a_reader_that_has_gone_or_a_full_disk_is_no_traceback(words: Path) -> None:
    for arguments in (
        ["status", "--index", str(words)],
        ["status", "--index", str(words), "--json"],
        ["status", "--json"],
    ):
        reading, writing = os.pipe()
        os.close(reading)
        full = [os.open("/dev/full", os.O_WRONLY)] if Path("/dev/full").exists() else []
        for stdout in (writing, *full):
            done = subprocess.run([RAG_INDEX, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True)
            os.close(stdout)
            assert "Traceback" not in done.stderr and "Exception" not in done.stderr
            assert done.returncode == 1


def test_search_into_head(real_index: Path) -> None:
    command = f"'{RAG_INDEX}' search 'where does the okapi live' --index '{real_index}' | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[1] 1.000  ") and done.stdout.count("\n") == 1


def test_progress_bars_only_on_a_terminal_and_a_build_that_is_stopped_goes_on(tmp_path: Path) -> None:
    docs, directory = tmp_path / "docs", tmp_path / "index"
    docs.mkdir()
    words = "the quick brown fox jumps over the lazy dog near the bank of the wide river in the warm evening sun again "
    (docs / "long.md").write_text("".join(f"# Section {n}\n\n{words * 3}{n}.\n\n" for n in range(70)))
    command = [RAG_INDEX, "build", str(docs), "--index", str(directory), "--json"]

    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        while b"encoding" not in shown:
            shown += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while data := os.read(terminal, 4096):
                shown += data
        except OSError:  # Linux says so when the other side has closed the terminal
            pass
        out = process.stdout.read() if process.stdout else ""
    os.close(terminal)
    assert process.returncode == 130
    assert b"reading: " in shown and b"encoding:   0%|" in shown and b"Traceback" not in shown
    told = "interrupted; nothing is lost, run it again to go on"
    assert shown.endswith(f"rag-index: {told}\r\n".encode())
    assert one_object(out) == {"error": told}
    assert not (directory / "CURRENT").exists()

    done = rag_index(*command[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert one_object(done.stdout)["chunks"] == 70


# --- care of an index


def test_verify(words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "gen-000001: every file, count and vector is as it was written\n"
    assert run(capsys, "verify", "--index", words) == (0, told, "")
    code, out, err = run(capsys, "verify", "--index", words, "--json")
    assert (code, one_object(out), err) == (0, {"generation": "gen-000001", "faults": []}, "")
    path = words / "gen-000001" / "vectors.faiss"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, out, err = run(capsys, "verify", "--index", words)
    assert code == 1 and out.startswith("  damaged: ") and "vectors.faiss has changed since it was written" in out
    assert err == f"rag-index: 1 faults. Run: rag-index build --rebuild FOLDER --index {words}\n"
    code, out, err = run(capsys, "verify", "--index", words, "--json")
    answer = one_object(out)
    assert (code, len(answer["faults"]), err) == (1, 1, f"rag-index: {answer['error']}\n")


def test_rm_gc_and_build(words: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(words.parent)
    code, out, err = run(capsys, "rm", "docs/lunch.txt", "--index", words)
    assert (code, out, err) == (0, "gen-000002: 1 documents taken out, 2 passages left\n", "")
    assert "  kept out: docs/lunch.txt\n" in run(capsys, "status", "--index", words)[1]
    code, out, _ = run(capsys, "build", "docs", "--index", words)
    assert code == 0 and out.startswith("gen-000002: ") and "  passed over: 1 × taken out by rm\n" in out
    code, out, err = run(capsys, "rm", "docs/lunch.txt", "--index", words, "--json")
    told = "the index holds nothing at 'docs/lunch.txt'. What it holds: rag-index status --json"
    assert (code, one_object(out), err) == (1, {"error": told}, f"rag-index: {told}\n")
    code, out, err = run(capsys, "rm", "docs", "--index", words)
    assert code == 1 and err.startswith("rag-index: nothing would be left in the index: remove its folder instead")
    code, out, err = run(capsys, "gc", "--index", words, "--json")
    assert (code, err) == (0, "") and one_object(out)["bytes_freed"] > 10_000
    assert run(capsys, "gc", "--index", words) == (0, "0.0 MB freed\n", "")
    assert sorted(path.name for path in words.glob("gen-*")) == ["gen-000002"]


def test_export(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "export", "--index", words, "--out", tmp_path / "a" / "b", "--json")
    corpus = tmp_path / "a" / "b" / "corpus.jsonl"
    assert (code, err, one_object(out)) == (0, "", {"corpus": str(corpus), "passages": 3})
    rows = [json.loads(line) for line in corpus.read_text("utf-8").splitlines()]
    assert len(rows) == 3 and all({"_id", "title", "text"} <= set(row) for row in rows)
    code, out, err = run(capsys, "export", "--index", words, "--out", corpus)
    assert (code, out, err) == (1, "", f"rag-index: '{corpus}' is a file: name a folder to write to (--out)\n")
    assert run(capsys, "export", "--index", tmp_path / "none", "--out", tmp_path / "c")[0] == 1
    assert not (tmp_path / "c").exists()


def test_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "corpus": '{"_id": "d1", "title": "", "text": "The okapi."}\n{"_id": "d2", "title": "", "text": "Oil."}\n',
        "queries": '{"_id": "q1", "text": "okapi"}\n',
        "qrels": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    given: list[str | Path] = ["--mode", "lexical", "--index", tmp_path / "index"]
    for name, text in files.items():
        path = tmp_path / f"{name}.{'tsv' if name == 'qrels' else 'jsonl'}"
        path.write_text(text)
        given += [f"--{name}", path]
    code, out, err = run(capsys, "eval", *given, "--json")
    scores = one_object(out)
    assert (code, err, scores["mode"], scores["passages"], scores["ndcg@10"]) == (0, "", "lexical", 2, 1.0)
    code, out, err = run(capsys, "eval", *given)
    assert (code, err) == (0, "") and "ndcg@10              1.0000\n" in out
    code, out, err = run(capsys, "eval", *given, "--queries", tmp_path / "none.jsonl")
    assert code == 1 and err.count("\n") == 1 and "none.jsonl" in err
    assert run(capsys, "eval", "--corpus", "x")[0] == 2


def test_search_options(real_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hits(*options: str) -> list[dict[str, Any]]:
        code, out, err = run(capsys, "search", "the okapi and the oil", "--index", real_index, "--json", *options)
        assert (code, err) == (0, "")
        found: list[dict[str, Any]] = one_object(out)["hits"]
        return found

    names = [{Path(hit["source"]).name for hit in hits("--filter", f)} for f in ("format=html", "source=*.md")]
    assert names == [{"engine.html"}, {"animals.md"}]
    assert {Path(hit["source"]).name for hit in hits("--filter", "format=html", "--filter", "format=md")} == {
        "engine.html",
        "animals.md",
    }
    assert hits("--filter", "page=7") == []
    lexical, dense = hits("--mode", "lexical"), hits("--mode", "dense")
    assert all(hit["cosine"] is None for hit in lexical) and all(hit["bm25"] is None for hit in dense)
    code, out, err = run(capsys, "search", "okapi", "--index", real_index, "--filter", "page=7")
    assert (code, out, err) == (0, "no passage matches\n", "")
    for filters, told in [
        (["page=x"], "'x' is no page: give a number or a range, as in page=2-5"),
        (["nope"], "the filter 'nope' is not of the form key=value"),
        (["a=b"], "there is no filter 'a': use source, format, title, heading, page"),
    ]:
        code, out, err = run(capsys, "search", "okapi", "--index", real_index, "--filter", *filters)
        assert (code, out) == (1, "") and err.startswith(f"rag-index: {told}") and err.count("\n") == 1


def test_copies_are_named_and_many_are_counted(
    tmp_path: Path, real_encoder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(9):
        (tmp_path / "docs" / f"{number}.md").write_text("# Okapi\n\nThe okapi lives in the Ituri rainforest.\n")
    build([tmp_path / "docs"], tmp_path / "index", encoder=real_encoder)
    monkeypatch.chdir(tmp_path)
    _, out, _ = run(capsys, "search", "okapi", "--index", "index", "--mode", "lexical")
    assert [line for line in out.splitlines() if (" in " in line and "docs" in line) or "more" in line] == [
        *(f"    also in docs/{number}.md" for number in (1, 2, 3)),
        "    and in 5 more documents",
    ]


def test_strict_fails_where_a_document_does(words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "build", "--index", words)[0] == 0
    code, out, err = run(capsys, "build", "--index", words, "--strict")
    told = "1 documents could not be read; the others are in the index"
    assert (code, err) == (1, f"rag-index: {told}\n") and "failed: " in out
    code, out, _ = run(capsys, "build", "--index", words, "--strict", "--json")
    answer = one_object(out)
    assert (code, answer["error"], len(answer["files_failed"])) == (1, told, 1)


# --- builds of a watch


class Told(list[str]):
    """What builds give, one after the other, and what is told and waited for meanwhile."""

    def __init__(self, *outcomes: BuildReport | Exception) -> None:
        super().__init__()
        self.outcomes = list(outcomes)

    def build(self) -> BuildReport:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def wait(self, seconds: float) -> None:
        assert seconds == BUSY
        self.append("waits")

    def run(self, batches: int) -> list[str]:
        return [report.generation for report in reports(range(batches), self.build, self.wait, self.append)]


ONE, TWO = BuildReport("gen-1", 1), BuildReport("gen-2", 1)
FULL = OSError(28, "No space left on device", "/index/chunks.sqlite3")


def test_a_watch_waits_for_another_build_and_loses_no_change() -> None:
    busy = [IndexBusy(f"another build (process {n}) of '/i' is running: wait for it to end") for n in (1, 1, 2)]
    told = Told(*busy, ONE, busy[0], TWO)
    assert told.run(2) == ["gen-1", "gen-2"]
    line = "another build (process 1) of '/i' is running: wait for it to end, then the changes are built"
    assert told == [line, "waits", "waits", "waits", line, "waits"]


def test_a_watch_outlives_a_full_disk_and_says_each_failure_once_in_a_row() -> None:
    told = Told(FULL, FULL, NoDocuments("nothing"), NoDocuments("nothing"), FULL, ONE, FULL, TWO)
    assert told.run(8) == ["gen-1", "gen-2"]
    full = (
        "No space left on device '/index/chunks.sqlite3': make room or check the permissions; the next change is built"
    )
    assert told == [full, "nothing", full, full]


def test_a_watch_that_waits_can_be_interrupted() -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    told = Told(IndexBusy("busy"), ONE)
    with pytest.raises(KeyboardInterrupt):
        list(reports(range(1), told.build, interrupted, told.append))
