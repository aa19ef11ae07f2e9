"""Compares libraries that read PDF and Office files: speed, fidelity to pages, tables; and times every format.

The peers stay out of the project's environment:

    python3 -m venv ../peers && ../peers/bin/pip install lxml pypdfium2 pypdf pdfplumber python-docx mammoth \\
        docx2python python-pptx openpyxl xlsxwriter python-calamine reportlab charset-normalizer striprtf markdown-it-py
    PYTHONPATH=. ../peers/bin/python bench/loaders.py FOLDER

FOLDER: documents of any kind; its PDFs with bookmarks are the sample for PDF. The Office files are made here.
"""

import io
import logging
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index.errors import LoadError
from index.loaders import PAGE_BREAK, load

Pages = list[str]


def _seconds(call: Callable[[], Any], best_of: int = 3) -> float:
    """Of processor time, since others work on this machine too; the fastest of some runs."""
    times = []
    for _ in range(best_of):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


# --- PDF


def _ours(data: bytes) -> Pages:
    return load(Path("a.pdf"), data)[0].text.split(PAGE_BREAK)


def _by_pdfium(data: bytes) -> Pages:
    import pypdfium2

    return [page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(data)]


def _by_pypdf(data: bytes) -> Pages:
    import pypdf

    return [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages]


def _by_pdfplumber(data: bytes) -> Pages:
    import pdfplumber

    with pdfplumber.open(io.BytesIO(data)) as pdf:
        return [page.extract_text() or "" for page in pdf.pages]


def _bookmarks(data: bytes) -> list[tuple[str, int]]:
    import pypdfium2

    marks = pypdfium2.PdfDocument(data).get_toc()
    found = [(mark.get_title(), mark.get_dest()) for mark in marks]
    return [(title, dest.get_index()) for title, dest in found if dest and dest.get_index() is not None]


def _table_pdf() -> tuple[bytes, list[list[str]]]:
    """Five pages of a table without lines between its cells."""
    from reportlab.platypus import SimpleDocTemplate, Table

    rows = [[f"name{n}", f"{n * 37 % 1000} kg", f"place of {n}", f"{n}.50 euros"] for n in range(200)]
    buffer = io.BytesIO()
    SimpleDocTemplate(buffer).build([Table(rows, colWidths=[100, 80, 150, 100])])
    return buffer.getvalue(), rows


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _compare_pdf(files: list[Path]) -> None:
    marked = [(path, path.read_bytes()) for path in files]
    marked = [(path, data) for path, data in marked if _bookmarks(data)]
    table, rows = _table_pdf()
    print(f"\nPDF: {len(marked)} files, {sum(len(d) for _, d in marked) / 1e6:.1f} MB; a table of {len(rows)} rows")
    for name, read in {
        "this project": _ours,
        "pypdfium2": _by_pdfium,
        "pypdf": _by_pypdf,
        "pdfplumber": _by_pdfplumber,
    }.items():
        spent = found = total = pages = 0
        for _, data in marked:
            began = time.process_time()
            texts = [_letters(page) for page in read(data)]
            spent += time.process_time() - began
            pages += len(texts)
            marks = [(_letters(title), index) for title, index in _bookmarks(data)]
            total += len(marks)
            found += sum(title in texts[index] for title, index in marks if index < len(texts))
        lines = [_letters(line) for page in read(table) for line in page.split("\n")]
        whole = sum(_letters("".join(row)) in lines for row in rows)
        cells = sum(" | ".join(row) in page for page in read(table) for row in rows)
        print(
            f"  {name:14} {spent / pages * 1000:7.2f} ms/page   bookmarks on their page {found / total:6.1%}"
            f"   rows in one line {whole / len(rows):5.0%}   cells apart {cells / len(rows):5.0%}"
        )


# --- Office


def _docx_file() -> tuple[bytes, dict[str, str]]:
    """A long document; and words in the places that readers tend to miss."""
    import docx
    from docx.oxml import parse_xml

    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    for n in range(150):
        document.add_heading(f"Heading {n}", 1 + n % 3)
        document.add_paragraph(f"Paragraph {n} says something of some length about the okapi. " * 5)
        document.add_paragraph(f"item {n}", style="List Bullet")
    table = document.add_table(300, 4)
    for n, row in enumerate(table.rows):
        for m, cell in enumerate(row.cells):
            cell.text = f"cell {n} {m}"
    body = document.element.body
    run = "<w:r><w:t>{}</w:t></w:r>"
    for xml in (
        f'<w:p {w}><w:ins w:id="1" w:author="a">{run.format("inserted words")}</w:ins></w:p>',
        f'<w:p {w}><w:hyperlink w:anchor="x">{run.format("linked words")}</w:hyperlink></w:p>',
        f"<w:sdt {w}><w:sdtContent><w:p>{run.format('controlled words')}</w:p></w:sdtContent></w:sdt>",
        f"<w:p {w}><w:r><w:txbxContent><w:p>{run.format('boxed words')}</w:p></w:txbxContent></w:r></w:p>",
        f'<w:p {w}><w:del w:id="2" w:author="a"><w:r><w:delText>deleted words</w:delText></w:r></w:del></w:p>',
    ):
        body.insert(len(body) - 1, parse_xml(xml))
    buffer = io.BytesIO()
    document.save(buffer)
    facts = {name: f"{name} words" for name in ("inserted", "linked", "controlled", "boxed")}
    return buffer.getvalue(), facts | {"paragraph": "Paragraph 149 says", "list": "item 149", "cell": "cell 299 3"}


def _by_python_docx(data: bytes) -> str:
    import docx

    document = docx.Document(io.BytesIO(data))
    texts = []
    for part in document.iter_inner_content():
        if hasattr(part, "rows"):
            texts += [" | ".join(cell.text for cell in row.cells) for row in part.rows]
        else:
            texts.append(part.text)
    return "\n".join(texts)


def _by_mammoth(data: bytes) -> str:
    import mammoth

    return str(mammoth.convert_to_html(io.BytesIO(data)).value)


def _by_docx2python(data: bytes) -> str:
    from docx2python import docx2python

    with docx2python(io.BytesIO(data)) as document:
        return str(document.text)


def _pptx_file() -> tuple[bytes, dict[str, str]]:
    import pptx

    show = pptx.Presentation()
    for n in range(100):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text = f"Title {n}"
        slide.placeholders[1].text = f"point {n} about the okapi\nand another"
        table = slide.shapes.add_table(5, 3, 0, 0, 10**6, 10**6).table
        for row in range(5):
            for column in range(3):
                table.cell(row, column).text = f"cell {n} {row} {column}"
        slide.notes_slide.notes_text_frame.text = f"note {n}"
    buffer = io.BytesIO()
    show.save(buffer)
    return buffer.getvalue(), {"title": "Title 99", "text": "point 99", "cell": "cell 99 4 2", "note": "note 99"}


def _by_python_pptx(data: bytes) -> str:
    import pptx

    texts = []
    for slide in pptx.Presentation(io.BytesIO(data)).slides:
        for shape in slide.shapes:
            if shape.has_text_frame:
                texts.append(shape.text_frame.text)
            if getattr(shape, "has_table", False):
                texts += [" | ".join(cell.text for cell in row.cells) for row in shape.table.rows]
        if slide.has_notes_slide:
            texts.append(slide.notes_slide.notes_text_frame.text)
    return "\n".join(texts)


def _xlsx_file() -> tuple[bytes, dict[str, str]]:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["name", "amount", "day", "place"])
    for n in range(20_000):
        sheet.append([f"name {n}", n / 4, datetime.date(2024, 1, 1) + datetime.timedelta(n % 365), f"place {n % 7}"])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue(), {"cell": "name 19999", "number": "4999.75", "date": "2024-12-30"}


def _by_openpyxl(data: bytes) -> str:
    import openpyxl

    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    return "\n".join(" | ".join(map(str, row)) for sheet in book for row in sheet.iter_rows(values_only=True))


def _by_calamine(data: bytes) -> str:
    from python_calamine import CalamineWorkbook

    book = CalamineWorkbook.from_filelike(io.BytesIO(data))
    return "\n".join(
        " | ".join(map(str, row)) for name in book.sheet_names for row in book.get_sheet_by_name(name).to_python()
    )


def _compare_office() -> None:
    for suffix, (data, facts), peers in (
        (
            "docx",
            _docx_file(),
            {"python-docx": _by_python_docx, "mammoth": _by_mammoth, "docx2python": _by_docx2python},
        ),
        ("pptx", _pptx_file(), {"python-pptx": _by_python_pptx}),
        ("xlsx", _xlsx_file(), {"openpyxl": _by_openpyxl, "python-calamine": _by_calamine}),
    ):
        print(f"\n{suffix}: {len(data) / 1e3:.0f} kB")
        mine = lambda data, suffix=suffix: load(Path(f"a.{suffix}"), data)[0].text  # noqa: E731
        for name, read in {"this project": mine, **peers}.items():
            text = read(data)
            missing = [fact for fact, words in facts.items() if words not in text]
            spent = _seconds(lambda read=read, data=data: read(data))
            print(f"  {name:16} {spent * 1000:8.0f} ms   missing: {', '.join(missing) or 'nothing'}")


# --- every format


def _time_formats(files: list[Path]) -> None:
    print(f"\nevery format, {len(files):,} files, one process")
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0, 0])
    reasons: dict[str, int] = defaultdict(int)
    for path in files:
        data = path.read_bytes()
        row = rows[".rst.txt" if path.name.endswith(".rst.txt") else path.suffix.lower() or "none"]
        began = time.process_time()
        try:
            row[4] += sum(len(document.text) for document in load(path, data))
        except LoadError as error:
            reasons[str(error)] += 1
        spent = time.process_time() - began
        row[0], row[1], row[2], row[3] = row[0] + 1, row[1] + len(data), row[2] + spent, max(row[3], spent)
    for suffix, (count, size, spent, longest, characters) in sorted(rows.items(), key=lambda item: -item[1][1]):
        print(
            f"  {suffix:9} {count:6,.0f} files {size / 1e6:7.1f} MB {spent:7.2f} s {spent / count * 1000:8.2f} ms/file"
            f" (longest {longest * 1000:5.0f}) {size / 1e6 / spent:7.1f} MB/s {characters / 1e6:6.1f} M characters"
        )
    for reason, count in reasons.items():
        print(f"  {count} not read: {reason}")


def main() -> None:
    """Prints the three tables."""
    logging.disable()
    files = [Path(folder, name) for folder, _, names in os.walk(sys.argv[1]) for name in names]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    _compare_pdf([path for path in files if path.suffix == ".pdf"])
    _compare_office()
    _time_formats(files)


if __name__ == "__main__":
    main()
