"""Writes a model of Transformers as a GGUF file. Knows nothing of adapters, quantisation and training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import ExportInvalid
from finetune.export import families
from index.embedding import Progress
from index.generation import flush

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from torch import Tensor

Float = Literal["f32", "f16", "bf16"]


def write(model: Any, tokenizer: Any, file: Path, kind: Float = "f16", progress: Progress | None = None) -> None:
    """Writes the model, whole or not at all. Vectors stay f32.

    Args:
        model: of one of `families.FAMILIES`, in 16 or 32 bits. A tensor at a time stands in memory beside it.
        tokenizer: its own.
        file: is replaced where it is there.
        kind: of the matrices.
        progress: called with ("writing", tensors done, all).

    Raises:
        ExportInvalid: llama.cpp cannot compute such a model or make its tokens, or its weights do not fit f16.
        OSError: the disk is full, or the folder cannot be written to; what was there before is still there.
    """
    from gguf import GGUFWriter

    from finetune.export.vocabulary import split_of, vocabulary

    known = names(model)
    vocab = vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    split = split_of(vocab, tokenizer)
    with staged(file) as part:
        writer = GGUFWriter(part, families.of(model.config).arch)
        try:
            _describe(writer, file.stem, kind)
            families.describe(writer, model.config)
            vocab.add_to(writer, split)
            _write(writer, model, known, kind, progress or (lambda stage, done, total: None))
        finally:
            writer.close()


@contextmanager
def staged(file: Path) -> Iterator[Path]:
    """Gives the name of a file beside `file` that takes its place at the end, or vanishes if an error ends it.

    What a killed process left is replaced by the next one.
    """
    file = Path(os.path.realpath(file))  # a link keeps leading to it
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        flush(part)
        part.replace(file)
        flush(file.parent)
    finally:
        part.unlink(missing_ok=True)


def names(model: Any) -> dict[str, str]:
    """GGUF's name of each of the model's parameters. Weights that two layers share come once.

    Raises:
        ExportInvalid: as `families.of`; or the model has weights that its family has not, or such of 4 bits.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    family = families.of(model.config)
    if getattr(model, "is_quantized", False):
        raise ExportInvalid("the model's weights are quantised already: load it in 16 bits")
    known = get_tensor_name_map(MODEL_ARCH[family.arch.upper()], model.config.num_hidden_layers)
    found = {}
    for name, _ in model.named_parameters():
        *_, layer, kind = name.split(".")
        place = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if not place or (kind == "bias" and layer not in family.biases):
            raise ExportInvalid(f"llama.cpp has no place for the weights '{name}': merge or remove what was added")
        found[name] = place
    return found


def heads(config: Any) -> dict[str, int]:
    """The layers whose rows are to be `permuted`, and how many heads each has; none in most families."""
    if not families.of(config).permuted:
        return {}
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}


def permuted(rows: "Tensor", heads: int) -> "Tensor":
    """Rows of a query or key projection, or of LoRA's B for one, in llama.cpp's order.

    Transformers rotates a head's first half against its second, llama.cpp neighbours against each other.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _describe(writer: "gguf.GGUFWriter", name: str, kind: Float) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    files = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16}
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(files[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _write(writer: "gguf.GGUFWriter", model: Any, known: dict[str, str], kind: Float, progress: Progress) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType

    types = {"f32": GGMLQuantizationType.F32, "f16": GGMLQuantizationType.F16, "bf16": GGMLQuantizationType.BF16}
    tensors = {known[name]: (name, value.data) for name, value in model.named_parameters()}
    if (stretched := _stretched(model)) is not None:
        tensors["rope_freqs.weight"] = ("", stretched)
    for place, (_, value) in tensors.items():
        own = kind if value.dim() > 1 else "f32"
        size = np.dtype(np.float32 if own == "f32" else np.float16)  # numpy has no bf16
        writer.add_tensor_info(place, value.shape, size, value.numel() * size.itemsize, types[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (place, (name, value)) in enumerate(tensors.items()):
        progress("writing", done, len(tensors))
        own = kind if value.dim() > 1 else "f32"
        writer.write_tensor_data(_values(place, _arranged(model.config, name, value), own))
    progress("writing", len(tensors), len(tensors))


def _stretched(model: Any) -> "Tensor | None":
    """What llama.cpp divides each frequency by, where that is not 1; told so in the Llama family alone."""
    if not families.of(model.config).permuted:
        return None
    rotary = model.model.rotary_emb.inv_freq.float().cpu()  # 1 / theta^(i/width), stretched
    theta = model.config.rope_parameters["rope_theta"]
    plain: Tensor = theta ** -(rotary.new_tensor(range(len(rotary))) / len(rotary))
    return None if plain.allclose(rotary, rtol=1e-5) else plain / rotary


def _arranged(config: Any, name: str, value: "Tensor") -> "Tensor":
    """In llama.cpp's order, and norms with what it wants added."""
    layer, added = ".".join(name.split(".")[-2:-1]), families.of(config).added
    if layer in heads(config):
        return permuted(value, heads(config)[layer])
    return value.float() + added if added and layer.endswith("norm") else value


def _values(name: str, value: "Tensor", kind: Float) -> "np.ndarray[Any, Any]":
    import torch

    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    values = value.detach().cpu().to(types[kind]).contiguous()
    if not values.isfinite().all():
        raise ExportInvalid(f"the weights '{name}' hold no finite numbers as {kind}: give bf16 or f32")
    return (values.view(torch.int16) if kind == "bf16" else values).numpy()
