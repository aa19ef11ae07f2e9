"""A model with an adapter folded into its 16-bit weights, in memory and as a folder. Knows no engine and no GGUF."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune import methods
from finetune.errors import MethodInvalid
from rag_app.engines import checkpoints
from rag_app.engines.outside import one_line
from rag_app.errors import ModelInvalid

if TYPE_CHECKING:
    import torch

    from finetune.evaluation.adapters import Adapter
    from rag_app.engines.checkpoints import Source

Base = Literal["original", "dequantised"]
Width = Literal["own", "f32", "f16", "bf16"]


def merged(
    adapter: "Adapter | None", source: "Source", base: Base = "original", width: Width = "own"
) -> tuple[Any, Any]:
    """The plain model, on the CPU, and its tokenizer.

    Args:
        adapter: from `finetune.evaluation.adapters.find`; None for the base model itself.
        source: the base model, from `adapters.base_of`; not looked at where the adapter is a whole model.
        base: 'original' for the weights that the model's files hold; 'dequantised' for those rounded to NF4 and back,
            which an adapter was trained on that was trained with 4-bit weights.
        width: of the result's weights; own: the 16 bits that the files have, else bf16.

    Raises:
        CheckpointInvalid: the adapter is damaged, or of another base.
        MethodInvalid: the adapter is no change of weights, or the base model's files hold quantised ones.
        ModelInvalid: the base model cannot be read.
    """
    from finetune.training import nf4

    if adapter is not None and methods.method_of(adapter.folder) == "full":
        source, base, adapter = checkpoints.find(str(adapter.folder)), "original", None
    model, tokenizer = _loaded(source)
    if base == "dequantised":
        nf4.rounded_(model)
    dtype = _dtype(width, model)
    if adapter:
        model = fold(methods.load(model, adapter.folder), dtype)
    return _cast(model, dtype).eval().requires_grad_(False), tokenizer


def fold(trained: Any, dtype: "torch.dtype") -> Any:
    """The plain model of one with an adapter beside its weights, which is used up.

    Merges in fp32 and rounds once, a layer at a time: in 16 bits both the update and the sum would be rounded.

    Args:
        trained: from `finetune.methods.load`, with the base in 16 or 32 bits.
        dtype: of the merged layers; all others stay as they are.

    Raises:
        MethodInvalid: what was trained is no change of weights.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, embeddings = trained.get_output_embeddings(), trained.get_input_embeddings()
    if isinstance(head, BaseTunerLayer) or isinstance(embeddings, BaseTunerLayer):
        inner: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        inner.weight = torch.nn.Parameter(inner.weight.data.clone())  # not tied any more: only one of them changes
    layers: list[Any] = [one for one in trained.modules() if isinstance(one, BaseTunerLayer)]
    for layer in layers:
        layer.float()
        layer.merge()
        layer.get_base_layer().to(dtype)
    with warnings.catch_warnings(action="ignore"):  # that they are merged already, and what is not tied any more
        return methods.merge(trained)


def save(model: Any, tokenizer: Any, folder: Path, width: Width = "own") -> None:
    """Writes the model, its settings, its tokenizer and its chat template into a folder that is being staged.

    Args:
        model: any of Transformers; its weights are rounded to `width`.
        tokenizer: its own.
        folder: as `index.folders.staged` gives it.
        width: own: the 16 bits that it has, else bf16.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    _cast(model, _dtype(width, model)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dtype(width: Width, model: Any) -> "torch.dtype":
    import torch

    own = torch.bfloat16 if model.dtype == torch.float32 else model.dtype
    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}.get(width, own)


def _cast(model: Any, dtype: "torch.dtype") -> Any:
    """The model itself; `to` would round the frequencies of its positions, too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _loaded(source: "Source") -> tuple[Any, Any]:
    """The model with the weights of its files, as wide as they are, and its tokenizer."""
    settled = checkpoints.settled(source)
    tokenizer = checkpoints.tokenizer(settled)
    try:
        with checkpoints.quiet():
            import transformers

            config = transformers.AutoConfig.from_pretrained(**settled.files)
            if getattr(config, "quantization_config", None):
                raise MethodInvalid(
                    f"the weights of '{source.name}' are quantised, and would be rounded once more: give the model "
                    "that it was made of"
                )
            loader: Any = transformers.AutoModelForCausalLM
            model, report = loader.from_pretrained(
                **settled.files, config=config, dtype="auto", output_loading_info=True
            )
    except MethodInvalid:
        raise
    except Exception as error:  # of several libraries
        raise ModelInvalid(
            f"the model '{source.name}' cannot be loaded ({type(error).__name__}: {one_line(error)}): it is damaged, "
            "incomplete or of an unknown kind. Fetch it again"
        ) from error
    if lacking := sorted(map(str, [*report["missing_keys"], *report.get("mismatched_keys", ())])):
        raise ModelInvalid(f"the model '{source.name}' lacks some of its weights, {lacking[0]} for one: fetch it again")
    return model, tokenizer
