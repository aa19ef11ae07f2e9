"""Trains with weights as a GGUF type will hold them, and gradients as if they were not rounded. Knows no files.

The layers themselves stay as they are, and so does what is saved: `detach` takes the rounding away again, and the
exported model, quantised to the same type, computes with the weights that were trained with.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from finetune.config import Config
from finetune.errors import MethodInvalid

Type = Literal["Q4_0", "Q8_0"]
BLOCK = 32
"""Weights of a row that share a scale."""
SUPER = 256
"""Weights of a block of Q6_K."""


def attach(model: Any, config: Config) -> None:
    """Makes every layer that `config.qat` quantises compute with rounded weights, LoRA's update included.

    Raises:
        MethodInvalid: the weights are quantised already, or llama.cpp has no such type for some of them.
    """
    if config.qat is None:
        return
    if getattr(model, "is_quantized", False):
        raise MethodInvalid("qat rounds weights of 16 bits, and this model's are quantised already: give the plain one")
    for layer, kind in quantised(model, config.qat):
        layer.forward = (_Embedding if isinstance(layer, nn.Embedding) else _Linear)(layer, kind)


def detach(model: Any) -> None:
    """Undoes `attach`: the layers compute with their weights as they are."""
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), _Rounded):
            del layer.forward


def quantised(model: Any, kind: Type) -> Iterator[tuple[Any, Type]]:
    """Each layer that is rounded, and the type that it has in a file of type `kind`.

    llama.cpp's rules (llama-quant.cpp): the type itself, but for a head, or embeddings that are the head as well, which
    get Q8_0 where rows do not fill the blocks of Q6_K, and else Q6_K, which is left out here: it is four times as fine
    as Q4_0.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tuned: list[Any] = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    parts = {part for one in tuned for part in one.modules() if part is not one}
    for layer in model.modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if layer in parts or not isinstance(base, nn.Linear | nn.Embedding):
            continue
        if base.weight.shape[1] % BLOCK:
            raise MethodInvalid(
                f"qat: llama.cpp has no {kind} for rows of {base.weight.shape[1]} weights, which fill no blocks of "
                f"{BLOCK}: remove qat"
            )
        if base.weight is not getattr(head, "weight", table.weight):
            yield layer, kind
        elif kind == "Q8_0" or base.weight.shape[1] % SUPER:
            yield layer, "Q8_0"


def rounded(weight: Tensor, kind: Type) -> Tensor:
    """What llama.cpp makes of weights when it quantises them and reads them again; float32, of the same shape.

    ggml's quantize_row_q4_0_ref and quantize_row_q8_0_ref, whose scales are kept in 16 bits, but divided by in 32.
    """
    blocks = weight.detach().float().reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))  # the first one, with its sign
    scale = largest / -8 if kind == "Q4_0" else largest.abs() / 127
    steps = blocks * scale.reciprocal().where(scale != 0, 0)
    if kind == "Q4_0":
        steps.add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    else:
        steps.add_(steps.frac()).trunc_()  # halves away from zero, which torch rounds to even
    return steps.mul_(scale.half().float()).reshape(weight.shape)


class _Straight(torch.autograd.Function):
    """Rounded, with the gradient passed straight through (Bengio et al. 2013, arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kind: Type) -> Tensor:
        return rounded(weight, kind).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Rounded:
    """Stands in for the `forward` of a layer."""

    def __init__(self, layer: Any, kind: Type) -> None:
        self.layer, self.kind = layer, kind
        self.base: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        self._weight: Tensor | None = None
        self._made_of: list[Tensor] = []
        self._version = -1

    def weight(self) -> Tensor:
        """The rounded weights in the layer's dtype, made anew where they may have changed."""
        weight: Tensor = self.base.weight
        if weight.requires_grad and self.base.training:
            self._weight = None
            return _Straight.apply(weight, self.kind)  # type: ignore[no-any-return, no-untyped-call]
        factors = [one.detach() for name in self.adapters() for one in self.factors(name)]
        if not self._fresh(weight, factors):
            self._weight = rounded(self._updated(), self.kind).to(weight.dtype)
            self._made_of, self._version = [one.clone() for one in factors], weight._version
        assert self._weight is not None
        return self._weight

    def _fresh(self, weight: Tensor, factors: list[Tensor]) -> bool:
        """Whether the kept weights are of these; A and B are compared, as they are small and change in many ways."""
        kept = self._weight
        if kept is None or kept.dtype != weight.dtype or self._version != weight._version:
            return False
        if kept.is_inference() and not torch.is_inference_mode_enabled():
            return False  # nothing could be trained through it
        return len(factors) == len(self._made_of) and all(map(torch.equal, factors, self._made_of))

    def adapters(self) -> list[str]:
        """Names of the LoRAs that are in use."""
        layer = self.layer
        if layer is self.base or layer.disable_adapters:
            return []
        return [name for name in layer.active_adapters if name in layer.lora_A]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A (rank, inputs) and B (outputs, rank)."""
        return self.layer.lora_A[name].weight, self.layer.lora_B[name].weight

    def _updated(self) -> Tensor:
        """W + s B A, float32: what a merged model has."""
        weight: Tensor = self.base.weight.detach().float()
        for name in self.adapters():
            a, b = (one.detach().float() for one in self.factors(name))
            weight = weight + (b @ a) * self.layer.scaling[name]
        return weight


class _Linear(_Rounded):
    def __call__(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        weight = self.weight()
        result = functional.linear(x.to(weight.dtype), weight, self.base.bias)
        for name in self.adapters() if torch.is_grad_enabled() else []:
            # Their gradients as if nothing were rounded, without the large one of their product.
            a, b = self.factors(name)
            update = functional.linear(functional.linear(x.detach().to(a.dtype), a), b) * self.layer.scaling[name]
            result = result + (update - update.detach()).to(result.dtype)
        return result


class _Embedding(_Rounded):
    def __call__(self, ids: Tensor) -> Tensor:
        """Ids to (..., width)."""
        return functional.embedding(ids, self.weight(), self.base.padding_idx)
