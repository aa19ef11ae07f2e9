"""Pictures of pages to lines of words, by RapidOCR with the models in its wheel. Needs the extra `ocr`."""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

from index.errors import LoadError
from index.loaders.layout import Line

DPI = 200
SURE = 0.5
"""Lines that the model is less sure of are noise."""


@cache
def _engine() -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise LoadError("OCR is not installed. Run: pip install 'rag-app[ocr]'") from error
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return RapidOCR(params={"Global.log_level": "error"})


def read_page(page: Any) -> Iterator[Line]:
    """The lines of a PDFium page, read from its picture; a word's box is its share of its line's."""
    scale = DPI / 72
    width, height = page.get_size()
    scale = min(scale, 4000 / max(width, height, 1))  # posters
    found = _engine()(page.render(scale=scale).to_numpy())
    for text, corners, score in zip(
        found.txts or (), found.boxes if found.txts else (), found.scores or (), strict=True
    ):
        words = text.split()
        if not words or score < SURE:
            continue
        xs, ys = [x / scale for x, _ in corners], [y / scale for _, y in corners]
        left, top, bottom = float(min(xs)), float(min(ys)), float(max(ys))
        step = (float(max(xs)) - left) / len(" ".join(words))
        line, position = Line(), 0
        for word in words:
            line.words.append(word)
            line.boxes.append((left + step * position, top, left + step * (position + len(word)), bottom))
            position += len(word) + 1
        yield line
