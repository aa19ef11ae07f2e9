"""Adapters measured: against what is in use before they take its place, and against each other."""

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say, warn
from index.paths import home
from rag_app import settings
from rag_app.adapters.registry import Registry
from rag_app.adapters.state import State, Uses, parsed, shown
from rag_app.commands import eval as evaluation
from rag_app.commands import flags
from rag_app.errors import AdapterInvalid, AdapterWorse, SettingInvalid

if TYPE_CHECKING:
    from rag_app.adapters.gate import Difference, Measured

LIMIT = 100


def add_measure(command: argparse.ArgumentParser) -> None:
    """Adds what questions are asked, and how."""
    command.add_argument(
        "--data", type=Path, metavar="FILE", help="labelled questions (default: those held out of its training)"
    )
    command.add_argument(
        "--limit", type=evaluation.positive, default=LIMIT, metavar="N", help=f"most questions (default: {LIMIT})"
    )
    evaluation.add_place(command)
    flags.add_generator(command)
    flags.add_decoding(command)
    flags.add_answer(command, adapter=False)


def tell(now: State) -> None:
    """A line on what is in use, and one where the settings go before it."""
    say(f"in use: {shown(now.active)}{'' if now.chosen else ' (as the program came)'}")
    with suppress(SettingInvalid):  # what answers tells of it
        if (fixed := settings.load().answer.adapter) is not None:
            warn(f'rag-app: config.toml in {home()} says adapter = "{fixed}", which goes before this: take it out')


def changed(options: argparse.Namespace, now: State, more: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What is in use now, printed or as the result for programs."""
    if options.json:
        return {**now.as_dict(), **(more or {})}
    tell(now)
    return None


def use(options: argparse.Namespace) -> dict[str, Any] | None:
    """`rag-app adapters use`."""
    registry, wanted = Registry(), parsed(",".join(options.names))
    if not wanted:
        options.fail("name an adapter: 'rag-app adapters off' gives the base model back")
    _check_flags(options)
    with flags.own_stdout(options):
        flags.settings(options)  # bad usage shall show before anything is read
        questions = options.data or _heldout(registry, wanted)
        bot, generator = flags.make_bot(options)
        try:
            _check(registry, wanted, bot)
            before, against = _now(registry, bot)
            if against == shown(wanted) or (options.force and not options.data):
                return changed(options, registry.use(wanted, before), {"gate": None})
            if questions is None:
                raise AdapterInvalid(
                    f"'{shown(wanted)}' brings no questions to be measured with: give labelled ones with --data FILE, "
                    "or use it unmeasured with --force"
                )
            measured = _measure(bot, [against, shown(wanted)], questions, options)
        finally:
            generator.close()
    return _judged(options, registry, wanted, before, measured, questions)


def _check_flags(options: argparse.Namespace) -> None:
    if options.adapter is not None:
        options.fail("adapters are named without --adapter here: leave it out")


def _check(registry: Registry, uses: Uses, bot: Any) -> None:
    """Refuses adapters that are damaged, their results too, and those that the model cannot take."""
    from rag_app.adapters.choice import chosen

    for use in uses:
        registry.get(use.name, hashed=True)
        registry.results.read()
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
    now = registry.use(wanted, before) if taken else before or State()
    try:
        registry.results.add([use.name for use in wanted], result)
    except (AdapterInvalid, OSError) as error:
        if not taken:
            raise
        warn(f"rag-app: '{shown(wanted)}' is in use, but what was measured could not be kept: {error}")
    if not taken:
        raise console.Failed(worse, {**now.as_dict(), "gate": result})
    return changed(options, now, {"gate": result})


def compare(options: argparse.Namespace) -> dict[str, Any] | None:
    """`rag-app adapters compare`."""
    from rag_app.adapters import gate

    registry, named = Registry(), [parsed(name) for name in options.names]
    _check_flags(options)
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
