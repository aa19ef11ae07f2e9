"""Jupyter notebooks (ipynb): the cells' Markdown and code, and what the code printed."""

import json
from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.builder import Builder
from index.loaders.markdown import parse_markdown
from index.loaders.source import Source
from index.loaders.text import decode

MAX_OUTPUT = 2000
"""Characters of a cell's output that are kept: results, not logs."""


def load_notebook(source: Source) -> list[Document]:
    """Notebooks of version 3 and later; pictures are left out."""
    try:
        notebook = json.loads(decode(source.data))
        cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LoadError("the content is not a Jupyter notebook") from error
    builder = Builder()
    for cell in cells if isinstance(cells, list) else ():
        if isinstance(cell, dict):
            _add_cell(builder, cell)
    title = next((block.title for block in builder.blocks if block.kind == "heading"), "")
    return [builder.document(title)]


def _add_cell(builder: Builder, cell: dict[str, Any]) -> None:
    text = _joined(cell.get("source", cell.get("input")))
    if cell.get("cell_type") == "markdown":
        builder.embed(parse_markdown(text))
    elif cell.get("cell_type") == "heading":  # of version 3
        builder.heading(text, int(cell.get("level") or 1))
    elif cell.get("cell_type") == "code":
        builder.code(text)
        outputs = cell.get("outputs")
        for output in outputs if isinstance(outputs, list) else ():
            builder.code(_output(output)[:MAX_OUTPUT])
    else:
        builder.paragraphs(text)


def _output(output: Any) -> str:
    if not isinstance(output, dict):
        return ""
    data = output.get("data")
    return _joined(output.get("text") or (data.get("text/plain") if isinstance(data, dict) else ""))


def _joined(lines: Any) -> str:
    if isinstance(lines, list):
        return "".join(line for line in lines if isinstance(line, str))
    return lines if isinstance(lines, str) else ""
