"""What llama.cpp has to be told of each family of models, and which it cannot compute. Knows no file and no tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import ExportInvalid

if TYPE_CHECKING:
    import gguf

CONVERTER = "use llama.cpp's own converter: --converter"


@dataclass(frozen=True)
class Family:
    """How llama.cpp computes models of a kind."""

    arch: str
    """Its name for them."""
    permuted: bool = False
    """It rotates neighbours in queries and keys against each other, not a head's first half against its second."""
    ropes: tuple[str, ...] = ("default", "linear")
    """Ways to stretch positions that it can be told of."""
    biases: tuple[str, ...] = ()
    """Layers that may have one."""
    activation: str = "silu"
    added: int = 0
    """What it wants to have been added to the weights of norms."""
    pattern: int = 0
    """Every so many layers one sees all tokens, the others a window; 0 where it knows no windows."""
    wide: int = 0
    """Layers of the one model whose attention is scaled by the model's width instead of the head's."""


_LLAMA = Family(
    "llama",
    True,
    ("default", "linear", "llama3"),
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
_GELU = "gelu_pytorch_tanh"
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family("qwen2", biases=("q_proj", "k_proj", "v_proj")),
    "qwen3": Family("qwen3", biases=("q_proj", "k_proj", "v_proj")),
    "gemma": Family("gemma", activation=_GELU, added=1),
    "gemma2": Family("gemma2", activation=_GELU, added=1, pattern=2, wide=46),
    "gemma3_text": Family("gemma3", activation=_GELU, added=1, pattern=6, wide=62),
}
"""By the kind that Transformers gives a model."""


def of(config: Any) -> Family:
    """The family of a model by its configuration.

    Raises:
        ExportInvalid: llama.cpp computes such a model otherwise, or what it has to be told is not known here.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ExportInvalid(
            f"models of the kind '{config.model_type}' cannot be written as GGUF here, only {', '.join(FAMILIES)}: "
            + CONVERTER
        )
    rope = _rope(config).get("rope_type", "default")
    if rope not in family.ropes:
        raise ExportInvalid(
            f"the model stretches its positions by '{rope}', and only {', '.join(family.ropes)} can be written as GGUF "
            f"here: {CONVERTER}"
        )
    if odd := _odd(config, family):
        raise ExportInvalid(f"the model has {odd}, which llama.cpp computes otherwise: {CONVERTER}")
    return family


def _odd(config: Any, family: Family) -> str:
    """What of the configuration the family's usual models have not."""
    found = getattr(config, "hidden_activation", None) or config.hidden_act
    if found != family.activation:
        return f"the activation {found}"
    if getattr(config, "use_bidirectional_attention", False):
        return "attention to later tokens"
    if family.arch == "gemma2" and not (config.attn_logit_softcapping and config.final_logit_softcapping):
        return "logits without a cap"
    if family.arch == "gemma3" and config.attn_logit_softcapping:
        return "attention with a cap"
    if family.arch == "qwen2" and head_width(config) * config.num_attention_heads != config.hidden_size:
        return "heads that are not as wide together as the model"
    if family.pattern:
        usual = [
            "full_attention" if not (n + 1) % family.pattern else "sliding_attention"
            for n in range(config.num_hidden_layers)
        ]
        if list(config.layer_types) != usual:
            return "windows in other layers"
    scale = getattr(config, "query_pre_attn_scalar", None)
    by_width = config.hidden_size / config.num_attention_heads
    if scale is not None and scale != (by_width if config.num_hidden_layers == family.wide else head_width(config)):
        return f"attention scaled by {scale}"
    return ""


def describe(writer: "gguf.GGUFWriter", config: Any) -> None:
    """Writes a model's shape and settings.

    Raises:
        ExportInvalid: as `of`.
    """
    family, rope = of(config), _rope(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_window(config, family))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_width(config))
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") == "linear" and not family.permuted:
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if family.pattern:
        writer.add_sliding_window(config.sliding_window)
    if near := config.rope_parameters.get("sliding_attention"):
        writer.add_rope_freq_base_swa(near["rope_theta"])
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def head_width(config: Any) -> int:
    """Of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> Any:
    """How positions are told in the layers that see all tokens."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _window(config: Any, family: Family) -> int:
    """Tokens that llama.cpp can compute as the model does: a window that it does not know is the most."""
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window and slides and not family.pattern:
        return min(int(window), int(config.max_position_embeddings))
    return int(config.max_position_embeddings)
