"""`rag-finetune dataset`: documents, questions and ratings to a file of examples."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say, words
from rag_app import settings as tables
from rag_app.commands import flags, output

if TYPE_CHECKING:
    from finetune.config import Data
    from finetune.data.asked import Asked
    from finetune.data.dataset import Settings
    from finetune.data.roundtrip import Made
    from finetune.example import Example
    from index import Hit, Index
    from index.embedding import Progress

COLUMNS = ("question", "answer", "context", "document")


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("dataset", help="make examples from an index, questions, ratings")
    command.set_defaults(run=run, fail=command.error, tools=None, changing=False)
    command.add_argument("--out", required=True, type=output.named, metavar="FILE", help="write the examples there")
    command.add_argument("--force", action="store_true", help="overwrite that file")
    console.add_index(command)
    command.add_argument("--corpus", type=Path, metavar="FILE", help="JSONL of documents to search instead of --index")
    _add_questions(command)
    _add_examples(command)
    _add_writer(command)
    console.add_json(command)


def _add_questions(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("questions")
    files: dict[str, Any] = {"action": "append", "default": [], "metavar": "FILE"}
    group.add_argument("--questions", **files, help="with answers, in any form of docs/finetune.md; repeatable")
    group.add_argument("--feedback", **files, help="rated answers, from rag-app chats export; repeatable")
    group.add_argument(
        "--column", action="append", default=[], type=_column, metavar="NAME=COLUMN",
        help=f"of tables whose columns are not named {', '.join(COLUMNS)}; repeatable",
    )  # fmt: skip
    group.add_argument("--limit", type=_whole, metavar="N", help="a random sample of them, drawn by --seed")
    group.add_argument("--on-bad-record", choices=("stop", "skip"), default="stop", help="default: stop")
    group.add_argument("--generate", type=_whole, metavar="N", help="write N questions from the passages, too")


def _add_examples(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("examples")
    group.add_argument("-k", type=int, metavar="N", help="passages of an example (default: as many as are served, 4)")
    group.add_argument("--answers", choices=("short", "sentence", "quoted"), default="short", help="default: short")
    group.add_argument(
        "--without-golden", type=_share, default=0.2, metavar="SHARE",
        help="refuse in at least so many, without the passage that answers (default: 0.2)",
    )  # fmt: skip
    group.add_argument("--insert-golden", action="store_true", help="put that passage in where search missed it")
    group.add_argument("--rounds", type=_whole, default=1, metavar="N", help="ask each N times, of other passages")
    group.add_argument(
        "--share-passages", action=argparse.BooleanOptionalAction, default=True,
        help="give the same passages to questions that they settle, which makes training cheaper",
    )  # fmt: skip
    group.add_argument("--val-share", type=_share, default=0.1, metavar="SHARE", help="for validation (default: 0.1)")
    group.add_argument("--test-share", type=_share, default=0.0, metavar="SHARE", help="for the test (default: 0)")
    # Not as `seed`: that would be the model's, which not every engine takes.
    group.add_argument(
        "--seed", dest="chance", type=int, default=42, metavar="N", help="of all that is drawn (default: 42)"
    )


def _add_writer(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model that writes questions")
    group.add_argument(
        "--writer", nargs="?", const="", type=words, metavar="MODEL",
        help="have a model write them, not patterns: as rag-app's --model, by default the bundled one",
    )  # fmt: skip
    group.add_argument("--config", metavar="FILE", help="settings in TOML (default: config.toml in the home)")
    for flag, kind, metavar, text in flags.ENGINE:
        if flag != "--model":
            group.add_argument(flag, type=words if kind is str else kind, metavar=metavar, help=text)


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share: give a number from 0 to 1")
    return share


def _column(text: str) -> tuple[str, str]:
    name, sign, column = words(text).partition("=")
    if name not in COLUMNS or not sign or not column:
        raise argparse.ArgumentTypeError(f"'{text}': write NAME=COLUMN, NAME one of {', '.join(COLUMNS)}")
    return name, column


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Reads, writes questions if it is told to, searches, writes the file, and tells what is in it."""
    _check(options)
    options.model = options.writer or None
    with flags.own_stdout(options):
        chosen = flags.settings(options)  # bad usage shall show before anything is read
        place = output.checked(options.out, options.force, map(Path, [*options.questions, *options.feedback]))
        told, lines = _make(options, chosen, place)
    if options.json:
        return told
    for line in lines:
        say(line)
    say(f"written to {words(str(place))}")
    return None


def _check(options: argparse.Namespace) -> None:
    if not (options.questions or options.feedback or options.generate):
        options.fail("there is nothing to ask: give --questions FILE, --feedback FILE or --generate N")
    if options.writer is not None and not options.generate:
        options.fail("--writer has nothing to write: add --generate N, or leave it out")
    if options.index and options.corpus:
        options.fail("--index and --corpus exclude each other: give one of them")
    if options.without_golden == 1:
        options.fail("--without-golden 1 would leave nothing to answer: give less")
    if options.val_share + options.test_share > 1:
        options.fail("--val-share and --test-share are more than all: give less")


def _make(options: argparse.Namespace, chosen: "tables.Settings", place: Path) -> tuple[dict[str, Any], list[str]]:
    """Writes the file; gives what there is to tell of it, for JSON and for people."""
    from finetune.data.dataset import assemble, drawn, read, unrepeated
    from finetune.data.found import depth
    from finetune.data.report import Report
    from finetune.data.roundtrip import Made
    from finetune.errors import DatasetEmpty

    report, made = Report(), Made()
    asked, kept = drawn(*read(_files(options), options.on_bad_record, report), options.limit, options.chance)
    settings = _settings(options, chosen.answer.k)
    with console.progress_bars() as progress, _index(options, bool(asked), progress) as (index, prefix):
        if index and options.generate:
            made, more = _written(options, chosen, index, prefix, progress)
            asked = [*asked, *more]
        asked, kept = unrepeated(asked, kept, report)

        def search(question: str) -> "Sequence[Hit]":
            return index.search(question, depth(settings.k)) if index else ()

        tally = assemble(asked, kept, search, prefix, settings, report, progress)
    if not report.examples:
        reason = f": {report.dropped[0][0]}: {report.dropped[0][1]}" if report.dropped else ""
        raise DatasetEmpty(f"no example is left{reason}. Give other --questions, or have some written: --generate N")
    _write(place, report.examples)
    wrote = made.lines() if options.generate else []
    told = {"out": str(place), **report.as_dict(), **tally.as_dict(), "written": made.as_dict()}
    return told, [*report.lines(), *tally.lines(), *wrote]


def _files(options: argparse.Namespace) -> "list[Data]":
    from finetune.config import Data

    asked = [Data(path=file, **dict(options.column)) for file in options.questions]
    return [*asked, *(Data(path=file, type="feedback") for file in options.feedback)]


def _settings(options: argparse.Namespace, k: int) -> "Settings":
    from finetune.data.dataset import Settings

    return Settings(
        k=k, form=options.answers, without_golden=options.without_golden, insert_golden=options.insert_golden,
        rounds=options.rounds, share_passages=options.share_passages, val_share=options.val_share,
        test_share=options.test_share, seed=options.chance,
    )  # fmt: skip


@contextmanager
def _index(options: argparse.Namespace, asked: bool, progress: "Progress") -> "Iterator[tuple[Index | None, str]]":
    """What is searched, and what stands before a document's id in it; nothing where nothing is asked.

    Raises:
        RagError: there is no index, it is of another encoder, or the corpus cannot be read.
    """
    from functools import partial

    from index import Index
    from index.encoder import SentenceEncoder
    from rag_app.evaluate import index_corpus

    if not asked and not options.generate:
        yield None, ""
        return
    encoder, directory, prefix = partial(SentenceEncoder, options.encoder), options.index, ""
    if options.corpus:
        directory, prefix = index_corpus(options.corpus, encoder, progress)
    with Index.open(directory, encoder) as index:
        index.load_encoder()
        yield index, prefix


def _written(
    options: argparse.Namespace, chosen: "tables.Settings", index: "Index", prefix: str, progress: "Progress"
) -> "tuple[Made, list[Asked]]":
    """Questions that patterns or a model write from the index's passages."""
    from finetune.data.found import depth
    from finetune.data.roundtrip import asked_of, make
    from finetune.data.writing import Source
    from index.maintain import passages

    rows = passages(index.directory)
    sources = [Source(row["_id"], row["source"], row["text"], row["title"]) for row in rows]
    model = tables.make_generator(chosen) if options.writer is not None else None
    k = chosen.answer.k
    try:
        made = make(
            sources, options.generate, lambda question: index.search(question, depth(k)), k, model=model,
            seed=options.chance, progress=progress,
        )  # fmt: skip
    finally:
        if model:
            model.close()
    return made, asked_of(made, prefix)


def _write(place: Path, examples: "Sequence[Example]") -> None:
    from finetune.example import write_examples

    if output.irregular(place):
        output.write(place, (json.dumps(example.as_dict()) for example in examples))
        return
    try:
        write_examples(examples, place)
    except OSError as error:
        raise output.unwritable(place, error) from error
