"""LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): LoRA with A frozen as it was drawn. Knows no optimiser.

Of the gradients that B can have, g_B' = (1/s²) g_B (A Aᵀ)⁻¹ with s = alpha/r brings the update s B A nearest to what
full training would do. PEFT has this inside an AdamW of its own (`peft.optimizers.create_lorafa_optimizer`). Here it is
a hook on B's gradient, which is linear in it, so that any optimiser, accumulation and several processes may follow.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from finetune.methods import by_peft

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-8
"""Keeps A Aᵀ invertible; PEFT's."""


def freeze(model: Any) -> None:
    """Freezes A of every layer and projects the gradient of B."""
    import torch

    for _, layer in by_peft.layers(model):
        a = layer.lora_A["default"].weight.requires_grad_(False)
        square = a.detach().float() @ a.detach().float().T  # (r, r)
        inverse = torch.linalg.pinv(square + RIDGE * torch.eye(len(square), device=square.device))
        projection = inverse / layer.scaling["default"] ** 2
        layer.lora_B["default"].weight.register_hook(partial(_projected, projection))


def _projected(projection: "Tensor", gradient: "Tensor") -> "Tensor":
    return (gradient.float() @ projection).to(gradient.dtype)
