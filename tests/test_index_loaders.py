"""Loaders: every format, encoding and kind of damage; what is left out, and why a file is refused."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from index.document import Document
from index.errors import LoadError
from index.loaders import LOADERS, PAGE_BREAK, is_known
from index.loaders import load as load_all
from tests.conftest import ROOT

ZOO = ROOT.parent / "shared" / "data" / "zoo"
FRENCH = (
    "Le café est déjà prêt. L'élève a mangé à la crèche où règne la naïveté. "
    "Éventuellement, nous irons à la plage après le déjeuner, même s'il pleut.\n\n"
)


def load(path: Path, data: bytes) -> Document:
    """The one document of a file."""
    [document] = load_all(path, data)
    return document


def texts(document: Document, kind: str = "") -> list[str]:
    """The words of each block, of one kind or of all."""
    return [document.text[b.start : b.end] for b in document.blocks if not kind or b.kind == kind]


def headings(document: Document) -> list[tuple[int, str]]:
    return [(block.level, block.title) for block in document.blocks if block.kind == "heading"]


def markdown(text: str) -> Document:
    return load(Path("a.md"), text.encode())


def html(text: str | bytes) -> Document:
    return load(Path("a.html"), text.encode() if isinstance(text, str) else text)


def pdf(pages: list[list[str]], **options: Any) -> bytes:
    """A PDF with the given lines on each page."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1, **options)
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 800 - 14 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


PAGES = [["The okapi lives in the rainforest.", "It is a shy exam-", "ple of a giraffid."], [], ["The third page."]]


# --- what every format promises


@pytest.mark.parametrize("suffix", sorted(LOADERS))
@pytest.mark.parametrize("data", [b"", b" ", b"\n\t \r\n"], ids=["zero bytes", "a blank", "blank lines"])
def test_an_empty_file_is_refused_as_empty(suffix: str, data: bytes) -> None:
    with pytest.raises(LoadError, match=r"^the file is empty$"):
        load(Path(f"a{suffix}"), data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", "\u3000\u00a0".encode()),
        ("a.txt", " \n".encode("utf-16")),
        ("a.md", b"<!-- only a comment -->\n"),
        ("a.md", b"---\ntitle: only front matter\n---\n"),
        ("a.html", b"<!-- only a comment -->"),
        ("a.html", b"<html><head><title>Only a title</title></head><body><script>x()</script></body></html>"),
    ],
)
def test_a_file_without_text_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(LoadError, match=r"^the file holds no text$"):
        load(Path(name), data)


@pytest.mark.parametrize("name", ["a.png", "a.unknown", "a.b.exe"])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(LoadError, match=rf"^files of type '{Path(name).suffix}' are not read$"):
        load(Path(name), b"text")
    assert not is_known(name)


@pytest.mark.parametrize("name", ["README", "no_extension", "Makefile.am", "LICENSE.Apache", ".hidden", "a.PY"])
def test_texts_without_a_known_suffix_are_read(name: str) -> None:
    assert load(Path(name), b"The okapi.").text == "The okapi."
    assert is_known(name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("A.TXT", b"The okapi."),
        ("A.MD", b"The okapi."),
        ("A.Markdown", b"The okapi."),
        ("A.HTML", b"<p>The okapi.</p>"),
        ("A.Htm", b"<p>The okapi.</p>"),
        ("A.PDF", pdf([["The okapi."]])),
    ],
)
def test_the_suffix_may_be_upper_case(name: str, data: bytes) -> None:
    assert texts(load(Path(name), data)) == ["The okapi."]


@pytest.mark.parametrize(
    "document",
    [
        markdown("# A\n\none\n\n- two\n- three\n\n```\nfour\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"),
        html("<h1>A</h1><p>one</p><ul><li>two<pre>three\n four</pre></ul><table><tr><td>5<td><h2>B</h2></table>six"),
        html("<table><tr><td>a<td>b<pre> c\nd</pre><td><h3>E</h3>f<tr><td><pre>g<td><table><td><pre>h</table></table>"),
        load(Path("a.txt"), b"one\n\n  two\nthree\n\n\n\nfour"),
        load(Path("a.pdf"), pdf(PAGES)),
    ],
    ids=["md", "html", "tables", "txt", "pdf"],
)
def test_blocks_are_in_order_do_not_overlap_and_hold_all_the_text(document: Document) -> None:
    position, outside = 0, ""
    for block in document.blocks:
        assert position <= block.start < block.end <= len(document.text)
        outside += document.text[position : block.start]
        position = block.end
    assert not (outside + document.text[position:]).strip()
    assert all(text == text.rstrip() and text.strip() for text in texts(document))


# --- plain text, and the encodings that Markdown shares


@pytest.mark.parametrize("suffix", [".md", ".txt"])
@pytest.mark.parametrize(
    "data",
    [
        b"# One\r\n\r\ntwo\r\n\r\nthree\r\n",
        b"# One\rtwo\r\rthree",
        b"\n\n  # One\n\n\ttwo\x0cthree\n\n",
        "---\ntitle: ä\n---\n# One 🦓\n\n<!-- no -->\n\ntwo\u2028three\n".encode(),
    ],
)
def test_spans_are_spans_of_the_file_as_python_reads_it(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert load(path, data).text == path.open(encoding="utf-8").read()


def test_spans_of_the_demo_documents_are_spans_of_their_files() -> None:
    paths = sorted((ROOT / "examples" / "peft_docs").rglob("*.md"))
    assert len(paths) == 80
    for path in paths:
        document = load(path, path.read_bytes())
        assert document.text == path.open(encoding="utf-8").read(), path
        assert document.title and headings(document)[0][1] == document.title, path


def test_a_paragraph_of_text_is_a_block() -> None:
    document = load(Path("a.txt"), b"\n\n  one\n two \n \t\nthree\n")
    assert texts(document) == ["one\n two", "three"]
    assert not document.title


@pytest.mark.parametrize("suffix", [".md", ".txt"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom", "latin-1", "cp1252"]
)
def test_the_encoding_is_found(suffix: str, encoding: str) -> None:
    marks = {"utf-16-le-bom": ("utf-16-le", "\ufeff"), "utf-16-be-bom": ("utf-16-be", "\ufeff")}
    codec, mark = marks.get(encoding, (encoding, ""))
    assert load(Path(f"a{suffix}"), (mark + FRENCH * 3).encode(codec)).text == FRENCH * 3


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "A organização não está disponível amanhã. As ações são rápidas e a informação é útil."),
        ("latin-1", "Över ån låg en gammal kvarn där man malde mjöl. Räksmörgås är gott på sommaren."),
        (
            "latin-1",
            "La volpe è veloce e salta sopra il cane pigro. Perché non viene più? La città è bella, così è la libertà.",
        ),
        ("latin-1", "Die Größe der Straße ist für die Fußgänger überraschend, sagte der Bürgermeister."),
        ("latin-1", "El niño pequeño comió piñas mañana. La habitación está en el décimo piso."),
        ("cp1252", "The “quick” brown fox — it’s said — costs 5 € and jumps over the lazy dog every day."),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Rychlá hnědá liška skáče přes líného psa každý den."),
        ("iso8859-2", "Zażółć gęślą jaźń. Szybki brązowy lis przeskakuje nad leniwym psem każdego dnia tygodnia."),
        ("cp1251", "Быстрая коричневая лиса прыгает через ленивую собаку у берега реки каждый день недели."),
        ("koi8-r", "Быстрая коричневая лиса прыгает через ленивую собаку у берега реки каждый день недели."),
        ("cp1253", "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί κάθε μέρα της εβδομάδας."),
        ("shift_jis", "日本語の文章です。これは検索のためのテストであり、文字コードを判定します。"),
        ("gb18030", "这是一个测试文件,用来检查编码检测是否正确。我们希望结果是好的。"),
    ],
)
def test_older_encodings_are_told_apart(encoding: str, text: str) -> None:
    assert load(Path("a.txt"), text.encode(encoding)).text == text


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(256)) * 40,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10" + bytes(range(255, 0, -1)) * 9,
        b"text, and then a NUL\0 and more text",
        b"\x01\x02\x03\x04 mostly control characters \x05\x06\x07",
    ],
)
@pytest.mark.parametrize("suffix", [".md", ".txt"])
def test_binary_content_is_refused(suffix: str, data: bytes) -> None:
    with pytest.raises(LoadError, match=r"binary, not text|encoding is not recognised|a PNG picture"):
        load(Path(f"a{suffix}"), data)


# --- Markdown


@pytest.mark.parametrize(
    ("source", "level", "title"),
    [
        ("# Plain", 1, "Plain"),
        ("###### Six #####", 6, "Six"),
        ("## The `r` and `lora_alpha` of LoRA", 2, "The r and lora_alpha of LoRA"),
        ("# See [LoRA](lora.md)'s guide, [too].", 1, "See LoRA's guide, [too]."),
        ("# snake_case_name and __init__.py", 1, "snake_case_name and init.py"),
        ("# **Bold**ness of *it*", 1, "Boldness of it"),
        ('# <a id="q"></a>Question?', 1, "Question?"),
        ("# ![logo](x.png) Title", 1, "logo Title"),
        ("# A &amp; B \\# C", 1, "A & B # C"),
        ("  #   Spaces   inside  ", 1, "Spaces inside"),
        ("Setext\n======", 1, "Setext"),
        ("Two\nlines\n---", 2, "Two lines"),
    ],
)
def test_a_heading_gives_its_words(source: str, level: int, title: str) -> None:
    document = markdown(f"{source}\n\nbody\n")
    assert headings(document) == [(level, title)]
    assert document.title == title
    assert texts(document) == [source.rstrip(), "body"]


def test_the_first_heading_is_the_title() -> None:
    assert markdown("text\n\n## Two\n\n# One\n").title == "Two"
    assert markdown("text only\n").title == ""


@pytest.mark.parametrize("fence", ["```", "~~~", "```python", "````"])
def test_a_hash_in_a_code_block_is_no_heading(fence: str) -> None:
    close = fence.rstrip("python")
    document = markdown(f"# Real\n\n{fence}\n# a comment\n\n## another\n{close}\n\n    # indented\n\nbody\n")
    assert headings(document) == [(1, "Real")]
    assert texts(document, "code") == [f"{fence}\n# a comment\n\n## another\n{close}", "    # indented"]


def test_an_unclosed_fence_runs_to_the_end() -> None:
    assert texts(markdown("a\n\n```\n# b\n\nc\n")) == ["a", "```\n# b\n\nc"]


@pytest.mark.parametrize(
    "comment", ["<!-- one -->", "<!--\nlicence\n\n# not a heading\n-->", "<!-- one --> <!-- two -->", "  <!-- in -->"]
)
def test_comments_are_left_out(comment: str) -> None:
    document = markdown(f"{comment}\n\n# Title\n\nbody\n")
    assert texts(document) == ["# Title", "body"]


@pytest.mark.parametrize("source", ["<!-- open\n\nnever closed", "<!--\nvisible", "a `<!-- in code -->` b"])
def test_what_is_no_comment_stays(source: str) -> None:
    assert texts(markdown(f"{source}\n")) == [source]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("<!-- a --> visible <!-- b -->", ["visible"]),
        ("one <!-- no --> two", ["one", "two"]),
        ("one\n<!-- no\nno --> two\nthree", ["one", "two", "three"]),
        ("- one <!-- no -->\n- two", ["- one", "- two"]),
        ("- one\n\n  ```\n  <!-- yes -->\n  ```", ["- one\n\n  ```\n  <!-- yes -->\n  ```"]),
        ("<div>\none <!-- no -->\ntwo\n</div>", ["<div>\none", "two\n</div>"]),
        ("> one <!-- no -->", ["> one"]),
    ],
)
def test_comments_within_a_block_are_left_out(source: str, shown: list[str]) -> None:
    assert texts(markdown(f"{source}\n")) == shown


@pytest.mark.parametrize(
    "front",
    [
        "title: x\ntags: [a, b]",
        "title: x\n\ndate: 1",
        "title: |\n  ```\n  an open fence",
        "text: >\n<div>\n<!--",
        "tags:\n- a\n- b",
        "# a comment\ntitle: x",
        "",
    ],
)
def test_front_matter_is_left_out(front: str) -> None:
    matter = f"---\n{front}\n---\n" if front else "---\n---\n"
    document = markdown(f"{matter}# Title\nbody\n\n---\n\nend\n")
    assert texts(document) == ["# Title", "body", "end"]
    assert document.text[document.blocks[0].start :].startswith("# Title\n")


def test_a_line_at_the_top_opens_no_front_matter() -> None:
    assert texts(markdown("---\n\n# Title\n\nbody\n\n---\n\nend\n")) == ["# Title", "body", "end"]
    assert texts(markdown("---\n# Title\n\nbody\n\n---\n\nend\n")) == ["# Title", "body", "end"]


def test_lists_tables_and_quotes_are_one_block_each() -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    document = markdown(f"- one\n- two\n\n  more\n\n> # quoted\n> text\n\n{table}\n\n***\n\nend\n")
    assert texts(document) == ["- one\n- two\n\n  more", "> # quoted\n> text", table, "end"]
    assert headings(document) == []


# --- HTML


@pytest.mark.parametrize(
    "data",
    [
        "<html><body><p>café naïve</p></body></html>".encode(),
        "\ufeff<p>café naïve</p>".encode(),
        "<p>café naïve</p>".encode("utf-16"),
        "<p>café naïve</p>".encode("latin-1"),
        '<meta charset="iso-8859-1"><p>café naïve</p>'.encode("latin-1"),
        '<meta charset="iso-8859-1"><p>café naïve</p>'.encode(),
        '<meta http-equiv="Content-Type" content="text/html; charset=utf-8"><p>café naïve</p>'.encode(),
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml">café naïve</html>'.encode(),
        b"<p>caf&eacute; na&#239;ve</p>",
    ],
    ids=["undeclared", "bom", "utf-16", "cp1252", "meta", "wrong meta", "http-equiv", "xhtml", "entities"],
)
def test_the_encoding_of_html_is_found(data: bytes) -> None:
    assert texts(html(data)) == ["café naïve"]


def test_a_declared_encoding_counts_where_the_bytes_are_not_utf8() -> None:
    assert texts(html('<meta charset="windows-1251"><p>Лиса</p>'.encode("cp1251"))) == ["Лиса"]
    assert texts(html('<meta charset="shift_jis"><p>日本語</p>'.encode("shift_jis"))) == ["日本語"]


@pytest.mark.parametrize("tag", ["script", "style", "noscript", "template", "svg", "nav", "footer", "button"])
def test_what_belongs_to_the_site_is_dropped(tag: str) -> None:
    document = html(f"<body><p>before</p><{tag}>dropped</{tag}>tail<p>after</p></body>")
    assert "dropped" not in document.text
    assert " ".join(document.text.split()) == "before tail after"


def test_a_page_within_a_form_is_read() -> None:
    document = html("<body><form><h1>Page</h1><p>Text.</p><select><option>Choice</option></select></form></body>")
    assert texts(document) == ["Page", "Text."]


def test_headings_and_title_of_html() -> None:
    document = html(
        "<html><head><title>The\n  manual</title></head><body><h1>Engine <em>parts</em></h1><p>Intro.</p>"
        "<h2><a href='#oil'>Oil &amp; <code>pump_x</code></a></h2><p>Change it.</p><h2></h2><h6>Deep</h6></body></html>"
    )
    assert document.title == "The manual"
    assert headings(document) == [(1, "Engine parts"), (2, "Oil & pump_x"), (6, "Deep")]
    assert texts(document, "text") == ["Intro.", "Change it."]


def test_headings_stand_where_their_words_are() -> None:
    rows = "<table><tr><td><h2>In a cell</h2>x</td><td>y</td></tr></table>"
    document = html(f"<h1>Top</h1><p>a</p>{rows}<h3>After</h3><ul><li>b</li></ul><h4>Last</h4>")
    found = [(b.title, document.text[b.start : b.end]) for b in document.blocks if b.kind == "heading"]
    assert found == [(title, title) for title in ("Top", "In a cell", "After", "Last")]


def test_a_table_of_html_is_a_table() -> None:
    document = html(
        "<p>a</p><table><caption>Prices</caption><tr><th>Part<th>Price<tr><td>Oil<br>filter<td>14 euros"
        "<tr><td rowspan=2>Belt<td>3<tr><td>4</table>b"
    )
    assert texts(document) == [
        "a",
        "Prices",
        "| Part | Price |\n|---|---|\n| Oil filter | 14 euros |\n| Belt | 3 |\n| Belt | 4 |",
        "b",
    ]
    assert [block.kind for block in document.blocks] == ["text", "text", "table", "text"]


@pytest.mark.parametrize("open_, close", [("<div>" * 5, "</div>" * 5), ("<section>", "</section>")])
def test_preformatted_text_keeps_its_lines_and_indentation(open_: str, close: str) -> None:
    code = "    if x:\n        # no heading\n\n        y()\n    z"
    document = html(f"{open_}<p>Run:</p><pre>\n{code}\n</pre><p>Done.</p>{close}")
    assert texts(document, "code") == [code]
    assert texts(document, "text") == ["Run:", "Done."]


def test_markup_within_a_word_does_not_cut_it() -> None:
    document = html(
        "<p>Super<span>script</span> and <b>bo</b>ld</p><pre><span>print</span><span>(</span>x<span>)</span></pre>"
    )
    assert texts(document) == ["Superscript and bold", "print(x)"]


@pytest.mark.parametrize("depth", [200, 5_000, 50_000])
def test_deep_nesting_is_read(depth: int) -> None:
    head = "<html><head><title>Deep</title><script>evil()</script></head>"
    document = html(f"{head}{'<div>' * depth}the needle{'</div>' * depth}<nav>menu</nav><p>the end</p></html>")
    assert document.title == "Deep"
    assert "the needle" in texts(document) and "the end" in texts(document)
    assert "evil" not in document.text and "menu" not in document.text


@pytest.mark.parametrize(
    "source", ["plain words", "<p>open <b>tags", "</div>closed", "<p>a &nosuch; <>< b", "<b><i>x</b></i>"]
)
def test_broken_html_is_read(source: str) -> None:
    assert texts(html(source))


# --- PDF


def test_pages_of_a_pdf_are_numbered_and_empty_ones_count() -> None:
    document = load(Path("a.pdf"), pdf(PAGES))
    assert [(block.page, block.kind) for block in document.blocks] == [(1, "text"), (3, "text")]
    assert texts(document)[1] == "The third page."
    assert document.text.count(PAGE_BREAK) == 2


def test_a_word_cut_by_a_hyphen_is_whole_again() -> None:
    assert texts(load(Path("a.pdf"), pdf(PAGES)))[0] == (
        "The okapi lives in the rainforest.\nIt is a shy example of a giraffid."
    )


def test_an_encrypted_pdf_is_refused_and_the_reason_named() -> None:
    with pytest.raises(LoadError, match=r"^the PDF is password-protected; save a copy without the password$"):
        load(Path("a.pdf"), pdf(PAGES, encrypt="open-sesame"))


def test_a_pdf_that_only_restricts_its_owner_is_read() -> None:
    data = pdf(PAGES, encrypt=StandardEncryption("", ownerPassword="owner"))
    assert "okapi" in load(Path("a.pdf"), data).text


def test_a_scan_is_refused_and_ocr_named() -> None:
    from PIL import Image

    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    canvas.drawImage(ImageReader(Image.new("RGB", (20, 20), "red")), 72, 700)
    canvas.save()
    with pytest.raises(LoadError, match=r"no text, only images .*ocrmypdf"):
        load(Path("a.pdf"), buffer.getvalue())


@pytest.mark.parametrize("data", [b"<p>not a PDF</p>", b"x" * 2000 + b"%PDF-1.4"])
def test_what_is_no_pdf_is_refused(data: bytes) -> None:
    with pytest.raises(LoadError, match=r"^the content is not a PDF$"):
        load(Path("a.pdf"), data)


def test_a_cut_pdf_is_refused_wherever_it_is_cut() -> None:
    data = pdf(PAGES)
    for size in range(8, len(data) - 40, len(data) // 50):
        with pytest.raises(LoadError, match=r"^(the PDF is corrupt|the content is not a PDF|page \d of the PDF)"):
            load(Path("a.pdf"), data[:size])


def test_damage_within_a_pdf_gives_less_text_or_a_reason() -> None:
    written = " ".join(line for page in PAGES for line in page)
    words = {*load(Path("a.pdf"), pdf(PAGES)).text.split(), *written.split()}
    outcomes = set()
    for position in range(0, len(pdf(PAGES)), 20):
        data = bytearray(pdf(PAGES))
        data[position : position + 20] = bytes(20)
        try:
            assert set(load(Path("a.pdf"), bytes(data)).text.split()) <= words
            outcomes.add("text")
        except LoadError as error:
            assert "\n" not in str(error)
            outcomes.add("reason")
    assert outcomes == {"text", "reason"}


# --- the page about formats


def test_the_page_about_formats_names_them_all() -> None:
    page = (ROOT / "docs" / "formats.md").read_text("utf-8")
    named = set(re.findall(r"`(\.\w+)`", page.split("Tables that are written anew")[0]))
    assert named == set(LOADERS)


# --- real files of many origins, where they are at hand


def zoo_rows() -> list[Any]:
    manifest = ZOO / "manifest.jsonl"
    if not manifest.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no document zoo at {ZOO}"))]
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    return [pytest.param(row, id=Path(row["path"]).name[:40]) for row in rows]


@pytest.mark.parametrize("row", zoo_rows())
def test_real_files_behave_as_their_manifest_says(row: dict[str, Any]) -> None:
    path = ZOO / row["path"]
    try:
        documents = load_all(path, path.read_bytes())
    except LoadError as error:
        assert row["expect"] != "text", f"{path.name}: {error}"
        assert str(error) and "\n" not in str(error)
        return
    assert "text" in row["expect"], f"{path.name} is read, though it should be refused"
    for words in row["must_contain"]:
        assert any(
            " ".join(words.split()) in " ".join(text.split()) for document in documents for text in texts(document)
        )
    assert "\ufeff" not in documents[0].text[:1]
