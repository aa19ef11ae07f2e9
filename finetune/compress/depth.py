"""Which whole layers change a model's hidden state least, and the model without them. Knows tensors only."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from finetune.errors import MethodInvalid
from finetune.evaluation.perplexity import evaluating

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int], None]


def layers(model: Any) -> Any:
    """The `ModuleList` of a model's decoder layers.

    Raises:
        MethodInvalid: it keeps them elsewhere than Llama, Qwen, Mistral, Gemma, Phi and their like do.
    """
    found = getattr(model.get_decoder(), "layers", None)
    if found is None or len(found) != model.config.get_text_config().num_hidden_layers:
        raise MethodInvalid(
            f"a model of type '{model.config.model_type}' cannot be pruned: its layers are not where those of Llama "
            "and its like are. Give a model of such a type"
        )
    return found


def check(model: Any, count: int) -> None:
    """Whether so many layers can be removed.

    Raises:
        MethodInvalid: none would be left, or they are not found.
    """
    if count >= (have := len(layers(model))):
        raise MethodInvalid(f"the model has {have} layers, and none would be left: remove {have - 1} at most")


def influences(model: Any, rows: Sequence[Sequence[int]], progress: Progress) -> list[float]:
    """Block influence of every layer (Men et al. 2024, ShortGPT): 1 − mean over all tokens of cos(h_in, h_out).

    Args:
        model: a causal language model.
        rows: token ids, each row computed by itself.
        progress: is told of each row.
    """
    import torch

    total, count = torch.zeros(len(layers(model)), dtype=torch.float64), 0
    for states in _states(model, rows, progress):
        total += (1 - torch.stack([_cosine(a, b) for a, b in pairwise(states)])).sum(1).double()
        count += len(states[0])
    return [float(one) for one in total / max(count, 1)]


def distances(model: Any, rows: Sequence[Sequence[int]], span: int, progress: Progress) -> list[float]:
    """Angular distance over each block of `span` layers (Gromov et al. 2024): arccos(cos(h_l, h_l+span)) / π.

    h is what the layers read and write at a row's last token; the mean over rows.
    """
    import torch

    total = torch.zeros(len(layers(model)) - span + 1, dtype=torch.float64)
    for states in _states(model, rows, progress):
        last = torch.stack([state[-1] for state in states])
        total += torch.arccos(_cosine(last[:-span], last[span:]).double().clamp(-1, 1)) / math.pi
    return [float(one) for one in total / max(len(rows), 1)]


def least(influence: Sequence[float], count: int) -> list[int]:
    """The `count` layers of least influence, in the model's order."""
    return sorted(sorted(range(len(influence)), key=influence.__getitem__)[:count])


def remove(model: Any, gone: Sequence[int]) -> None:
    """Takes layers out of a model, in place; the configuration follows.

    Raises:
        MethodInvalid: none would be left.
    """
    import torch

    check(model, len(set(gone)))
    config, all_layers = model.config.get_text_config(), layers(model)
    before = len(all_layers)
    kept = [number for number in range(before) if number not in set(gone)]
    model.get_decoder().layers = torch.nn.ModuleList(all_layers[number] for number in kept)
    for place, layer in enumerate(model.get_decoder().layers):
        for module in layer.modules():  # by this number a layer finds its part of the cache
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == before:  # such as layer_types
            setattr(config, name, [value[number] for number in kept])
    config.num_hidden_layers = len(kept)


def _cosine(a: "torch.Tensor", b: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)


def _states(model: Any, rows: Sequence[Sequence[int]], progress: Progress) -> "Iterator[list[torch.Tensor]]":
    """For each row, what the first layer reads and what every layer writes: tensors of shape (tokens, width).

    By hooks: of the hidden states that a model returns, the last one is normalised already.
    """
    import torch

    states: list[torch.Tensor] = []
    blocks = layers(model)

    def read(_: Any, inputs: Any, settings: dict[str, Any]) -> None:
        states.append((inputs[0] if inputs else settings["hidden_states"])[0])

    def wrote(_: Any, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0])

    hooks = [blocks[0].register_forward_pre_hook(read, with_kwargs=True)]
    hooks += [block.register_forward_hook(wrote) for block in blocks]
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for number, row in enumerate(rows, 1):
                states.clear()
                model.get_decoder()(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
                yield states
                progress("measuring layers", number, len(rows))
    finally:
        for hook in hooks:
            hook.remove()
