"""Several low-rank updates of each layer as one LoRA of a higher rank, which any program that knows LoRA can read.

Σ Bᵢ Aᵢ = [B₁ … Bₙ] [A₁; …; Aₙ]: the rank is n·r, and alpha n·alpha, so that the scale alpha/r stays. Knows no training.
"""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.methods import by_peft, files

if TYPE_CHECKING:
    from torch import Tensor

Piece = tuple["Tensor", "Tensor"]
"""A (r, inputs) and B (outputs, r)."""


def save(folder: Path, model: Any, method: str, pieces: Mapping[str, list[Piece]]) -> None:
    """Writes the pieces of each layer, by its name, the same number for all."""
    import torch

    count = len(next(iter(pieces.values())))
    settings = copy(model.peft_config["default"])
    settings.r, settings.lora_alpha = settings.r * count, settings.lora_alpha * count
    files.write_settings(settings, folder)
    tensors = {}
    for name, found in pieces.items():
        a, b = zip(*found, strict=True)
        tensors[f"{name}.lora_A.weight"] = torch.cat([one.detach() for one in a])
        tensors[f"{name}.lora_B.weight"] = torch.cat([one.detach() for one in b], 1)
    files.write(tensors, folder, {"method": method, "pieces": str(count)})


def load(model: Any, folder: Path, trainable: bool) -> tuple[Any, dict[str, list[Piece]]]:
    """A new LoRA of one piece's rank, and the pieces of each of its layers.

    Raises:
        CheckpointInvalid: they are damaged, or of another base model.
    """
    import torch

    tensors, count = files.read(folder), int(files.metadata(folder).get("pieces", "1"))
    settings = files.read_settings(folder)
    settings.r, settings.lora_alpha = settings.r // count, settings.lora_alpha / count
    loaded = by_peft.empty(model, folder, settings, trainable, False)
    wanted = {name: torch.cat([one] * count, 0 if "lora_A" in name else 1) for name, one in by_peft.own(loaded).items()}
    files.check(wanted, tensors, folder)
    pieces = {}
    for name, layer in by_peft.layers(loaded):
        device = layer.lora_A["default"].weight.device
        halves = (tensors[f"{name}.lora_A.weight"].chunk(count), tensors[f"{name}.lora_B.weight"].chunk(count, 1))
        pieces[name] = [(a.to(device), b.to(device)) for a, b in zip(*halves, strict=True)]
    return loaded.train(trainable), pieces
