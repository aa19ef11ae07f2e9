"""What is asked of an export: what it becomes, of which types, and what the run itself tells. Loads no weights."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from finetune.errors import ExportInvalid
from finetune.export import lora
from finetune.export.gguf import Float
from finetune.export.origin import Origin

To = Literal["merged", "gguf", "gguf-lora", "gptq"]
TARGETS: tuple[To, ...] = ("merged", "gguf", "gguf-lora", "gptq")
FLOATS: tuple[Float, ...] = ("f32", "f16", "bf16")
GROUP = 64
"""gptq: weights that share a scale."""
TYPE = "Q8_0"
"""Of a GGUF file where none is given."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for."""

    to: To
    types: tuple[str, ...] = ()
    """gguf: of the files, one each; none: TYPE, or what the run was trained for. gguf-lora: f16 or f32."""
    dequantised: bool = False
    """Merge onto the base as NF4 rounds it, which QLoRA trains on."""
    out: Path | None = None
    """By default below the run's folder."""
    force: bool = False
    """Replace what is there."""
    imatrix: bool | None = None
    """gguf: weigh the weights by texts; None where it helps and there are some."""
    data: str | None = None
    """Texts to weigh and calibrate by; None: what the run was trained on."""
    bits: int = 4
    group_size: int = GROUP
    """gptq."""
    converter: Path | None = None
    """gguf: llama.cpp's script, for models that cannot be written here."""


def types(given: str) -> tuple[str, ...]:
    """Types by their names, one or more with commas between, as llama.cpp spells them.

    Raises:
        ExportInvalid: there is no such type; the nearest one is named.
    """
    from finetune.export.quantise import kinds

    known = {one.lower(): one for one in kinds()} | {one: one for one in FLOATS}
    found = []
    for one in given.split(","):
        if one.strip().lower() not in known:
            near = difflib.get_close_matches(one.strip().lower(), known, 1, 0.4)
            hint = f"did you mean {known[near[0]]}?" if near else f"give one such as {TYPE}"
            raise ExportInvalid(f"llama.cpp has no type '{one.strip()}': {hint}")
        found.append(known[one.strip().lower()])
    return tuple(dict.fromkeys(found))


def settled(found: Origin, wanted: Wanted, tell: Callable[[str], None]) -> Wanted:
    """With what the run tells filled in.

    Args:
        found: what is exported.
        wanted: as it was asked.
        tell: called with a line for a person, if the adapter is more than a LoRA.

    Raises:
        ExportInvalid: that cannot be made of it.
    """
    if found.adapter:
        _check(found.adapter.folder, wanted.to, tell)
    elif wanted.to == "gguf-lora":
        raise ExportInvalid(f"'{found.name}' is a whole model, and no adapter: give --to gguf")
    if wanted.dequantised and not found.four_bit:
        raise ExportInvalid(f"'{found.name}' was not trained on weights of 4 bits: leave out --base dequantised")
    kinds = wanted.types or ((found.rounded or TYPE,) if wanted.to == "gguf" else ("f16",))
    return replace(wanted, types=kinds)


def _check(folder: Path, to: To, tell: Callable[[str], None]) -> None:
    """Refuses what an adapter cannot become, and tells what becomes of it."""
    why = lora.obstacle(folder)
    if not lora.mergeable(folder):
        raise ExportInvalid(
            f"the adapter '{folder}' cannot be exported, as {why}, which is no change of weights: use it as it is, or "
            "train lora"
        )
    if why and to == "gguf-lora":
        raise ExportInvalid(f"the adapter '{folder}' cannot be a GGUF LoRA, as {why}: give --to gguf, which merges it")
    if why:
        tell(f"merged into the weights for good, as {why}: it can be no LoRA beside them")
