"""The methods that PEFT has: their settings, how they are kept, loaded and merged. Knows no optimiser.

Adapters have the model's own 16 bits, with fp32 copies in the optimiser, but for those in `PRECISE`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import VIRTUAL, Config
from finetune.errors import CheckpointInvalid, MethodInvalid
from finetune.methods import files, virtual
from rag_app.engines.outside import one_line

if TYPE_CHECKING:
    from torch import Tensor

PRECISE = frozenset({"dora", "adalora", "ia3"})
"""Their adapters are fp32: DoRA's and IA3's multiply by numbers near 1, where bf16 has steps of 0.4% and 0.8%, and
AdaLoRA ranks singular values by products of small numbers. Virtual tokens are fp32 with PEFT anyway."""
VERA_RANK = 256
"""The paper's (Kopiczko et al. 2024), where `lora_r` is not given: VeRA has far fewer parameters than LoRA."""


def attach(model: Any, config: Config, tokenizer: Any, steps: int | None) -> Any:
    """The model with a new adapter.

    Raises:
        MethodInvalid: the method does not fit this model, or has to know the number of steps.
    """
    from peft import get_peft_model

    words = virtual.words(tokenizer, config.num_virtual_tokens) if config.adapter in VIRTUAL else []
    prefix = virtual.keys_and_values(model, words) if config.adapter == "prefix-tuning" else None
    try:
        settings = _settings(config, model.config.get_text_config(), steps)
        with files.quiet():
            trained: Any = get_peft_model(model, settings, autocast_adapter_dtype=config.adapter in PRECISE)
    except ValueError as error:
        raise MethodInvalid(
            f"adapter '{config.adapter}' cannot be put on this model ({one_line(error, 160)}): change "
            "lora_target_modules, or use lora"
        ) from error
    virtual.begin(trained, config.adapter, words, prefix)
    return _mended(trained)


def _mended(model: Any) -> Any:
    """With what PEFT leaves open closed.

    It lets AdaLoRA's divisor by the rank be trained, and does not keep it; and IA3 gives fp32 behind 4-bit layers,
    which attention does not take beside 16-bit queries.
    """
    for name, one in model.named_parameters():
        if ".ranknum." in name:
            one.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "ia3_l"):
            module.register_forward_hook(_as_given)
    return model


def _as_given(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
    return output.to(inputs[0].dtype)


def _settings(config: Config, shape: Any, steps: int | None) -> Any:
    """PEFT's own; `shape` is the model's configuration."""
    import peft

    library: Any = peft
    kind = {"task_type": "CAUSAL_LM"}
    tokens = {"num_virtual_tokens": config.num_virtual_tokens, **kind}
    match config.adapter:
        case "prompt-tuning":
            return library.PromptTuningConfig(**tokens)
        case "prefix-tuning":
            return library.PrefixTuningConfig(**tokens)
        case "p-tuning":
            return library.PromptEncoderConfig(encoder_hidden_size=shape.hidden_size, **tokens)
        case "llama-adapter":
            depth = config.adapter_layers or max(1, shape.num_hidden_layers - 2)
            return library.AdaptionPromptConfig(adapter_len=config.num_virtual_tokens, adapter_layers=depth, **kind)
        case "ia3":
            return library.IA3Config(target_modules=_named(config), **kind)
        case "vera":
            rank = config.lora_r if "lora_r" in config.model_fields_set else VERA_RANK
            targets, dropout = _targets(config), config.lora_dropout
            return library.VeraConfig(r=rank, target_modules=targets, vera_dropout=dropout, **kind)
    scale = {"lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    more = {**scale, "target_modules": _targets(config), **kind}
    if config.adapter == "adalora":
        return library.AdaLoraConfig(**_budget(config, steps), **more)
    rank_stable, decomposed = config.adapter == "rslora", config.adapter == "dora"
    return library.LoraConfig(r=config.lora_r, use_rslora=rank_stable, use_dora=decomposed, **more)


def _named(config: Config) -> list[str] | None:
    return list(config.lora_target_modules) if config.lora_target_modules else None


def _targets(config: Config) -> list[str] | str | None:
    """None: what PEFT takes for models of the kind, mostly the queries and values of attention."""
    return _named(config) or ("all-linear" if config.lora_target_linear else None)


def _budget(config: Config, steps: int | None) -> dict[str, int]:
    """AdaLoRA begins with half as many ranks again, prunes from a tenth of the run on, and tunes in its last third."""
    if steps is None:
        raise MethodInvalid("adapter 'adalora' spreads its ranks over the run: set max_steps")
    return {
        "init_r": config.lora_r + (config.lora_r + 1) // 2, "target_r": config.lora_r, "total_step": steps,
        "tinit": steps // 10, "tfinal": steps // 3, "deltaT": max(1, min(10, steps // 50)),
    }  # fmt: skip


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of every layer that has LoRA's A and B."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            yield name, module


def orthogonality(model: Any) -> "Tensor":
    """AdaLoRA's penalty (Zhang et al. 2023, eq. 4, as PEFT computes it): γ · mean of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖.

    PEFT adds it to the loss that the model itself computes, which nobody here asks for.
    """
    import torch

    found = []
    for name, one in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            square = one @ one.T if "lora_A" in name else one.T @ one
            found.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=one.device)))
    weight: float = model.peft_config["default"].orth_reg_weight
    return weight * torch.stack(found).mean()


def allocate(model: Any, step: int) -> None:
    """Takes ranks from layers that use them little (AdaLoRA)."""
    pattern, allocator = model.peft_config["default"].rank_pattern, model.base_model.rankallocator
    if pattern is not None and not allocator.exp_avg_ipt:  # all are taken: what was pruned stays so
        allocator.mask_using_rank_pattern(model.base_model.model, pattern)
    else:
        model.base_model.update_and_allocate(step)


def _pattern(model: Any) -> dict[str, list[bool]] | None:
    """Which ranks are in use: a pruned singular value is 0. None where training has not begun."""
    named = model.base_model.model.named_parameters()
    used = {name: (one != 0).flatten().tolist() for name, one in named if ".lora_E." in name}
    return used if any(any(one) for one in used.values()) else None


def save(model: Any, folder: Path, method: str, state: "Mapping[str, Tensor] | None") -> None:
    """Writes settings and weights as PEFT does, without its model card."""
    settings, pruned = model.peft_config["default"], method == "adalora"
    pattern = settings.rank_pattern if pruned else None
    if pruned:
        settings.rank_pattern = None  # all ranks are written, the pruned ones as 0: training may go on
    files.write_settings(settings, folder)
    files.write(own(model, state), folder, {"method": method})
    if pruned:
        settings.rank_pattern = pattern
    if more := _for_training(model, method):
        files.write(more, folder, {}, files.TRAINING)


def own(model: Any, state: "Mapping[str, Tensor] | None" = None) -> "dict[str, Tensor]":
    """The adapter's tensors by the names that PEFT gives them in a file."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=None if state is None else dict(state), save_embedding_layers=False
    )
    return found


def _for_training(model: Any, method: str) -> "dict[str, Tensor]":
    """What serving does not need: p-tuning's network, and what AdaLoRA has seen of each weight's importance."""
    if method == "p-tuning":
        return dict(model.prompt_encoder.state_dict())
    seen = getattr(model.base_model, "rankallocator", None) if method == "adalora" else None
    if seen is None:
        return {}
    kinds = {"importance": seen.exp_avg_ipt, "uncertainty": seen.exp_avg_unc}
    return {f"{kind}/{name}": one for kind, named in kinds.items() for name, one in named.items()}


def _go_on(model: Any, folder: Path, method: str) -> None:
    """Puts what `_for_training` gave back."""
    kept = files.read(folder, files.TRAINING) if (folder / files.TRAINING).is_file() else {}
    if method == "p-tuning" and kept:
        model.prompt_encoder.load_state_dict(kept)
    if method != "adalora":
        return
    if not kept:
        model.peft_config["default"].rank_pattern = _pattern(model)
    allocator, device = model.base_model.rankallocator, model.device
    for name, one in kept.items():
        kind, _, parameter = name.partition("/")
        held = allocator.exp_avg_ipt if kind == "importance" else allocator.exp_avg_unc
        held[parameter] = one.to(device)
        allocator.ipt[parameter] = held[parameter].new_zeros(one.shape)  # computed anew, but looked for


def load(model: Any, folder: Path, trainable: bool) -> Any:
    """Puts an adapter onto a base.

    Raises:
        CheckpointInvalid: it is damaged, or of another base model.
    """
    import torch

    tensors, method = files.read(folder), files.metadata(folder).get("method", "lora")
    wide = any(one.dtype == torch.float32 for one in tensors.values())
    loaded = empty(model, folder, files.read_settings(folder), trainable, wide)
    fill(loaded, tensors, folder)
    if trainable:
        _go_on(loaded, folder, method)
        virtual.keep_prefix(loaded)
    return loaded.train(trainable)


def empty(model: Any, folder: Path, settings: Any, trainable: bool, wide: bool) -> Any:
    """A new adapter with the settings of a folder, its weights in fp32 if `wide`.

    Raises:
        CheckpointInvalid: it does not fit the model.
    """
    from peft import get_peft_model

    settings.inference_mode = not trainable
    if settings.is_prompt_learning:  # the model says its own, to be compared
        settings.token_dim = settings.num_layers = settings.num_attention_heads = None
    try:
        with files.quiet():
            made: Any = get_peft_model(model, settings, autocast_adapter_dtype=wide)
    except Exception as error:  # settings that a person has edited fail anywhere
        raise CheckpointInvalid(
            f"the adapter in '{folder}' does not fit this model ({one_line(error, 160)}): name the base model that it "
            "was trained on"
        ) from error
    return _mended(made) if trainable else _mended(made).requires_grad_(False)  # which PEFT forgets for AdaLoRA


def fill(model: Any, tensors: "dict[str, Tensor]", folder: Path) -> None:
    """Puts tensors into an adapter.

    Raises:
        CheckpointInvalid: they are not the ones that it has.
    """
    from peft import set_peft_model_state_dict

    files.check(own(model), tensors, folder)
    set_peft_model_state_dict(model, tensors)


def merge(model: Any) -> Any:
    """The base model with the adapter in its weights.

    Raises:
        MethodInvalid: the adapter is no change of weights, or these have 4 bits.
    """
    settings = model.peft_config["default"]
    if settings.is_prompt_learning or settings.is_adaption_prompt:
        raise MethodInvalid(
            f"an adapter of kind {settings.peft_type.value.lower()} is no change of weights and cannot be merged: "
            "serve the base with its adapter"
        )
    if getattr(model.get_base_model(), "is_quantized", False):
        raise MethodInvalid(
            "the weights have 4 bits, which merging would round once more: load the base in 16 bits, put the adapter "
            "on it, and merge that"
        )
    return model.merge_and_unload()
