"""Whether what weights hold are numbers: one NaN makes every answer empty. Loads no tensors of any library."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["F64", "F32", "F16", "BF16", "Q8_0"]
FORMS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10), "BF16": ("<u2", 0xFF << 7),
}  # fmt: skip
"""As which whole numbers they are read, and the bits of the exponent, which are all set in NaN and infinity."""
STEP = 34 << 20
"""Bytes that are looked at at once."""
BLOCK = np.dtype([("scale", "<u2"), ("quants", "i1", 32)])
"""Of Q8_0."""


def finite(file: Path, begin: int, length: int, kind: Kind) -> bool:
    """Whether all numbers in a stretch of a file are finite.

    Args:
        file: is read.
        begin: in bytes.
        length: in bytes.
        kind: of the numbers.

    Raises:
        OSError: it cannot be read.
    """
    form, bits = FORMS["F16" if kind == "Q8_0" else kind]
    with file.open("rb") as stream:
        stream.seek(begin)
        while length > 0 and (data := stream.read(min(length, STEP))):
            length -= len(data)
            found = np.frombuffer(data, BLOCK)["scale"] if kind == "Q8_0" else np.frombuffer(data, form)
            if np.any((found & bits) == bits):
                return False
    return True


def fault(file: Path) -> str:
    """What is wrong with the numbers of a safetensors file whose header is sound; nothing where they are finite.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        tensors = json.loads(stream.read(size))
    for name, one in tensors.items():
        if name == "__metadata__":
            continue
        if one["dtype"] not in FORMS:
            return f"holds '{name[:100]}' in a type that no adapter has ({one['dtype']})"
        begin, end = one["data_offsets"]
        if not finite(file, 8 + size + begin, end - begin, one["dtype"]):
            return f"is damaged: '{name[:100]}' holds what is no number"
    return ""
