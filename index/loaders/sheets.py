"""Spreadsheets (xlsx, xlsm, xlsb, xls, ods): a heading and a table a sheet, values as they were last computed."""

import io
import re
from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.archive import Archive
from index.loaders.builder import Builder, as_text
from index.loaders.source import Source

MAX_CELLS = 20_000_000
LAST_ROW = re.compile(rb'<row [^>]*?\br="(\d{1,7})"')
REFERENCE = re.compile(rb'<c [^>]*?\br="([A-Z]{1,3})\d')


def load_sheets(source: Source) -> list[Document]:
    """All sheets that hold something, hidden ones included."""
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError

    title = ""
    if source.data.startswith(b"PK"):
        archive = Archive(source.data)  # looks for bombs too
        _check_spans(archive)
        title = archive.title()
    builder = Builder()
    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(source.data))
        for name in book.sheet_names:
            _add_sheet(builder, source, book, name)
    except PasswordError as error:
        raise LoadError("the file is password-protected; save a copy without the password") from error
    except (CalamineError, ValueError, OSError, EOFError) as error:
        raise LoadError("the spreadsheet is damaged: open it in its own program and save it again") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        raise LoadError("the spreadsheet is damaged: open it in its own program and save it again") from error
    return [builder.document(title)]


def _check_spans(archive: Archive) -> None:
    """Calamine makes room for all cells from a sheet's first to its last, and ends the process if it cannot."""
    for name in archive.names:
        if not name.startswith("xl/worksheets/") or not name.endswith(".xml"):
            continue
        data = archive.read(name)
        last = LAST_ROW.match(data, data.rfind(b"<row "))
        height = int(last[1]) if last else 0
        if height * 16_384 < MAX_CELLS:  # columns that a sheet can have
            continue
        columns = {match[1] for match in REFERENCE.finditer(data)}
        width = max((sum((c - 64) * 26**n for n, c in enumerate(reversed(column))) for column in columns), default=0)
        if height * width > MAX_CELLS:
            raise LoadError(f"a sheet spans {height * width:,} cells, more than the {MAX_CELLS:,} that one may")


def _add_sheet(builder: Builder, source: Source, book: Any, name: str) -> None:
    from python_calamine import CalamineError

    try:
        sheet = book.get_sheet_by_name(name)
    except CalamineError:
        source.warnings.append(f"sheet '{name}' cannot be read")  # a chart, or damaged
        return
    rows = [[as_text(value) for value in row] for row in sheet.to_python()]
    rows = [row for row in rows if any(row)]
    if rows:
        builder.heading(name, 1)
        _add_tables(builder, rows)


def _add_tables(builder: Builder, rows: list[list[str]]) -> None:
    """The sheet's table. Lines above it that fill one cell alone are its caption."""
    first = 0
    while first < len(rows) - 1 and sum(map(bool, rows[first])) == 1 and sum(map(bool, rows[first + 1])) != 1:
        builder.text(next(cell for cell in rows[first] if cell))
        first += 1
    builder.table(rows[first:], names_columns(rows[first:]))


def names_columns(rows: list[list[str]]) -> bool:
    """Whether the first row looks like the names of columns: filled, all different, no numbers."""
    if len(rows) < 2:
        return False
    names = [cell.strip() for cell in rows[0] if cell.strip()]
    used = max(sum(map(bool, row)) for row in rows[1:20])
    return (
        len(names) >= used - 1
        and len(set(names)) == len(names) > 0
        and not any(is_number(name) or len(name) > 100 for name in names)
    )


def is_number(text: str) -> bool:
    """Whether a cell is a number or a date rather than a name."""
    return (
        bool(text)
        and text.strip("+-%€$£ ").replace(".", "").replace(",", "").replace("-", "").replace(":", "").isdigit()
    )
