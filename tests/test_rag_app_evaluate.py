"""Every score by hand on a few questions, what may fail on the way, and `rag-app eval` with the real model."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index import Hit, Index, console
from index.beir import DatasetInvalid
from rag_app.answer import Answer, Step
from rag_app.citations import Citation
from rag_app.commands import calibrate as calibrate_command
from rag_app.commands import eval as eval_command
from rag_app.errors import WorkerDied
from rag_app.evaluate import Evaluation, evaluate, index_corpus, is_evidence, sample
from rag_app.questions import Evidence, Question, read_questions
from tests.conftest import WordEncoder

ROWS = [
    {"_id": "okapi", "title": "Okapi", "text": "The okapi lives in the Ituri rainforest."},
    {"_id": "lunch", "title": "Lunch", "text": "The lunch allowance is 14 euros a day."},
    {"_id": "AC/DC", "title": "Oil", "sentences": ["Change the oil every 7500 kilometres.", "Use a funnel."]},
    {"_id": "DC", "title": "Gills", "text": "The axolotl keeps its gills for life."},
]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def hit(rank: int = 1, text: str = "", source: str = "/docs/a.md", **fields: Any) -> Hit:
    return Hit(rank, 1.0, f"chunk {rank}", source, None, "", 0, len(text), text, 0.5, 1.0, **fields)


class Script:
    """Answers each question as it was told to; an exception is raised."""

    def __init__(self, index: Index, told: dict[str, Any]) -> None:
        self._index, self._told = index, told

    def index(self) -> Index:
        return self._index

    def ask(self, question: str) -> Answer:
        told = self._told[question]
        if isinstance(told, BaseException):
            raise told
        assert isinstance(told, Answer)
        return told


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return written(tmp_path / "corpus.jsonl", *ROWS)


@pytest.fixture
def indexed(corpus: Path, encoder: WordEncoder) -> Iterator[tuple[Index, str]]:
    directory, prefix = index_corpus(corpus, encoder)
    with Index.open(directory, encoder) as index:
        yield index, prefix


def said(text: str, *cites: int, hits: tuple[str, ...] = ("14 euros a day", "nothing"), **fields: Any) -> Answer:
    passages = [hit(rank, passage) for rank, passage in enumerate(hits, 1)]
    citations = [Citation(n, "/docs/a.md", None, 0, 1, passages[n - 1].text) for n in cites]
    return Answer("?", text, citations=citations, hits=passages, **fields)


LUNCH = Question("l", "What is the lunch allowance?", ("14 euros", "fourteen euros"), True, (Evidence(("lunch",)),))
OIL = Question("o", "When to change the oil?", ("every 7500 kilometres",), True, (Evidence(("AC/DC",)),))
NONE = Question("n", "Who pays for dinner?", (), False)
BARE = Question("b", "Anything else?")


def test_every_score_by_hand(indexed: tuple[Index, str]) -> None:
    bot = Script(
        indexed[0],
        {
            LUNCH.question: said("14 euros. [1]", 1, 2),
            OIL.question: said("The documents do not say.", refused=True),
            NONE.question: said("The documents do not say.", refused=True),
            BARE.question: said("Something.", steps=[Step(1, "", "search", "x", "y")], usage={"prompt_tokens": 8}),
        },
    )
    report = evaluate(bot, [LUNCH, OIL, NONE, BARE], prefix=indexed[1]).report()
    assert json.loads(json.dumps(report)) == report
    assert report["n"] == 4
    assert report["answers"] == {"em": 0.666667, "f1": 0.666667, "em_answerable": 0.5, "f1_answerable": 0.5}
    assert report["retrieval"] == {"recall@1": 1.0, "recall@5": 1.0, "ndcg@10": 1.0}
    assert report["refusal"] == {"precision": 0.5, "recall": 1.0, "f1": 0.666667}
    assert report["citations"] == {"precision": 0.5, "recall": 1.0}
    assert report["counts"] == {
        "answers": {"em": 3, "f1": 3, "em_answerable": 2, "f1_answerable": 2},
        "retrieval": {"recall@1": 2, "recall@5": 2, "ndcg@10": 2},
        "refusal": {"precision": 2, "recall": 1, "f1": 3},
        "citations": {"precision": 2, "recall": 1},
    }
    assert report["intervals"]["retrieval"]["recall@1"] == [1.0, 1.0]
    assert report["intervals"]["answers"]["em"] == [0.0, 1.0]
    assert (report["steps"], report["tokens"]["prompt"]) == (0.25, 2.0)
    assert [row["id"] for row in report["worst"]] == ["o"]
    assert (report["errors"], report["interrupted"]) == ([], False)


def test_markers_and_nothing_else_are_left_out_before_comparing(indexed: tuple[Index, str]) -> None:
    for text, em in (("14 [1] euros [1, 2].", 1), ("14 euros [yes]", 0), ("[14 euros][3]", 1), ("14 euros (a day)", 0)):
        bot = Script(indexed[0], {LUNCH.question: said(text)})
        assert evaluate(bot, [LUNCH]).results[0].em == em, text


def test_to_answer_what_has_no_answer_is_wrong_however_short(indexed: tuple[Index, str]) -> None:
    for text in ("Ann does.", "", "the"):
        bot = Script(indexed[0], {NONE.question: said(text)})
        assert evaluate(bot, [NONE]).report()["answers"]["f1"] == 0, text


def test_a_question_that_fails_is_wrong_and_listed(indexed: tuple[Index, str]) -> None:
    told = {LUNCH.question: WorkerDied("the model\nended"), NONE.question: ValueError("odd"), OIL.question: said("no")}
    report = evaluate(Script(indexed[0], told), [LUNCH, NONE, OIL]).report()
    assert report["errors"] == [{"id": "l", "error": "the model ended"}, {"id": "n", "error": "ValueError: odd"}]
    assert (report["n"], report["counts"]["answers"]["em"], report["answers"]["em"]) == (3, 3, 0.0)
    assert report["refusal"]["recall"] == 0
    assert report["counts"]["citations"]["recall"] == 1  # of what was answered
    assert report["worst"][0]["error"]


def test_a_search_that_fails_is_told_like_an_answer_that_does(indexed: tuple[Index, str]) -> None:
    indexed[0].close()
    report = evaluate(Script(indexed[0], {LUNCH.question: said("14 euros")}), [LUNCH]).report()
    assert report["errors"] == [{"id": "l", "error": "the index is closed: open it again"}]
    assert (report["answers"]["em"], report["retrieval"]["recall@5"]) == (0, 0)


def test_interrupted_is_told_with_what_was_done(indexed: tuple[Index, str]) -> None:
    lines: list[str] = []
    bot = Script(indexed[0], {LUNCH.question: said("14 euros"), OIL.question: KeyboardInterrupt()})
    done = evaluate(bot, [LUNCH, OIL, NONE], each=lambda result: lines.append(result.question.id))
    report = {**done.report(), "asked": 3}
    assert (report["n"], report["interrupted"], lines) == (1, True, ["l"])
    with pytest.raises(console.Failed, match="1 of 3 questions") as error:
        eval_command.fail_if_needed(report)
    assert error.value.result is report
    with pytest.raises(KeyboardInterrupt):
        evaluate(bot, [OIL, LUNCH])


def test_all_failed_is_a_failure(indexed: tuple[Index, str]) -> None:
    report = evaluate(Script(indexed[0], {OIL.question: WorkerDied("gone")}), [OIL]).report()
    with pytest.raises(console.Failed, match="the first: gone"):
        eval_command.fail_if_needed({**report, "asked": 1})


def test_a_report_on_nothing_has_every_number() -> None:
    report = Evaluation().report()
    assert report["n"] == 0
    assert all(value == 0.0 for group in ("answers", "retrieval", "refusal") for value in report[group].values())
    assert report["intervals"]["answers"]["em"] is None


def test_retrieval_is_by_the_best_passage_of_a_document(tmp_path: Path, encoder: WordEncoder) -> None:
    long = "\n\n".join(f"The oil of part {n} is changed by hand. " * 12 for n in range(12))
    corpus = written(tmp_path / "c.jsonl", {"_id": "long", "text": long}, {"_id": "b", "text": "Funnels are changed."})
    directory, prefix = index_corpus(corpus, encoder)
    question = Question("q", "When is oil changed by hand?", ("x",), True, (Evidence(("long",)), Evidence(("b",))))
    with Index.open(directory, encoder) as index:
        assert len({found.source for found in index.search(question.question, 5)}) == 1  # five passages of one
        bot = Script(index, {question.question: said("x")})
        report = evaluate(bot, [question], prefix=prefix).report()
    assert report["retrieval"] == {"recall@1": 0.5, "recall@5": 1.0, "ndcg@10": 1.0}


def test_evidence_is_found_by_id_or_path_and_by_the_words_it_has() -> None:
    here = "/eval/corpus.jsonl#"
    assert is_evidence(Evidence(("DC",)), hit(source=f"{here}DC"), here)
    assert not is_evidence(Evidence(("DC",)), hit(source=f"{here}AC/DC"), here)
    assert is_evidence(Evidence(("DC",)), hit(source=f"{here}x", also=[f"{here}DC"]), here)  # a copy
    assert is_evidence(Evidence(("DC",)), hit(source="/any/where.jsonl#DC"))
    path = Evidence(("docs/a.md", "docs/b.md"), "The answer is\n14 euros.")
    assert is_evidence(path, hit(text="So: The answer  is 14\neuros. Yes.", source="/home/docs/b.md"))
    assert is_evidence(path, hit(text="is 14 euros. That is so.", source="/home/docs/b.md"))  # cut by the chunker
    assert not is_evidence(path, hit(text="The answer is 15 dollars.", source="/home/docs/c.md"))
    assert not is_evidence(path, hit(text="Something else", source="/home/docs/b.md"))
    assert not is_evidence(path, hit(text="The answer is 14 euros.", source="/home/mydocs/b.md"))


def test_citations_need_an_answer_that_a_passage_can_hold(indexed: tuple[Index, str]) -> None:
    question = replace(LUNCH, answers=("Yes",))
    report = evaluate(Script(indexed[0], {LUNCH.question: said("Yes. [1]", 1)}), [question]).report()
    assert report["counts"]["citations"] == {"precision": 0, "recall": 0}


def test_a_corpus_is_indexed_once_and_followed(corpus: Path, encoder: WordEncoder) -> None:
    directory, prefix = index_corpus(corpus, encoder)
    with Index.open(directory, encoder) as index:
        sources = {found.source for found in index.search("oil kilometres funnel", 10)}
        assert f"{prefix}AC/DC" in sources
        assert "Change the oil every 7500 kilometres. Use a funnel." in index.search("oil funnel", 1)[0].text
        first = index.name
    encoder.encoded.clear()
    assert index_corpus(corpus, encoder) == (directory, prefix)
    with Index.open(directory, encoder) as index:
        assert index.name == first
    assert not encoder.encoded
    written(corpus, ROWS[0])
    index_corpus(corpus, encoder)
    with Index.open(directory, encoder) as index:
        assert {found.source for found in index.search("oil okapi", 10)} == {f"{prefix}okapi"}


def test_a_bad_corpus_leaves_the_index_as_it_was(corpus: Path, encoder: WordEncoder) -> None:
    directory, _ = index_corpus(corpus, encoder)
    written(corpus, ROWS[0], "{")
    with pytest.raises(DatasetInvalid, match=r"corpus\.jsonl', line 2"):
        index_corpus(corpus, encoder)
    with Index.open(directory, encoder) as index:
        assert len(index.search("oil okapi lunch axolotl", 10)) == 4


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order() -> None:
    questions = [Question(str(n), "?") for n in range(100)]
    drawn = sample(questions, 10, 0)
    assert drawn == sample(questions, 10, 0) != sample(questions, 10, 1)
    assert [int(q.id) for q in drawn] == sorted(int(q.id) for q in drawn)
    assert len({q.id for q in drawn}) == 10
    assert sample(questions, 100, 0) == sample(questions, None, 0) == questions


# The commands

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        root = console.parser("rag-app", "")
        commands: argparse._SubParsersAction[Any] = root.add_subparsers(required=True)
        eval_command.add(commands)
        calibrate_command.add(commands)
        capsys.readouterr()
        code = console.run(root, list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


SMALL = (
    {"id": "l", "question": "How much is the lunch allowance a day?", "answers": ["14 euros"], "paragraph_id": "lunch"},
    {"id": "n", "question": "Who won the chess world cup in 1997?", "answers": [], "answerable": False},
)


@pytest.mark.slow
def test_eval_with_the_real_model(run: Run, corpus: Path, tmp_path: Path) -> None:
    questions = written(tmp_path / "q.jsonl", *SMALL)
    out = tmp_path / "rows.jsonl"
    evaluate = ("eval", questions, "--corpus", corpus, "--json", "--max-tokens", 32, "--strategy", "zero-shot")
    code, stdout, stderr = run(*evaluate, "--out", out, "--adapter", "off")
    assert (code, stderr) == (0, "")
    report = json.loads(stdout)
    assert (report["n"], report["asked"], report["strategy"], report["adapter"]) == (2, 2, "zero-shot", "off")
    assert report["model"].endswith(".gguf")
    assert report["retrieval"]["recall@1"] == 1
    assert report["refusal"] == {"precision": 1, "recall": 1, "f1": 1}  # nothing in the corpus has to do with chess
    assert report["answers"]["f1"] >= 0.5  # of the refusal
    assert report["tokens"]["prompt"] > 20
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(row["id"], row["refused"], row["error"]) for row in rows] == [("l", False, ""), ("n", True, "")]
    assert rows[0]["answer"]
    code, stdout, stderr = run(*evaluate)
    assert (code, json.loads(stdout)["adapter"]) == (0, "grounded")  # the one in use, where none is named
    code, stdout, stderr = run("eval", questions, "--corpus", corpus, "--max-tokens", 8, "--limit", 1)
    assert code == 0
    assert stdout.startswith("1 questions, zero-shot, ")
    assert "recall@5" in stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--adapter", "mine"), 1, "there is no adapter 'mine'"),
        (("--limit", "0"), 2, "'0' is not a whole number above 0"),
        (("--strategy", "guess"), 2, "there is no strategy 'guess'"),
        (("--index", "a", "--corpus", "b"), 2, "exclude each other"),
        (("--corpus", "none.jsonl"), 1, "'none.jsonl' cannot be read"),
        (("--index", "nowhere"), 1, "there is no index at 'nowhere'"),
        ((), 1, "there is no index at"),
    ],
)
def test_bad_arguments_get_one_line(run: Run, tmp_path: Path, arguments: Any, code: int, told: str) -> None:
    questions = written(tmp_path / "q.jsonl", *SMALL)
    found, stdout, stderr = run("eval", questions, *arguments)
    assert (found, stdout, stderr.count("\n")) == (code, "", 1)
    assert told in stderr


def test_rows_never_go_over_what_is_read_nor_unasked_over_a_file(run: Run, corpus: Path, tmp_path: Path) -> None:
    questions, kept = written(tmp_path / "q.jsonl", *SMALL), (tmp_path / "kept.jsonl")
    kept.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(questions)
    before = questions.read_bytes(), corpus.read_bytes()
    for out, told in (
        (questions, "is what is read"),
        (link, "is what is read"),
        (corpus, "is what is read"),
        (tmp_path / "none" / "x", "there is no folder"),
        (tmp_path, "is a folder"),
    ):
        code, _, stderr = run("eval", questions, "--corpus", corpus, "--out", out, "--force")
        assert (code, stderr.count("\n")) == (1, 1) and told in stderr
    code, _, stderr = run("eval", questions, "--corpus", corpus, "--out", kept)
    assert code == 1 and "overwrite it with --force" in stderr
    assert run("eval", questions, "--out", "")[0] == 2
    assert before == (questions.read_bytes(), corpus.read_bytes()) and kept.read_text() == "mine"


def test_rows_that_cannot_be_written_end_with_the_scores_so_far(indexed: tuple[Index, str]) -> None:
    questions = [Question("1", "What?", ("it",), True), Question("2", "When?", ("now",), True)]
    with eval_command.lines(Path("/dev/full")) as write:
        done = evaluate(Script(indexed[0], {"What?": said("it")}), questions, each=write)
    report = {**done.report(), "asked": 2}
    assert (report["n"], report["answers"]["em"]) == (1, 1)
    with pytest.raises(
        console.Failed, match=r"'/dev/full' cannot be written \(No space.* of 1 of 2 questions"
    ) as failed:
        eval_command.fail_if_needed(report)
    assert failed.value.result["n"] == 1


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_bad_questions_get_one_line(run: Run, tmp_path: Path, command: str) -> None:
    questions = written(tmp_path / "q.jsonl", {"question": "fine?"}, {"query": "no"})
    code, stdout, stderr = run(command, questions, "--json")
    assert code == 1
    assert "q.jsonl', line 2: no words in 'question'" in json.loads(stdout)["error"]
    assert stderr.count("\n") == 1


def test_questions_that_bring_their_paragraphs_need_no_index(tmp_path: Path) -> None:
    from tests.test_rag_app_questions import MUSIQUE

    path = written(tmp_path / "q.jsonl", MUSIQUE)
    options = argparse.Namespace(questions=path, index=None, corpus=None, encoder=None)
    prefix = eval_command.place(options)
    with Index.open(options.index) as index:
        found = index.search("old currency markka", 3, "lexical")
    wanted = read_questions(path)[0].evidence
    assert sum(any(is_evidence(one, passage, prefix) for passage in found) for one in wanted) == 2
