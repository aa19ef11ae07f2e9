"""A batch through a model: logits where there is a label, and nowhere else. Knows no optimiser and no trainer.

The vocabulary is large beside a small model's width (49,152 by 576 in SmolLM2), and most tokens are a prompt's.
"""

from typing import Any

import torch

from finetune.training.rows import IGNORED, mask


def inputs(batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """A batch of `rows.collate` or `rows.collate_padded` as a model takes it."""
    if "own" not in batch:
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "attention_mask": mask(batch["own"], batch["prefix"], dtype),
        "use_cache": False,
    }


def labelled(
    model: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the model says at the places that have a label.

    Args:
        model: a causal language model, or what PEFT or accelerate have wrapped it into.
        batch: of `rows.collate` or `rows.collate_padded`.
        dtype: of the model's activations.

    Returns:
        logits (n, vocabulary); labels (n,), IGNORED where only other rows have one; weights (n,).
    """
    labels = batch["labels"]
    kept = (labels != IGNORED).any(0).nonzero()[:, 0]
    # Counted from the end: virtual tokens may come before.
    logits = model(**inputs(batch, dtype), logits_to_keep=kept - labels.shape[1]).logits
    return logits.flatten(0, 1), labels[:, kept].flatten(), batch["weights"][:, kept].flatten()


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label (n,), fp32, 0 where it is IGNORED."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
