"""Writes a model of Transformers as a GGUF file, and quantises such files. Knows nothing of adapters and training.

Only the Llama family's dense models, which llama.cpp computes as its architecture `llama`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import ExportInvalid

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from torch import Tensor

Float = Literal["f32", "f16", "bf16"]
FAMILIES = ("llama", "mistral")
ROPES = ("default", "linear", "llama3")
"""Ways to stretch positions that come down to one factor for each frequency."""


def write(model: Any, tokenizer: Any, file: Path, kind: Float = "f16") -> None:
    """Writes the model, whole or not at all. Vectors stay f32.

    Raises:
        ExportInvalid: llama.cpp cannot compute such a model or make its tokens, or its weights do not fit f16.
        OSError: the disk is full, or the folder cannot be written to; what was there before is still there.
    """
    from gguf import GGUFWriter

    from finetune.compress.vocabulary import split_of, vocabulary

    _check(model)
    vocab = vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    split = split_of(vocab, tokenizer)
    part = file.with_name(f".{file.name}.part")
    writer = GGUFWriter(part, "llama")
    try:
        _describe(writer, model.config, file.stem, kind)
        vocab.add_to(writer, split)
        _write(writer, model, kind)
        writer.close()
        part.replace(file)
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def quantise(source: Path, file: Path, kind: str) -> None:
    """Quantises a GGUF file to a type of llama.cpp's, such as Q4_0 or Q4_K_M, whole or not at all.

    Raises:
        ExportInvalid: there is no such type, or llama.cpp cannot read or write the file.
    """
    import llama_cpp

    from rag_app.engines.native import hush

    api: Any = llama_cpp
    number = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
    if number is None:
        raise ExportInvalid(f"llama.cpp has no type '{kind}': give one such as Q4_0, Q8_0 or Q4_K_M")
    hush()
    settings = api.llama_model_quantize_default_params()
    settings.ftype = number
    part = file.with_name(f".{file.name}.part")
    try:
        if api.llama_model_quantize(str(source).encode(), str(part).encode(), settings):
            raise ExportInvalid(f"llama.cpp cannot quantise '{source}' to {kind}: check the file and the room on disk")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def permuted(rows: "Tensor", heads: int) -> "Tensor":
    """Rows of a query or key projection, or of LoRA's B for one, in llama.cpp's order.

    Transformers rotates a head's first half against its second, llama.cpp neighbours against each other.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _check(model: Any) -> None:
    config = model.config
    if config.model_type not in FAMILIES:
        raise ExportInvalid(
            f"models of the kind '{config.model_type}' cannot be written as GGUF here, only {' and '.join(FAMILIES)}: "
            "merge the adapter and use llama.cpp's own converter"
        )
    rope = config.rope_parameters.get("rope_type", "default")
    if rope not in ROPES or model.model.rotary_emb.attention_scaling != 1:
        raise ExportInvalid(
            f"the model stretches its positions by '{rope}', and only {', '.join(ROPES)} can be written as GGUF here: "
            "use llama.cpp's own converter"
        )


def _describe(writer: "gguf.GGUFWriter", config: Any, name: str, kind: Float) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    files = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16}
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(files[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(_width(config))
    writer.add_key_length(_width(config))
    writer.add_value_length(_width(config))
    writer.add_vocab_size(config.vocab_size)


def _width(config: Any) -> int:
    """Of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(model: Any) -> "Iterator[tuple[str, Tensor]]":
    """Names in GGUF, and the values in llama.cpp's order. Weights that two layers share come once."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.named_parameters():
        if not (known := names.get_name(name, try_suffixes=(".weight", ".bias"))):
            raise ExportInvalid(f"llama.cpp has no place for the weights '{name}': merge or remove what was added")
        layer = name.split(".")[-2]
        yield known, permuted(value.data, heads[layer]) if layer in heads else value.data
    rotary = model.model.rotary_emb.inv_freq.float().cpu()  # 1 / theta^(i/width), stretched
    plain = config.rope_parameters["rope_theta"] ** -((rotary.new_tensor(range(len(rotary)))) / len(rotary))
    if not plain.allclose(rotary, rtol=1e-5):
        yield "rope_freqs.weight", plain / rotary


def _write(writer: "gguf.GGUFWriter", model: Any, kind: Float) -> None:
    """All of them; a tensor at a time stands in memory beside the model's own."""
    import numpy as np
    from gguf import GGMLQuantizationType

    types = {"f32": GGMLQuantizationType.F32, "f16": GGMLQuantizationType.F16, "bf16": GGMLQuantizationType.BF16}
    for name, value in _tensors(model):
        own = kind if value.dim() > 1 else "f32"
        size = np.dtype(np.float32 if own == "f32" else np.float16)  # numpy has no bf16
        writer.add_tensor_info(name, value.shape, size, value.numel() * size.itemsize, types[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, value in _tensors(model):
        writer.write_tensor_data(_values(name, value, kind if value.dim() > 1 else "f32"))


def _values(name: str, value: "Tensor", kind: Float) -> "np.ndarray[Any, Any]":
    import torch

    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    values = value.detach().cpu().to(types[kind]).contiguous()
    if not values.isfinite().all():
        raise ExportInvalid(f"the weights '{name}' hold no finite numbers as {kind}: give bf16 or f32")
    return (values.view(torch.int16) if kind == "bf16" else values).numpy()
