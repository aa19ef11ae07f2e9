"""Files to documents, a module per family of formats. Raises LoadError with the reason; knows nothing of chunks.

Nothing here opens a file, starts a process or uses the network: bytes come in, documents go out. Libraries of formats
are imported where they are used, so that importing this package is light. Files may be hostile: see index/reader.py,
which calls this in processes that may die.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from index.document import Document
from index.errors import LoadError
from index.loaders import mail, sniff
from index.loaders.code import load_code, load_settings
from index.loaders.epub import load_epub
from index.loaders.html import load_html
from index.loaders.markdown import load_markdown
from index.loaders.notebook import load_notebook
from index.loaders.odf import load_odf
from index.loaders.pdf import PAGE_BREAK, load_pdf
from index.loaders.records import load_json, load_jsonl, load_table
from index.loaders.rst import load_rst
from index.loaders.rtf import load_rtf
from index.loaders.sheets import load_sheets
from index.loaders.slides import load_pptx
from index.loaders.source import Source
from index.loaders.text import decode, load_text, paragraphs
from index.loaders.word import load_docx

__all__ = ["LOADERS", "PAGE_BREAK", "decode", "is_known", "load", "paragraphs"]

CODE = """
    .asm .awk .bash .bat .bib .c .cc .clj .cls .cmake .cpp .cs .css .cu .cxx .dart .diff .el .erl .ex .exs .f90 .fish
    .gd .glsl .go .gradle .groovy .h .hh .hpp .hs .hxx .java .jl .js .jsx .kt .kts .less .lisp .lua .m .mjs .mk .ml .mm
    .nim .nix .patch .php .pl .pm .proto .ps1 .py .pyi .pyx .r .rb .rkt .rs .sas .sass .scala .scm .scss .sh .sol .sql
    .sty .sv .svelte .swift .tcl .tf .ts .tsx .v .vb .vhd .vim .vue .xml .xsd .xsl .zig .zsh
"""
SETTINGS = ".yaml .yml .toml .ini .cfg .conf .properties .env .editorconfig .service .desktop"
TEXT = ".txt .text .log .asc .adoc .asciidoc .org .srt .tex .vtt .man .pod .textile .wiki .me .1st"
BINARY = ".pdf .docx .docm .pptx .pptm .xlsx .xlsm .xlsb .xls .odt .ott .ods .odp .otp .epub .rtf"

LOADERS: dict[str, Callable[[Source], list[Document]]] = {
    **dict.fromkeys(CODE.split(), load_code),
    **dict.fromkeys(SETTINGS.split(), load_settings),
    **dict.fromkeys(TEXT.split(), load_text),
    **dict.fromkeys((".md", ".markdown", ".mdx", ".rmd", ".qmd"), load_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), load_html),
    **dict.fromkeys((".rst", ".rest"), load_rst),
    **dict.fromkeys((".csv", ".tsv", ".tab"), load_table),
    **dict.fromkeys((".jsonl", ".ndjson"), load_jsonl),
    ".json": load_json,
    ".ipynb": load_notebook,
    ".pdf": load_pdf,
    **dict.fromkeys((".docx", ".docm"), load_docx),
    **dict.fromkeys((".pptx", ".pptm"), load_pptx),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), load_sheets),
    **dict.fromkeys((".odt", ".ott", ".odp", ".otp"), load_odf),
    ".rtf": load_rtf,
    ".epub": load_epub,
    ".eml": lambda source: mail.load_mail(source, _load),
}
"""Loaders by the lower-case suffix of a file's name."""

NAMED_TEXTS = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|authors|contributors|changes|changelog|news|history|install|todo|faq"
    r"|makefile|dockerfile|jenkinsfile|vagrantfile|gemfile|rakefile)(\..*)?",
    re.IGNORECASE,
)
MAX_DEPTH = 5
"""Files within files."""


def is_known(name: str) -> bool:
    """Whether a file of this name is worth opening: its format is read, or it has none and may be text."""
    suffix = Path(name).suffix.lower()
    return suffix in LOADERS or not suffix or NAMED_TEXTS.fullmatch(name) is not None


def load(path: Path, data: bytes, *, ocr: bool = False, warnings: list[str] | None = None) -> list[Document]:
    """The documents in `data`, the content of the file at `path`: one, or one per record of a file of records.

    Args:
        path: only its name counts; the file is not opened.
        data: the file's content.
        ocr: reads pages that are pictures, which takes seconds each; needs the extra `ocr`.
        warnings: takes a line for every kind of thing that had to be left out.

    Raises:
        LoadError: the format is not supported, or the file holds no readable text; the message is the reason.
    """
    return _load(Source(path.name, data, ocr, [] if warnings is None else warnings))


def _load(source: Source) -> list[Document]:
    if not source.data.strip():
        raise LoadError("the file is empty")
    if source.depth > MAX_DEPTH:
        raise LoadError("lies within too many other files")
    try:
        documents = [_sound(document) for document in _loader(source)(source) if document.blocks]
    except RecursionError as error:
        raise LoadError("is nested too deep") from error
    if not documents:
        raise LoadError("the file holds no text")
    return documents


def _loader(source: Source) -> Callable[[Source], list[Document]]:
    """By the name, unless the content says clearly that it is something else."""
    suffix = Path(source.name).suffix.lower()
    if source.name.lower().endswith(".rst.txt"):  # so does Sphinx publish the sources of its pages
        suffix = ".rst"
    actual = sniff.format_of(source.data)
    if actual and LOADERS[actual] is not LOADERS.get(suffix):
        source.warnings.append(f"read as {actual}, which its content is, whatever its name says")
        return LOADERS[actual]
    if not is_known(source.name):
        raise LoadError(f"files of type '{suffix}' are not read")
    if reason := sniff.refusal(source.data):
        raise LoadError(reason)
    if suffix in BINARY.split() and sniff.is_html(source.data):
        raise LoadError(f"the content is a web page, not {suffix}: rename it to .html to have it read")
    return LOADERS.get(suffix, load_text)


def _sound(document: Document) -> Document:
    """Without halves of surrogate pairs, which no UTF-8 can hold; JSON may smuggle them in."""
    words = (document.text, document.title, document.record, *(block.title for block in document.blocks))
    if all(map(_is_utf8, words)):
        return document
    return replace(
        document,
        text=_repaired(document.text),
        title=_repaired(document.title),
        record=_repaired(document.record),
        blocks=tuple(replace(block, title=_repaired(block.title)) for block in document.blocks),
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repaired(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
