"""Every weight is trained, and the model kept as Transformers keeps it; a finished run adds the tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckpointInvalid, MethodInvalid
from rag_app.engines.outside import one_line

if TYPE_CHECKING:
    from torch import Tensor


def attach(model: Any) -> Any:
    """The model, all of it trainable.

    Raises:
        MethodInvalid: its weights have 4 bits.
    """
    if getattr(model, "is_quantized", False):
        raise MethodInvalid("adapter 'full' cannot train quantised weights: load the model in 16 bits, or use qlora")
    return model.requires_grad_(True)


def save(model: Any, folder: Path, state: "Mapping[str, Tensor] | None") -> None:
    """Writes the model; a head that is tied to the embeddings is written once."""
    model.save_pretrained(folder, state_dict=state)


def load(model: Any, folder: Path, trainable: bool) -> Any:
    """Puts the weights of a folder into a model of the same shape."""
    from transformers import AutoModelForCausalLM

    try:
        kept = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(kept.state_dict())
    except Exception as error:  # of three libraries
        raise CheckpointInvalid(
            f"'{folder}' is no model of this kind ({one_line(error, 160)}): name the base model that it was trained "
            "from, or train again"
        ) from error
    return model.requires_grad_(trainable).train(trainable)
