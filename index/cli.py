"""The command `rag-index`: build, search, status. Every command is a function from parsed options to JSON."""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from index import console
from index.console import say
from index.paths import shown


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `rag-index`; returns the exit code."""
    return console.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    root = console.parser("rag-index", "Documents in, ranked passages out.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="bring the index up to date with documents")
    build.add_argument("paths", nargs="*", metavar="PATH", help="files and folders (default: those of earlier builds)")
    build.add_argument("--rebuild", action="store_true", help="start from nothing; keep only what is under PATH")
    build.set_defaults(run=_build)

    search = commands.add_parser("search", help="print the passages nearest to a query")
    search.add_argument("query", type=console.words, metavar="QUERY")
    search.add_argument("-k", type=int, default=4, metavar="N", help="how many (default: 4)")
    search.set_defaults(run=_search)

    status = commands.add_parser("status", help="print what the index holds; exit code 1 when there is none")
    status.set_defaults(run=_status)
    for command in (build, search, status):
        console.add_index(command)
        console.add_json(command)
    return root


def _encoder(options: argparse.Namespace) -> Any:
    from index.encoder import SentenceEncoder

    return partial(SentenceEncoder, options.encoder)


def _build(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.build import build

    with console.progress_bars() as progress:
        report = build(
            options.paths, options.index, encoder=_encoder(options), rebuild=options.rebuild, progress=progress
        )
    if options.json:
        return report.as_dict()
    say(
        f"{report.generation}: {report.chunks} passages; {report.files_indexed} files read, "
        f"{report.files_unchanged} unchanged, {report.files_removed} removed, {len(report.files_failed)} failed, "
        f"in {report.seconds:.1f} s"
    )
    for failed in report.files_failed:
        say(f"  failed: {shown(failed['path'])}: {failed['error']}")
    kinds = Counter(Path(skipped["path"]).suffix or "no suffix" for skipped in report.files_skipped)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        say(f"  passed over: {len(report.files_skipped)} files of other kinds ({listed})")
    return None


def _search(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.engine import Index

    hits = Index.open(options.index, _encoder(options)).search(options.query, options.k)
    if options.json:
        return {"query": options.query, "hits": [hit.as_dict() for hit in hits]}
    for hit in hits:
        page = f" · page {hit.page}" if hit.page else ""
        say(f"[{hit.rank}] {hit.score:.3f}  {shown(hit.source)}{page} · {hit.heading}")
        say("    " + hit.text.replace("\n", "\n    ") + "\n")
    return None


def _status(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.engine import Index

    status = Index.open(options.index).status()
    if options.json:
        return status
    encoder = status["encoder"]
    say(f"{status['index']}: {status['generation']} of {status['built_at']}, {status['bytes'] / 1e6:.1f} MB")
    say(f"  {status['files']} files, {status['chunks']} passages, under {', '.join(map(shown, status['roots']))}")
    say(f"  encoder {encoder['name']}, {encoder['dimension']} dimensions, {encoder['precision']}")
    for failed in status["files_failed"]:
        say(f"  failed: {shown(failed['path'])}: {failed['error']}")
    return None
