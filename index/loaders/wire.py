"""Documents as bytes and back, between the process that read them and the program.

A hostile document may own the process that reads it, so what comes from there is data to be checked, never a pickle.
The form: a JSON object, led by its length, then the texts in UTF-8, then the words as arrays of numbers.
"""

import json
import struct
from array import array
from typing import Any, get_args

from index.document import Block, BlockKind, Document, Word

KINDS = frozenset(get_args(BlockKind))
LENGTH = struct.Struct("<I")


def pack(header: dict[str, Any], documents: list[Document]) -> bytes:
    """`header` and the documents as one stretch of bytes."""
    rows: list[Any] = []
    texts: list[bytes] = []
    for document in documents:
        texts.append(document.text.encode("utf-8"))
        blocks = [(b.start, b.end, b.kind, b.level, b.title, b.page) for b in document.blocks]
        rows.append([document.title, document.record, len(texts[-1]), len(document.words), blocks])
    head = json.dumps(header | {"documents": rows}).encode()
    return b"".join([LENGTH.pack(len(head)), head, *texts, *(_pack_words(d) for d in documents if d.words)])


def _pack_words(document: Document) -> bytes:
    places = array("I", (number for word in document.words for number in (word.start, word.end, word.page)))
    boxes = array("d", (number for word in document.words for number in word.box))
    return places.tobytes() + boxes.tobytes()


def unpack(data: memoryview) -> tuple[dict[str, Any], list[Document]]:
    """What `pack` was given.

    Raises:
        ValueError: the bytes are not what `pack` makes, or spans do not lie in their text.
    """
    try:
        (length,) = LENGTH.unpack_from(data)
        position = LENGTH.size + length
        header = json.loads(bytes(data[LENGTH.size : position]))
        rows = header.pop("documents")
        texts = []
        for row in rows:
            texts.append(str(data[position : position + row[2]], "utf-8"))
            position += row[2]
        documents = []
        for text, (title, record, _, words, blocks) in zip(texts, rows, strict=True):
            spots, position = _unpack_words(data, position, words, len(text))
            _check(isinstance(title, str) and isinstance(record, str))
            documents.append(Document(text, tuple(_block(b, len(text)) for b in blocks), title, record, spots))
        _check(position == len(data))
    except (struct.error, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("not a list of documents") from error
    return header, documents


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError("not a list of documents")


def _block(row: list[Any], length: int) -> Block:
    start, end, kind, level, title, page = row
    _check(type(start) is int and type(end) is int and 0 <= start <= end <= length and kind in KINDS)
    _check(type(level) is int and type(title) is str and (page is None or type(page) is int))
    return Block(start, end, kind, level, title, page)


def _unpack_words(data: memoryview, position: int, count: int, length: int) -> tuple[tuple[Word, ...], int]:
    if not count:
        return (), position
    places, boxes = array("I"), array("d")
    middle = position + 3 * count * places.itemsize
    end = middle + 4 * count * boxes.itemsize
    _check(type(count) is int and count > 0 and end <= len(data))
    places.frombytes(data[position:middle])
    boxes.frombytes(data[middle:end])
    starts, ends, pages = places[::3], places[1::3], places[2::3]
    corners = zip(boxes[::4], boxes[1::4], boxes[2::4], boxes[3::4], strict=True)
    _check(max(ends) <= length and all(map(int.__le__, starts, ends)))
    return tuple(map(Word, starts, ends, pages, corners)), end
