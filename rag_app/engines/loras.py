"""LoRA adapters in llama.cpp: loaded once each, put onto a context and taken off again. Knows no prompts.

The base model's weights stay as they are: an adapter adds its product of A and B where it has one.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rag_app.engines.native import Model, Refused

MOST = 8
"""Adapters that are kept in memory beside those that are in use."""

Use = tuple[str, float]
"""The GGUF file of an adapter and its weight: 1 adds it as it was trained, 0.5 half of it."""
Key = tuple[Any, ...]
"""What tells applied adapters apart: their files' paths, sizes and times of change, and their weights."""


class Loras:
    """The adapters of one model."""

    def __init__(self, model: Model) -> None:
        self._model, self._api = model, model.api
        self._loaded: dict[Key, Any] = {}
        self._applied: Key = ()

    def key(self, uses: Sequence[Use]) -> Key:
        """What the cached beginnings of prompts that were read with these adapters go by.

        Raises:
            Refused: 'adapter' where there is no such file.
        """
        return tuple((_identity(path), float(weight)) for path, weight in uses if weight)

    def apply(self, context: Any, uses: Sequence[Use]) -> Key:
        """Puts these adapters onto a context instead of those that are on it.

        Args:
            context: llama.cpp's; always the same one.
            uses: none gives the base model back, to the last bit.

        Returns:
            What `key` gives.

        Raises:
            Refused: 'adapter' where a file is missing, damaged, or of another model.
        """
        key = self.key(uses)
        if key == self._applied:
            return key
        missing = [identity for identity, _ in key if identity not in self._loaded]
        if len(self._loaded) + len(missing) > MOST:
            self._forget(context, [identity for identity, _ in key])
        for identity in missing:
            self._loaded[identity] = self._load(identity[0])
        count = len(key)
        handles = (ctypes.c_void_p * count)(*[self._loaded[identity] for identity, _ in key])
        scales = (ctypes.c_float * count)(*[weight for _, weight in key])
        pointer = ctypes.cast(handles, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))) if count else None
        if self._api.llama_set_adapters_lora(context, pointer, count, scales if count else None):
            raise Refused("adapter", "llama.cpp does not take them together")
        self._applied = key
        return key

    def _load(self, path: str) -> Any:
        handle = self._api.llama_adapter_lora_init(self._model.handle, path.encode())
        if not handle:
            raise Refused("adapter", f"'{path}' is damaged, or of another model")
        return ctypes.cast(handle, ctypes.c_void_p).value

    def _forget(self, context: Any, kept: Sequence[Key]) -> None:
        self._api.llama_set_adapters_lora(context, None, 0, None)
        self._applied = ()
        for identity in [one for one in self._loaded if one not in kept]:
            self._api.llama_adapter_lora_free(ctypes.cast(self._loaded.pop(identity), ctypes.POINTER(ctypes.c_void_p)))


def _identity(path: str) -> Key:
    """A file and what changes when it does: adapters are replaced under their names."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise Refused("adapter", f"'{path}' cannot be read ({error.strerror})") from error
    return (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
