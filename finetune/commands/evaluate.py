"""`rag-finetune evaluate`: a model or an adapter scored on examples, with its base beside it."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import DatasetEmpty
from index import console
from index.console import say, warn
from index.errors import RagError
from rag_app.commands import output
from rag_app.commands.eval import place, positive
from rag_app.errors import ModelInvalid, ModelNotFound

if TYPE_CHECKING:
    from finetune.evaluation.evaluate import Scores
    from finetune.example import Example

BASE = "base"
"""The name that stands for the base model alone."""
MOST = 128
"""Tokens of an answer."""
FEW = 30
"""Examples below which bootstrap intervals are known to be too narrow."""
WORST = 3
"""Examples of each task that are shown."""
SHOWN = 200
"""Characters of a text that are shown."""
Load = Callable[[], tuple[Any, Any]]


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("evaluate", help="score a model or an adapter, with its base beside it")
    command.add_argument(
        "model", type=console.words, metavar="MODEL_OR_ADAPTER",
        help="an adapter's folder, a model's folder, a Hub id, a GGUF file, or base",
    )  # fmt: skip
    command.add_argument(
        "--data", type=Path, required=True, metavar="FILE",
        help="examples of any form; with --index or --corpus, questions to search passages for, as serving does",
    )  # fmt: skip
    command.add_argument(
        "--part", choices=("train", "validation", "test"), help="default: test, else validation, else all"
    )
    command.add_argument("--limit", type=positive, metavar="N", help="a sample, balanced by task and drawn by --seed")
    command.add_argument("--seed", type=_natural, default=0, metavar="N", help="of sample and intervals (default: 0)")
    command.add_argument("--base", type=console.words, metavar="MODEL", help="the base (default: the adapter's own)")
    command.add_argument("--no-base", action="store_true", help="score the model alone")
    command.add_argument(
        "--max-tokens", type=positive, default=MOST, metavar="N", help=f"of an answer (default: {MOST})"
    )
    command.add_argument("--index", metavar="DIR", help="an index to search for passages")
    command.add_argument(
        "--corpus", type=Path, metavar="FILE",
        help="JSONL of documents to search instead; questions that bring paragraphs along need none",
    )  # fmt: skip
    command.add_argument("--encoder", metavar="MODEL", help="of the search (default: $RAG_ENCODER, or bundled)")
    command.add_argument("-k", type=positive, default=4, metavar="N", help="passages of a question (default: 4)")
    command.add_argument("--out", type=output.named, metavar="FILE", help="write a JSON line per example")
    command.add_argument("--force", action="store_true", help="overwrite that file")
    command.set_defaults(run=run, fail=command.error)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    from finetune.evaluation.evaluate import score

    if options.out:
        options.out = output.checked(options.out, options.force, filter(None, (options.data, options.corpus)))
    models = _models(options)
    examples = _sampled(options, _examples(options))
    with console.progress_bars() as progress:
        found, interrupted = _answered(models, examples, options.max_tokens, progress)
    both = [n for n in range(len(examples)) if all(n in answers for answers in found)]
    kept = [examples[n] for n in both]
    scores = [score(kept, [answers[n] for n in both], options.seed) for answers in found]
    report = _report(options, [name for name, _ in models], scores)
    report |= {"asked": len(examples), "interrupted": interrupted}
    if not options.json:
        _show(report, scores, options.trained)
    if options.out:
        try:
            output.write(options.out, (json.dumps(row) for row in _rows(scores)))
        except RagError as error:
            raise console.Failed(str(error), report) from error
    if interrupted:
        raise console.Failed(f"interrupted: the scores are of {len(both)} of {len(examples)} examples", report)
    return report if options.json else None


def _models(options: argparse.Namespace) -> list[tuple[str, Load]]:
    """What is scored, and its base, each by its name and what loads it; refuses early what cannot be used."""
    from functools import partial

    from finetune.evaluation import adapters
    from rag_app.engines import checkpoints

    found: tuple[str, Load]
    options.base = None if options.base == BASE else options.base
    adapter = None if options.model == BASE else adapters.find(options.model)
    options.trained = bool(adapter and adapter.run)
    if adapter is None:
        try:
            base = checkpoints.find(options.base)
        except (ModelNotFound, ModelInvalid) as error:
            raise adapters.reworded(error, "give another with --base") from error
        source = base if options.model == BASE else adapters.model(options.model)
        found = source.name, partial(checkpoints.load, source, "auto", "auto")
    else:
        base, source = adapters.base_of(adapter, options.base, "--base"), None
        if not adapter.run:
            warn(f"'{adapter.folder}' has no run.json, which would tell its prompts: it is asked with today's")
        found = str(adapter.folder), partial(adapters.load, adapter, base)
    alone = options.no_base or source == base
    return [found] if alone else [found, (base.name, partial(checkpoints.load, base, "auto", "auto"))]


def _natural(text: str) -> int:
    """For argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)


def _examples(options: argparse.Namespace) -> "list[Example]":
    """All that the file holds; questions with the passages that a search finds."""
    from finetune.config import Data

    if not (options.index or options.corpus or _brings_paragraphs(options.data)):
        from finetune.data.records import read_records

        return list(read_records(Data(path=str(options.data))))  # also what is there twice: a set is scored as it is
    from functools import partial

    from finetune.data import served
    from finetune.data.asked import distinct_ids
    from finetune.data.dataset import read
    from finetune.data.report import Report
    from index import Index
    from index.encoder import SentenceEncoder

    options.questions = options.data
    asked, others = read([Data(path=str(options.data))], "stop", Report())
    place(options)
    encoder = partial(SentenceEncoder, options.encoder)
    with Index.open(options.index, encoder) as index, console.progress_bars() as progress:
        return [*served.examples(distinct_ids(asked), index, options.k, progress), *others]


def _brings_paragraphs(file: Path) -> bool:
    from rag_app.questions import has_paragraphs

    try:
        return file.suffix == ".jsonl" and has_paragraphs(file)
    except RagError:  # told better by whatever reads it
        return False


def _sampled(options: argparse.Namespace, examples: "Sequence[Example]") -> "list[Example]":
    from finetune.evaluation.evaluate import sample

    parts = {example.part for example in examples}
    options.part = options.part or next((part for part in ("test", "validation") if part in parts), None)
    kept = [example for example in examples if options.part in (None, example.part)]
    if not kept:
        raise DatasetEmpty(
            f"'{options.data}' has no example of the part '{options.part}': give --part {' or '.join(sorted(parts))}"
        )
    return sample(kept, options.limit or len(kept), options.seed)


def _answered(
    models: Sequence[tuple[str, Load]],
    examples: "Sequence[Example]",
    max_tokens: int,
    progress: Callable[[str, int, int], None],
) -> tuple[list[dict[int, str]], bool]:
    """Each model's answers by the examples' places, and whether Ctrl-C ended it; the first has some in any case.

    One model is in memory at a time.
    """
    found: list[dict[int, str]] = []
    try:
        for name, load in models:
            before = len(found) * len(examples)
            found.append({})
            for n, text in _stream(name, load, examples, max_tokens, progress, before, len(models)):
                found[-1][n] = text
    except KeyboardInterrupt:
        if not found[0]:
            raise
        return [answers for answers in found if answers], True
    return found, False


def _stream(
    name: str,
    load: Load,
    examples: "Sequence[Example]",
    max_tokens: int,
    progress: Callable[[str, int, int], None],
    before: int,
    times: int,
) -> Iterator[tuple[int, str]]:
    from finetune.evaluation import adapters, generate
    from rag_app.engines import checkpoints
    from rag_app.engines.layout import Layout

    def told(stage: str, done: int, total: int) -> None:
        progress(stage, before + done, times * total)

    try:
        model, tokenizer = load()
    except ModelInvalid as error:
        raise adapters.reworded(error, "name another") from error
    yield from generate.stream(model, Layout(name, tokenizer), examples, max_tokens=max_tokens, progress=told)
    del model
    checkpoints.tidy()


def _report(options: argparse.Namespace, names: Sequence[str], scores: "Sequence[Scores]") -> dict[str, Any]:
    from rag_app.prompt import PROMPT_VERSION

    base = scores[1] if len(scores) > 1 else None
    rows = list(_rows(scores))
    return {
        "model": names[0],
        "base": names[1] if base else None,
        **scores[0].as_dict(base),
        "base_score": round(base.score, 6) if base else None,
        "worst": [rows[number] for number in scores[0].worst(WORST)],
        "data": str(options.data),
        "part": options.part,
        "index": str(options.index) if options.index else None,
        "k": options.k if options.index else None,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "prompt_version": PROMPT_VERSION,
    }


def _rows(scores: "Sequence[Scores]") -> Iterator[dict[str, Any]]:
    """For a line per example."""
    names = ("answer", "score"), ("base_answer", "base_score")
    for number, example in enumerate(scores[0].examples):
        said = {
            key: value
            for (answer, quality), one in zip(names, scores, strict=False)
            for key, value in ((answer, one.answers[number]), (quality, round(one.quality[number], 6)))
        }
        yield {
            "id": example.id, "task": example.task, "question": example.question, "gold": list(example.golds),
            "answerable": example.answerable, **said,
        }  # fmt: skip


def _show(report: dict[str, Any], scores: "Sequence[Scores]", trained: bool) -> None:
    """For a person."""
    base = scores[1] if len(scores) > 1 else None
    beside = f", beside its base {report['base']}" if base else ""
    part = f" of the part '{report['part']}'" if report["part"] else ""
    say(f"{report['model']}{beside}: {report['n']} examples{part}\n")
    for line in scores[0].lines(base):
        say(line)
    if report["n"] < FEW:
        count = f"{report['n']} example{'s' * (report['n'] > 1)}"
        say(f"\nonly {count}: too few to tell much; the intervals above should be wider")
    if trained and report["part"] == "validation":
        say("\ntraining picks its checkpoint by the validation part: a test part (dataset --test-share) is fairer")
    for number in scores[0].worst(WORST):
        example = scores[0].examples[number]
        say(f"\n{_short(example.question)}\n  gold: {_short(' | '.join(example.golds)) or '(none)'}")
        for name, one in zip(("said", "base"), scores, strict=False):
            say(f"  {name}: {_short(one.answers[number])}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
