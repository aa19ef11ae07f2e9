"""`rag-app calibrate`: the confidence below which answers from an index are refused, from labelled questions."""

import argparse
from pathlib import Path
from typing import Any

from index import console
from index.console import say
from rag_app.commands.eval import add_place, place


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("calibrate", help="choose from your questions when to refuse an answer")
    command.add_argument(
        "questions", type=Path, metavar="QUESTIONS.jsonl", help="with 'question' and 'answerable', true or false"
    )
    command.add_argument(
        "--lost", type=share, default=0.02, metavar="X", help="refuse at most this share of the answerable (0.02)"
    )
    command.set_defaults(run=run, fail=command.error)
    add_place(command)
    console.add_json(command)


def share(text: str) -> float:
    """For argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to below 1")
    return value


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Searches for every question, chooses the threshold and keeps it with the index."""
    from functools import partial

    from index import Index
    from index.encoder import SentenceEncoder
    from rag_app import confidence
    from rag_app.questions import read_questions

    questions = read_questions(options.questions)
    place(options)
    with Index.open(options.index, partial(SentenceEncoder, options.encoder)) as index:
        confidence.place(index)  # shows before the search whether it can be kept
        before = confidence.calibration(index).threshold
        with console.progress_bars() as progress:
            made = confidence.calibrate(index, questions, options.lost, progress)
        path = confidence.keep(index, made)
    report = {"threshold": made.threshold, "before": before, "counts": made.counts, "scores": made.scores}
    if options.json:
        return {**report, "index": str(path.parent), "path": str(path)}
    show(report)
    return None


def show(report: dict[str, Any]) -> None:
    """For a person."""
    counts, scores = report["counts"], report["scores"]
    say(f"Answers are refused below a confidence of {report['threshold']:.3f} (before: {report['before']:.3f}).")
    say(f"That refuses {counts['refused']} of the {counts['unanswerable']} questions that have no answer,")
    say(f"and {counts['lost']} of the {counts['answerable']} that have one.")
    if scores["auc"] < 0.7:
        say(f"Retrieval hardly tells the two apart (AUC {scores['auc']:.2f}): most are left for the model to refuse.")
