"""A LoRA of PEFT's as a GGUF file, which llama.cpp puts onto a model that stays as it is. Merges nothing."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import CheckpointInvalid, ExportInvalid
from finetune.methods import files, method_of
from rag_app.engines import checkpoints

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

APART = {
    "BOTTLENECK": "it adds layers to the model",
    "ADAPTION_PROMPT": "it adds prompts inside attention",
    "PROMPT_TUNING": "it adds virtual tokens",
    "PREFIX_TUNING": "it adds virtual tokens",
    "P_TUNING": "it adds virtual tokens",
}
"""By PEFT's kind: what changes no weights, and so is no LoRA and cannot be merged."""
KINDS = {"LORA": (".lora_A.weight", ".lora_B.weight"), "ADALORA": (".lora_A", ".lora_B")}
"""By PEFT's kind: how the names of A and B end."""
IRRELEVANT = frozenset(
    {
        "r", "lora_alpha", "use_rslora", "lora_dropout", "task_type", "peft_type", "auto_mapping", "peft_version",
        "base_model_name_or_path", "revision", "inference_mode", "target_modules", "exclude_modules",
        "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config", "ensure_weight_tying",
    }
)  # fmt: skip
"""Settings that a GGUF LoRA has too, or that matter to training alone. Any other that is set makes it more than one."""
WORDS = {
    "use_dora": "it has a magnitude for each row (DoRA)",
    "modules_to_save": "it holds whole layers (modules_to_save)",
    "bias": "it changes biases",
    "lora_bias": "it has biases of its own",
    "rank_pattern": "its layers differ in rank (rank_pattern)",
    "alpha_pattern": "its layers differ in alpha (alpha_pattern)",
}
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base as it is."""


def obstacle(folder: Path) -> str:
    """Why an adapter cannot be a GGUF LoRA, such as 'it adds virtual tokens'; nothing where it can.

    Raises:
        CheckpointInvalid: there is none in the folder, or it is damaged.
    """
    method = method_of(folder)
    if method == "full":
        return "it is a whole model"
    kind = _kind(folder)
    if kind in APART:
        return APART[kind]
    if kind not in KINDS:
        return f"it is of the method {method if method != 'lora' else kind.lower()}"
    with checkpoints.quiet():  # bitsandbytes, which PEFT imports
        settings = files.read_settings(folder)
    if isinstance(settings.lora_alpha, bool) or not isinstance(settings.lora_alpha, int | float):
        raise CheckpointInvalid(f"'{folder}' is damaged (its lora_alpha is no number): take another, or train again")
    if settings.init_lora_weights not in STARTS:
        return f"it stands on changed weights (init_lora_weights is {settings.init_lora_weights})"
    plain = type(settings)(**({"total_step": 10} if kind == "ADALORA" else {}))
    for name in vars(plain) if kind == "LORA" else WORDS:
        if name not in IRRELEVANT and getattr(settings, name) not in (getattr(plain, name), None, [], {}):
            return WORDS.get(name, f"its {name} is set")
    odd = next((name for name in _names(folder) if ".layers." not in name or not _known(name, kind)), None)
    return f"it changes {_layer(odd)}, too" if odd else ""


def mergeable(folder: Path) -> bool:
    """Whether it is a change of weights."""
    return method_of(folder) == "full" or _kind(folder) not in APART


def write(folder: Path, model: Any, file: Path, kind: Literal["f16", "f32"] = "f16") -> int:
    """Writes the adapter in a folder, whole or not at all.

    Args:
        folder: of an adapter that has no `obstacle`.
        model: its base, without it; for names and heads alone.
        file: is replaced where it is there.
        kind: of the numbers.

    Returns:
        The rank.

    Raises:
        CheckpointInvalid: the adapter is damaged, or of another base.
        ExportInvalid: llama.cpp does not know such a model, or its weights do not fit f16.
        OSError: the disk is full.
    """
    from gguf import GGUFWriter, Keys

    from finetune.export import families, gguf

    settings, tensors = files.read_settings(folder), files.read(folder)
    pairs = dict(_pairs(folder, tensors, gguf.names(model)))
    rank = len(next(iter(pairs.values()))[0])
    heads = gguf.heads(model.config)
    with gguf.staged(file) as part:
        writer = GGUFWriter(part, families.of(model.config).arch)
        try:
            writer.add_type("adapter")
            writer.add_string(Keys.Adapter.TYPE, "lora")
            writer.add_float32(Keys.Adapter.LORA_ALPHA, _alpha(settings, rank))
            for layer, (a, b) in pairs.items():
                *_, last = layer.split(".")
                place = gguf.names(model)[f"{layer}.weight"]
                writer.add_tensor(f"{place}.lora_a", _values(layer, a, kind))
                b = gguf.permuted(b, heads[last]) if last in heads else b
                writer.add_tensor(f"{place}.lora_b", _values(layer, b, kind))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return rank


def _alpha(settings: Any, rank: int) -> float:
    """What llama.cpp divides by the rank. rsLoRA (Kalajdzievski 2023) divides by its root."""
    return float(settings.lora_alpha) * (math.sqrt(rank) if getattr(settings, "use_rslora", False) else 1.0)


def _pairs(
    folder: Path, tensors: "Mapping[str, Tensor]", names: Mapping[str, str]
) -> "Iterator[tuple[str, tuple[Tensor, Tensor]]]":
    """A (rank, inputs) and B (outputs, rank) by the name of their layer."""
    first, second = KINDS[_kind(folder)]
    ranks = set[int]()
    for name, a in tensors.items():
        if not name.endswith(first):
            continue
        layer = _layer(name)
        b, scale = tensors.get(name.removesuffix(first) + second), tensors.get(name.removesuffix(first) + ".lora_E")
        if f"{layer}.weight" not in names or b is None or b.shape[-1] != len(a) or ranks - {len(a)}:
            raise CheckpointInvalid(
                f"the adapter in '{folder}' does not fit the model at {layer}: name the base model that it was "
                "trained on"
            )
        ranks.add(len(a))
        yield layer, (a if scale is None else a.float() * scale.float(), b)  # AdaLoRA's singular values


def _values(layer: str, value: "Tensor", kind: str) -> "np.ndarray[Any, Any]":
    found = value.half() if kind == "f16" else value.float()
    if not found.isfinite().all():
        raise ExportInvalid(f"the adapter's weights at {layer} do not fit f16: give --type f32")
    return found.contiguous().numpy()


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / files.WEIGHTS, "pt") as opened:
        return sorted(opened.keys())


def _known(name: str, kind: str) -> bool:
    return name.endswith(KINDS[kind] + ((".lora_E", ".ranknum") if kind == "ADALORA" else ()))


def _layer(name: str) -> str:
    """What the model calls it."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / files.SETTINGS).read_text("utf-8"))["peft_type"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointInvalid(
            f"'{folder / files.SETTINGS}' does not say what the adapter is: take another, or train again"
        ) from error
