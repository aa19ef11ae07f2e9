"""ReLoRA (Lialin et al. 2023, arXiv 2307.05695): LoRA that is merged and begun again, so that updates add up in rank.

Every `relora_steps` steps
    W ← W + (alpha/r) B A,   A ← drawn anew,   B ← 0,
99% of the optimiser's moments of A and B, the smallest by magnitude, become 0, and the learning rate climbs from 0 back
to its schedule over a few steps (a jagged cosine). Both moments are pruned where the first one is small: A has no
gradient while B is 0, and a first moment without a second one would then make a step without bound. The paper trains
from scratch and warms up with full training; here the base model is trained already.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import Config
from finetune.methods import by_peft, stacked

if TYPE_CHECKING:
    from torch import Tensor

PRUNED = 0.99
"""Share of each moment that becomes 0 at a restart."""
WARMUP = 0.1
"""Share of a cycle over which the learning rate climbs."""


def cycle(config: Config, steps: int) -> int:
    """Steps between two restarts."""
    return config.relora_steps or max(1, math.ceil(steps / 4))


def rate_factor(step: int, every: int) -> float:
    """What the learning rate of a step, counted from 0, is multiplied by."""
    since = step % every
    return min(1.0, (since + 1) / (math.ceil(WARMUP * every) + 1)) if step >= every else 1.0


def after_step(model: Any, config: Config, step: int, steps: int, optimizer: Any) -> None:
    """Merges and begins again, where a cycle is over and another one follows."""
    import torch

    if step % cycle(config, steps) or step >= steps:
        return
    draw = torch.Generator().manual_seed(config.seed + step)  # the same in every process and after a resumption
    for _, layer in by_peft.layers(model):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        piece = (a.detach().clone(), b.detach().clone())
        _merge(layer, piece)
        layer.merged_pieces = [*_merged(layer), piece]
        fresh = torch.empty(a.shape)
        torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=draw)  # as LoRA begins
        a.data.copy_(fresh)
        b.data.zero_()
        for one in (a, b):
            _forget(optimizer, one)


def _merged(layer: Any) -> list[stacked.Piece]:
    return getattr(layer, "merged_pieces", [])


def _merge(layer: Any, piece: stacked.Piece) -> None:
    import torch

    (a, b), weight = piece, layer.get_base_layer().weight
    weight.data.copy_(torch.addmm(weight.data.float(), b.float(), a.float(), alpha=layer.scaling["default"]))


def _forget(optimizer: Any, weight: "Tensor") -> None:
    """Prunes what the optimiser remembers of a weight."""
    state = optimizer.state_of(weight) if hasattr(optimizer, "state_of") else optimizer.state[weight]
    moments = [one for one in state.values() if getattr(one, "shape", None) == weight.shape]
    if any(not one.is_floating_point() for one in moments):
        state.clear()  # bitsandbytes' 8 bits: all of it, to be made anew
    elif moments:
        kept = largest(moments[0])
        for moment in moments:
            moment.mul_(kept)


def largest(moment: "Tensor") -> "Tensor":
    """Where the largest hundredth is, by magnitude."""
    size, count = moment.abs(), max(1, round((1 - PRUNED) * moment.numel()))
    return size >= size.flatten().kthvalue(moment.numel() - count + 1).values


def save(model: Any, folder: Path) -> None:
    """Writes what was merged and what was not."""
    pieces = {}
    for name, layer in by_peft.layers(model):
        now = (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        pieces[name] = [*_merged(layer), now]
    stacked.save(folder, model, "relora", pieces)


def load(model: Any, folder: Path, trainable: bool) -> Any:
    """Merges again what was merged, in the same order, which gives the same weights."""
    loaded, found = stacked.load(model, folder, trainable)
    for name, layer in by_peft.layers(loaded):
        *merged, (a, b) = found[name]
        for piece in merged:
            _merge(layer, piece)
        layer.merged_pieces = merged
        layer.lora_A["default"].weight.data.copy_(a)
        layer.lora_B["default"].weight.data.copy_(b)
    return loaded
