"""The PDF loader: where words stand, headings, tables, running lines, damaged pages, and OCR."""

import importlib.util
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2 as pdfium
import pytest
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from index.document import Document
from index.errors import LoadError
from index.loaders import load
from tests.test_index_loaders_office import blocks, one


def canvas(**options: Any) -> tuple[Canvas, io.BytesIO]:
    buffer = io.BytesIO()
    return Canvas(buffer, invariant=1, **options), buffer


def lines(*texts: str, size: int = 12, top: int = 800, x: int = 72) -> bytes:
    page, buffer = canvas()
    for number, text in enumerate(texts):
        page.setFont("Helvetica", size)
        page.drawString(x, top - number * 1.2 * size, text)
    page.save()
    return buffer.getvalue()


def word_box(document: Document, word: str) -> tuple[float, ...]:
    [found] = [w for w in document.words if document.text[w.start : w.end] == word]
    return found.box


# --- where words stand


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, (30, 50, 500, 560)])
def test_a_words_box_holds_its_ink_on_the_page_as_shown(turn: int, crop: tuple[int, ...] | None) -> None:
    page, buffer = canvas()
    page.setPageRotation(turn)
    if crop:
        page.setCropBox(crop)
    page.drawString(100, 400, "Needle")  # on the page, whichever way round it is
    page.save()
    ink = pdfium.PdfDocument(buffer.getvalue())[0].render(scale=1).to_numpy().min(axis=2) < 128
    ys, xs = np.nonzero(ink)
    left, top, right, bottom = word_box(one("a.pdf", buffer.getvalue()), "Needle")
    assert left - 1 <= xs.min() and xs.max() <= right + 1 and top - 1 <= ys.min() and ys.max() <= bottom + 1
    assert (right - left) * (bottom - top) < 45 * 18  # and not much else


def test_words_lie_in_the_text_in_ascending_order() -> None:
    document = one("a.pdf", lines("The okapi lives", "in the exam-", "ple of Ituri. 𝒳 ﬁn"))
    assert all(a.end <= b.start for a, b in pairwise(document.words))
    assert "".join(document.text[w.start : w.end] for w in document.words) == "".join(document.text.split())


def test_a_word_over_two_lines_has_a_box_in_each() -> None:
    document = one("a.pdf", lines("It is a shy exam-", "ple of an animal."))
    assert "example" in document.text
    first, second = word_box(document, "exam"), word_box(document, "ple")
    assert first[3] <= second[1] + 6 and second[0] < first[0]


def test_words_of_an_offset_font_are_found_by_their_boxes() -> None:
    document = one("a.pdf", lines("alpha beta gamma"))
    boxes = [word_box(document, word) for word in ("alpha", "beta", "gamma")]
    assert all(a[2] < b[0] for a, b in pairwise(boxes))
    assert boxes[0][0] == pytest.approx(72, abs=1.5)


# --- blocks


def test_a_gap_makes_a_paragraph_and_larger_letters_a_heading() -> None:
    page, buffer = canvas()
    y = 800.0
    for size, text, gap in (
        *((20, "The Okapi", 30), (12, "It lives in Ituri,", 14), (12, "which is a forest.", 28)),
        *((12, "It eats leaves,", 14), (12, "and it eats fruit.", 30), (15, "Its Food", 24)),
        *((12, f"Leaf number {n} is eaten.", 14) for n in range(8)),
    ):
        page.setFont("Helvetica", size)
        page.drawString(72, y, text)
        y -= gap
    page.save()
    found = blocks(one("a.pdf", buffer.getvalue()))
    assert found[:4] == [
        ("heading1", "The Okapi"),
        ("text", "It lives in Ituri,\nwhich is a forest."),
        ("text", "It eats leaves,\nand it eats fruit."),
        ("heading2", "Its Food"),
    ]


def test_bookmarks_are_headings_with_their_levels() -> None:
    page, buffer = canvas()
    for number, (level, title) in enumerate([(0, "Okapis"), (1, "Food of okapis"), (1, "Not in the text")]):
        page.bookmarkPage(f"k{number}")
        page.addOutlineEntry(title, f"k{number}", level)
    for number, text in enumerate(["1 Okapis", "They are shy.", "1.1 Food of", "okapis", "They eat."]):
        page.drawString(72, 800 - 14 * number, text)
    page.save()
    document = one("a.pdf", buffer.getvalue())
    assert blocks(document) == [
        ("heading1", "1 Okapis"),
        ("text", "They are shy."),
        ("heading2", "1.1 Food of\nokapis"),
        ("text", "They eat."),
    ]
    assert [b.title for b in document.blocks if b.title] == ["1 Okapis", "1.1 Food of okapis"]


def test_cells_of_a_table_are_kept_apart() -> None:
    page, buffer = canvas()
    page.drawString(72, 800, "Prices of parts are these:")
    for row, cells in enumerate([("Part", "Price"), ("Oil filter", "14 euros"), ("Belt", "3 euros")]):
        for column, cell in enumerate(cells):
            page.drawString(72 + 200 * column, 780 - 14 * row, cell)
    page.drawString(72, 720, "The end.")
    page.save()
    assert blocks(one("a.pdf", buffer.getvalue())) == [
        ("text", "Prices of parts are these:"),
        ("table", "Part | Price\nOil filter | 14 euros\nBelt | 3 euros"),
        ("text", "The end."),
    ]


def test_one_line_with_a_gap_is_no_table() -> None:
    page, buffer = canvas()
    page.drawString(72, 800, "1.2")
    page.drawString(150, 800, "Food")
    page.drawString(72, 786, "They eat leaves.")
    page.save()
    assert one("a.pdf", buffer.getvalue()).text == "1.2 Food\nThey eat leaves."


def test_running_headers_and_page_numbers_are_in_no_block() -> None:
    page, buffer = canvas()
    for number in range(6):
        page.drawString(72, 820, "The Book of Okapis")
        page.drawString(72, 700, f"This is what stands on leaf {'abcdef'[number]}.")
        page.drawString(300, 30, f"- {number + 1} -")
        page.showPage()
    page.save()
    document = one("a.pdf", buffer.getvalue())
    assert [text for _, text in blocks(document)] == [f"This is what stands on leaf {c}." for c in "abcdef"]
    assert document.text.count("The Book of Okapis") == 6  # still there, to be shown


def test_columns_are_read_one_after_the_other() -> None:
    page, buffer = canvas()
    for column in range(2):
        for row in range(20):
            page.drawString(72 + 250 * column, 800 - 14 * row, f"column {column} row {row}")
    page.save()
    found = blocks(one("a.pdf", buffer.getvalue()))
    assert len(found) == 2 and "column 1" not in found[0][1] and "column 0" not in found[1][1]


# --- properties, damage


@pytest.mark.parametrize(
    ("title", "kept"),
    [
        ("The Okapi", "The Okapi"),
        ("Microsoft Word - The Okapi", "The Okapi"),
        ("Microsoft Word - okapi.doc", ""),
        ("untitled", ""),
        ("okapi.tex", ""),
        ("   ", ""),
        ("--", ""),
        ("x" * 400, ""),
    ],
)
def test_a_title_counts_unless_a_program_made_it_up(title: str, kept: str) -> None:
    page, buffer = canvas()
    page.setTitle(title)
    page.drawString(72, 800, "They are shy.")
    page.save()
    assert one("a.pdf", buffer.getvalue()).title == kept


def test_a_bad_page_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    page, buffer = canvas()
    for number in range(1, 4):
        page.drawString(72, 800, f"This is page {number}.")
        page.showPage()
    page.save()
    get = pdfium.PdfDocument.get_page

    def fail_on_second(self: pdfium.PdfDocument, index: int) -> Any:
        if index == 1:
            raise pdfium.PdfiumError("Failed to load page.")
        return get(self, index)

    monkeypatch.setattr(pdfium.PdfDocument, "get_page", fail_on_second)
    monkeypatch.setattr(pdfium.PdfDocument, "__getitem__", fail_on_second)
    warnings: list[str] = []
    [document] = load(Path("a.pdf"), buffer.getvalue(), warnings=warnings)
    assert [(b.page, text) for b, (_, text) in zip(document.blocks, blocks(document), strict=True)] == [
        (1, "This is page 1."),
        (3, "This is page 3."),
    ]
    assert warnings == ["page 2 of the PDF cannot be read; open it in a viewer and save it again"]


# --- pictures of pages


def scan(*texts: str, with_text: str = "") -> bytes:
    """A PDF of pictures."""
    page, buffer = canvas()
    if with_text:
        page.drawString(72, 800, with_text)
        page.showPage()
    for text in texts:
        picture = pdfium.PdfDocument(lines(text, size=20))[0].render(scale=200 / 72).to_pil()
        page.drawImage(ImageReader(picture), 0, 0, 595.27, 841.89)
        page.showPage()
    page.save()
    return buffer.getvalue()


def test_a_scan_is_refused_with_the_way_to_read_it() -> None:
    with pytest.raises(LoadError, match=r"only images \(a scan\?\); have it read with OCR \(the extra 'ocr'"):
        load(Path("a.pdf"), scan("The okapi"))


def test_pages_that_are_pictures_are_named() -> None:
    warnings: list[str] = []
    [document] = load(Path("a.pdf"), scan("one", "two", with_text="They are shy."), warnings=warnings)
    assert document.text.split() == ["They", "are", "shy."]
    assert warnings == ["2 pages (2, 3) of the PDF can only be read with OCR: pictures without text"]


needs_ocr = pytest.mark.skipif(
    not (importlib.util.find_spec("rapidocr") and importlib.util.find_spec("onnxruntime")),
    reason="the extra 'ocr' is not installed: .venv/bin/pip install -c constraints.txt -e '.[ocr]'",
)


@needs_ocr
def test_ocr_reads_pictures_and_places_their_words() -> None:
    data = scan("The okapi lives in the forest", with_text="They are shy.")
    warnings: list[str] = []
    [document] = load(Path("a.pdf"), data, ocr=True, warnings=warnings)
    assert [(b.page, text) for b, (_, text) in zip(document.blocks, blocks(document), strict=True)] == [
        (1, "They are shy."),
        (2, "The okapi lives in the forest"),
    ]
    left, top, right, bottom = word_box(document, "okapi")
    assert 95 < left < 125 and 135 < right < 175 and 10 < top < bottom < 60 and not warnings


def test_ocr_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from index.loaders import ocr

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    ocr._engine.cache_clear()
    with pytest.raises(LoadError, match=r"^OCR is not installed. Run: pip install 'rag-app\[ocr\]'$"):
        load(Path("a.pdf"), scan("The okapi"), ocr=True)
