"""A model to compare, by its name: what serves it, what its weights are, how large it is. Loads none.

A GGUF file is served by llama.cpp, everything else by Transformers; so is a GGUF file with a precision behind its name.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import ExportInvalid
from index.paths import expanded
from rag_app.adapters.manifest import GGUF, SETTINGS
from rag_app.errors import SettingInvalid

if TYPE_CHECKING:
    from finetune.evaluation.adapters import Adapter
    from rag_app.engines.checkpoints import Source

PRECISIONS = ("16-bit", "nf4")
EXACT = frozenset({"16-bit", "F16", "BF16", "F32"})
"""Weights that are as they were trained."""


@dataclass(frozen=True)
class Candidate:
    """What a name stands for."""

    name: str
    """As a person gave it."""
    source: "Source"
    """Of the weights, without an adapter's."""
    adapter: "Adapter | None" = None
    lora: Path | None = None
    """The adapter as llama.cpp takes it."""
    precision: str = ""
    """Of those of Transformers, where one was asked for."""
    four_bit: bool = False
    """Whether the adapter was trained on weights of 4 bits."""
    method: str = ""
    """Of the adapter."""

    @property
    def engine(self) -> Literal["llama.cpp", "transformers"]:
        """What serves it."""
        return "llama.cpp" if self.source.gguf and not (self.adapter or self.precision) else "transformers"

    @cached_property
    def weights(self) -> str:
        """Their type: Q4_K_M, 16-bit, NF4, GPTQ 4-bit …

        Raises:
            AdapterInvalid: the GGUF file's header is damaged.
        """
        if self.engine == "llama.cpp":
            return _type_of_file(Path(self.source.where, self.source.gguf or ""))
        config: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # whoever loads it tells better what is wrong with it
            config = json.loads(Path(self.source.where, "config.json").read_bytes())
        if held := config.get("quantization_config"):
            method, bits = str(held.get("quant_method", "?")), held.get("bits")
            return f"{method.upper()} {bits}-bit" if bits else method
        return "NF4" if self.precision == "nf4" or (self.four_bit and not self.precision) else "16-bit"

    @property
    def kind(self) -> str:
        """The weights, and the method of an adapter on them."""
        return f"{self.weights} + {self.method}" if self.adapter or self.lora else self.weights

    @property
    def exact(self) -> bool:
        """Whether its weights are not quantised."""
        return self.weights in EXACT

    def size(self) -> int:
        """Bytes on the disk of what is read to serve it.

        Raises:
            OSError: the files cannot be read.
        """
        from rag_app.engines import checkpoints
        from rag_app.fingerprint import weights

        source, files = self.source, [self.lora] if self.lora else []
        if source.gguf and self.engine == "transformers":
            source = checkpoints.settled(source)
        if self.adapter:
            files += self.adapter.folder.glob("*.safetensors")
        return sum(file.stat().st_size for file in (*weights(source), *files))


def find(name: str) -> Candidate:
    """What a name stands for: what `rag-finetune evaluate` takes, a folder of a GGUF LoRA, or either with @PRECISION.

    Raises:
        CheckpointInvalid: the adapter is damaged, or its base is not here.
        ExportInvalid: the LoRA's base is no GGUF file.
        SettingInvalid: there is no such precision.
        ModelNotFound, ModelInvalid: there is no such thing.
    """
    from finetune.export import origin

    plain, _, precision = name.rpartition("@")
    if precision not in PRECISIONS or not plain:
        plain, precision = name, ""
    folder = expanded(plain)
    if (folder / GGUF).is_file() and not (folder / SETTINGS).is_file():
        return _with_lora(name, folder)
    if not precision and "@" in name and not folder.exists():
        raise SettingInvalid(
            f"'{name}' names no precision that there is: put @16-bit or @nf4 behind a model, or nothing"
        )
    found = origin.find(plain, flag="")
    return Candidate(name, found.base, found.adapter, precision=precision, four_bit=found.four_bit, method=found.method)


def _with_lora(name: str, folder: Path) -> Candidate:
    from finetune.evaluation import adapters

    adapter = adapters.find(str(folder))
    base = adapters.base_of(adapter) if adapter else None
    if base is None or not base.gguf:
        raise ExportInvalid(
            f"the LoRA in '{folder}' stands on '{base.name if base else 'an unknown base'}', which is no GGUF file: "
            "compare the run, or one that was exported with --to gguf"
        )
    return Candidate(name, base, lora=folder / GGUF, method="LoRA")


def _type_of_file(file: Path) -> str:
    from gguf import LlamaFileType

    from rag_app.adapters import header

    number = header.read(file, header.MODELS).facts.get("general.file_type", -1)
    try:
        return LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return "GGUF"
