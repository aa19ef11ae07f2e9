"""PDF to documents, page by page."""

import re
from dataclasses import replace
from typing import Any

from index.document import Block, Document
from index.errors import LoadError
from index.loaders.source import Source
from index.loaders.text import paragraphs

PAGE_BREAK = "\f\n"


def load_pdf(source: Source) -> list[Document]:
    """PDF text page by page, in the file's own order."""
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
        pages = [_pdf_page(pdf, number) for number in range(len(pdf))]
    if not any(page.strip() for page in pages):
        raise LoadError("the PDF holds no text, only images (a scan?); run OCR on it first, for example ocrmypdf")
    blocks, start = list[Block](), 0
    for number, page in enumerate(pages, 1):
        blocks += (replace(b, start=b.start + start, end=b.end + start, page=number) for b in paragraphs(page))
        start += len(page) + len(PAGE_BREAK)
    return [Document(PAGE_BREAK.join(pages), tuple(blocks))]


def _pdf_page(pdf: Any, number: int) -> str:
    import pypdfium2 as pdfium

    try:
        text: str = pdf[number].get_textpage().get_text_range()
    except pdfium.PdfiumError as error:
        raise LoadError(f"page {number + 1} of the PDF is corrupt; open it in a viewer and save it again") from error
    # U+FFFE is PDFium's mark for a hyphen at a line's end: the word goes on in the next line.
    text = re.sub("\ufffe\\s*", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text.replace("\f", "\n").replace("\0", "")
