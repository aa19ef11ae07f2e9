"""BERT in plain PyTorch: the form that sentence encoders mostly have, ready in a second and fast on CPUs.

Its vectors are sentence-transformers' within rounding (tests compare them); three things make it cheaper. Nothing but
torch is imported, which takes a third of the time. Weights are packed once into oneDNN's own layout and multiplied with
GELU and residual sums included: at fp32 on a Zen 5 that takes 0.43 of the time of MKL, PyTorch's default. Attention is
two batched products, faster at heads of 32 and passages of 128 tokens than PyTorch's fused kernel.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from index.modelfiles import ModelFiles, pooling_modes
from index.precision import cores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Linear = Callable[..., torch.Tensor]
    """x (rows, inputs), gelu=False, add=None (rows, outputs) -> gelu(x @ weight.T + bias) or ... + add."""

PACKED_FOR = 1024
"""Rows of a typical product; oneDNN picks the layout of packed weights by it."""
ALONE = 1e9
"""Operations up to which one thread does it all: a query by MiniLM is 3 ms of work, and threads that meet sixty times
on the way make that 100 to 250 ms at the 95th percentile when other programs keep the processor busy."""


def fits(files: ModelFiles) -> bool:
    """Whether a model is of the plain form that this module computes: BERT, mean or first token, unit length."""
    config = files.config
    kinds = [module.kind for module in files.modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        return False
    pooling = files.modules[1]
    transformer = files.modules[0].config
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not (config.get("is_decoder") or config.get("quantization_config"))
        and not (transformer.get("do_lower_case") or transformer.get("model_args"))
        and pooling_modes(pooling) in (["mean"], ["cls"])
        and pooling.config.get("include_prompt", True) is True
        and (files.modules[0].folder / "model.safetensors").is_file()
        and files.tokenizer_file.is_file()
    )


class Bert:
    """A BERT encoder on the CPU.

    Args:
        files: a model that `fits`.
        precision: "fp32" or "bf16".
        packed: whether oneDNN's packed weights are used; None where they can be.

    Raises:
        KeyError: the weights have other names than BERT's.
    """

    def __init__(self, files: ModelFiles, precision: str, packed: bool | None = None) -> None:
        import torch
        from safetensors.torch import load_file

        weights = load_file(files.modules[0].folder / "model.safetensors")
        weights = {name.removeprefix("bert."): value for name, value in weights.items()}
        config = files.config
        self.heads = int(config["num_attention_heads"])
        self.eps = float(config.get("layer_norm_eps", 1e-12))
        self.width = int(config["hidden_size"])
        self.cls = pooling_modes(files.modules[1]) == ["cls"]
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.packed = _can_pack(self.dtype) if packed is None else packed
        # (vocabulary, width), as stored: only the rows of a batch are ever converted
        self.words = weights["embeddings.word_embeddings.weight"]
        positions = weights["embeddings.position_embeddings.weight"].float()
        self.positions = positions + weights["embeddings.token_type_embeddings.weight"][0].float()
        self.norm = self._norm(weights, "embeddings.LayerNorm", torch.float32)
        self.layers = [self._layer(weights, n) for n in range(int(config["num_hidden_layers"]))]
        inner = int(config["intermediate_size"])
        self._per_token = len(self.layers) * 2 * self.width * (4 * self.width + 2 * inner)  # multiplications, additions

    def _norm(self, weights: dict[str, Any], name: str, dtype: Any) -> tuple[Any, Any]:
        return weights[f"{name}.weight"].to(dtype), weights[f"{name}.bias"].to(dtype)

    def _layer(self, weights: dict[str, Any], number: int) -> tuple[Any, ...]:
        import torch

        def of(name: str) -> Any:
            return weights[f"encoder.layer.{number}.{name}"].float()

        parts = [(of(f"attention.self.{part}.weight"), of(f"attention.self.{part}.bias")) for part in
                 ("query", "key", "value")]  # fmt: skip
        # The scaling of attention's scores is part of the queries' weights.
        scale = (parts[0][0].shape[0] / self.heads) ** -0.5
        parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
        prefix = f"encoder.layer.{number}"
        return (
            self._linear(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
            self._linear(of("attention.output.dense.weight"), of("attention.output.dense.bias")),
            self._norm(weights, f"{prefix}.attention.output.LayerNorm", self.dtype),
            self._linear(of("intermediate.dense.weight"), of("intermediate.dense.bias")),
            self._linear(of("output.dense.weight"), of("output.dense.bias")),
            self._norm(weights, f"{prefix}.output.LayerNorm", self.dtype),
        )

    def _linear(self, weight: Any, bias: Any) -> "Linear":
        import torch
        from torch.nn import functional

        weight, bias = weight.to(self.dtype), bias.to(self.dtype)
        if not self.packed:

            def plain(x: Any, gelu: bool = False, add: Any = None) -> Any:
                y = functional.linear(x, weight, bias)
                y = functional.gelu(y) if gelu else y
                return y if add is None else y + add

            return plain
        kernel: Any = torch.ops.mkldnn._linear_pointwise
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)

        def fused(x: Any, gelu: bool = False, add: Any = None) -> Any:
            if add is not None:
                return kernel.binary(x, add, weight, bias, "add")
            return kernel(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")

        return fused

    def __call__(self, batch: Sequence[Sequence[int]]) -> "npt.NDArray[np.float32]":
        """Pooled vectors of texts, (len(batch), width) float32, not of unit norm.

        Args:
            batch: token ids of every text, special tokens included; texts of like length waste little.
        """
        import torch

        longest = max(map(len, batch))
        # Holds for the calling thread: OpenMP counts by thread.
        torch.set_num_threads(1 if longest * len(batch) * self._per_token < ALONE else cores())
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch])
        lengths = torch.tensor([len(row) for row in batch])
        there = torch.arange(longest) < lengths[:, None]  # (texts, longest)
        with torch.inference_mode():
            states = self._forward(ids, None if bool(there.all()) else there).float()
            pooled = states[:, 0] if self.cls else states.mul_(there[..., None]).sum(1) / lengths[:, None]
            vectors: npt.NDArray[np.float32] = pooled.numpy()
        return vectors

    def _forward(self, ids: Any, there: Any) -> Any:
        """States of the last layer, (texts, longest, width)."""
        import torch
        from torch.nn import functional

        texts, longest = ids.shape
        width, heads = self.width, self.heads

        def normed(x: Any, weight: Any, bias: Any) -> Any:
            return functional.layer_norm(x, (width,), weight, bias, self.eps)

        x = functional.embedding(ids, self.words).float() + self.positions[:longest]
        x = normed(x, *self.norm).to(self.dtype).view(-1, width)
        mask = None
        if there is not None:  # added to the scores of padding; (texts * heads, 1, longest)
            mask = torch.zeros(there.shape, dtype=self.dtype).masked_fill_(~there, -1e4)
            mask = mask[:, None, None].expand(texts, heads, 1, longest).reshape(-1, 1, longest)
        for qkv, mixed, norm1, up, down, norm2 in self.layers:
            parts = qkv(x).view(texts, longest, 3, heads, -1).permute(2, 0, 3, 1, 4)
            queries, keys, values = parts.reshape(3, texts * heads, longest, -1)
            keys = keys.transpose(1, 2)
            scores = torch.bmm(queries, keys) if mask is None else torch.baddbmm(mask, queries, keys)
            seen = torch.bmm(torch.softmax(scores, -1), values)
            seen = seen.view(texts, heads, longest, -1).transpose(1, 2).reshape(-1, width)
            x = normed(mixed(seen, add=x), *norm1)
            x = normed(down(up(x, gelu=True), add=x), *norm2)
        return x.view(texts, longest, width)


def _can_pack(dtype: Any) -> bool:
    """Whether this PyTorch has oneDNN's fused products for the type; they are what its compiler emits for CPUs."""
    import torch

    ops: Any = torch.ops.mkldnn
    available: Any = torch.backends.mkldnn.is_available
    if not (available() and hasattr(ops, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())
