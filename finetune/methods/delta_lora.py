"""Delta-LoRA (Zi et al. 2023, arXiv 2309.02411): LoRA whose base weights follow the change of the low-rank product.

W_{t+1} = W_t + λ (alpha/r) (B_{t+1} A_{t+1} - B_t A_t)   for t ≥ K

A and B themselves learn as in LoRA, without dropout, so that the gradient of B A is that of W. (The paper writes A B
for what is B A here.) Summed up, W_t = W_0 + λ (alpha/r) (B_t A_t - B_K A_K). That is computed from W_0 at every step,
since bf16 would lose most single steps; so W_0 is held a second time while training, and what is kept of a run is A, B,
A_K and B_K.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import Config
from finetune.errors import MethodInvalid
from finetune.methods import by_peft, stacked

if TYPE_CHECKING:
    from torch import Tensor

FOLLOW = 0.5
"""λ: how much of the update W takes on, too."""
WAIT = 0.1
"""Share of the steps before W begins to follow: K."""


@dataclass(frozen=True)
class _Start:
    """A layer when its weight began to follow."""

    weight: "Tensor"
    a: "Tensor"
    b: "Tensor"


def check(config: Config) -> None:
    """Raises MethodInvalid where there is dropout."""
    if config.lora_dropout:
        raise MethodInvalid("adapter 'delta-lora' needs the gradient without dropout: remove lora_dropout")


def after_step(model: Any, step: int, steps: int) -> None:
    """Has the weights follow."""
    if step < int(WAIT * steps):
        return
    for _, layer in by_peft.layers(model):
        if not hasattr(layer, "start"):
            a, b = _pair(layer)
            layer.start = _Start(layer.get_base_layer().weight.detach().clone(), a.clone(), b.clone())
        else:
            _follow(layer, layer.start)


def _pair(layer: Any) -> stacked.Piece:
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def _follow(layer: Any, start: _Start) -> None:
    import torch

    a, b = _pair(layer)
    left, right = torch.cat([b, -start.b], 1).float(), torch.cat([a, start.a]).float()
    moved = torch.addmm(start.weight.float(), left, right, alpha=FOLLOW * layer.scaling["default"])
    layer.get_base_layer().weight.data.copy_(moved)


def save(model: Any, folder: Path) -> None:
    """Writes (1+λ) B A - λ B_K A_K, which is what A, B and W together changed."""
    pieces = {}
    for name, layer in by_peft.layers(model):
        (a, b), start = _pair(layer), getattr(layer, "start", None)
        if start is None:
            pieces[name] = [(a.float(), b.float())]
        else:  # in fp32, where the products with λ = 1/2 are exact
            pieces[name] = [(a.float(), (1 + FOLLOW) * b.float()), (start.a.float(), -FOLLOW * start.b.float())]
    stacked.save(folder, model, "delta-lora", pieces)


def load(model: Any, folder: Path, trainable: bool) -> Any:
    """Puts A, B and the moved weights back."""
    loaded, found = stacked.load(model, folder, trainable)
    for name, layer in by_peft.layers(loaded):
        pieces = found[name]
        (a, b), moved = pieces[0], len(pieces) > 1
        layer.lora_A["default"].weight.data.copy_(a)
        layer.lora_B["default"].weight.data.copy_(b / (1 + FOLLOW) if moved else b)
        if moved:
            start = _Start(layer.get_base_layer().weight.detach().clone(), pieces[1][0], pieces[1][1] / -FOLLOW)
            _follow(layer, start)
            if trainable:
                layer.start = start
    return loaded
