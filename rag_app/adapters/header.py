"""The header of a GGUF file: its facts, and its tensors' names, types and shapes. Reads no weights, trusts no number.

PyPI's reader makes an object for each word of a vocabulary (3.5 s for the bundled model's), and goes on for as long as
a count in a damaged file says. Here every count ends with the bytes that are there.
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from rag_app.errors import AdapterInvalid

ADAPTERS, MODELS = 1 << 22, 1 << 27
"""Most bytes of a header: of an adapter's, and of a model's, which holds a vocabulary."""
DIMENSIONS = 4
ALIGNMENTS = frozenset(1 << power for power in range(3, 17))
"""Bytes."""
UINT32, FLOAT32, TEXT, LIST = 4, 6, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values, as `struct` calls them."""
Value = int | float | str


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is, and of what form."""

    shape: tuple[int, ...]
    """As GGUF has it: the dimension whose numbers lie side by side comes first."""
    kind: int
    """Number of its type in GGML."""
    offset: int
    """Bytes from the beginning of the file."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    facts: dict[str, Value] = field(default_factory=dict)
    """Without lists, such as vocabularies."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    """Types of all facts, of lists too."""
    begin: int = 0
    """Where the first tensor's numbers have to be, in bytes from the beginning of the file."""
    step: int = 32
    """Bytes that every tensor's place is a multiple of, counted from there."""


def read(file: Path, most: int = ADAPTERS) -> Header:
    """The header of a file.

    Args:
        file: of version 2 or 3, with the lowest byte first.
        most: bytes that are read.

    Raises:
        AdapterInvalid: it is no GGUF, damaged, or too large.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        data = stream.read(min(most, ADAPTERS))
        if data[:4] != b"GGUF":
            raise AdapterInvalid(f"'{file.name}' is no GGUF file: name one")
        while True:
            try:
                return _Cursor(data).header()
            except ValueError as error:
                reason = str(error)[:100]
            except struct.error:
                if more := stream.read(min(7 * len(data), most - len(data))):
                    data += more
                    continue
                reason = "it ends too soon"
            raise AdapterInvalid(f"the header of '{file.name}' is damaged ({reason}): take the file anew")


class _Cursor:
    """A place in the bytes of a header."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4

    def header(self) -> Header:
        version = self._next("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        count, pairs = self._next("Q"), self._next("Q")
        facts, kinds = dict[str, Value](), dict[str, int]()
        for _ in range(pairs):
            name = self._text()
            if name in kinds:
                raise ValueError(f"'{name}' is there twice")
            kinds[name] = self._next("I")
            value = self._value(kinds[name])
            if value is not None:
                facts[name] = value
        found = dict[str, Tensor]()
        for _ in range(count):
            name = self._text()
            if name in found:
                raise ValueError(f"'{name}' is there twice")
            found[name] = self._tensor()
        step = facts.get("general.alignment", 32)
        if kinds.get("general.alignment", UINT32) != UINT32 or not isinstance(step, int) or step not in ALIGNMENTS:
            raise ValueError(f"an alignment of {step}")
        data = -(-self._at // step) * step
        placed = {name: Tensor(one.shape, one.kind, data + one.offset) for name, one in found.items()}
        return Header(facts, placed, kinds, data, step)

    def _next(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(kind)
        return value  # type: ignore[no-any-return]

    def _skip(self, size: int) -> int:
        """Where what is skipped begins."""
        begin, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise struct.error
        return begin

    def _text(self) -> str:
        size = self._next("Q")
        begin = self._skip(size)
        return self._data[begin : begin + size].decode("utf-8")

    def _value(self, kind: int) -> Value | None:
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            return self._next(SCALARS[kind]) if kind in SCALARS else self._unknown(kind)
        kind, count = self._next("I"), self._next("Q")
        if kind == TEXT:
            for _ in range(count):
                self._skip(self._next("Q"))
        elif kind in SCALARS:
            self._skip(count * struct.calcsize(SCALARS[kind]))
        else:
            self._unknown(kind)
        return None

    def _unknown(self, kind: int) -> Value:
        raise ValueError(f"a value of type {kind}")

    def _tensor(self) -> Tensor:
        dimensions = self._next("I")
        if not 0 < dimensions <= DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._next("Q") for _ in range(dimensions))
        if not 0 < math.prod(shape) < 1 << 48:
            raise ValueError("a tensor of no size, or of a size that cannot be")
        return Tensor(shape, self._next("I"), self._next("Q"))
