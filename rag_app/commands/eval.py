"""`rag-app eval`: the bot measured on labelled questions."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say, warn
from rag_app.commands import flags, output

if TYPE_CHECKING:
    from rag_app.bot import Bot
    from rag_app.evaluate import Result
    from rag_app.questions import Question

SHOWN = 200
"""Most characters of a wrong answer that are printed."""


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("eval", help="measure answers, retrieval, refusals and citations on your questions")
    command.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl", help="labelled, see docs/evaluation.md")
    command.add_argument("--limit", type=positive, metavar="N", help="a random sample of them, drawn by --seed")
    command.add_argument("--out", type=output.named, metavar="FILE", help="write a JSON line per question")
    command.add_argument("--force", action="store_true", help="overwrite that file")
    command.set_defaults(run=run)
    add_place(command)
    console.add_json(command)
    flags.add_generator(command)
    flags.add_decoding(command)
    flags.add_answer(command)


def add_place(command: argparse.ArgumentParser) -> None:
    """Adds `--index`, `--encoder` and `--corpus`."""
    console.add_index(command)
    command.add_argument(
        "--corpus",
        type=Path,
        metavar="FILE",
        help="JSONL of documents to search instead of --index; questions that bring paragraphs along need none",
    )


def positive(text: str) -> int:
    """For argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def place(options: argparse.Namespace) -> str:
    """Settles `options.index`, built where a corpus is to be searched; gives what stands before documents' ids in it.

    Raises:
        RagError: the corpus cannot be read.
    """
    from functools import partial

    from index.encoder import SentenceEncoder
    from rag_app.evaluate import index_corpus
    from rag_app.questions import has_paragraphs

    if options.index and options.corpus:
        options.fail("--index and --corpus exclude each other: give one of them")
    corpus = options.corpus
    if not options.index and not corpus and has_paragraphs(options.questions):
        corpus = options.questions
    if corpus is None:
        return ""
    with console.progress_bars() as progress:
        options.index, prefix = index_corpus(corpus, partial(SentenceEncoder, options.encoder), progress)
    return prefix


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Asks, then prints the scores."""
    from rag_app.questions import read_questions

    with flags.own_stdout(options):
        chosen = flags.settings(options)  # bad usage shall show before anything is read
        if options.out:
            options.out = output.checked(options.out, options.force, filter(None, (options.questions, options.corpus)))
        questions, prefix = read_questions(options.questions), place(options)
        bot, generator = flags.make_bot(options)
        try:
            bot.load()
            report = measure(bot, questions, prefix, options, chosen.decoding.seed)
        finally:
            generator.close()
    if not options.json:
        show(report)
    fail_if_needed(report)
    return report if options.json else None


def measure(
    bot: "Bot", questions: "list[Question]", prefix: str, options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """The report on a sample of the questions, and on what was measured."""
    from rag_app.adapters.choice import chosen
    from rag_app.evaluate import evaluate, sample
    from rag_app.prompt import PROMPT_VERSION

    drawn, index = sample(questions, options.limit, seed), bot.index()
    with console.progress_bars() as progress, lines(options.out) as write:
        done = evaluate(bot, drawn, prefix=prefix, each=write, progress=progress)
    return {
        **done.report(seed),
        "asked": len(drawn),
        "strategy": bot.options.strategy,
        "model": bot.model.check(),
        "engine": bot.model.engine,
        "prompt_version": PROMPT_VERSION,
        "adapter": ",".join(chosen(bot.model, bot.options, bot.adapters).names) or "off",
        "settings": {**bot.options.changed(), **bot.model.decoding.changed()},
        "index": {
            "path": str(index.directory),
            "generation": index.name,
            "passages": index.manifest.passages,
            "encoder": index.manifest.encoder,
        },
        "questions": str(options.questions),
        "seed": seed,
    }


@contextmanager
def lines(out: Path | None) -> "Iterator[Callable[[Result], None] | None]":
    """Writes results to a file as they come, so that what ends the run takes nothing away."""
    if out is None:
        yield None
        return
    try:
        stream = out.open("ab" if output.irregular(out) else "wb", buffering=0)  # nothing is left to fail at the end
    except OSError as error:
        raise output.unwritable(out, error) from error
    with stream:

        def write(result: "Result") -> None:
            row = (json.dumps(result.as_dict()) + "\n").encode("ascii")
            try:
                while row:
                    row = row[stream.write(row) :]
            except OSError as error:
                raise output.unwritable(out, error) from error

        yield write


def fail_if_needed(report: dict[str, Any]) -> None:
    """Scores of half of the questions, or of none, are no success.

    Raises:
        Failed: it was interrupted, its rows could not be written, or every question failed; the report comes along.
    """
    if report["unwritten"]:
        of = f"the scores are of {report['n']} of {report['asked']} questions"
        raise console.Failed(f"{report['unwritten']} ({of})", report)
    if report["interrupted"]:
        raise console.Failed(f"interrupted: the scores are of {report['n']} of {report['asked']} questions", report)
    if len(report["errors"]) == report["n"]:
        raise console.Failed(f"every question failed; the first: {report['errors'][0]['error']}", report)


def show(report: dict[str, Any]) -> None:
    """A table for a person."""
    say(f"{report['n']} questions, {report['strategy']}, {report['model']}, {report['time']['mean']:.2f} s each")
    say()
    say(f"{'':10} {'score':14} {'':>6}  {'95% interval':>14}  {'of':>6}")
    for group in ("answers", "retrieval", "refusal", "citations"):
        for number, (name, value) in enumerate(report[group].items()):
            bounds, count = report["intervals"][group][name], report["counts"][group][name]
            spread = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "-"
            shown = f"{value:.3f}" if count else "-"
            say(f"{'' if number else group:10} {name:14} {shown:>6}  {spread:>14}  {count:>6}")
    tokens = report["tokens"]
    say(f"\nper question: {tokens['prompt']:.0f} tokens read, {tokens['completion']:.0f} written")
    for one in report["worst"][:3]:
        gold = " | ".join(one["gold"]) or "(none)"
        said = " ".join((one["error"] or one["answer"]).split())[:SHOWN]
        say(f"\n{one['question']}\n  gold: {gold}\n  said: {said}")
    for one in report["errors"]:
        warn(f"rag-app: question {one['id']} failed: {one['error']}")
