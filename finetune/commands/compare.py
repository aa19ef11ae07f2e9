"""`rag-finetune compare`: forms of a model beside each other: size, memory, perplexity, KL, speed, score."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands import evaluate
from index import console
from index.console import say, warn
from index.errors import RagError
from rag_app.commands import output
from rag_app.commands.eval import positive

if TYPE_CHECKING:
    from finetune.evaluation.candidates import Candidate
    from finetune.evaluation.compare import Comparison
    from finetune.evaluation.texts import Texts
    from finetune.example import Example

LIMIT = 100
"""Examples that each model answers by default."""
TOKENS = 4096
"""That are judged by default: the bundled model takes some 10 s, its probabilities 0.4 GB of disk."""


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser(
        "compare", help="measure size, memory, perplexity, KL and speed of models side by side"
    )
    command.add_argument(
        "models", nargs="+", type=console.words, metavar="MODEL",
        help="a run or adapter, a model's folder, a Hub id, a GGUF file (served by llama.cpp), or base; with @16-bit or"
        " @nf4 behind it, in that precision by Transformers",
    )  # fmt: skip
    command.add_argument(
        "--data", type=Path, metavar="FILE", help="examples of any form, for a score and as the text that is judged"
    )
    command.add_argument(
        "--part", choices=("train", "validation", "test"), help="default: test, else validation, else all"
    )
    command.add_argument(
        "--limit", type=positive, default=LIMIT, metavar="N", help=f"examples that are answered (default: {LIMIT})"
    )
    command.add_argument(
        "--max-tokens", type=positive, default=evaluate.MOST, metavar="N",
        help=f"of an answer (default: {evaluate.MOST})",
    )  # fmt: skip
    command.add_argument(
        "--tokens", type=positive, default=TOKENS, metavar="N",
        help=f"that perplexity and KL are of (default: {TOKENS})",
    )  # fmt: skip
    command.add_argument("--html", type=output.named, metavar="FILE", help="write a page with the table and plots")
    command.add_argument("--force", action="store_true", help="overwrite that file")
    command.set_defaults(run=run, fail=command.error, index=None, corpus=None, encoder=None, k=4, seed=0)
    console.add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    from finetune.evaluation import compare, table

    if len(set(options.models)) < len(options.models):
        options.fail("a model is named twice: name each once")
    if options.part and not options.data:
        options.fail("--part is of the examples: give --data FILE, too")
    if options.html:
        options.html = output.checked(options.html, options.force, filter(None, [options.data]))
    with console.progress_bars() as progress:
        found = [_found(name, progress) for name in options.models]
    examples, texts = _asked(options, found)
    settings = {"tokens": options.tokens, "max_tokens": options.max_tokens, "seed": options.seed}
    with console.progress_bars() as progress:
        made = compare.compare(options.models, found, texts, examples, **settings, progress=progress)
    report = _report(options, made, texts, len(examples))
    said = _said(report)
    if not options.json:
        _show(made, said)
    _write(options, made, said, report)
    if made.interrupted:
        raise console.Failed("interrupted: the table holds what was measured until then", report)
    if not any(row.measured for row in made.rows):
        raise console.Failed(f"no model could be measured: {table.reasons(made)[0]}", report)
    return report if options.json else None


def _found(name: str, progress: Any) -> "Candidate | RagError":
    """What a name stands for, or why for nothing; a GGUF file that Transformers shall read is converted beforehand."""
    from finetune.evaluation import candidates
    from finetune.evaluation.compare import brief

    try:
        found = candidates.find(name)
        if found.source.gguf and found.engine == "transformers":
            from rag_app.engines import checkpoints

            progress(f"{brief(name)}: converting", 0, 1)
            checkpoints.settled(found.source)  # here, so that it does not count as the model's own memory
    except RagError as error:
        return error
    return found


def _asked(options: argparse.Namespace, found: "list[Candidate | RagError]") -> "tuple[list[Example], Texts]":
    from finetune.evaluation.texts import Texts, default

    if options.data is None:
        return [], default([one for one in found if not isinstance(one, RagError)])
    examples = evaluate._sampled(options, evaluate._examples(options))
    part = f", part '{options.part}'" if options.part else ""
    return examples, Texts(f"'{options.data}'{part}", examples)


def _report(options: argparse.Namespace, made: "Comparison", texts: "Texts", count: int) -> dict[str, Any]:
    import platform

    from finetune.evaluation.compare import ROUNDS, WRITTEN
    from finetune.evaluation.measuring import LENGTH
    from index.precision import cores, processor

    return {
        **made.as_dict(),
        "text": texts.name,
        "window": LENGTH,
        "data": None if options.data is None else str(options.data),
        "part": options.part if options.data else None,
        "examples": count,
        "written_tokens": WRITTEN,
        "rounds": ROUNDS,
        "threads": cores(),
        "machine": {"system": platform.platform(), "processor": processor(), "cores": cores()},
    }


def _said(report: dict[str, Any]) -> list[str]:
    """What the numbers are of."""
    from finetune.evaluation.candidates import EXACT

    rows = {row["name"]: row for row in report["rows"]}
    said = []
    if report["reference"]:
        of = rows[report["reference"]]
        weights = str(of["kind"]).partition(" + ")[0]
        own = "" if weights in EXACT else f", whose weights are {weights} themselves: none with 16 bits was measured"
        said += [
            f"KL divergence is from {report['reference']}{own}. It and perplexity are of {of['tokens']} tokens of "
            f"{report['text']}, in windows of {report['window']}."
        ]
    read = next((row["prompt_tokens"] for row in report["rows"] if row["prompt_tokens"]), None)
    if read:
        threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
        machine = [report["machine"]["processor"]]
        machine += sorted({row["device"] for row in report["rows"] if row["device"] not in (None, "cpu", "gpu")})
        said += [
            f"Speeds are of {read} tokens read and {report['written_tokens']} written behind them, the median of "
            f"{report['rounds']}, with {threads} on {', '.join(machine)}.",
            "Memory is the most that a model's own process had resident when that was done, files that it maps "
            "included; 'before' of it are Python and libraries, before the model was loaded.",
        ]
    if report["examples"]:
        few = ": too few to tell much" if report["examples"] < evaluate.FEW else ""
        said += [f"The score is of {report['examples']} examples, with its 95% interval{few}."]
    return said


def _show(made: "Comparison", said: list[str]) -> None:
    """For a person."""
    from finetune.evaluation import table

    for line in (*table.lines(made), "", *said):
        say(line)
    for line in table.reasons(made):
        warn(line)


def _write(options: argparse.Namespace, made: "Comparison", said: list[str], report: dict[str, Any]) -> None:
    if not options.html:
        return
    from finetune.evaluation.plots import page

    text = page(made, said).encode("ascii", "xmlcharrefreplace").decode("ascii")
    try:
        output.write(options.html, [text])
    except RagError as error:
        raise console.Failed(str(error), report) from error
