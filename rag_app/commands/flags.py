"""The flags that commands share, made from the tables of settings: file and command line know the same names."""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from index import console
from rag_app import settings as tables
from rag_app.errors import SettingInvalid

if TYPE_CHECKING:
    from rag_app.bot import Bot
    from rag_app.generator import Generator

ENGINE = (
    ("--engine", str, "NAME", "llama.cpp (default), transformers, server or langchain"),
    ("--model", str, "MODEL", "a GGUF file, folder, Hub id, name on the server, or module:name (default: bundled)"),
    ("--base-url", str, "URL", "of an OpenAI-compatible server (default: http://localhost:8080/v1)"),
    ("--api-key-env", str, "NAME", "environment variable with the server's key (default: OPENAI_API_KEY)"),
    ("--timeout", float, "SECONDS", "silence of a server that counts as failure (default: 60)"),
    ("--retries", int, "N", "how often a failed request to a server is sent again (default: 3)"),
    ("--precision", str, "NAME", "of transformers: auto (default), 16-bit or nf4"),
    ("--device", str, "NAME", "of transformers: auto (default), cpu or cuda"),
    ("--n-ctx", int, "N", "context window in tokens (default: 4096)"),
)
DECODING = (
    ("--max-tokens", int, "N", "most tokens of one reply (default: 256)"),
    ("--temperature", float, "T", "0, the default, is greedy"),
    ("--top-k", int, "N", "draw among the N likeliest tokens"),
    ("--top-p", float, "P", "nucleus sampling"),
    ("--min-p", float, "P", "draw among tokens at least P as likely as the likeliest"),
    ("--typical-p", float, "P", "locally typical sampling"),
    ("--num-beams", int, "N", "beam search (transformers)"),
    ("--penalty-alpha", float, "A", "contrastive search, with --top-k (transformers)"),
    ("--repetition-penalty", float, "X", "above 1 against repetitions"),
    ("--presence-penalty", float, "X", "taken off tokens already written"),
    ("--frequency-penalty", float, "X", "the same, times how often"),
    ("--seed", int, "N", "for temperatures above 0 (default: 0)"),
)
ANSWER = (
    ("--strategy", str, "NAME", f"{', '.join(get_args(tables.Strategy))} (default: zero-shot)"),
    ("-k", int, "N", "how many passages the model reads (default: 4)"),
    ("--shots", int, "N", "examples shown by few-shot (default: 3)"),
    ("--examples", str, "FILE", "JSONL of examples for few-shot (default: bundled)"),
    ("--max-steps", int, "N", "most steps of react and pal (default: 6)"),
    ("--budget", int, "N", "most tokens written for one question, over all steps (default: 1024)"),
    ("--adapter", str, "NAME", "instead of those in use: NAME, or NAME,OTHER:0.5 with weights, or off for none"),
    ("--rewrite", str, "HOW", "of follow-ups: auto (default), model or off"),
    ("--min-confidence", float, "X", "refuse when retrieval is less sure, 0 to 1 (default: as calibrated)"),
)


def add_generator(command: argparse.ArgumentParser) -> None:
    """Adds what chooses the model, and `--config`."""
    command.set_defaults(fail=command.error)
    group = command.add_argument_group("model")
    group.add_argument("--config", metavar="FILE", help="settings in TOML (default: config.toml in the home)")
    _add(group, ENGINE)


def add_decoding(command: argparse.ArgumentParser) -> None:
    """Adds how the next token is chosen."""
    group = command.add_argument_group("decoding")
    _add(group, DECODING)
    group.add_argument("--stop", action="append", type=console.words, metavar="TEXT", help="end where this would come")


def add_answer(command: argparse.ArgumentParser, *, changing: bool = False, adapter: bool = True) -> None:
    """Adds how a question is answered.

    Args:
        changing: whether the strategy may become another while the command runs.
        adapter: whether the help shows the flag that names adapters.
    """
    command.set_defaults(changing=changing)
    group = command.add_argument_group("answer")
    hidden = () if adapter else ("--adapter",)
    _add(group, tuple((*row[:3], argparse.SUPPRESS if row[0] in hidden else row[3]) for row in ANSWER))
    group.add_argument("--quotes", metavar="on|off", help="quotes must stand verbatim in a passage (default: on)")
    group.add_argument("--tool", action="append", dest="tools", metavar="MODULE:NAME", help="a tool of yours for react")


def _add(group: Any, flags: tuple[tuple[str, Any, str, str], ...]) -> None:
    for flag, kind, metavar, text in flags:
        group.add_argument(flag, type=console.words if kind is str else kind, metavar=metavar, help=text)


def settings(options: argparse.Namespace) -> tables.Settings:
    """The settings of file and command line together; what is wrong on the command line ends it as bad usage.

    Raises:
        SettingInvalid: the file is wrong, or the examples or tools that are named.
        AdapterNotFound, AdapterInvalid: an adapter that is named is not there, or damaged.
    """
    given: dict[str, dict[str, Any]] = {}
    for table, kind in tables.TABLES.items():
        values = {f.name: getattr(options, f.name, None) for f in fields(kind)}
        given[table] = {name: value for name, value in values.items() if value is not None}
    try:
        if "quotes" in given["answer"]:
            given["answer"]["quotes"] = _on_off(given["answer"]["quotes"])
        for table, kind in tables.TABLES.items():
            tables.checked(kind, given[table])
    except SettingInvalid as error:
        options.fail(str(error))
    chosen = tables.load(options.config, given)
    if options.tools and chosen.answer.strategy != "react" and not options.changing:
        options.fail("a --tool is used by the strategy react alone: add --strategy react, or leave it out")
    find_named(chosen.answer)
    return chosen


def find_named(answer: tables.Options) -> None:
    """Reads what settings name of the user's own, so that mistakes in it show before anything is loaded."""
    if answer.examples is not None:
        from rag_app.examples import load_examples

        load_examples(answer.examples)
    if answer.adapter is not None:
        from rag_app.adapters.registry import Registry
        from rag_app.adapters.state import parsed

        for use in parsed(answer.adapter):
            Registry().get(use.name)
    if answer.tools and answer.strategy == "react":
        from rag_app.tools import load_tool

        for tool in answer.tools:
            load_tool(tool)


def own_stdout(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Keeps stdout for the one JSON object: what a user's tool or model prints meanwhile goes to stderr."""
    return redirect_stdout(sys.stderr) if options.json else nullcontext()


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise SettingInvalid(f"quotes is '{text}': give on or off")
    return text == "on"


def make_bot(options: argparse.Namespace) -> "tuple[Bot, Generator]":
    """The bot that the flags describe, nothing of it loaded yet, and its generator, which is to be closed."""
    from index.encoder import SentenceEncoder
    from rag_app.bot import Bot

    chosen = settings(options)
    generator = tables.make_generator(chosen)
    encoder = partial(SentenceEncoder, options.encoder)
    return Bot(generator, options.index, encoder, chosen.answer), generator
