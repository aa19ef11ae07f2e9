"""`rag-finetune distill`: a student learns from a teacher, from its token distributions or from its answers."""

import argparse
from pathlib import Path
from typing import Any

from finetune.commands.train import following
from index import console
from index.console import say, warn
from index.paths import expanded
from rag_app.commands import flags, output

WHITE = ("beta", "temperature", "cross_entropy", "on_policy", "max_tokens")
ENGINE = (
    ("--engine", str, "NAME", "llama.cpp, transformers, server or langchain (default: as the teacher's name tells)"),
    *(flag for flag in flags.ENGINE if flag[0] not in ("--engine", "--model", "--precision")),
)


def add(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser(
        "distill", help="train towards a teacher's token distributions, or let a teacher write the answers"
    )
    command.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="of the student, as for train")
    command.add_argument(
        "--teacher", type=console.words, required=True, metavar="MODEL",
        help="a model, an adapter or the run of one; with --black-box a model, a server's URL or module:name",
    )  # fmt: skip
    command.add_argument("--temperature", type=float, metavar="T", help="of both distributions (default: 1); of answers"
                         " that the teacher draws (default: 0, greedy)")  # fmt: skip
    command.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: 64; of a teacher's 256)")
    command.add_argument("--force", action="store_true", help="replace a finished run, or the file of --out")
    _add_white(command.add_argument_group("token distributions"))
    _add_black(command.add_argument_group("answers"))
    command.set_defaults(run=run, fail=command.error)
    console.add_json(command)


def _add_white(group: Any) -> None:
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the file; repeatable")
    group.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")
    group.add_argument(
        "--beta", type=float, metavar="B",
        help="0 is KL(teacher||student) (default), 1 is KL(student||teacher), between them Jensen-Shannon divergences",
    )  # fmt: skip
    group.add_argument(
        "--cross-entropy", type=float, metavar="SHARE", help="of the loss: the examples' own answers (default: 0)"
    )
    group.add_argument(
        "--on-policy", type=float, metavar="SHARE", help="of the batches: answers that the student writes (default: 0)"
    )


def _add_black(group: Any) -> None:
    group.add_argument("--black-box", action="store_true", help="the teacher's answers become examples")
    group.add_argument("--data", type=output.named, metavar="FILE", help="examples to ask the teacher")
    group.add_argument("--out", type=output.named, metavar="FILE", help="the examples with the teacher's answers")
    for flag, kind, metavar, text in ENGINE:
        group.add_argument(flag, type=console.words if kind is str else kind, metavar=metavar, help=text)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The command."""
    return _black(options) if options.black_box else _white(options)


def _white(options: argparse.Namespace) -> dict[str, Any] | None:
    from finetune.compress.distill import Distillation, distill
    from finetune.config import read_config
    from finetune.errors import ConfigInvalid

    if not options.config:
        options.fail("name the student's CONFIG.yaml, or give --black-box for the teacher's answers")
    _refuse(options, "data", "out", *_names())
    try:
        how = Distillation(**{name: value for name in WHITE if (value := getattr(options, name)) is not None})
    except ConfigInvalid as error:
        options.fail(str(error))
        raise
    settings = [*options.set, *(["resume_from_checkpoint=true"] if options.resume else [])]
    result = distill(read_config(options.config, settings), options.teacher, how, options.config.stem, options.force)
    if options.json:
        return result
    say(f"student in {result['adapter']}")
    for line in following(Path(result["adapter"])):
        say(line)
    return None


def _black(options: argparse.Namespace) -> dict[str, Any] | None:
    from finetune.compress.teach import teach
    from finetune.config import Config, Data
    from finetune.data.records import load_examples
    from rag_app import settings as tables

    if not (options.data and options.out):
        options.fail("--black-box asks the examples of --data FILE, and writes --out FILE: give both")
    if options.config:
        options.fail(f"--black-box trains nothing: leave out {options.config}")
    _refuse(options, "set", "resume", "beta", "cross_entropy", "on_policy")
    given = {name: getattr(options, name) for name in _names()}
    model = {**_engine(options.teacher, options.engine), **{k: v for k, v in given.items() if v is not None}}
    decoding = {name: value for name in ("temperature", "max_tokens") if (value := getattr(options, name)) is not None}
    chosen = tables.load(None, {"generator": model, "decoding": decoding})
    out = output.checked(options.out, options.force, [Path(options.data)])
    examples, _ = load_examples((Data(path=options.data),), Config())
    teacher = tables.make_generator(chosen)
    try:
        with flags.own_stdout(options), console.progress_bars() as progress:
            report = teach(examples, teacher, out, progress)
    finally:
        teacher.close()
    if options.json:
        return {**report.as_dict(), "out": str(out)}
    say(f"{report.teacher} answered {report.asked} examples, {report.kept} can be trained on; in {out}")
    for reason, count in report.dropped.most_common():
        warn(f"  left out: {count}, {reason}")
    return None


def _names() -> tuple[str, ...]:
    return tuple(flag.removeprefix("--").replace("-", "_") for flag, *_ in ENGINE)


def _refuse(options: argparse.Namespace, *names: str) -> None:
    """Flags of the other way to distil are bad usage."""
    for name in names:
        if getattr(options, name) not in (None, False, []):
            way = "leave out --black-box" if options.black_box else "add --black-box"
            options.fail(f"--{name.replace('_', '-')} is not used so: leave it out, or {way}")


def _engine(teacher: str, engine: str | None) -> dict[str, str]:
    """Engine and model, as far as the teacher's name tells them."""
    if "://" in teacher:
        return {"engine": "server", "base_url": teacher}
    if engine:
        return {"model": teacher}
    path = expanded(teacher)
    if path.is_file() or teacher.endswith(".gguf"):
        return {"engine": "llama.cpp", "model": teacher}
    return {"engine": "transformers" if path.is_dir() or ":" not in teacher else "langchain", "model": teacher}
