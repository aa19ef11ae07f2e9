"""Which single weights of a model are set to zero, and how they stay so. Knows tensors only.

Only the linear layers within the decoder's layers are pruned, as in both papers; embeddings and head stay whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.compress.depth import Progress, layers
from finetune.errors import MethodInvalid
from finetune.evaluation.perplexity import evaluating

if TYPE_CHECKING:
    import torch


def linears(module: Any) -> dict[str, Any]:
    """The linear layers below a module, by name.

    Raises:
        MethodInvalid: one is quantised.
    """
    import torch

    found = {name: one for name, one in module.named_modules() if isinstance(one, torch.nn.Linear)}
    for name, one in found.items():
        if not one.weight.is_floating_point():
            raise MethodInvalid(f"the weights of '{name}' are quantised: prune a 16-bit model, and quantise it after")
    return found


def check(model: Any, group: int | None) -> None:
    """Whether the weights can be pruned, in groups of so many if need be.

    Raises:
        MethodInvalid: they are quantised, or of another width.
    """
    for name, one in linears(layers(model)).items():
        if group and one.in_features % group:
            raise MethodInvalid(
                f"'{name}' has {one.in_features} inputs, no groups of {group}: give a share, such as 0.5"
            )


def magnitude(model: Any, share: float, group: int | None = None) -> None:
    """Zeroes a share of the weights that are smallest, in place.

    Args:
        model: a causal language model.
        share: of the weights, 0 to 1.
        group: weights, consecutive inputs of an output, that the share is of; by default a layer's whole matrix, as in
            the baseline of Sun et al. 2023.
    """
    import torch

    with torch.no_grad():
        for one in linears(layers(model)).values():
            _zero(one.weight, one.weight.abs(), share, group or one.weight.numel())


def wanda(model: Any, rows: Sequence[Sequence[int]], share: float, group: int | None, progress: Progress) -> None:
    """Zeroes a share of each output's weights by |W_ij|·‖X_j‖₂, in place (Sun et al. 2023, Wanda).

    X are the inputs of a linear layer over all tokens of all rows. Layer by layer: inputs are measured with the weights
    of the layer still whole, and those before it pruned.

    Args:
        model: a causal language model.
        rows: token ids to calibrate on.
        share: of the weights, 0 to 1.
        group: weights, consecutive inputs of an output, that the share is of; by default all of an output's.
        progress: is told of each layer.
    """
    blocks = layers(model)
    with evaluating(model):
        passes = [_inputs(model, row) for row in rows]
        for number, block in enumerate(blocks):
            norms = {name: 0.0 for name in linears(block)}
            with _measuring(block, norms):
                for calls in passes:
                    _call(block, calls[number])
            for name, one in linears(block).items():
                _zero(one.weight, one.weight.abs() * norms[name] ** 0.5, share, group or one.in_features)
            for calls in passes:
                output = _call(block, calls[number])
                if number + 1 < len(blocks):
                    calls[number + 1] = (output, *calls[number + 1][1:])
                calls[number] = ()
            progress("pruning layers", number + 1, len(blocks))


@contextmanager
def kept(model: Any) -> Iterator[None]:
    """While it lasts, weights that are zero get no gradient, so that no optimiser moves them."""
    hooks = []
    for one in linears(layers(model)).values():
        mask = one.weight != 0

        def only(gradient: Any, mask: Any = mask) -> Any:
            return gradient * mask.to(gradient.device)

        hooks.append(one.weight.register_hook(only))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def zeros(model: Any) -> int:
    """How many weights of the layers' linear layers are zero."""
    return sum(int((one.weight == 0).sum()) for one in linears(layers(model)).values())


def _zero(weight: "torch.Tensor", scores: "torch.Tensor", share: float, group: int) -> None:
    """Zeroes the `share` of each `group` of consecutive weights with the lowest scores, to the weight."""
    lowest = scores.reshape(-1, group).topk(round(share * group), dim=1, largest=False, sorted=False).indices
    weight.data.view(-1, group).scatter_(1, lowest, 0)


Call = tuple[Any, ...]
"""What a layer reads, and the rest of what it is called with: positional arguments, named ones. Empty once used."""


def _inputs(model: Any, row: Sequence[int]) -> list[Call]:
    """What each layer is called with; of what it reads, only the first layer's, as pruning will change the others'."""
    import torch

    calls: list[Call] = []

    def note(_: Any, inputs: Any, settings: dict[str, Any]) -> None:
        settings = dict(settings)
        read = inputs[0] if inputs else settings.pop("hidden_states")
        calls.append((None if calls else read, inputs[1:], settings))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in layers(model)]
    try:
        device = next(model.parameters()).device
        model.get_decoder()(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _call(block: Any, call: Call) -> Any:
    state, others, settings = call
    output = block(state, *others, **settings)
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _measuring(block: Any, norms: dict[str, Any]) -> Iterator[None]:
    """Adds up the squares of each input of each linear layer, in fp32."""

    def squares(name: str) -> Any:
        def add(_: Any, inputs: Any) -> None:
            norms[name] = norms[name] + inputs[0].float().square().flatten(0, -2).sum(0)

        return add

    hooks = [one.register_forward_pre_hook(squares(name)) for name, one in linears(block).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
