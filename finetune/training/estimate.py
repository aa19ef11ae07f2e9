"""How much memory a run takes, before anything is loaded, and what to change where it does not fit. Loads no weights.

The activations are counted, not guessed: `finetune.training.rehearsal` takes the step without numbers. The rest is
arithmetic on the number of weights, in bytes each:

weights      2 in 16 bits, 4 in fp32; packed NF4 0.52: 4 bits, an 8-bit scale for 64 weights, an fp32 one for 256 scales
gradients    of trained weights, as wide as they are
optimiser    AdamW's two moments, 8 for a trained weight (2 in 8 bits), and an fp32 copy of one that has 16 bits, 4
update       gradients of those copies, 4, while the optimiser takes its step, when the activations are gone
runtime      Python, PyTorch and the libraries, or the GPU's context
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import Config, checked
from finetune.errors import ConfigInvalid, DoesNotFit
from index.paths import expanded
from rag_app.engines.outside import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight with double quantisation (Dettmers et al. 2023, section 3)."""
RUNTIME, RUNTIME_GPU = 650_000_000, 700_000_000
"""Measured: a process that has imported all that training needs and taken a step, less what is counted here."""
HOLES = {2: 1.5, 4: 2.4}
"""What the C library's allocator takes on a CPU for a byte of activations, by bytes of a number: freed ones leave holes
between others. Measured on rows of 256 to 1,024 tokens: 1.0 to 1.6 in 16 bits, 2.0 to 2.9 in fp32."""

WORTHWHILE = 0.95
"""A change of several must leave at most this share of the total to be proposed."""


@dataclass(frozen=True)
class Estimate:
    """Memory of one process of a run, in bytes."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    update: int
    runtime: int
    parameters: int
    """Of the base model, counted."""
    trained: int
    """Weights that are trained, counted."""
    where: str
    """cpu or gpu."""
    by_formula: bool
    """Whether the activations are a rule of thumb's, as the model's code cannot be run without numbers."""
    asked: "Asked" = field(repr=False)

    @property
    def total(self) -> int:
        """At the worst moment: in the backward pass, or while the optimiser takes its step."""
        moving = max(self.activations + self.logits, self.update)
        return self.weights + self.gradients + self.optimiser + moving + self.runtime

    def parts(self) -> dict[str, int]:
        """What the total is made of, by name."""
        names = ("weights", "gradients", "optimiser", "activations", "logits", "update", "runtime")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.parts(),
            "total": self.total,
            "parameters": self.parameters,
            "trained": self.trained,
            "row": self.asked.row,
            "labels": self.asked.labels,
            "where": self.where,
            "activations_by_formula": self.by_formula,
        }

    def lines(self) -> list[str]:
        """A table for a person."""
        share = 100 * self.trained / self.parameters
        rows = [f"{name:12} {gigabytes(value):>10}  {self._about(name)}" for name, value in self.parts().items()]
        return [
            f"{self.parameters:,} parameters, {self.trained:,} trained ({share:.3g}%), on the {self.where.upper()}; "
            f"rows of {self.asked.row:,} tokens, {self.asked.labels:,} of them learned",
            "",
            *rows,
            f"{'total':12} {gigabytes(self.total):>10}",
        ]

    def _about(self, name: str) -> str:
        config = self.asked.config
        return {
            "weights": "packed in 4 bits" if self.asked.packed else f"{self.asked.width} bytes each",
            "gradients": "of what is trained",
            "optimiser": config.optimizer or "AdamW",
            "activations": "kept for the backward pass" + (" (rule of thumb)" if self.by_formula else ""),
            "logits": "where there is a label",
            "update": "while the optimiser takes its step, in place of activations and logits",
            "runtime": "Python and its libraries" if self.where == "cpu" else "the GPU's context",
        }[name]


@dataclass(frozen=True)
class Asked:
    """What an estimate is of."""

    config: Config
    model: "Mapping[str, Any]"
    row: int
    labels: int
    on_gpu: bool
    width: int
    """Bytes of a weight that is not packed."""

    @property
    def packed(self) -> bool:
        """Whether frozen linear layers have 4 bits in memory."""
        if "quantization_config" in self.model:
            return True
        storage = self.config.nf4_storage
        return self.config.four_bit and (storage == "packed" or (storage == "auto" and self.on_gpu))


def estimate(config: Config, model: "Mapping[str, Any]", row: int, labels: int) -> Estimate:
    """The memory that training takes.

    Args:
        config: the run's.
        model: the content of the base model's config.json.
        row: tokens of the longest row.
        labels: most tokens of a row that the model learns to write.

    Raises:
        ConfigInvalid: Transformers knows no such model.
        MethodInvalid: the method does not fit it.
    """
    on_gpu = _on_gpu(config)
    return _estimate(Asked(config, model, row, labels, on_gpu, _width(config, on_gpu)))


def described(model: str | None) -> dict[str, Any]:
    """The content of a model's config.json; of a GGUF file, what its metadata come to.

    Args:
        model: a file config.json, or as `base_model` in the configuration.

    Raises:
        ConfigInvalid: it cannot be read.
        ModelNotFound, ModelInvalid: there is no such model.
    """
    from rag_app.engines.checkpoints import find, quiet

    file = expanded(model or "")
    if model and file.suffix == ".json":
        return _content(file)
    source = find(model)
    if not source.gguf and not source.on_the_hub:
        return _content(Path(source.where) / "config.json")
    from transformers import AutoConfig

    try:
        with quiet():
            found: dict[str, Any] = AutoConfig.from_pretrained(**source.files).to_dict()
    except Exception as error:  # of the Hub, of the system, of two libraries
        raise ConfigInvalid(
            f"'{source.name}' does not say how it is built ({one_line(error, 160)}): give another"
        ) from error
    return found


def _content(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigInvalid(f"'{file}' cannot be read ({error.strerror}): name a config.json or a model") from error
    except (ValueError, RecursionError) as error:
        raise ConfigInvalid(f"'{file}' is no JSON ({one_line(error, 80)}): name the config.json of a model") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigInvalid(f"'{file}' names no model_type: it is no config.json of a model")
    return values


def _estimate(asked: Asked) -> Estimate:
    import torch

    from finetune.training.rehearsal import rehearse

    dtype = torch.bfloat16 if asked.width == 2 else torch.float32
    found = rehearse(asked.model, asked.config, asked.row, asked.labels, dtype, asked.on_gpu)
    packed = found.packable if asked.packed else 0
    unpacked = found.widest * asked.width if asked.packed else 0  # one layer at a time, when it is used
    holes = 1.0 if asked.on_gpu else HOLES[asked.width]
    shards = _shards(asked.config)
    moments = {"sgd": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2}.get(asked.config.optimizer or "", 8)
    if not asked.on_gpu and moments == 2:
        moments = 8  # those of bitsandbytes are for GPUs
    return Estimate(
        weights=int((found.base - packed * asked.width + packed * NF4) / shards) + found.added,
        gradients=found.gradients // shards,
        optimiser=(found.trained * moments + found.copies) // shards,
        activations=int((found.activations + unpacked) * holes),
        logits=int(found.logits * holes),
        update=(found.copies + 2 * found.largest) // shards,
        runtime=RUNTIME_GPU if asked.on_gpu else RUNTIME,
        parameters=found.parameters,
        trained=found.trained,
        where="gpu" if asked.on_gpu else "cpu",
        by_formula=found.by_formula,
        asked=asked,
    )


def _on_gpu(config: Config) -> bool:
    import torch

    return torch.cuda.is_available() if config.device == "auto" else config.device != "cpu"


def _width(config: Config, on_gpu: bool) -> int:
    if config.bf16 != "auto":
        return 2 if config.bf16 else 4
    if on_gpu:
        return 2
    from index.precision import guessed

    return 2 if guessed() == "bf16" else 4


def _shards(config: Config) -> int:
    """Processes that share weights, gradients and optimiser out among them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if config.fsdp or config.deepspeed else 1


def available(device: str) -> int:
    """Bytes that a process of the run can have on a device, those included that it has already.

    Args:
        device: as in the configuration.

    Raises:
        SettingInvalid: there is no such device.
    """
    import torch

    from rag_app.engines.checkpoints import chosen_device

    place = chosen_device(device)
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0]) + torch.cuda.memory_reserved(place)
    import psutil

    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = min([int(psutil.virtual_memory().available), *_left_by_limits()])
    return free // beside + int(psutil.Process().memory_info().rss)


def _left_by_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> "Iterator[int]":
    """What limits of control groups leave, of either version; files that the kernel holds in memory do not count."""
    try:
        lines = own.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):  # another system
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            yield from _left(root, path, "memory.max", "memory.current", "inactive_file ")
        elif "memory" in kinds.split(","):
            yield from _left(root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes",
                             "total_inactive_file ")  # fmt: skip


def _left(root: Path, path: str, limit: str, usage: str, cached: str) -> "Iterator[int]":
    place = Path(path.lstrip("/"))
    for group in (place, *place.parents):  # a container sees its own group as the root
        folder = root / group
        try:
            most = int((folder / limit).read_text())
            held = int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such group, or 'max'
            continue
        yield most - held + sum(int(line.removeprefix(cached)) for line in lines if line.startswith(cached))


def check(found: Estimate, available: int) -> None:
    """Refuses what does not fit.

    Raises:
        DoesNotFit: with the settings to change, and what the run takes then.
    """
    if found.total <= available:
        return
    changed, last = remedy(found, available)
    need = f"training needs {gigabytes(found.total)} and {gigabytes(available)} are free"
    biggest = max(found.parts(), key=lambda name: found.parts()[name])
    need += f", most of it for {biggest} ({gigabytes(found.parts()[biggest])})"
    settings = ", ".join(f"{name}: {_shown(value)}" for name, value in changed.items())
    if last.total <= available:
        raise DoesNotFit(f"{need}: set {settings} ({gigabytes(last.total)} then)")
    tried = f"even with {settings} it is {gigabytes(last.total)}: " if changed else ""
    raise DoesNotFit(f"{need}; {tried}give a smaller base_model, or a machine with more memory")


def remedy(found: Estimate, available: int) -> tuple[dict[str, Any], Estimate]:
    """Settings that make a run fit, and the estimate with them: one, where one is enough, else several.

    Those that shrink the larger part of the run are tried first. If nothing makes it fit, those that come closest.
    """
    for setting, smaller in _smaller(found, available):
        if smaller.total <= available:
            return setting, smaller
    changed: dict[str, Any] = {}
    while found.total > available:
        better = next((one for one in _smaller(found) if one[1].total < WORTHWHILE * found.total), None)
        if better is None:
            break
        setting, found = better
        changed |= setting
    return changed, found


def _smaller(found: Estimate, enough: int = 0) -> "Iterator[tuple[dict[str, Any], Estimate]]":
    """Changes that lower the total, best suited first; with `enough`, those alone that might lower it so far."""
    moving = found.activations + found.logits
    standing = found.total - moving
    passing = [(setting, standing) for setting in _of_a_step(found)]
    lasting = [(setting, moving) for setting in _of_the_model(found)]
    ordered = (*passing, *lasting) if moving > standing - found.runtime else (*lasting, *passing)
    for setting, left in ordered:
        if enough and left > enough:  # of what it does not touch
            continue
        values = {**found.asked.config.model_dump(exclude_unset=True), **setting}
        try:
            config = checked(values, "estimate")
        except ConfigInvalid:  # it contradicts another setting
            continue
        row = min(found.asked.row, config.sequence_len)
        smaller = estimate(config, found.asked.model, row, min(found.asked.labels, row))
        if smaller.total < found.total:
            yield setting, smaller


def _of_a_step(found: Estimate) -> "Iterator[dict[str, Any]]":
    """Settings that lower what a step holds, the cheapest in time and quality first."""
    if found.asked.config.micro_batch_size > 1:
        yield {"micro_batch_size": 1}
    if not found.asked.config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if found.asked.row >= 512:
        yield {"sequence_len": found.asked.row // 2}


def _of_the_model(found: Estimate) -> "Iterator[dict[str, Any]]":
    """Settings that lower what stays from step to step, likewise."""
    config = found.asked.config
    if found.asked.width == 4:
        yield {"bf16": True}
    if config.adapter in ("full", "delta-lora", "relora"):
        yield {"adapter": "lora"}
    elif not config.four_bit and config.qat is None:
        yield {"adapter": "qlora"} if config.adapter == "lora" else {"load_in_4bit": True}
    if not found.asked.packed:
        yield {"load_in_4bit": True, "nf4_storage": "packed"} if not config.four_bit else {"nf4_storage": "packed"}
    if config.adapter != "full" and config.lora_r > 8:
        yield {"lora_r": 8}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def gigabytes(value: float) -> str:
    """As a person reads it; a GB has 10^9 bytes."""
    return f"{value / 1e9:,.2f} GB" if value < 1e10 else f"{value / 1e9:,.1f} GB"
