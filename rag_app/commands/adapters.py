"""`rag-app adapters`: what is here, what is in use, what is better. Trains and exports nothing."""

import argparse
from typing import Any

from index import console
from index.console import say, warn
from rag_app.adapters.manifest import GGUF
from rag_app.adapters.registry import Registry
from rag_app.commands import measuring, output

NAME = "of an adapter, as 'list' shows it"


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
    use = part(
        "use", measuring.use, "answer with adapters from the next question on, if they do no worse than what is in use"
    )
    use.add_argument("names", nargs="+", type=console.words, metavar="NAME[:WEIGHT]", help=f"{NAME}; 1 is full weight")
    use.add_argument("--force", action="store_true", help="use it however it answers; measure only with --data")
    measuring.add_measure(use)
    part("off", _off, "answer with the base model as it is")
    part("rollback", _rollback, "go back to what was in use before")
    part("remove", _remove, "delete an adapter").add_argument("name", type=console.words, metavar="NAME", help=NAME)
    compare = part(
        "compare", measuring.compare, "answer the same questions with several adapters, and print their scores"
    )
    compare.add_argument(
        "names", nargs="+", type=console.words, metavar="NAME|off", help="as for 'use', joined by commas; off: the base"
    )
    measuring.add_measure(compare)


def _add(options: argparse.Namespace) -> dict[str, Any] | None:
    registry = Registry()
    entry = registry.add(options.source, options.name, options.force, options.base)
    if options.json:
        return registry.row(entry.name)
    say(f"added: {entry.name} ({_facts(registry.row(entry.name))})")
    if entry.gguf is None:
        warn(f"llama.cpp needs {GGUF}, too: 'rag-finetune export RUN --to gguf-lora', then add it again with --force")
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
    measuring.tell(now)
    return None


def _facts(row: dict[str, Any]) -> str:
    """Of `Registry.row`, in a line."""
    if "error" in row:
        return str(row["error"])
    rank = f" r={row['rank']}" if row["rank"] else ""
    bundled = ", bundled" if row["bundled"] else ""
    forms = " and ".join(row["forms"])
    return f"{row['method']}{rank} for {row['base']['name']}, {forms}, {row['bytes'] / 1e6:.1f} MB{bundled}"


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
    if row["bundled"] and (test := row["scores"].get("test")):
        say(f"measured on {test['questions']}:")
        for which in ("adapter", "base"):
            say(f"  {which:7}  {_scores(test[which])}")
    for one in row["scores"]["gate"]:
        say(
            f"{one['at']}: {one['adapter']} F1 {one['f1']:.3f}, {one['against']} {one['against_f1']:.3f}, "
            f"{one['n']} questions of {one['questions']}{'' if one['taken'] else '; not put to use'}"
        )
    return None


def _scores(found: dict[str, Any]) -> str:
    """Of the manifest of the adapter that came with the program, in a line."""
    answers, refusal, citations = (found[group] for group in ("answers", "refusal", "citations"))
    return (
        f"F1 {answers['f1_answerable']:.3f} where there is an answer, {refusal['f1']:.3f} at abstaining, "
        f"citation precision {citations['precision']:.3f}"
    )


def _off(options: argparse.Namespace) -> dict[str, Any] | None:
    return measuring.changed(options, Registry().off())


def _rollback(options: argparse.Namespace) -> dict[str, Any] | None:
    registry = Registry()
    before = len(registry.in_use().history)
    now = registry.rollback()
    if (gone := before - len(now.history) - 1) and not options.json:
        warn(f"rag-app: {gone} states were passed over, since their adapters are gone")
    return measuring.changed(options, now)


def _remove(options: argparse.Namespace) -> dict[str, Any] | None:
    Registry().remove(options.name)
    if options.json:
        return {"removed": options.name}
    say(f"removed: {options.name}")
    return None
