"""A step of training on a model without numbers, to see how many bytes it holds. Knows no memory of any machine.

PyTorch's `meta` device computes shapes alone. The step that training takes runs there, by the very code of model,
method and attention, while every tensor that is born and dies is counted: what autograd keeps for the backward pass
comes out for any architecture, with what is in use beside it at the worst moment.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from finetune import methods
from finetune.config import VIRTUAL, Config
from finetune.errors import ConfigInvalid
from finetune.methods import by_peft
from finetune.training import attention, forward, nf4
from rag_app.engines.outside import one_line

FUSED = "fused"
"""Our name for attention by a kernel that keeps no scores, such as those of GPUs."""


@dataclass(frozen=True)
class Rehearsal:
    """What a model is made of, and what a step on it holds; sizes in bytes but for `parameters` and `trained`."""

    parameters: int
    """Of the base model."""
    trained: int
    base: int
    """Weights of the base model."""
    packable: int
    """Weights among them, counted, that 4 bits can hold."""
    widest: int
    """The largest layer among those."""
    added: int
    """Weights that the method adds, trained or not."""
    gradients: int
    copies: int
    """fp32 copies of trained weights of 16 bits."""
    largest: int
    """The largest trained weight, as fp32."""
    activations: int
    """What a forward and a backward pass hold at most, gradients of weights and logits left out."""
    logits: int
    """What has the vocabulary's size at that moment."""
    by_formula: bool = False
    """Whether the model's code needs numbers, so that the activations are those of a formula."""


def rehearse(
    values: Mapping[str, Any], config: Config, row: int, labels: int, dtype: torch.dtype, fused: bool
) -> Rehearsal:
    """Builds a model from the content of its config.json, makes it trainable and takes a step, all without numbers.

    Args:
        values: of config.json.
        config: the run's.
        row: tokens of the longest row.
        labels: most labels of a row.
        dtype: of weights and activations.
        fused: whether attention is by a kernel that keeps no scores.

    Raises:
        ConfigInvalid: Transformers cannot build such a model.
    """
    with _quiet():
        model = _built(values, dtype, _fused() if fused else attention.register())
        base = list(model.parameters())
        packable = [weight.numel() for weight in nf4.layers(model)] if config.adapter != "full" else []
        model = _trainable(model, config)
        trained = [one for one in model.parameters() if one.requires_grad]
        for one in trained:
            one.grad = torch.empty_like(one)
        held = {id(one) for one in base}
        try:
            alive = _step(model, config, row, labels, dtype)
            peak, logits, formula = alive.peak, alive.logits, False
        except Exception:  # code that looks at numbers, as that of some mixtures of experts does
            peak, logits, formula = *_by_formula(model.config, config, row, labels, dtype), True
    return Rehearsal(
        parameters=sum(one.numel() for one in base),
        trained=sum(one.numel() for one in trained),
        base=_bytes(base),
        packable=sum(packable),
        widest=max(packable, default=0),
        added=_bytes([one for one in model.parameters() if id(one) not in held]) + _held_twice(model, config),
        gradients=_bytes(trained),
        copies=sum(4 * one.numel() for one in trained if one.element_size() == 2),
        largest=max((4 * one.numel() for one in trained), default=0),
        activations=peak - logits,
        logits=logits,
        by_formula=formula,
    )


def _held_twice(model: Any, config: Config) -> int:
    """Delta-LoRA's weights as they were, which it computes the moving ones from."""
    if config.adapter != "delta-lora":
        return 0
    return _bytes([layer.get_base_layer().weight for _, layer in by_peft.layers(model)])


def _bytes(tensors: list[Any]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _built(values: Mapping[str, Any], dtype: torch.dtype, attending: str) -> Any:
    import transformers

    hf: Any = transformers
    given = {name: value for name, value in values.items() if name != "quantization_config"}
    try:
        with torch.device("meta"):
            made = hf.AutoConfig.for_model(**given)
            try:
                return hf.AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation=attending)
            except (KeyError, ValueError):  # it has attention of its own
                return hf.AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation="eager")
    except Exception as error:  # as many kinds as there are architectures
        raise ConfigInvalid(
            f"Transformers cannot build the model that config.json describes ({one_line(error, 160)}): give one with "
            "a model_type that it knows"
        ) from error


def _trainable(model: Any, config: Config) -> Any:
    model = methods.attach(model, config, lambda text, **_: {"input_ids": [0]}, steps=config.max_steps or 1000)
    if config.qat:
        from finetune.compress import qat

        qat.attach(model, config)
    if config.gradient_checkpointing:
        # The state of random numbers, which is kept otherwise, has no meta device.
        settings = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    return model.train()


def _step(model: Any, config: Config, row: int, labels: int, dtype: torch.dtype) -> "_Alive":
    """Forward and backward pass of one batch, as `finetune.training.trainer` does them."""
    known = [*model.parameters(), *model.buffers(), *(one.grad for one in model.parameters() if one.grad is not None)]
    alive = _Alive(known, model.get_input_embeddings().weight.shape[0])
    with alive, torch.device("meta"):
        batch, kept = _batch(config, row, labels)
        logits = model(**forward.inputs(batch, dtype), logits_to_keep=kept).logits.flatten(0, 1)
        loss = forward.losses(logits, torch.zeros(len(logits), dtype=torch.long)).sum()
        del logits
        if (extra := methods.penalty(model, config)) is not None:
            loss = loss + extra
        loss.backward()  # type: ignore[no-untyped-call]
    return alive


def _batch(config: Config, row: int, labels: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rows as `finetune.training.rows` collates them, and the places of labels, from the end."""
    count = config.micro_batch_size
    if config.adapter in VIRTUAL:
        ids = torch.zeros(count, row, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(-labels, 0)
    ids = torch.zeros(1, row * count, dtype=torch.long)
    return {name: torch.zeros_like(ids) for name in ("input_ids", "position_ids", "own", "prefix")}, torch.arange(
        -labels * count, 0
    )


def _by_formula(made: Any, config: Config, row: int, labels: int, dtype: torch.dtype) -> tuple[int, int]:
    """Activations and logits of a plain transformer, in bytes.

    Korthikanti et al. 2022 (arXiv 2205.05198), equation 1: s·b·h·(34 + 5·a·s/h) a layer in 16 bits, of s tokens, b
    rows, h hidden units and a heads; with checkpointing 2·s·b·h a layer, and one whole layer beside.
    """
    text = made.get_text_config()
    s, b, h = row, config.micro_batch_size, text.hidden_size
    layer = s * b * (34 * h + 5 * text.num_attention_heads * s) * dtype.itemsize // 2
    depth = text.num_hidden_layers
    layers = depth * s * b * h * dtype.itemsize + layer if config.gradient_checkpointing else depth * layer
    logits = labels * b * text.vocab_size * (2 * 4 + dtype.itemsize)
    return layers + logits, logits


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors from their birth to their death, and remembers the worst moment."""

    def __init__(self, known: list[Any], vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self._sizes: dict[int, tuple[int, bool]] = {one.untyped_storage()._cdata: (0, False) for one in known}
        self._now = self._logits_now = 0
        self.peak = self.logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_iter(found):
            if isinstance(one, torch.Tensor):
                self._born(one)
        return found

    def _born(self, tensor: torch.Tensor) -> None:
        storage: Any = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:  # a view
            return
        size, of_logits = storage.nbytes(), tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
        self._sizes[key] = (size, of_logits)
        self._count(size, of_logits)
        weakref.finalize(storage, self._died, key)
        if self._now > self.peak:
            self.peak, self.logits = self._now, self._logits_now

    def _died(self, key: int) -> None:
        size, of_logits = self._sizes.pop(key)
        self._count(-size, of_logits)

    def _count(self, size: int, of_logits: bool) -> None:
        self._now += size
        self._logits_now += size if of_logits else 0


def _fused() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(FUSED, _fused_attention)
    AttentionMaskInterface.register(FUSED, eager_mask)
    return FUSED


def _fused_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **_: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    apply: Callable[..., torch.Tensor] = _Fused.apply
    return apply(query, key, value).transpose(1, 2).contiguous(), None


class _Fused(torch.autograd.Function):
    """Keeps what FlashAttention 2 keeps (Dao 2023): its inputs, its output, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, found, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries have to say about a model that is none."""
    from rag_app.engines.checkpoints import quiet

    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        yield
