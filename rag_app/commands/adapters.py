"""`rag-app adapters`: what is here, what is in use, what is better. Trains and exports nothing."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say, warn
from rag_app.adapters.registry import Registry
from rag_app.adapters.state import State, Uses, parsed, shown
from rag_app.commands import eval as evaluation
from rag_app.commands import flags, output
from rag_app.errors import AdapterInvalid, AdapterWorse

if TYPE_CHECKING:
    from rag_app.adapters.gate import Difference, Measured

NAME = "of an adapter, as 'list' shows it"
LIMIT = 100


def add(commands: Any) -> None:
    """Adds the command with its own commands."""
    adapters = commands.add_parser("adapters", help="add, compare and swap what was trained; see docs/adapters.md")
    parts = adapters.add_subparsers(required=True, metavar="COMMAND")

    def part(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run, fail=added.error)
        console.add_json(added)
        return added

    take = part("add", _add, "take in a run, an export, an archive or a GGUF file; it is not put to use yet")
    take.add_argument("source", type=output.named, metavar="SOURCE", help="a folder, .zip, .tar, .tar.gz or .gguf")
    take.add_argument("--name", type=console.words, metavar="NAME", help="what to call it (default: its own name)")
    take.add_argument(
        "--base", type=console.words, metavar="MODEL", help="the model that it is for, where it does not say so itself"
    )
    take.add_argument("--force", action="store_true", help="replace an adapter of the same name that is not in use")
    part("list", _list, "print the adapters, and which are in use")
    part("show", _show, "print all that is known of an adapter").add_argument(
        "name", type=console.words, metavar="NAME", help=NAME
    )
    use = part("use", _use, "answer with adapters from the next question on, if they do no worse than what is in use")
    use.add_argument("names", nargs="+", type=console.words, metavar="NAME[:WEIGHT]", help=f"{NAME}; 1 is full weight")
    use.add_argument("--force", action="store_true", help="use it however it answers; measure only with --data")
    _add_measure(use)
    part("off", _off, "answer with the base model as it is")
    part("rollback", _rollback, "go back to what was in use before")
    part("remove", _remove, "delete an adapter").add_argument("name", type=console.words, metavar="NAME", help=NAME)
    compare = part("compare", _compare, "answer the same questions with several adapters, and print their scores")
    compare.add_argument(
        "names", nargs="+", type=console.words, metavar="NAME|off", help="as for 'use', joined by commas; off: the base"
    )
    _add_measure(compare)


def _add_measure(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, metavar="FILE", help="labelled questions (default: those held out of its training)"
    )
    command.add_argument(
        "--limit", type=evaluation.positive, default=LIMIT, metavar="N", help=f"most questions (default: {LIMIT})"
    )
    evaluation.add_place(command)
    flags.add_generator(command)
    flags.add_decoding(command)
    flags.add_answer(command)


def _add(options: argparse.Namespace) -> dict[str, Any] | None:
    registry = Registry()
    entry = registry.add(options.source, options.name, options.force, options.base)
    if options.json:
        return registry.row(entry.name)
    say(f"added: {entry.name} ({_facts(registry.row(entry.name))})")
    warn(f"'rag-app adapters use {entry.name}' puts it to use")
    return None


def _list(options: argparse.Namespace) -> dict[str, Any] | None:
    registry = Registry()
    rows, now = [registry.row(name) for name in registry.names()], registry.in_use()
    if options.json:
        return {"adapters": rows, **now.as_dict()}
    if not rows:
        warn("there are no adapters yet: 'rag-app adapters add RUN' takes one in")
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        say(f"{'*' if row['in_use'] else ' '} {row['name']:{width}}  {_facts(row)}")
    _tell(now)
    return None


def _facts(row: dict[str, Any]) -> str:
    """Of `Registry.row`, in a line."""
    if "error" in row:
        return str(row["error"])
    rank = f" r={row['rank']}" if row["rank"] else ""
    bundled = ", bundled" if row["bundled"] else ""
    forms = " and ".join(row["forms"])
    return f"{row['method']}{rank} for {row['base']['name']}, {forms}, {row['bytes'] / 1e6:.1f} MB{bundled}"


def _tell(now: State) -> None:
    say(f"in use: {shown(now.active)} (chosen: {str(now.chosen).lower()})")


def _show(options: argparse.Namespace) -> dict[str, Any] | None:
    row = Registry().show(options.name)
    if options.json:
        return row
    say(f"{row['name']}: {_facts(row)}")
    say(f"base: {row['base']['name']} ({row['base']['fingerprint']})")
    say(f"prompts: version {row['prompt_version']}, {row['strategy']}")
    say(f"made: {row['made'] or 'unknown'}")
    say(f"in use: {'no' if row['in_use'] is None else row['in_use']}")
    say(f"files in {row['folder']}:")
    for name, size in row["files"].items():
        say(f"  {size:>12,}  {name}")
    for one in row["scores"]["gate"]:
        say(
            f"{one['at']}: {one['adapter']} F1 {one['f1']:.3f}, {one['against']} {one['against_f1']:.3f}, "
            f"{one['n']} questions of {one['questions']}{'' if one['taken'] else '; not put to use'}"
        )
    return None


def _off(options: argparse.Namespace) -> dict[str, Any] | None:
    return _changed(options, Registry().off())


def _rollback(options: argparse.Namespace) -> dict[str, Any] | None:
    registry = Registry()
    before = len(registry.in_use().history)
    now = registry.rollback()
    if (gone := before - len(now.history) - 1) and not options.json:
        warn(f"rag-app: {gone} states were passed over, since their adapters are gone")
    return _changed(options, now)


def _changed(options: argparse.Namespace, now: State, more: dict[str, Any] | None = None) -> dict[str, Any] | None:
    if options.json:
        return {**now.as_dict(), **(more or {})}
    _tell(now)
    return None


def _remove(options: argparse.Namespace) -> dict[str, Any] | None:
    Registry().remove(options.name)
    if options.json:
        return {"removed": options.name}
    say(f"removed: {options.name}")
    return None


def _use(options: argparse.Namespace) -> dict[str, Any] | None:
    registry, wanted = Registry(), parsed(",".join(options.names))
    if not wanted:
        options.fail("name an adapter: 'rag-app adapters off' gives the base model back")
    with flags.own_stdout(options):
        flags.settings(options)  # bad usage shall show before anything is read
        questions = options.data or _heldout(registry, wanted)
        bot, generator = flags.make_bot(options)
        try:
            _check(registry, wanted, bot)
            before, against = _now(registry, bot)
            if against == shown(wanted) or (options.force and not options.data):
                return _changed(options, registry.use(wanted, before), {"gate": None})
            if questions is None:
                raise AdapterInvalid(
                    f"'{shown(wanted)}' brings no questions to be measured with: give labelled ones with --data FILE, "
                    "or use it unmeasured with --force"
                )
            measured = _measure(bot, [against, shown(wanted)], questions, options)
        finally:
            generator.close()
    return _judged(options, registry, wanted, before, measured, questions)


def _check(registry: Registry, uses: Uses, bot: Any) -> None:
    """Refuses adapters that are damaged, their results too, and those that the model cannot take."""
    from rag_app.adapters.choice import chosen

    for use in uses:
        registry.get(use.name, hashed=True)
        registry.scores(use.name)
    chosen(bot.model, replace(bot.options, adapter=shown(uses)), registry)


def _now(registry: Registry, bot: Any) -> tuple[State | None, str]:
    """What is in use, and what questions are answered with: another, where that does not fit the model."""
    from rag_app.adapters.choice import chosen

    try:
        choice = chosen(bot.model, replace(bot.options, adapter=None), registry)
    except AdapterInvalid as error:
        warn(f"rag-app: {error}")
        return None, shown(())
    for note in choice.notes:
        warn(f"rag-app: what is in use is not compared with: {note}")
    return registry.in_use(), ",".join(choice.names) or shown(())


def _heldout(registry: Registry, uses: Uses) -> Path | None:
    return next((entry.heldout for use in uses if (entry := registry.get(use.name)).heldout), None)


def _measure(bot: Any, adapters: Sequence[str], data: Path, options: argparse.Namespace) -> "list[Measured]":
    from rag_app.adapters import gate
    from rag_app.evaluate import sample
    from rag_app.questions import read_questions

    options.questions = data
    questions, prefix = read_questions(data), evaluation.place(options)
    bot.directory = options.index
    bot.load()
    seed = bot.model.decoding.seed
    drawn = sample(questions, options.limit, seed)
    with console.progress_bars() as progress:
        return gate.measure(bot, adapters, drawn, prefix=prefix, seed=seed, progress=progress)


def _judged(
    options: argparse.Namespace,
    registry: Registry,
    wanted: Uses,
    before: State | None,
    measured: "list[Measured]",
    questions: Path,
) -> dict[str, Any] | None:
    """Puts to use what is no worse, and keeps the scores."""
    from rag_app.adapters import gate

    first, second = measured
    found, worse = gate.difference(first, second), ""
    try:
        gate.check(first, second)
    except AdapterWorse as error:
        worse = str(error)
    taken = options.force or not worse
    result = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{"adapter": second.adapter, "against": first.adapter, "f1": second.f1, "against_f1": first.f1},
        **{"difference": found.value, "interval": found.interval, "n": found.n, "questions": str(questions)},
        "taken": taken,
    }
    if not options.json:
        _table(measured)
    now = registry.use(wanted, before) if taken else registry.in_use()
    registry.scored([use.name for use in wanted], result)
    if not taken:
        raise console.Failed(worse, {**now.as_dict(), "gate": result})
    return _changed(options, now, {"gate": result})


def _compare(options: argparse.Namespace) -> dict[str, Any] | None:
    from rag_app.adapters import gate

    registry, named = Registry(), [parsed(name) for name in options.names]
    with flags.own_stdout(options):
        flags.settings(options)
        questions = options.data or next(filter(None, (_heldout(registry, uses) for uses in named)), None)
        if questions is None:
            raise AdapterInvalid("there are no questions to compare them on: give labelled ones with --data FILE")
        bot, generator = flags.make_bot(options)
        try:
            for uses in named:
                _check(registry, uses, bot)
            measured = _measure(bot, [shown(uses) for uses in named], questions, options)
        finally:
            generator.close()
    if not options.json:
        _table(measured)
        return None
    rows = [{**one.as_dict(), "difference": asdict(gate.difference(measured[0], one))} for one in measured]
    return {"adapters": rows, "questions": str(questions)}


def _table(measured: "Sequence[Measured]") -> None:
    """A row for each; differences are to the first."""
    from rag_app.adapters import gate

    width = max(len("adapter"), *(len(one.adapter) for one in measured))
    heads = f"{'F1':>6}  {'95% interval':>14}  {'EM':>6}  {'difference':>10}  {'95% interval':>16}  {'s':>6}"
    say(f"{'adapter':{width}}  {heads}")
    for one in measured:
        scores, bounds = one.report["answers"], one.report["intervals"]["answers"]["f1"]
        more = _difference(gate.difference(measured[0], one)) if one is not measured[0] else " " * 28
        spread = f"{bounds[0]:.3f} to {bounds[1]:.3f}"
        say(f"{one.adapter:{width}}  {one.f1:6.3f}  {spread:>14}  {scores['em']:6.3f}  {more}  "
            f"{one.report['time']['mean']:6.2f}")  # fmt: skip
        for failed in one.report["errors"]:
            warn(f"rag-app: question {failed['id']} failed with '{one.adapter}': {failed['error']}")


def _difference(found: "Difference") -> str:
    low, high = found.interval or (found.value, found.value)
    return f"{found.value:+10.3f}  {f'{low:+.3f} to {high:+.3f}':>16}"
