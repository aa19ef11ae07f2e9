"""Houlsby's adapters (Houlsby et al. 2019, arXiv 1902.00751): two small layers behind attention and behind the MLP.

h ← h + W_up gelu(W_down h + b_down) + b_up, applied to what the attention (behind its output projection) and the MLP of
every decoder layer give, before the residual is added. Near the identity at first: weights are drawn from a normal
distribution of deviation 0.01, cut off at two deviations; biases are 0. The paper trains the layer norms, too; here
they stay frozen.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from finetune.errors import MethodInvalid
from finetune.methods import files

if TYPE_CHECKING:
    from torch import Tensor

DEVIATION = 1e-2
ATTENTION = ("self_attn", "attn", "self_attention", "attention")
MLP = ("mlp", "feed_forward", "ffn")
"""What the two halves of a decoder layer are called in Transformers."""


class Bottleneck(nn.Module):
    """h + W_up gelu(W_down h)."""

    def __init__(self, width: int, size: int, kind: Mapping[str, Any]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size, **kind), nn.Linear(size, width, **kind)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: "Tensor") -> "Tensor":
        """(..., width) to the same."""
        return hidden + self.up(nn.functional.gelu(self.down(hidden)))  # type: ignore[no-any-return]


def attach(model: Any, size: int) -> Any:
    """Puts bottlenecks into the model and freezes the rest.

    Raises:
        MethodInvalid: its layers have no attention and MLP of a known name.
    """
    model.requires_grad_(False)
    halves = list(_halves(model))
    if not halves:
        raise MethodInvalid(
            f"adapter 'adapter' finds no attention and MLP in a {model.config.model_type} model: use lora"
        )
    for half in halves:
        kind = {"dtype": model.dtype, "device": next(half.parameters()).device}
        half.add_module("bottleneck", Bottleneck(model.config.get_text_config().hidden_size, size, kind))
        half.register_forward_hook(_behind)
    return model


def _halves(model: Any) -> Iterator[Any]:
    for layer in model.modules():
        found = [
            next((half for name in names if (half := getattr(layer, name, None))), None) for names in (ATTENTION, MLP)
        ]
        if all(isinstance(half, nn.Module) for half in found):
            yield from found


def _behind(half: Any, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (half.bottleneck(output[0]), *output[1:])
    return half.bottleneck(output)


def inside(model: nn.Module) -> bool:
    """Whether the model has bottlenecks."""
    return any(isinstance(one, Bottleneck) for one in model.modules())


def _own(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    return {name: one for name, one in state.items() if ".bottleneck." in name}


def save(model: Any, folder: Path, state: "Mapping[str, Tensor] | None") -> None:
    """Writes the bottlenecks, in files named as PEFT names its own."""
    tensors = _own(model.state_dict() if state is None else state)
    size = next(len(one) for name, one in tensors.items() if name.endswith("down.weight"))
    settings = {"peft_type": "BOTTLENECK", "base_model_name_or_path": model.name_or_path, "bottleneck_size": size}
    (folder / files.SETTINGS).write_text(json.dumps(settings, indent=2), "utf-8")
    files.write(tensors, folder, {"method": "adapter"})


def load(model: Any, folder: Path, trainable: bool) -> Any:
    """Puts bottlenecks back.

    Raises:
        CheckpointInvalid: they are of another model.
    """
    tensors = files.read(folder)
    size = next((len(one) for name, one in tensors.items() if name.endswith("down.weight")), 1)
    wanted = _own(attach(model, size).state_dict())
    files.check(wanted, tensors, folder)
    model.load_state_dict(tensors, strict=False)
    for parameter in model.parameters():
        parameter.requires_grad_(trainable and parameter.requires_grad)
    return model.train(trainable)
