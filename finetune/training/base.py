"""A base model with the weights that a run computes with: in 16 or 32 bits, or NF4's. Knows no adapter."""

from typing import TYPE_CHECKING, Any

from finetune.config import Config

if TYPE_CHECKING:
    from rag_app.engines.checkpoints import Source


def load(config: Config, source: "Source", device: str) -> tuple[Any, Any]:
    """The model and its tokenizer.

    Args:
        config: says whether the weights have 4 bits, and how they are stored; all else have the width of `bf16`.
        source: of the weights.
        device: as PyTorch names it, or auto.

    Raises:
        ModelInvalid: the weights cannot be read.
    """
    import torch

    from finetune.training import nf4
    from rag_app.engines import checkpoints as models

    on_gpu = models.chosen_device(device).type == "cuda"
    packed = config.four_bit and (config.nf4_storage == "packed" or (config.nf4_storage == "auto" and on_gpu))
    model, tokenizer = models.load(source, "nf4" if packed else "auto", device, double=packed)
    if config.bf16 != "auto" and not packed:
        for weights in model.parameters():  # not the buffers: RoPE's frequencies would be rounded, too
            weights.data = weights.data.to(torch.bfloat16 if config.bf16 else torch.float32)
    if config.four_bit and not packed:
        nf4.rounded_(model)
    return model, tokenizer
