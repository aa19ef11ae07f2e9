"""PDF to documents: text page by page with the place of every word. How lines become blocks stands in layout.py.

PDFium gives the text in the file's own order, which is the reading order in nearly all files, columns included.
"""

import ctypes
import re
from collections.abc import Iterator
from typing import Any

from index.document import Block, Document, Word
from index.errors import LoadError
from index.loaders import layout
from index.loaders.layout import Line, Page
from index.loaders.source import Source

PAGE_BREAK = "\f\n"
HYPHEN = "\ufffe"
"""PDFium's mark for a hyphen at a line's end: the word goes on in the next line."""
LINE = re.compile(f"([^\n{HYPHEN}]+)([\n{HYPHEN}]|$)")
WORD = re.compile(r"[^\s\0]+")
MAX_OUTLINE = 20_000
BAD_TITLE = re.compile(r"untitled|.*\.(docx?|tex|dvi|indd|qxd|pdf|rtf|odt|pptx?|xlsx?|ps|fm|html?)|\W*", re.IGNORECASE)
NO_TEXT = "the PDF holds no text, only images (a scan?)"


def load_pdf(source: Source) -> list[Document]:
    """All pages that can be read; those that cannot are named in a warning."""
    import pypdfium2 as pdfium

    if b"%PDF-" not in source.data[:1024]:
        raise LoadError("the content is not a PDF")
    try:
        pdf = pdfium.PdfDocument(source.data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise LoadError("the PDF is password-protected; save a copy without the password") from error
        raise LoadError("the PDF is corrupt; open it in a viewer and save it again") from error
    with pdf:
        pages = list(_pages(pdf, source))
        outline = _outline(pdf)
        title = _title(pdf)
    document = _document(pages, outline, title)
    if document.blocks:
        return [document]
    if len(pages) and not any(page.lines for page in pages):
        return _no_text(pages)
    return [document]


def _no_text(pages: list[Page]) -> list[Document]:
    if all(page.bad for page in pages):
        raise LoadError("the PDF is corrupt; open it in a viewer and save it again")
    raise LoadError(f"{NO_TEXT}; have it read with OCR (the extra 'ocr', see docs/formats.md), or run ocrmypdf on it")


def _pages(pdf: Any, source: Source) -> Iterator[Page]:
    import pypdfium2 as pdfium

    bad, pictures = list[int](), list[int]()
    for number in range(1, len(pdf) + 1):
        page = Page(number, 0.0, 0.0)
        try:
            page = _page(pdf[number - 1], number)
            if not page.lines and _has_picture(pdf[number - 1]):
                pictures.append(number)
                if source.ocr:
                    page = _ocr(pdf[number - 1], page)
        except pdfium.PdfiumError:
            page.bad = True
            bad.append(number)
        yield page
    if bad:
        source.warnings.append(f"{_which(bad)} of the PDF cannot be read; open it in a viewer and save it again")
    if pictures and not source.ocr:
        source.warnings.append(f"{_which(pictures)} of the PDF can only be read with OCR: pictures without text")


def _which(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    return f"page {shown}" if len(numbers) == 1 else f"{len(numbers)} pages ({shown})"


def _has_picture(page: Any) -> bool:
    import pypdfium2.raw as raw

    return next(iter(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3)), None) is not None


def _ocr(page: Any, empty: Page) -> Page:
    from index.loaders.ocr import read_page

    empty.lines = list(read_page(page))
    return empty


def _page(page: Any, number: int) -> Page:
    """The page's lines, each word with its box on the page as it is shown."""
    import pypdfium2.raw as raw

    place, width, height = _placing(page)
    textpage = page.get_textpage()
    count = raw.FPDFText_CountChars(textpage)
    text, indices = _text(raw, textpage, count)
    found = Page(number, width, height)
    rectangle = raw.FS_RECTF()
    pointer = ctypes.byref(rectangle)
    loose = raw.FPDFText_GetLooseCharBox
    for written in LINE.finditer(text):
        line = Line(ends_in_hyphen=written[2] == HYPHEN)
        for match in WORD.finditer(text, *written.span(1)):
            first, last = match.start(), match.end() - 1
            loose(textpage, indices[first] if indices else first, pointer)
            left, top, right, bottom = rectangle.left, rectangle.top, rectangle.right, rectangle.bottom
            if last > first:  # two calls a word, whatever its length
                loose(textpage, indices[last] if indices else last, pointer)
                left, right = min(left, rectangle.left), max(right, rectangle.right)
                top, bottom = max(top, rectangle.top), min(bottom, rectangle.bottom)
            line.words.append(match.group())
            line.boxes.append(place(left, top, right, bottom))
        if line.words:
            found.lines.append(line)
    textpage.close()
    return found


def _text(raw: Any, textpage: Any, count: int) -> tuple[str, list[int]]:
    """The page's text, and the number that PDFium gives each of its characters; empty where that is the same."""
    if count <= 0:
        return "", []
    buffer = ctypes.create_string_buffer((count + 1) * 4)
    written = raw.FPDFText_GetText(textpage, 0, count, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)))
    data = buffer.raw[: max(0, written - 1) * 2]
    text = data.decode("utf-16-le", errors="replace").replace("\r", " ").replace("\f", "\n")
    if len(text) == count:
        return text, []
    # Characters without a meaning are left out of the text but counted, those beyond 16 bits are two.
    units = [unit for unit, c in enumerate(text) for _ in range(2 if c > "\uffff" else 1)]
    indices = [0] * len(text)
    for unit in range(len(units) - 1, -1, -1):
        indices[units[unit]] = max(0, raw.FPDFText_GetCharIndexFromTextIndex(textpage, unit))
    return text, indices


def _placing(page: Any) -> tuple[Any, float, float]:
    """What turns a PDF's coordinates into those of the page as it is shown, and that page's size."""
    x0, y0, x1, y1 = page.get_bbox()
    turn = page.get_rotation() % 360
    if turn == 90:
        return lambda l, t, r, b: (b - y0, l - x0, t - y0, r - x0), y1 - y0, x1 - x0  # noqa: E741
    if turn == 180:
        return lambda l, t, r, b: (x1 - r, b - y0, x1 - l, t - y0), x1 - x0, y1 - y0  # noqa: E741
    if turn == 270:
        return lambda l, t, r, b: (y1 - t, x1 - r, y1 - b, x1 - l), y1 - y0, x1 - x0  # noqa: E741
    return lambda l, t, r, b: (l - x0, y1 - t, r - x0, y1 - b), x1 - x0, y1 - y0  # noqa: E741


def _outline(pdf: Any) -> dict[int, list[tuple[str, int]]]:
    """The bookmarks' titles and levels by page."""
    import pypdfium2 as pdfium

    found: dict[int, list[tuple[str, int]]] = {}
    try:
        for number, mark in enumerate(pdf.get_toc(max_depth=6)):
            if number > MAX_OUTLINE:
                break
            target = mark.get_dest()
            index = target.get_index() if target else None
            if index is not None:
                found.setdefault(index + 1, []).append((mark.get_title(), mark.level + 1))
    except (pdfium.PdfiumError, UnicodeDecodeError, ValueError):
        pass
    return found


def _title(pdf: Any) -> str:
    """The title in the file's properties, unless it is one that a program made up."""
    try:
        title = " ".join(pdf.get_metadata_value("Title").split()).removeprefix("Microsoft Word - ")
    except (UnicodeDecodeError, ValueError):
        return ""
    sane = 3 < len(title) < 300 and title.isprintable() and not BAD_TITLE.fullmatch(title)
    return title if sane else ""


def _document(pages: list[Page], outline: dict[int, list[tuple[str, int]]], title: str) -> Document:
    layout.mark_running_lines(pages)
    layout.mark_headings(pages, outline)
    pieces, blocks, words, length = list[str](), list[Block](), list[Word](), 0
    for page in pages:
        if page.number > 1:
            pieces.append(PAGE_BREAK)
            length += len(PAGE_BREAK)
        text = layout.write_page(page, length, blocks, words)
        pieces.append(text)
        length += len(text)
    return Document("".join(pieces), tuple(blocks), title, "", tuple(words))
