"""Hostile and damaged files: less text or one line of reason, in little time and memory, and nothing worse."""

import io
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from index.document import Document
from index.errors import LoadError
from index.loaders import LOADERS, load
from index.reader import Limits, Reader
from tests.test_index_loaders_data import PYTHON, mail_sample, notebook
from tests.test_index_loaders_office import (
    ODF,
    RTF,
    docx_sample,
    epub_sample,
    odf,
    odt_sample,
    pptx_sample,
    xlsx_sample,
    zipped,
)
from tests.test_index_loaders_pdf import lines

SAMPLES: dict[str, Callable[[], bytes]] = {
    "a.pdf": lambda: lines("The okapi lives in the forest.", "It is shy."),
    "a.docx": docx_sample,
    "a.pptx": pptx_sample,
    "a.xlsx": xlsx_sample,
    "a.odt": odt_sample,
    "a.epub": epub_sample,
    "a.rtf": lambda: RTF,
    "a.eml": mail_sample,
    "a.ipynb": lambda: notebook({"cell_type": "markdown", "source": "# Okapis\n\nshy"}),
    "a.html": lambda: b"<html><head><title>t</title></head><body><h1>A</h1><table><tr><th>b<td>c</table><pre>d</pre>",
    "a.md": lambda: b"# A\n\n- b\n- c\n\n```\nd\n```\n\n| e | f |\n|---|---|\n| 1 | 2 |\n\n<!-- g -->\n",
    "a.rst": lambda: b"A\n=\n\nb::\n\n  c\n\n.. d\n\n.. note:: e\n",
    "a.csv": lambda: b'a,b\n1,"2\n3"\n',
    "a.jsonl": lambda: b'{"_id": "1", "text": "a"}\n{"_id": "2", "text": "b"}\n',
    "a.json": lambda: b'{"a": [1, {"b": "c"}], "d": null}',
    "a.yaml": lambda: b"a: 1\nb:\n  - c\n",
    "a.py": lambda: PYTHON.encode(),
    "a.txt": lambda: "Le café est prêt.\n\nÉté.".encode(),
}


def outcome(name: str, data: bytes) -> list[Document]:
    """The documents, or none where there is one line of reason. Anything else than LoadError fails the test."""
    try:
        documents = load(Path(name), data)
    except LoadError as error:
        assert str(error) and "\n" not in str(error)
        return []
    for document in documents:
        assert all(0 <= b.start < b.end <= len(document.text) for b in document.blocks)
        assert all(a.end <= b.start for a, b in pairwise(document.blocks))
        document.text.encode()
    return documents


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sound_file_is_read(name: str) -> None:
    assert outcome(name, SAMPLES[name]())


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_cut_at_every_tenth(name: str) -> None:
    data = SAMPLES[name]()
    for tenth in range(1, 10):
        outcome(name, data[: len(data) * tenth // 10])


@pytest.mark.parametrize("name", SAMPLES)
def test_flipped_bits(name: str) -> None:
    data, rng = SAMPLES[name](), random.Random(name)
    for _ in range(30):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        outcome(name, bytes(damaged))


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_put_in_and_taken_out(name: str) -> None:
    data, rng = SAMPLES[name](), random.Random(name)
    for _ in range(15):
        at = rng.randrange(len(data))
        outcome(name, data[:at] + rng.randbytes(20) + data[at:])
        outcome(name, data[:at] + data[at + 20 :])


@pytest.mark.parametrize("suffix", sorted(LOADERS))
def test_content_of_every_kind_under_every_name(suffix: str) -> None:
    for data in (
        *(sample() for sample in SAMPLES.values()),
        random.Random(2).randbytes(2000),
        b"\0" * 500,
        b"[]",
        b"{}",
    ):
        outcome(f"a{suffix}", data)


# --- bombs


def deflated(size: int) -> str:
    return " " * size


def nested_zip() -> bytes:
    inner = zipped({"0": "0" * 1_000_000})
    for _ in range(4):
        inner = zipped({f"{n}.zip": inner for n in range(5)})
    return inner


def lying_zip() -> bytes:
    """The directory says ten bytes; the content is a hundred million."""
    data = bytearray(zipped({"word/document.xml": " " * 50_000_000}))
    real = (50_000_000).to_bytes(4, "little")
    while (at := data.find(real)) >= 0:
        data[at : at + 4] = (10).to_bytes(4, "little")
    return bytes(data)


XML_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "'
    + "lol" * 1000
    + '">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 100}">' for a, b in zip("abcdefg", "bcdefgh", strict=True))
    + "]>"
)
EXTERNAL = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def docx_of(prologue: str, entity: str) -> bytes:
    run = f"<w:p><w:r><w:t>visible {entity}</w:t></w:r></w:p>"
    return zipped({"word/document.xml": f"{prologue}<w:document {W}><w:body>{run}</w:body></w:document>"})


def nested(open_: str, close: str, depth: int, inner: str = "needle") -> str:
    return open_ * depth + inner + close * depth


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a zip of blanks": ("a.docx", lambda: zipped({"word/document.xml": deflated(200_000_000)})),
    "many parts": ("a.docx", lambda: zipped({f"{n}": "" for n in range(21_000)})),
    "a zip within zips": ("a.zip", nested_zip),
    "a zip within zips, named docx": ("a.docx", nested_zip),
    "a zip that lies about sizes": ("a.docx", lying_zip),
    "an epub of blanks": ("a.epub", lambda: zipped({"mimetype": "application/epub+zip", "x": deflated(200_000_000)})),
    "an odt of blanks": ("a.odt", lambda: zipped({"content.xml": deflated(200_000_000)})),
    "an xlsx of blanks": ("a.xlsx", lambda: zipped({"xl/workbook.xml": deflated(200_000_000)})),
    "billion laughs": ("a.docx", lambda: docx_of(XML_BOMB, "&h;")),
    "quadratic entities": ("a.docx", lambda: docx_of(XML_BOMB, "&a;" * 10_000)),
    "billion laughs in svg": ("a.svg", lambda: (XML_BOMB + "<x>&h;</x>").encode()),
    "billion laughs in xml": ("a.xml", lambda: (XML_BOMB + "<x>&h;</x>").encode()),
    "billion laughs in xhtml": ("a.xhtml", lambda: (XML_BOMB + "<html><p>&h;</p></html>").encode()),
    "yaml aliases": (
        "a.yaml",
        lambda: b"a: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 120)),
    ),
    "deep json": ("a.json", lambda: nested("[", "]", 100_000, "1").encode()),
    "deep json objects": ("a.json", lambda: nested('{"a":', "}", 900, "1").encode()),
    "deep jsonl": ("a.jsonl", lambda: nested('{"a":', "}", 50_000, "1").encode() + b'\n{"text": "needle"}'),
    "deep html": ("a.html", lambda: nested("<div>", "</div>", 30_000).encode()),
    "deep html tables": ("a.html", lambda: nested("<table><tr><td>", "</table>", 20_000).encode()),
    "deep html lists": ("a.html", lambda: nested("<ul><li>", "</ul>", 20_000).encode()),
    "many open tags": ("a.html", lambda: b"<b><i><u><s>" * 15_000 + b"needle"),
    "endless spans of cells": ("a.html", lambda: b"<table>" + b"<tr><td rowspan=99999999 colspan=99999999>x" * 2_000),
    "a comment never closed": ("a.html", lambda: b"<p>needle</p>" + b"<!-- " * 200_000),
    "a tag never closed": ("a.html", lambda: b"<p>needle</p>" + b"<a " * 200_000),
    "a page of attributes": ("a.html", lambda: b"<p " + b" ".join(b"a%d=1" % n for n in range(10_000)) + b">needle"),
    "self-closed tags in xhtml": ("a.xhtml", lambda: b"<?xml version='1.0'?>" + b"<a " * 100_000 + b"/>needle"),
    "deep quotes": ("a.md", lambda: b">" * 5_000 + b" needle"),
    "deep lists": ("a.md", lambda: "".join(f"{'  ' * n}- x\n" for n in range(500)).encode()),
    "open brackets": ("a.md", lambda: b"[" * 20_000 + b"needle"),
    "stars": ("a.md", lambda: b"*a **b " * 5_000),
    "backticks": ("a.md", lambda: b"".join(b"`" * n + b" " for n in range(1, 500)) + b"<!-- x"),
    "comments in a paragraph": ("a.md", lambda: b"a <!-- " * 20_000),
    "front matter never closed": ("a.md", lambda: b"---\na: b\n" * 4_000),
    "hashes in front matter": ("a.md", lambda: b"---\n" + b"# a\n" * 4_000),
    "one long line": ("a.txt", lambda: b"word " * 1_000_000),
    "one long word": ("a.txt", lambda: b"x" * 5_000_000),
    "only newlines and a word": ("a.txt", lambda: b"\n" * 2_000_000 + b"needle"),
    "blanks between lines": ("a.py", lambda: b"x = 1\n" + b" \n" * 500_000 + b"y = 2\n"),
    "one long line of code": ("a.js", lambda: b"var a=1;" * 300_000),
    "rules without end": ("a.rst", lambda: b"=" * 500_000 + b"\nA\n" + b"=" * 500_000),
    "markup in a title": ("a.rst", lambda: b"`" * 20_000 + b"\n" + b"=" * 20_000 + b"\n\nneedle"),
    "deep rtf": ("a.rtf", lambda: b"{\\rtf1 " + b"{" * 100_000 + b"needle" + b"}" * 100_000 + b"}"),
    "rtf skips": ("a.rtf", lambda: b"{\\rtf1 \\uc999999999 \\u1234 " + b"x" * 1000 + b"\\par needle}"),
    "binary in rtf": ("a.rtf", lambda: b"{\\rtf1 \\bin99999999999 needle}"),
    "a wide csv": ("a.csv", lambda: b"," * 1_000_000 + b"\n1,2\n"),
    "an open quote": ("a.csv", lambda: b'a,b\n"' + b"x,y\n" * 300_000),
    "a csv of separators": ("a.csv", lambda: b",;\t|" * 50_000 + b"\nx"),
    "many small records": ("a.jsonl", lambda: b'{"text":"x"}\n' * 10_000),
    "parts of a mail": (
        "a.eml",
        lambda: b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 5_000,
    ),
    "deep parts of a mail": (
        "a.eml",
        lambda: (
            b"Subject: x\n"
            + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(300))
        ),
    ),
    "a header without end": ("a.eml", lambda: b"Subject: " + b"=?utf-8?q?a?= " * 3_000 + b"\n\nneedle"),
    "addresses without end": ("a.eml", lambda: b"From: x\nTo: " + b"(" * 2_000 + b"\n\nneedle"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(name: str) -> None:
    """By the clock of the processor, and by what Python itself allocates beyond the file."""
    file, make = BOMBS[name]
    data = make()
    tracemalloc.start()
    began = time.process_time()
    outcome(file, data)
    spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 8 and peak < 100_000_000 + 40 * len(data), (spent, peak)  # a hundred times what is usual


def test_entities_are_never_expanded_or_fetched() -> None:
    [document] = outcome("a.docx", docx_of(EXTERNAL, "&a;"))
    assert document.text.strip() == "visible"
    assert not outcome("a.docx", docx_of(XML_BOMB, "&h;"))  # refused by libxml2 itself
    for name, wrap in (("a.xhtml", "<html><p>visible &a;</p></html>"), ("a.html", "<p>visible &a;</p>")):
        [document] = outcome(name, (EXTERNAL + wrap).encode())
        assert "root:" not in document.text


def test_zip_names_that_lead_out_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = dict.fromkeys(["../out.txt", "/tmp/out.txt", "C:\\out.txt", "a/../../out.txt", "\n", "x" * 5000], "x")
    buffer = io.BytesIO(docx_sample())
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert outcome("a.docx", buffer.getvalue())
    assert not list(tmp_path.iterdir()) and not (tmp_path.parent / "out.txt").exists()


def test_a_chapter_outside_its_book_is_not_opened() -> None:
    data = epub_sample()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    package = parts["OEBPS/book.opf"]
    assert isinstance(package, bytes)
    parts["OEBPS/book.opf"] = package.replace(b"text/one.xhtml", b"../../../../../etc/passwd")
    [document] = outcome("a.epub", zipped(parts))
    assert "root:" not in document.text and "They eat leaves." in document.text


def test_repeated_cells_of_opendocument_are_bounded() -> None:
    row = (
        '<table:table-row table:number-rows-repeated="1048576"><table:table-cell '
        'table:number-columns-repeated="999999999"><text:p>x<text:s text:c="999999999"/></text:p></table:table-cell>'
        "</table:table-row>"
    )
    [document] = outcome("a.odt", odf(f"<table:table>{row * 50}</table:table>"))
    assert len(document.text) < 2_000_000 and ODF


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.html", b"<p>" * 1_000_000),
        ("a.md", b"- " * 100_000),
        ("a.json", b"[" * 10_000_000),
        ("a.pdf", b"%PDF-1.7\n" + b"1 0 obj<</Kids[1 0 R]/Type/Pages/Count 9999999>>endobj\n" * 1000),
    ],
)
def test_in_a_worker_a_bomb_costs_at_most_its_file(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "b.txt").write_bytes(b"The okapi.")
    with Reader(Limits(seconds=20, memory=2**29), workers=1) as reader:
        bomb, after = reader.read([tmp_path / name, tmp_path / "b.txt"])
    assert bomb.error or bomb.documents
    assert after.documents[0].text == "The okapi."


@pytest.mark.parametrize("name", ["\x1b[31mred.txt", "a\nb.md", "x" * 5000 + ".txt", "..", "", ".", "a.txt/"])
def test_names_are_only_names(name: str) -> None:
    with suppress(LoadError):
        assert load(Path(name), b"The okapi.")
