"""The command `rag-index`. Every command is a function from parsed options to JSON."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import console
from index.console import say
from index.errors import IndexBusy, NoDocuments, RagError
from index.paths import default_index, shown

if TYPE_CHECKING:
    from index.builder import BuildReport

MODES = ("hybrid", "dense", "lexical")
OTHER_KIND = "files of type"
"""How scan.py begins the reason of a file whose format is not read."""
BUSY = 1.0
"""Seconds until a watch that found another build running tries again."""
ALSO = 3
"""Copies of a hit that are named to a person."""
LISTED = 20
"""Warnings and failures printed for a person; `--json` has all."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `rag-index`; returns the exit code."""
    return console.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    root = console.parser("rag-index", "Documents in, ranked passages out.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Any], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        console.add_index(added)
        console.add_json(added)
        return added

    _build_options(command("build", _build, "bring the index up to date with documents"))
    _search_options(command("search", _search, "print the passages that answer a query best"))
    command("status", _status, "print what the index holds; exit code 1 when there is none")
    command("verify", _verify, "check every hash, count and vector; exit code 1 when something is wrong")
    command("gc", _gc, "free the room of old generations and unfinished builds")
    remove = command("rm", _rm, "take documents out of the index and keep them out; the files stay")
    remove.add_argument("paths", nargs="+", metavar="PATH", help="documents and folders")
    export = command("export", _export, "write the passages to a folder, for other programs")
    export.add_argument("--format", choices=["beir"], default="beir", help="corpus.jsonl, a row per passage (default)")
    export.add_argument("--out", metavar="DIR", required=True, help="the folder; made if it is not there")
    _eval_options(command("eval", _eval, "measure search on a labelled set in BEIR's formats"))
    return root


def _build_options(build: argparse.ArgumentParser) -> None:
    build.add_argument("paths", nargs="*", metavar="PATH", help="files and folders (default: those of earlier builds)")
    build.add_argument("--rebuild", action="store_true", help="start from nothing; keep only what is under PATH")
    build.add_argument("--include", action="append", metavar="GLOB", help="read only matching files (may be repeated)")
    build.add_argument("--exclude", action="append", metavar="GLOB", help="leave out matching files (may be repeated)")
    build.add_argument(
        "--no-ignore", action="store_true", default=None, help="read also what .gitignore and .ragignore name"
    )
    build.add_argument("--chunk-tokens", type=_tokens, metavar="N", help="most tokens in a passage (default: 128)")
    build.add_argument(
        "--ocr", action="store_true", default=None, help="read scanned PDFs (the extra: pip install '.[ocr]')"
    )
    build.add_argument("--strict", action="store_true", help="exit code 1 when a document cannot be read")
    build.add_argument("--watch", action="store_true", help="stay, and build again when files change")


def _tokens(argument: str) -> int:
    if not argument.isdigit() or not 16 <= int(argument) <= 8192:
        raise argparse.ArgumentTypeError(f"'{argument}' is no number of tokens from 16 to 8192")
    return int(argument)


def _search_options(search: argparse.ArgumentParser) -> None:
    search.add_argument("query", type=console.words, metavar="QUERY")
    search.add_argument("-k", type=int, default=4, metavar="N", help="how many (default: 4)")
    _mode_option(search)
    search.add_argument(
        "--filter",
        action="append",
        default=[],
        type=console.words,
        metavar="KEY=VALUE",
        help="source=guides/*.md, format=pdf, title=…, heading=…, page=2-5; a key given twice means either",
    )
    search.add_argument("--expand", type=int, default=0, metavar="N", help="join N neighbouring passages to each hit")


def _mode_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mode", choices=MODES, default="hybrid", help="by meaning, by words, or both (default)")
    command.add_argument(
        "--rerank", nargs="?", const="", metavar="MODEL", help="order by a cross-encoder (default: $RAG_RERANKER)"
    )


def _eval_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--corpus", metavar="FILE", required=True, help='JSONL: {"_id", "title", "text"} a line')
    evaluate.add_argument("--queries", metavar="FILE", required=True, help='JSONL: {"_id", "text"} a line')
    evaluate.add_argument("--qrels", metavar="FILE", required=True, help="TSV: query-id, corpus-id, score")
    _mode_option(evaluate)


def _encoder(options: argparse.Namespace) -> Any:
    from index.encoder import SentenceEncoder

    return partial(SentenceEncoder, options.encoder)


def _rerank(options: argparse.Namespace) -> str | bool | None:
    return True if options.rerank == "" else options.rerank


def _build(options: argparse.Namespace) -> dict[str, Any] | None:
    encoder = _encoder(options)
    if not options.watch:
        return _reported(_build_once(options, encoder, options.rebuild), options)
    from index.watch import Watch

    directory = Path(options.index or default_index())
    paths = [Path(path) for path in options.paths or _earlier_roots(directory)]
    encoder = cache(encoder)  # one for all builds
    with Watch(paths, directory, notice=console.warn) as watch:
        generation = _say(_build_once(options, encoder, options.rebuild), options)
        console.warn(f"watching {', '.join(shown(str(path)) for path in paths)}; Ctrl-C ends")
        with suppress(KeyboardInterrupt):
            for report in reports(watch.batches(), lambda: _build_once(options, encoder, rebuild=False)):
                if report.generation != generation:
                    generation = _say(report, options)
    return None


def reports(
    batches: Iterable[object],
    build: "Callable[[], BuildReport]",
    wait: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = console.warn,
) -> "Iterator[BuildReport]":
    """A build for each batch of changes. One that fails leaves the index as it is, and ends nothing.

    Args:
        batches: what changed; each is built once nobody else builds.
        build: runs a build.
        wait: called with seconds while another build runs.
        tell: told why a build failed, and not again for the same reason in a row.
    """
    told = ""
    for _ in batches:
        try:
            report = _unless_busy(build, wait, tell)
        except (RagError, OSError) as error:  # emptied for a moment, or a full disk
            line = str(error)
            if isinstance(error, OSError):
                where = f" '{error.filename}'" if error.filename else ""
                line = f"{error.strerror or error}{where}: make room or check the permissions; the next change is built"
            if line != told:
                tell(line)
            told = line
        else:
            told = ""
            yield report


def _unless_busy(
    build: "Callable[[], BuildReport]", wait: Callable[[float], None], tell: Callable[[str], None]
) -> "BuildReport":
    """A build, as soon as no other one is running: the change that it is for would be forgotten."""
    told = False
    while True:
        try:
            return build()
        except IndexBusy as error:
            if not told:
                tell(f"{error}, then the changes are built")
            told = True
            wait(BUSY)


def _earlier_roots(directory: Path) -> list[str]:
    from index.engine import Index

    with Index.open(directory) as index:
        return [root["path"] for root in index.manifest.roots]


def _say(report: "BuildReport", options: argparse.Namespace) -> str:
    """Tells of one build of several; returns its generation."""
    result = _reported(report, argparse.Namespace(json=options.json, strict=False))
    if result is not None:
        say(json.dumps(result))
    sys.stdout.flush()
    return report.generation


def _build_once(options: argparse.Namespace, encoder: Any, rebuild: bool) -> "BuildReport":
    from index.builder import build
    from index.chunker import ChunkSettings

    size = options.chunk_tokens
    with console.progress_bars() as progress:
        return build(
            options.paths,
            options.index,
            encoder=encoder,
            settings=None if size is None else ChunkSettings.of(size),
            rebuild=rebuild,
            include=_patterns(options.include),
            exclude=_patterns(options.exclude),
            ignore_files=None if options.no_ignore is None else False,
            ocr=options.ocr,
            progress=progress,
        )


def _reported(report: "BuildReport", options: argparse.Namespace) -> dict[str, Any] | None:
    strictly = f"{len(report.files_failed)} documents could not be read; the others are in the index"
    if options.json and options.strict and report.files_failed:
        raise console.Failed(strictly, report.as_dict())
    if options.json:
        return report.as_dict()
    say(
        f"{report.generation}: {report.chunks} passages; {report.files_indexed} files read, "
        f"{report.files_unchanged} unchanged, {report.files_removed} removed, {len(report.files_failed)} failed, "
        f"in {report.seconds:.1f} s"
    )
    _list("failed", [(failed["path"], failed["error"]) for failed in report.files_failed])
    _list("warning", [(one["path"], one["warning"]) for one in report.warnings])
    _passed_over(report.files_skipped)
    if options.strict and report.files_failed:
        raise console.Failed(strictly, {})
    return None


def _passed_over(skipped: list[dict[str, str]]) -> None:
    unknown = [row for row in skipped if row["reason"].startswith(OTHER_KIND)]
    reasons = Counter(row["reason"] for row in skipped if not row["reason"].startswith(OTHER_KIND))
    for reason, count in reasons.most_common():
        say(f"  passed over: {count} × {reason}")
    kinds = Counter(Path(row["path"]).suffix for row in unknown)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        say(f"  passed over: {len(unknown)} files of other kinds ({listed})")


def _patterns(given: list[str] | None) -> list[str] | None:
    return None if given is None else [pattern for pattern in given if pattern]


def _list(what: str, rows: list[tuple[str, str]]) -> None:
    for path, reason in rows[:LISTED]:
        say(f"  {what}: {shown(path)}: {reason}")
    if len(rows) > LISTED:
        say(f"  and {len(rows) - LISTED} more; --json lists all")


def _search(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.engine import Index
    from index.filters import parse

    filters = parse(options.filter)
    with Index.open(options.index, _encoder(options)) as index:
        hits = index.search(
            options.query, options.k, options.mode, filters=filters, rerank=_rerank(options), expand=options.expand
        )
        if options.json:
            rows = [hit.as_dict() | {"boxes": [asdict(box) for box in index.boxes(hit)]} for hit in hits]
            return {"query": options.query, "mode": options.mode, "hits": rows}
    for hit in hits:
        page = f" · page {hit.page}" if hit.page else ""
        say(f"[{hit.rank}] {hit.score:.3f}  {shown(hit.source)}{page} · {hit.heading}")
        say("    " + hit.text.replace("\n", "\n    "))
        for source in hit.also[:ALSO]:
            say(f"    also in {shown(source)}")
        if len(hit.also) > ALSO:
            say(f"    and in {len(hit.also) - ALSO} more documents")
        say()
    if not hits:
        say("no passage matches")
    return None


def _status(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.engine import Index

    with Index.open(options.index) as index:
        status = index.status()
    if options.json:
        return status
    encoder = status["encoder"]
    say(f"{status['index']}: {status['generation']} of {status['built_at']}, {status['bytes'] / 1e6:.1f} MB")
    say(f"  {status['files']} files, {status['chunks']} passages, under {', '.join(map(shown, status['roots']))}")
    say(f"  encoder {encoder['name']}, {encoder['dimension']} dimensions, {encoder['precision']}; {status['faiss']}")
    for path, kinds in status["patterns"].items():
        say(f"  patterns for {shown(path)}: {', '.join(f'{k} {v}' for k, vs in kinds.items() for v in vs)}")
    for path in status["removed"]:
        say(f"  kept out: {shown(path)}")
    _list("failed", [(failed["path"], failed["error"]) for failed in status["files_failed"]])
    return None


def _verify(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.maintain import verify

    name, faults = verify(options.index)
    result = {"generation": name, "faults": faults}
    if faults:
        if not options.json:
            _list("damaged", [(fault["part"], fault["fault"]) for fault in faults])
        option = f" --index {options.index}" if options.index else ""
        line = f"{len(faults)} faults. Run: rag-index build --rebuild FOLDER{option}"
        raise console.Failed(line, result)
    if options.json:
        return result
    say(f"{name}: every file, count and vector is as it was written")
    return None


def _gc(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.maintain import collect_garbage

    freed = collect_garbage(options.index)
    if options.json:
        return {"bytes_freed": freed}
    say(f"{freed / 1e6:.1f} MB freed")
    return None


def _rm(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.builder import remove

    report = remove(options.paths, options.index)
    if options.json:
        return report.as_dict()
    say(f"{report.generation}: {report.files_removed} documents taken out, {report.chunks} passages left")
    return None


def _export(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.beir import write_corpus
    from index.maintain import passages

    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise NoDocuments(f"'{out}' is a file: name a folder to write to (--out)")
    rows = passages(options.index)
    out.mkdir(parents=True, exist_ok=True)
    count = write_corpus(rows, out / "corpus.jsonl")
    if options.json:
        return {"corpus": str(out / "corpus.jsonl"), "passages": count}
    say(f"{out / 'corpus.jsonl'}: {count} passages")
    return None


def _eval(options: argparse.Namespace) -> dict[str, Any] | None:
    from index.evaluate import evaluate_corpus

    with console.progress_bars() as progress:
        scores = evaluate_corpus(
            Path(options.corpus),
            Path(options.queries),
            Path(options.qrels),
            directory=options.index,
            encoder=_encoder(options),
            mode=options.mode,
            rerank=_rerank(options),
            progress=progress,
        )
    if options.json:
        return scores
    for name, value in scores.items():
        say(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    return None
