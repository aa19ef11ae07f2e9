"""How virtual tokens begin, and a prefix that survives gradient checkpointing. Knows no other method.

Prompt tuning begins with the embeddings of the system prompt's words, and prefix tuning with the keys and values that
the model computes for them: random ones would have to be unlearned first (Lester et al. 2021; Li and Liang 2021).
P-tuning's network begins at random.
"""

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from rag_app.prompt import SYSTEM

if TYPE_CHECKING:
    from torch import Tensor


def words(tokenizer: Any, count: int) -> list[int]:
    """The first tokens of the system prompt, again and again until there are `count`."""
    ids: list[int] = tokenizer(SYSTEM, add_special_tokens=False)["input_ids"]
    return (ids * (count // len(ids) + 1))[:count]


def keys_and_values(model: Any, ids: list[int]) -> "Tensor | None":
    """What attention keeps of tokens, as PEFT lays it out: (tokens, 2 · layers · heads · width). None where layers
    differ in it."""
    import torch

    with torch.no_grad():
        row = torch.tensor([ids], device=model.device)
        kept = model(input_ids=row, use_cache=True).past_key_values
    found = [one[0].transpose(0, 1).flatten(1) for layer in kept.layers for one in (layer.keys, layer.values)]
    return torch.cat(found, 1).float() if len({one.shape for one in found}) == 1 else None


def begin(model: Any, method: str, ids: list[int], prefix: "Tensor | None") -> None:
    """Gives a new adapter its first values."""
    if method == "prompt-tuning":
        table = model.prompt_encoder["default"].embedding.weight
        table.data.copy_(model.get_input_embeddings().weight.data[ids])
    if method == "prefix-tuning":
        table = model.prompt_encoder["default"].embedding.weight
        if prefix is not None and prefix.shape == table.shape:
            table.data.copy_(prefix)
    keep_prefix(model)


def keep_prefix(model: Any) -> None:
    """Has gradient checkpointing leave a prefix alone.

    A prefix is a cache, and Transformers takes caches from a layer that it computes twice, since the second time would
    add to them once more. This one is not added to in training.
    """
    if model.peft_config["default"].peft_type != "PREFIX_TUNING":
        return
    model.get_prompt = MethodType(_unchanging, model)
    for module in model.get_base_model().modules():
        if hasattr(module, "_can_checkpoint_with_cache"):
            module._can_checkpoint_with_cache = True


def _unchanging(model: Any, *args: Any, **kwargs: Any) -> Any:
    cache = type(model).get_prompt(model, *args, **kwargs)
    if model.training:
        for layer in cache.layers:
            layer.update = partial(_beside, layer)
    return cache


def _beside(layer: Any, keys: "Tensor", values: "Tensor", *args: Any, **kwargs: Any) -> "tuple[Tensor, Tensor]":
    import torch

    return torch.cat([layer.keys, keys], -2), torch.cat([layer.values, values], -2)
