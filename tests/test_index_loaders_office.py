"""Loaders of Office files, books and rich text: what stands where in documents that other programs made."""

import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from docx.oxml import parse_xml

from index.document import Document
from index.errors import LoadError
from index.loaders import load

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
RUN = "<w:r><w:t>{}</w:t></w:r>"


def one(name: str, data: bytes) -> Document:
    [document] = load(Path(name), data)
    return document


def blocks(document: Document) -> list[tuple[str, str]]:
    """Kind, with the level of headings, and text of each block."""
    return [(f"{b.kind}{b.level or ''}", document.text[b.start : b.end]) for b in document.blocks]


def zipped(parts: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(document: Any) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


# --- Word


def word(*paragraphs: str) -> bytes:
    """A document whose body is the given XML."""
    document = docx.Document()
    for xml in paragraphs:
        document.element.body.insert(len(document.element.body) - 1, parse_xml(xml))
    return saved(document)


def docx_sample() -> bytes:
    document = docx.Document()
    document.core_properties.title = "The  okapi"
    document.add_heading("About okapis", 0)
    document.add_paragraph("They are shy.")
    document.add_heading("Food", 2)
    document.add_paragraph("leaves", style="List Bullet")
    document.add_paragraph("fruit", style="List Bullet")
    document.add_paragraph("first", style="List Number")
    document.add_paragraph("second", style="List Number")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["Part", "Price", "Oil", "14 euros"], strict=True):
        cell.text = text
    document.add_paragraph("The end.")
    return saved(document)


def test_a_word_document_keeps_its_structure() -> None:
    document = one("a.docx", docx_sample())
    assert document.title == "The okapi"
    assert blocks(document) == [
        ("heading1", "About okapis"),
        ("text", "They are shy."),
        ("heading2", "Food"),
        ("text", "- leaves\n- fruit\n1. first\n2. second"),
        ("table", "| Part | Price |\n|---|---|\n| Oil | 14 euros |"),
        ("text", "The end."),
    ]


@pytest.mark.parametrize(
    ("xml", "shown"),
    [
        (f'<w:p {W}><w:ins w:id="1" w:author="a">{RUN.format("added")}</w:ins></w:p>', "added"),
        (f'<w:p {W}><w:del w:id="1" w:author="a"><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>', None),
        (f"<w:sdt {W}><w:sdtContent><w:p>{RUN.format('control')}</w:p></w:sdtContent></w:sdt>", "control"),
        (f'<w:p {W}><w:hyperlink w:anchor="x">{RUN.format("link")}</w:hyperlink></w:p>', "link"),
        (f"<w:p {W}><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p>", "a\tb\nc"),
        (f"<w:p {W}><w:r><w:instrText>PAGE</w:instrText></w:r></w:p>", None),
        (f"<w:p {W}><w:r><w:txbxContent><w:p>{RUN.format('boxed')}</w:p></w:txbxContent></w:r></w:p>", "boxed"),
        (f'<w:p {W}><w:pPr><w:outlineLvl w:val="0"/></w:pPr>{RUN.format("Top")}</w:p>', "Top"),
    ],
)
def test_words_in_odd_places_of_a_word_document(xml: str, shown: str | None) -> None:
    texts = [text for _, text in blocks(one("a.docx", word(f"<w:p {W}>{RUN.format('x')}</w:p>", xml)))]
    assert texts == ["x"] + ([shown] if shown else [])


def test_strict_open_xml_is_read() -> None:
    strict = 'xmlns:w="http://purl.oclc.org/ooxml/wordprocessingml/main"'
    body = f"<w:document {strict}><w:body><w:p><w:r><w:t>They are shy.</w:t></w:r></w:p></w:body></w:document>"
    assert one("a.docx", zipped({"word/document.xml": body})).text == "They are shy."


def test_an_outline_level_makes_a_heading() -> None:
    xml = f'<w:p {W}><w:pPr><w:outlineLvl w:val="2"/></w:pPr>{RUN.format("Deep")}</w:p>'
    assert blocks(one("a.docx", word(xml))) == [("heading3", "Deep")]


def test_merged_cells_stand_in_each_of_their_rows() -> None:
    document = docx.Document()
    table = document.add_table(3, 2)
    for cell, text in zip(table._cells, ["Part", "Price", "Oil", "1", "", "2"], strict=True):
        cell.text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    assert one("a.docx", saved(document)).text == "| Part | Price |\n|---|---|\n| Oil | 1 |\n| Oil | 2 |"


def test_a_large_table_names_its_columns_in_each_row() -> None:
    document = docx.Document()
    table = document.add_table(101, 2)
    for n, row in enumerate(table.rows):
        row.cells[0].text, row.cells[1].text = (f"part {n}", f"{n} euros") if n else ("Part", "Price")
    lines = one("a.docx", saved(document)).text.split("\n")
    assert len(lines) == 100 and lines[41] == "Part: part 42; Price: 42 euros"


# --- PowerPoint


def pptx_sample() -> bytes:
    show = pptx.Presentation()
    for title, text, note in (("Okapis", "shy\nstriped", "Smile."), ("Food", "leaves", "")):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, text
        if note:
            slide.notes_slide.notes_text_frame.text = note
    table = show.slides[1].shapes.add_table(2, 2, 0, 0, 10**6, 10**6).table
    for n, text in enumerate(["Leaf", "Taste", "fig", "sweet"]):
        table.cell(n // 2, n % 2).text = text
    return saved(show)


def test_slides_are_pages_with_their_titles_as_headings() -> None:
    document = one("a.pptx", pptx_sample())
    assert [(block.page, *pair) for block, pair in zip(document.blocks, blocks(document), strict=True)] == [
        (1, "heading1", "Okapis"),
        (1, "text", "- shy\n- striped"),
        (1, "text", "Smile."),
        (2, "heading1", "Food"),
        (2, "text", "- leaves"),
        (2, "table", "| Leaf | Taste |\n|---|---|\n| fig | sweet |"),
    ]


# --- spreadsheets


def xlsx_sample(rows: int = 2) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Prices"
    sheet.append(["Part", "Price", "Since"])
    for n in range(rows):
        sheet.append([f"part {n}", n + 0.5, datetime.date(2024, 3, 1)])
    empty = book.create_sheet("Empty")
    assert empty.title == "Empty"
    other = book.create_sheet("Other")
    other.append(["Stock of 2024"])
    other.append([])
    other.append(["Place", "Full"])
    other.append(["Ituri", True])
    return saved(book)


def test_sheets_are_headed_tables() -> None:
    assert blocks(one("a.xlsx", xlsx_sample())) == [
        ("heading1", "Prices"),
        (
            "table",
            "| Part | Price | Since |\n|---|---|---|\n| part 0 | 0.5 | 2024-03-01 |\n| part 1 | 1.5 | 2024-03-01 |",
        ),
        ("heading1", "Other"),
        ("text", "Stock of 2024"),
        ("table", "| Place | Full |\n|---|---|\n| Ituri | TRUE |"),
    ]


def test_a_row_of_a_large_sheet_can_be_read_alone() -> None:
    document = one("a.xlsx", xlsx_sample(5000))
    assert "\nPart: part 4242; Price: 4242.5; Since: 2024-03-01\n" in document.text


def test_a_sheet_that_claims_to_be_endless_costs_nothing() -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet["A1"], sheet["XFD1048576"] = "a", "b"
    with pytest.raises(LoadError, match="cells, more than"):
        load(Path("a.xlsx"), saved(book))


# --- OpenDocument

ODF = " ".join(
    f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for short, name in [
        *(("office", "office"), ("text", "text"), ("table", "table"), ("draw", "drawing"), ("style", "style")),
        ("presentation", "presentation"),
    ]
)
META = (
    '<office:document-meta xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><office:meta><dc:title>Okapis</dc:title></office:meta>'
    "</office:document-meta>"
)


def odf(body: str, kind: str = "text") -> bytes:
    content = f"<office:document-content {ODF}><office:body><office:{kind}>{body}</office:{kind}></office:body>"
    return zipped(
        {
            "mimetype": f"application/vnd.oasis.opendocument.{kind}",
            "content.xml": content + "</office:document-content>",
            "meta.xml": META,
        }
    )


def odt_sample() -> bytes:
    return odf(
        '<text:h text:outline-level="1">About <text:span>okapis</text:span></text:h>'
        "<text:p>They<text:s text:c='2'/>are<text:tab/>shy<text:note><text:note-body><text:p>Very.</text:p>"
        "</text:note-body></text:note>.</text:p>"
        "<text:list><text:list-item><text:p>leaves</text:p><text:list><text:list-item><text:p>green</text:p>"
        "</text:list-item></text:list></text:list-item></text:list>"
        '<text:p text:style-name="Preformatted_20_Text">if x:</text:p>'
        '<text:p text:style-name="Preformatted_20_Text"><text:s text:c="4"/>y()</text:p>'
        "<table:table><table:table-row><table:table-cell><text:p>Part</text:p></table:table-cell>"
        "<table:table-cell><text:p>Price</text:p></table:table-cell></table:table-row>"
        "<table:table-row><table:table-cell table:number-columns-repeated='2'><text:p>1</text:p></table:table-cell>"
        "</table:table-row></table:table>"
        "<text:tracked-changes><text:p>old</text:p></text:tracked-changes>"
    )


def test_an_opendocument_text_keeps_its_structure() -> None:
    document = one("a.odt", odt_sample())
    assert document.title == "Okapis"
    assert blocks(document) == [
        ("heading1", "About okapis"),
        ("text", "They  are\tshy."),
        ("text", "Very."),
        ("text", "- leaves\n  - green"),
        ("code", "if x:\n    y()"),
        ("table", "| Part | Price |\n|---|---|\n| 1 | 1 |"),
    ]


def test_opendocument_slides_are_pages() -> None:
    slide = (
        '<draw:page><draw:frame presentation:class="title"><draw:text-box><text:p>Title {0}</text:p></draw:text-box>'
        "</draw:frame><draw:frame><draw:text-box><text:p>text {0}</text:p></draw:text-box></draw:frame></draw:page>"
    )
    document = one("a.odp", odf(slide.format(1) + slide.format(2), "presentation"))
    assert [(b.page, b.kind) for b in document.blocks] == [(1, "heading"), (1, "text"), (2, "heading"), (2, "text")]


def test_an_encrypted_opendocument_file_is_refused() -> None:
    data = zipped(
        {"mimetype": "application/vnd.oasis.opendocument.text", "META-INF/manifest.xml": "<encryption-data/>"}
    )
    with pytest.raises(LoadError, match="password-protected"):
        load(Path("a.odt"), data)


# --- books


def epub_sample() -> bytes:
    chapter = (
        "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><head><title/></head><body>{}</body></html>"
    )
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
            "<rootfile full-path='OEBPS/book.opf'/></rootfiles></container>",
            "OEBPS/book.opf": "<package xmlns='http://www.idpf.org/2007/opf'><metadata>"
            "<dc:title xmlns:dc='http://purl.org/dc/elements/1.1/'>Okapis</dc:title></metadata><manifest>"
            "<item id='b' href='text/two%20b.xhtml' media-type='application/xhtml+xml'/>"
            "<item id='a' href='text/one.xhtml' media-type='application/xhtml+xml'/>"
            "<item id='nav' href='nav.html' properties='nav' media-type='application/xhtml+xml'/>"
            "<item id='toc' href='toc.ncx' media-type='application/x-dtbncx+xml'/></manifest>"
            "<spine><itemref idref='nav'/><itemref idref='a'/><itemref idref='b'/><itemref/></spine></package>",
            "OEBPS/toc.ncx": "<ncx xmlns='http://www.daisy.org/z3986/2005/ncx/'><navMap><navPoint><navLabel>"
            "<text>The second</text></navLabel><content src='text/two%20b.xhtml#x'/></navPoint></navMap></ncx>",
            "OEBPS/text/one.xhtml": chapter.format("<h1>The first</h1><p>They are shy.</p>"),
            "OEBPS/text/two b.xhtml": chapter.format("<p>They eat leaves.</p>"),
            "OEBPS/nav.html": chapter.format("<p>contents</p>"),
        }
    )


def test_chapters_come_in_the_order_of_the_spine_and_have_headings() -> None:
    document = one("a.epub", epub_sample())
    assert document.title == "Okapis"
    assert blocks(document) == [
        ("heading1", "The first"),
        ("text", "They are shy."),
        ("heading1", "The second"),
        ("text", "They eat leaves."),
    ]


# --- rich text

RTF = (
    rb"{\rtf1\ansi\ansicpg1252{\info{\title Okapis}}{\*\generator x;}\pard They are \b shy\b0 , na\'efve "
    rb"\u8364?.\par\pard Second \{paragraph\}.\par{\pict\pngblip " + b"89504e47" * 1000 + rb"}}"
)


def test_rich_text_is_read() -> None:
    document = one("a.rtf", RTF)
    assert document.title == "Okapis"
    assert blocks(document) == [("text", "They are shy, naïve €."), ("text", "Second {paragraph}.")]


# --- what is not what its name says


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", docx_sample()),
        ("a.zip", docx_sample()),
        ("a.doc", docx_sample()),
        ("a.docx", pptx_sample()),
        ("a.xls", xlsx_sample()),
        ("a.docx", odt_sample()),
        ("a.pdf", epub_sample()),
        ("a.doc", RTF),
    ],
)
def test_content_counts_where_it_is_clear(name: str, data: bytes) -> None:
    warnings: list[str] = []
    assert load(Path(name), data, warnings=warnings)
    assert len(warnings) == (name != "a.xls") and all("whatever its name says" in warning for warning in warnings)


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.docx", OLE + "EncryptedPackage".encode("utf-16-le"), "password-protected"),
        ("a.xlsx", OLE + "EncryptedPackage".encode("utf-16-le"), "password-protected"),
        ("a.docx", OLE + "WordDocument".encode("utf-16-le"), "Word document of before 2007: save it as .docx"),
        ("a.txt", OLE + "PowerPoint Document".encode("utf-16-le"), "before 2007: save it as .pptx"),
        ("a.docx", OLE, "Office file of before 2007"),
        ("a.doc", OLE, "files of type '.doc' are not read"),
        ("a.docx", zipped({"x.txt": "text"}), "a zip archive, but no Word document"),
        ("a.pptx", zipped({"x.txt": "text"}), "a zip archive, but no PowerPoint presentation"),
        ("a.odt", zipped({"x.txt": "text"}), "a zip archive, but no OpenDocument file"),
        ("a.epub", zipped({"x.txt": "text"}), "a zip archive, but no EPUB book"),
        ("a.xlsx", zipped({"x.txt": "text"}), "the spreadsheet is damaged"),
        ("a.docx", b"plain text", "the file is damaged"),
        ("a.docx", b"<!DOCTYPE html><p>x</p>", "a web page, not .docx"),
        ("a.rtf", b"plain text", "the content is not RTF"),
        ("a.pdf", b"plain text", "the content is not a PDF"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG picture"),
        ("a.md", b"\x1f\x8b\x08\0\0\0\0\0\xff\xfe" + bytes(range(128, 255)), "a gzip archive"),
    ],
)
def test_what_cannot_be_read_says_so_in_a_line(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        load(Path(name), data)
    assert "\n" not in str(caught.value)
