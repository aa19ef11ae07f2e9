"""Methods of training: what each trains, what it does after a step, how it is kept, loaded and merged. Knows no data.

by_peft.py      those that PEFT has
full.py         every weight
lora_fa.py      LoRA with A frozen
bottleneck.py   Houlsby's adapters
delta_lora.py   Delta-LoRA: the base weights follow the product of A and B
relora.py       ReLoRA: LoRA that is merged and begun again
stacked.py      how the last two are kept: several updates as one LoRA of a higher rank
virtual.py      how virtual tokens begin
packed.py       4-bit weights on a CPU
files.py        what the folder of an adapter holds

`attach` comes before gradient checkpointing is enabled. Whoever trains calls `after_step` after each step of the
optimiser, with the gradients still there; adds `penalty` to the loss of each step; and multiplies the learning rate by
`rate_factor`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import Config, Method
from finetune.errors import CheckpointInvalid, MethodInvalid

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

LEARNING_RATES: Mapping[Method, float] = {
    "full": 5e-5, "lora": 5e-4, "qlora": 5e-4, "dora": 5e-4, "rslora": 2e-4, "lora+": 1e-4, "lora-fa": 1e-3,
    "vera": 1e-2, "adalora": 2e-3, "ia3": 1e-2, "prompt-tuning": 3e-2, "prefix-tuning": 1e-2, "p-tuning": 1e-3,
    "llama-adapter": 5e-3, "adapter": 5e-4, "delta-lora": 5e-4, "relora": 5e-4,
}  # fmt: skip
"""What `learning_rate` is where the configuration does not say it."""
WHOLE = frozenset({"lora-fa", "adalora", "delta-lora", "relora"})
"""Methods that read or change weights between steps, or by their gradients' hooks."""


def learning_rate(config: Config) -> float:
    """The configured learning rate, else the method's own."""
    return config.learning_rate or LEARNING_RATES[config.adapter]


def attach(model: Any, config: Config, tokenizer: Any, steps: int | None = None) -> Any:
    """Makes a loaded base model trainable by `config.adapter`, and nothing else of it.

    Args:
        model: of `rag_app.engines.checkpoints`; it is changed.
        config: the run's.
        tokenizer: the model's; virtual tokens begin as words.
        steps: of the whole run; by default `max_steps`. AdaLoRA spreads its ranks over them.

    Returns:
        What is to be trained: a PeftModel, or for `full` and `adapter` the model itself.

    Raises:
        MethodInvalid: the method does not fit this model or these settings.
    """
    from finetune.methods import bottleneck, by_peft, delta_lora, full, lora_fa, packed

    if config.adapter in WHOLE and _shared_out(config):
        raise MethodInvalid(
            f"adapter '{config.adapter}' works on whole weights, which FSDP and DeepSpeed share out: launch it without "
            "them, or use lora"
        )
    packed.keep(model)
    if config.adapter == "full":
        return full.attach(model)
    if config.adapter == "adapter":
        return bottleneck.attach(model, config.bottleneck_size)
    if config.adapter == "delta-lora":
        delta_lora.check(config)
    trained = by_peft.attach(model, config, tokenizer, steps or config.max_steps)
    if config.adapter == "lora-fa":
        lora_fa.freeze(trained)
    return trained


def _shared_out(config: Config) -> bool:
    launched = (os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    return bool(config.fsdp) or config.deepspeed is not None or any(launched)


def groups(model: Any, config: Config) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: `params`, `lr`, `weight_decay`. Vectors, such as norms, do not decay."""
    rate = learning_rate(config)
    sorted_in: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # LoRA+ (Hayou et al. 2024): B learns faster than A
            faster = config.loraplus_lr_ratio if config.adapter == "lora+" and ".lora_B." in name else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            sorted_in.setdefault((rate * faster, decay), []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in sorted_in.items()]


def penalty(model: Any, config: Config) -> "Tensor | None":
    """What is added to the loss of a step, once: AdaLoRA's pull towards orthogonal vectors. None for the others."""
    from finetune.methods import by_peft

    return by_peft.orthogonality(model) if config.adapter == "adalora" else None


def rate_factor(config: Config, step: int, steps: int) -> float:
    """What the learning rate of step `step` of `steps`, counted from 0, is multiplied by: below 1 behind a restart."""
    from finetune.methods import relora

    return relora.rate_factor(step, relora.cycle(config, steps)) if config.adapter == "relora" else 1.0


def after_step(model: Any, config: Config, step: int, steps: int, optimizer: Any) -> None:
    """What a method does between two steps.

    Args:
        model: from `attach` or `load`.
        config: the run's.
        step: how many steps of the optimiser are done.
        steps: how many there will be.
        optimizer: one of PyTorch's kind, or `finetune.training.optimizer.MasterWeights`.
    """
    from finetune.methods import by_peft, delta_lora, relora

    if config.adapter == "adalora":
        by_peft.allocate(model, step)
    elif config.adapter == "delta-lora":
        delta_lora.after_step(model, step, steps)
    elif config.adapter == "relora":
        relora.after_step(model, config, step, steps, optimizer)


def save(model: Any, folder: Path, config: Config, state: "Mapping[str, Tensor] | None" = None) -> None:
    """Writes what was trained: PEFT's format, or for `full` the model's folder without its tokenizer.

    Args:
        model: from `attach` or `load`.
        folder: made where it is not there.
        config: the run's.
        state: every parameter by its name, gathered, where the processes of a run share them out.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    from finetune.methods import bottleneck, by_peft, delta_lora, full, relora

    folder.mkdir(parents=True, exist_ok=True)
    if config.adapter == "full":
        full.save(model, folder, state)
    elif config.adapter == "adapter":
        bottleneck.save(model, folder, state)
    elif config.adapter == "delta-lora":
        delta_lora.save(model, folder)
    elif config.adapter == "relora":
        relora.save(model, folder)
    else:
        by_peft.save(model, folder, config.adapter, state)


def load(model: Any, folder: Path, trainable: bool = False) -> Any:
    """Puts what `save` wrote onto a freshly loaded base, to serve it or, if `trainable`, to train it further.

    An adapter that PEFT wrote elsewhere is taken, too.

    Raises:
        CheckpointInvalid: the folder holds no adapter, a damaged one, or one of another base model.
    """
    from finetune.methods import bottleneck, by_peft, delta_lora, full, lora_fa, packed, relora

    packed.keep(model)
    method = method_of(folder)
    if method == "full":
        return full.load(model, folder, trainable)
    if method == "adapter":
        return bottleneck.load(model, folder, trainable)
    if method == "delta-lora":
        return delta_lora.load(model, folder, trainable)
    if method == "relora":
        return relora.load(model, folder, trainable)
    loaded = by_peft.load(model, folder, trainable)
    if method == "lora-fa" and trainable:
        lora_fa.freeze(loaded)
    return loaded


def method_of(folder: Path) -> str:
    """The method whose `save` wrote a folder; 'lora' where PEFT alone knows.

    Raises:
        CheckpointInvalid: it holds neither an adapter nor a model.
    """
    if (folder / "adapter_config.json").is_file():
        from finetune.methods import files

        return files.metadata(folder).get("method", "lora")
    if (folder / "config.json").is_file():
        return "full"
    raise CheckpointInvalid(
        f"'{folder}' holds neither adapter_config.json nor config.json: name a folder that training wrote"
    )


def merge(model: Any) -> Any:
    """The plain model with the update folded into its weights, for `save_pretrained`; `model` itself is used up.

    Raises:
        MethodInvalid: what was trained is no change of weights, or the weights have 4 bits.
    """
    from peft import PeftModel

    from finetune.methods import bottleneck, by_peft

    if bottleneck.inside(model):
        raise MethodInvalid("adapter 'adapter' adds layers and cannot be merged: serve the base with its adapter")
    return by_peft.merge(model) if isinstance(model, PeftModel) else model


def trainable(model: "Module") -> int:
    """How many parameters are trained."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad)
