"""Whether weights are an adapter's: what they hold, and whether the shapes are the base model's. Loads no model."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_app.adapters import header, numbers
from rag_app.adapters.manifest import GGUF, SETTINGS, WEIGHTS
from rag_app.errors import AdapterInvalid

if TYPE_CHECKING:
    from rag_app.engines.checkpoints import Source

Shapes = Mapping[str, tuple[int, ...]]
KINDS = {0: (1, 4), 1: (1, 2), 8: (32, 34), 30: (1, 2)}
"""Of numbers in a GGUF adapter: F32, F16, Q8_0, BF16. How many make a block, and its bytes."""
GGUF_NUMBERS: Mapping[int, numbers.Kind] = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
WORDS = "token_embd.weight"
"""Looked up, and not multiplied by: its A lies the other way."""
PREFIX = "base_model.model."
"""What PEFT writes before the names of the model's layers."""
MOST_ALPHA = 1e6
"""Of the numbers that scale an adapter: beyond, its products are no numbers any more."""
OURS = "BOTTLENECK"
"""What training calls layers that it adds itself, which no engine serves."""


def check(folder: Path, rank: int | None, base: "Source | None" = None) -> int | None:
    """Looks at the weights in a folder, in each form that is there.

    Args:
        folder: with `adapter.gguf`, or with PEFT's two files, or with all three.
        rank: what is said of them; None where nothing is.
        base: the model that they are for, where it is here.

    Returns:
        The largest rank; None where they have none.

    Raises:
        AdapterInvalid: they are damaged, no adapter's, or of another rank or model.
        OSError: a file cannot be read.
    """
    found = None
    for name, look in ((GGUF, _gguf), (WEIGHTS, _peft)):
        if (folder / name).is_file():
            try:
                found = look(folder, base)
            except ValueError as error:
                raise AdapterInvalid(f"{name} {error}: take another adapter, or make it anew") from error
            if rank is not None and found is not None and found != rank:
                raise AdapterInvalid(
                    f"{name} has rank {found}, and is said to have {rank}: its parts are of different adapters. Export "
                    "again, then add it again"
                )
            rank = rank or found
    return rank


def _gguf(folder: Path, base: "Source | None") -> int:
    file = folder / GGUF
    found = header.read(file)
    facts, size = found.facts, file.stat().st_size
    for name, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if facts.get(name) != wanted:
            raise ValueError(f"is no LoRA adapter ({name} is {str(facts.get(name))[:50]!r}, not '{wanted}')")
    if found.kinds.get("adapter.lora.alpha") != header.FLOAT32 or not _scale(facts["adapter.lora.alpha"]):
        raise ValueError(f"is damaged (its adapter.lora.alpha is no number of 32 bits from 0 to {MOST_ALPHA:g})")
    if "adapter.alora.invocation_tokens" in found.kinds:
        raise ValueError("is to be switched on by certain words (aLoRA), which is not done here")
    place = found.begin
    for name, one in found.tensors.items():
        if one.kind not in KINDS:
            raise ValueError(f"holds '{name[:100]}' in a type that no adapter has ({one.kind})")
        block, width = KINDS[one.kind]
        length = math.prod(one.shape) // block * width
        if one.shape[0] % block or one.offset != place or one.offset + length > size:
            raise ValueError(f"is damaged: '{name[:100]}' does not lie where it should")
        place += -(-length // found.step) * found.step
        if not numbers.finite(file, one.offset, length, GGUF_NUMBERS[one.kind]):
            raise ValueError(f"is damaged: '{name[:100]}' holds what is no number")
    pairs = _pairs({name: one.shape for name, one in found.tensors.items()}, ".lora_a", ".lora_b")
    if base and base.gguf:
        model = header.read(Path(base.where, base.gguf), header.MODELS)
        _agree("general.architecture", facts.get("general.architecture"), model.facts.get("general.architecture"), base)
        for name, (a, b) in pairs.items():
            at = model.tensors.get(name)
            own = (b[1], a[1]) if name == WORDS else (a[0], *b[1:])
            _agree(f"the shape of '{name}'", own, at and at.shape, base)
    return max(_rank(name, a[0] if name == WORDS else a[1], b[0]) for name, (a, b) in pairs.items())


def _peft(folder: Path, base: "Source | None") -> int | None:
    settings, shapes = _settings(folder / SETTINGS), _shapes(folder / WEIGHTS)
    if fault := numbers.fault(folder / WEIGHTS):
        raise ValueError(fault)
    if settings["peft_type"] == OURS:
        raise ValueError("holds layers of the method 'adapter', which cannot be swapped into a model that runs")
    if not shapes:
        raise ValueError("is empty")
    if settings["peft_type"] != "LORA":
        return None
    linear = {name: shape for name, shape in shapes.items() if name.endswith((".lora_A.weight", ".lora_B.weight"))}
    words = {name: shape for name, shape in shapes.items() if ".lora_embedding_" in name}
    pairs = {
        **(_pairs(linear, ".lora_A.weight", ".lora_B.weight") if linear or not words else {}),
        **(_pairs(words, ".lora_embedding_A", ".lora_embedding_B") if words else {}),
    }
    largest = max(_rank(name, a[0], b[1]) for name, (a, b) in pairs.items())
    told = settings.get("r")
    if not _scale(settings.get("lora_alpha")):
        raise ValueError(f"cannot be used, as lora_alpha in {SETTINGS} is no number from 0 to {MOST_ALPHA:g}")
    if not settings.get("rank_pattern") and told != largest:
        raise ValueError(f"has rank {largest}, and {SETTINGS} says {told}")
    if base and not base.gguf and not base.on_the_hub:
        model = _of_folder(Path(base.where))
        for name, (a, b) in pairs.items():
            at = model.get(f"{name.removeprefix(PREFIX)}.weight")
            if at and f"{name}.lora_A.weight" in linear:  # words are looked up, and may share their weights
                _agree(f"the shape of '{name}'", (b[0], *a[1:]), at, base)
    return largest


def _scale(alpha: Any) -> bool:
    return isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 <= alpha <= MOST_ALPHA  # not NaN


def _pairs(shapes: Shapes, first: str, second: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """A and B by the name of the weight that they change."""
    names = {name.removesuffix(end) for name in shapes for end in (first, second) if name.endswith(end)}
    pairs = {}
    for name in sorted(names):
        a, b = shapes.get(name + first), shapes.get(name + second)
        if a is None or b is None:
            raise ValueError(f"is damaged: '{name[:100]}' lacks {second if a else first}")
        if len(a) < 2 or len(a) != len(b):
            raise ValueError(f"is damaged: '{name[:100]}' is no pair of matrices")
        pairs[name] = (a, b)
    if not pairs:
        raise ValueError("holds no LoRA adapter")
    if odd := sorted(set(shapes) - {name + end for name in names for end in (first, second)}):
        raise ValueError(f"holds '{odd[0][:100]}', which is no LoRA's")
    return pairs


def _rank(name: str, of_a: int, of_b: int) -> int:
    if of_a != of_b:
        raise ValueError(f"is damaged: the two matrices of '{name[:100]}' have ranks {of_a} and {of_b}")
    return of_a


def _agree(what: str, own: Any, models: Any, base: "Source") -> None:
    if own != models:
        raise ValueError(f"is of another model: {what} is {own}, and {models} in '{base.name}'")


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be used, as {SETTINGS} beside it is damaged") from error
    if not isinstance(found, dict) or not isinstance(found.get("peft_type"), str):
        raise ValueError(f"cannot be used, as {SETTINGS} beside it does not say what it is")
    return found


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a safetensors file, from its header, which the library compares with the file's size."""
    from safetensors import safe_open

    try:
        with safe_open(file, "numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # the library's own, which is no ValueError
        raise ValueError(f"is damaged ({' '.join(str(error).split())[:100]})") from error


def _of_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= _shapes(file)
    return shapes
