"""`rag-app chats`: the conversations that were kept. Lists, shows, exports, deletes and rates them; answers nothing."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from index import console
from index.console import warn
from index.errors import RagError
from rag_app.chats import Chat, Chats, exchanges
from rag_app.commands import output
from rag_app.errors import ChatNotFound
from rag_app.terminal import Screen

ID = "id of a conversation, or how it begins"


def add(commands: Any) -> None:
    """Adds the command with its own commands."""
    chats = commands.add_parser("chats", help="list, show, export, delete and rate conversations")
    parts = chats.add_subparsers(required=True, metavar="COMMAND")

    def part(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run, fail=added.error)
        console.add_json(added)
        return added

    part("list", _list, "print the conversations, the latest first")
    part("show", _show, "print a conversation").add_argument("chat", type=console.words, metavar="CHAT", help=ID)
    export = part(
        "export", _export, "print answered questions as JSON lines, with what the model read; see docs/chats.md"
    )
    export.add_argument("chats", nargs="*", type=console.words, metavar="CHAT", help=f"{ID} (default: all)")
    export.add_argument(
        "--out", type=output.named, metavar="FILE", help="a file, whole or not at all (default: stdout)"
    )
    export.add_argument("--force", action="store_true", help="overwrite the file")
    delete = part("delete", _delete, "remove conversations for good")
    delete.add_argument("chats", nargs="+", type=console.words, metavar="CHAT", help=ID)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    rate = part("rate", _rate, "say what an answer is worth; what is not given stays as it was said before")
    rate.add_argument("chat", type=console.words, metavar="CHAT", help=ID)
    rate.add_argument("number", type=int, metavar="N", help="number of the question, as 'show' prints it")
    worth = rate.add_mutually_exclusive_group()
    worth.add_argument("--up", action="store_const", dest="rating", const=1, help="a good answer")
    worth.add_argument("--down", action="store_const", dest="rating", const=-1, help="a bad answer")
    worth.add_argument("--clear", action="store_const", dest="rating", const=0, help="take everything back")
    rate.add_argument("--comment", type=console.words, metavar="TEXT", help="why")
    rate.add_argument("--correction", type=console.words, metavar="TEXT", help="what the answer should have been")


def _screen() -> Screen:
    return Screen(sys.stdout, sys.stderr)


def _list(options: argparse.Namespace) -> dict[str, Any] | None:
    chats = Chats().chats()
    if options.json:
        return {"chats": [asdict(chat) for chat in chats]}
    if not chats:
        warn("there are no conversations yet: 'rag-app chat' begins one")
    _screen().chats(chats)
    return None


def _show(options: argparse.Namespace) -> dict[str, Any] | None:
    kept = Chats()
    chat = kept.find(options.chat)
    turns = kept.turns(chat.id)
    if options.json:
        return {**asdict(chat), "messages": [asdict(turn) for turn in turns]}
    screen = _screen()
    screen.chats([chat])
    for name, value in chat.settings.items():
        screen.say(f"    {name}: {value}")
    for exchange in exchanges(turns):
        screen.say()
        screen.exchange(exchange)
        if exchange.answer:
            screen.sources(exchange.answer.details)
    return None


def _export(options: argparse.Namespace) -> dict[str, Any] | None:
    kept, notes = Chats(), list[str]()
    out = output.checked(options.out, options.force) if options.out else None
    chosen = [kept.find(name).id for name in options.chats] or None
    rows = kept.export(chosen, notes.append)
    result: dict[str, Any] = {}
    if out:
        result = {"out": options.out, "rows": output.write(out, map(_line, rows))}
    elif options.json:
        result = {"rows": list(rows)}
    else:
        for row in rows:
            print(_line(row))  # noqa: T201
    if options.json:
        return {**result, "skipped": notes}
    for note in notes:
        warn(f"rag-app: {note}")
    if options.out:
        warn(f"{result['rows']:,} answered questions are in '{options.out}'")
    return None


def _line(row: dict[str, Any]) -> str:
    """ASCII: no character in it commands a terminal, or is a line's end to some readers."""
    return json.dumps(row)


def _delete(options: argparse.Namespace) -> dict[str, Any] | None:
    kept = Chats()
    found = {chat.id: chat for chat in map(kept.find, options.chats)}
    if not options.yes and not _agreed(options, list(found.values())):
        raise RagError("nothing was deleted")
    removed = {name: kept.delete(name) for name in found}
    if options.json:
        return {"deleted": list(removed), "messages": sum(removed.values())}
    _screen().say(f"deleted: {', '.join(removed)}")
    return None


def _agreed(options: argparse.Namespace, chats: list[Chat]) -> bool:
    if not sys.stdin or not sys.stdin.isatty():  # None: closed by who started the program
        options.fail("deleting asks first, and there is no terminal to ask on: say --yes")
    screen = Screen(sys.stderr, sys.stderr)
    screen.chats(chats)
    print(f"Delete {len(chats)} for good? [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _rate(options: argparse.Namespace) -> dict[str, Any] | None:
    rating, comment, correction = options.rating, options.comment, options.correction
    if rating is None and comment is None and correction is None:
        options.fail("say what it is worth: --up, --down, --clear, --comment or --correction")
    if rating == 0:
        comment, correction = comment or "", correction or ""
    kept = Chats()
    chat = kept.find(options.chat).id
    answers = {pair.number: pair.answer for pair in exchanges(kept.turns(chat)) if pair.answer}
    if not answers:
        raise ChatNotFound(f"the conversation '{chat}' has no answers yet: there is nothing to rate")
    if options.number not in answers:
        raise ChatNotFound(
            f"the conversation '{chat}' has no answer {options.number}: give one of {', '.join(map(str, answers))}"
        )
    kept.rate(chat, answers[options.number].id, rating, comment, correction)
    rated = exchanges(kept.turns(chat))[options.number - 1]
    if options.json and rated.answer:
        said = {name: getattr(rated.answer, name) for name in ("rating", "comment", "correction")}
        return {"chat": chat, "number": options.number, **said}
    _screen().exchange(rated)
    return None
