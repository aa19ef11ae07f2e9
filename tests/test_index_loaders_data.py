"""Loaders of records, tables, settings, code, notebooks and mails."""

import json
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from index.document import Document
from index.errors import LoadError
from index.loaders import LOADERS, load
from tests.test_index_loaders_office import blocks, docx_sample, one


def many(name: str, text: str) -> tuple[list[Document], list[str]]:
    warnings: list[str] = []
    return load(Path(name), text.encode(), warnings=warnings), warnings


# --- records


def test_a_line_of_jsonl_is_a_document() -> None:
    rows = [
        {"_id": "d1", "title": "Okapis", "text": "They are shy.\n\nThey eat.", "metadata": {"url": "x", "n": 3}},
        {"id": 7, "contents": "They live in Ituri.", "tags": ["a", "b"]},
        {"text": "No name."},
    ]
    documents, warnings = many("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    assert [(d.record, d.title) for d in documents] == [("d1", "Okapis"), ("7", ""), ("3", "")]
    assert not warnings
    assert blocks(documents[0]) == [
        ("heading1", "Okapis"),
        ("text", "They are shy."),
        ("text", "They eat."),
        ("text", "metadata.url: x\nmetadata.n: 3"),
    ]
    assert blocks(documents[1]) == [("text", "They live in Ituri."), ("text", "tags: a, b")]


def test_bad_lines_are_passed_over_and_counted() -> None:
    lines = ['{"text": "good"}', "not json", "[1]", "", "3", '{"_id": "x"}', '{"text": "too"}', '{"text": "cut']
    documents, warnings = many("a.ndjson", "\n".join(lines))
    assert [d.text for d in documents] == ["good", "too"]
    assert [d.record for d in documents] == ["1", "7"]
    assert warnings == ["5 of 7 records hold no text that can be read: 2, 3, 5, 6, 8"]


def test_a_file_of_bad_lines_is_refused() -> None:
    with pytest.raises(LoadError, match=r"no line holds a JSON object with text \(lines 1, 2\)"):
        many("a.jsonl", "x\ny\n")


def test_half_a_surrogate_pair_does_no_harm() -> None:
    [document], _ = many("a.jsonl", r'{"_id": "\ud800", "title": "\udfff", "text": "a\ud83e\udd93 \ud800 b"}')
    assert (document.record, document.title) == ("\ufffd", "\ufffd")
    assert document.text == "\ufffd\n\na🦓 \ufffd b"
    assert document.blocks[0].title == "\ufffd"


def test_a_json_list_of_objects_is_a_document_each() -> None:
    documents, _ = many("a.json", '[{"id": "a", "text": "one"}, {"text": "two"}]')
    assert [(d.record, d.text) for d in documents] == [("a", "one"), ("2", "two")]


def test_other_json_is_lines_with_their_paths() -> None:
    value: dict[str, Any] = {"server": {"port": 8080, "hosts": ["a", "b"]}, "on": True, "no": None, "many": [{"x": 1}]}
    [document], _ = many("a.json", json.dumps(value))
    assert blocks(document) == [
        ("text", "server.port: 8080\nserver.hosts: a, b"),
        ("text", "on: true"),
        ("text", "many.x: 1"),
    ]


def test_bad_json_says_where() -> None:
    with pytest.raises(LoadError, match=r"not valid JSON \(.*line 2 column 1"):
        many("a.json", '{"a": 1,\n}')


def test_jsonl_under_the_name_of_json_is_read() -> None:
    assert len(many("a.json", '{"text": "one"}\n{"text": "two"}\n')[0]) == 2


# --- tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Part,Price\nOil,14 euros\n"),
        ("a.csv", '"Part","Price"\r\n"Oil","14 euros"\r\n'),
        ("a.csv", "Part;Price\nOil;14 euros\n"),
        ("a.csv", "Part\tPrice\nOil\t14 euros\n"),
        ("a.tsv", "Part\tPrice\nOil\t14 euros\n"),
        ("a.csv", "\ufeffPart,Price\nOil,14 euros"),
    ],
)
def test_separators_are_found(name: str, text: str) -> None:
    [document], _ = many(name, text)
    assert blocks(document) == [("table", "| Part | Price |\n|---|---|\n| Oil | 14 euros |")]


def test_a_row_of_a_large_table_can_be_read_alone() -> None:
    rows = "".join(f'part {n},"{n},5",\n' for n in range(1000))
    [document], _ = many("a.csv", f"Part,Price,Note\n{rows}")
    lines = document.text.split("\n")
    assert len(lines) == 1000 and lines[41] == "Part: part 41; Price: 41,5"


def test_a_table_without_names_has_plain_rows() -> None:
    [document], _ = many("a.csv", "".join(f"{n},{n * 2},x{n}\n" for n in range(500)))
    assert document.text.split("\n")[:2] == ["0 | 0 | x0", "1 | 2 | x1"]


def test_line_breaks_within_a_cell_stay_in_its_row() -> None:
    [document], _ = many("a.csv", 'Part,Note\nOil,"two\nlines"\n')
    assert document.text.endswith("| Oil | two lines |")


# --- code and settings

PYTHON = '''"""Docs."""

import os


@decorator
def one():
    x = 1

    return x


class Two:
    def three(self):
        pass
'''


def test_code_is_cut_between_definitions() -> None:
    document = one("a.py", PYTHON.encode())
    assert document.text == PYTHON
    assert [text.split("\n")[0] for _, text in blocks(document)] == [
        '"""Docs."""',
        "import os",
        "@decorator",
        "class Two:",
    ]
    assert {kind for kind, _ in blocks(document)} == {"code"}


def test_braces_and_ends_belong_to_what_they_close() -> None:
    source = "void f() {\n  a();\n\n}\n\nvoid g() {\n\n  b();\n}\n"
    assert [text for _, text in blocks(one("a.c", source.encode()))] == [
        "void f() {\n  a();\n\n}",
        "void g() {\n\n  b();\n}",
    ]


def test_a_long_class_is_cut_between_its_methods_with_their_indentation() -> None:
    methods = "\n".join(f"    def m{n}(self):\n        return {n}\n" for n in range(100))
    document = one("a.py", f"class A:\n{methods}".encode())
    texts = [text for _, text in blocks(document)]
    assert len(texts) == 100 and texts[7] == "    def m7(self):\n        return 7"


@pytest.mark.parametrize("suffix", sorted(LOADERS))
def test_every_suffix_is_lower_case_and_has_a_loader(suffix: str) -> None:
    assert suffix == suffix.lower() and suffix.startswith(".") and callable(LOADERS[suffix])


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("a.yaml", "# c\na: 1\nb:\n  - x\n\n  - y\nc: 2\n", ["# c", "a: 1", "b:\n  - x\n\n  - y", "c: 2"]),
        ("a.toml", 'x = 1\n\n[a]\nb = 1\n\n[c.d]\ne = "f"\n', ["x = 1", "[a]\nb = 1", '[c.d]\ne = "f"']),
        ("a.ini", "[a]\nb=1\n[c]\nd=2\n", ["[a]\nb=1", "[c]\nd=2"]),
    ],
)
def test_settings_are_cut_between_keys(name: str, text: str, shown: list[str]) -> None:
    document = one(name, text.encode())
    assert document.text == text and [piece for _, piece in blocks(document)] == shown


# --- reStructuredText


def test_sections_of_rst_are_headings_and_comments_are_left_out() -> None:
    source = (
        "=====\nTitle\n=====\n\n.. a comment\n   goes on\n\n.. _target:\n\nA part\n======\n\nSome :ref:`text <x>`::\n\n"
        "    code = 1\n\n    more()\n\nAnd *so* on.\n\nDeep ``x``\n------\nbody\n\n.. code-block:: python\n\n   y()\n\n"
        ".. note::\n\n   Mind this.\n"
    )
    document = one("a.rst", source.encode())
    assert document.text == source and document.title == "Title"
    assert [(b.level, b.title) for b in document.blocks if b.kind == "heading"] == [
        (1, "Title"),
        (2, "A part"),
        (3, "Deep x"),
    ]
    assert [text for kind, text in blocks(document) if kind == "code"] == [
        "    code = 1",
        "    more()",
        ".. code-block:: python",
        "   y()",
    ]
    shown = " ".join(text for _, text in blocks(document))
    assert "comment" not in shown and "goes on" not in shown and "Mind this." in shown and "body" in shown


# --- notebooks


def notebook(*cells: dict[str, Any]) -> bytes:
    return json.dumps({"nbformat": 4, "cells": list(cells)}).encode()


def test_cells_of_a_notebook() -> None:
    data = notebook(
        {"cell_type": "markdown", "source": ["# Okapis\n", "\n", "They *are* shy. <!-- no -->"]},
        {
            "cell_type": "code",
            "source": "if x:\n    y()",
            "outputs": [
                {"output_type": "stream", "text": ["hello\n"]},
                {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}},
                {"output_type": "stream", "text": "x" * 5000},
            ],
        },
        {"cell_type": "raw", "source": "raw"},
    )
    document = one("a.ipynb", data)
    assert document.title == "Okapis"
    assert blocks(document) == [
        ("heading1", "# Okapis"),
        ("text", "They *are* shy."),
        ("code", "if x:\n    y()"),
        ("code", "hello"),
        ("code", "<Figure>"),
        ("code", "x" * 2000),
        ("text", "raw"),
    ]


@pytest.mark.parametrize(
    "data", [b"[]", b"{}", b"3", b"x", b'{"cells": 3}', b'{"cells": [3, null]}', b'{"worksheets": [3]}']
)
def test_what_is_no_notebook_is_refused(data: bytes) -> None:
    with pytest.raises(LoadError, match=r"not a Jupyter notebook|no text"):
        load(Path("a.ipynb"), data)


# --- mails


def mail_sample() -> bytes:
    message = EmailMessage()
    message["Subject"] = "Über Okapis"
    message["From"] = "Ann <ann@example.org>"
    message["To"] = "bob@example.org"
    message["Date"] = "Fri, 01 Mar 2024 10:00:00 +0000"
    message.set_content("They are shy.\n\nAnn")
    message.add_alternative("<p>They are <b>shy</b>.</p>", subtype="html")
    message.add_attachment(docx_sample(), maintype="application", subtype="x", filename="../../okapi.docx")
    message.add_attachment(b"\x89PNG\r\n\x1a\n\0", maintype="image", subtype="png", filename="okapi.png")
    return message.as_bytes()


def test_a_mail_with_attachments() -> None:
    warnings: list[str] = []
    [document] = load(Path("a.eml"), mail_sample(), warnings=warnings)
    assert document.title == "Über Okapis"
    assert blocks(document)[:5] == [
        ("heading1", "Über Okapis"),
        ("text", "From: Ann <ann@example.org>\nTo: bob@example.org\nDate: Fri, 01 Mar 2024 10:00:00 +0000"),
        ("text", "They are shy."),
        ("text", "Ann"),
        ("heading2", "okapi.docx"),
    ]
    assert ("heading3", "About okapis") in blocks(document)
    assert warnings == ["the attachment 'okapi.png' is left out: files of type '.png' are not read"]


def test_a_mail_of_html_alone() -> None:
    message = EmailMessage()
    message["Subject"] = "x"
    message.set_content("<h1>Okapis</h1><p>shy</p><script>no</script>", subtype="html")
    assert blocks(one("a.eml", message.as_bytes()))[1:] == [("heading1", "Okapis"), ("text", "shy")]


def test_mails_within_mails_end_somewhere() -> None:
    data = b"Subject: inner\n\nThe innermost."
    for depth in range(8):
        message = EmailMessage()
        message["Subject"] = f"level {depth}"
        message.set_content("text")
        message.add_attachment(data, maintype="application", subtype="octet-stream", filename="inner.eml")
        data = message.as_bytes()
    warnings: list[str] = []
    [document] = load(Path("a.eml"), data, warnings=warnings)
    assert "level 7" in document.text and "innermost" not in document.text
    assert warnings == ["the attachment 'inner.eml' is left out: lies within too many other files"]


# --- encodings


@pytest.mark.parametrize("at", [0, 40, -1])
def test_one_bad_byte_does_not_lose_a_file(at: int) -> None:
    data = bytearray(("Le café est déjà prêt. Öl, naïve, été. " * 20).encode())
    data.insert(len(data) if at < 0 else at, 0xFF)
    text = one("a.txt", bytes(data)).text
    assert text.count("\ufffd") == 1 and "déjà" in text


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_garbage_behind_a_byte_order_mark_is_refused(mark: bytes) -> None:
    import random

    with pytest.raises(LoadError, match="binary"):
        load(Path("a.txt"), mark + random.Random(1).randbytes(4000))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_read(encoding: str) -> None:
    assert one("a.txt", ("They are shy, naïve. " * 20).encode(encoding)).text.startswith("They are shy, naïve.")
