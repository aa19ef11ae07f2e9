"""What an export is made of: a run's adapter on its base, or a whole model; and that in memory. Writes nothing."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.config import Config, checked
from finetune.errors import ExportInvalid
from finetune.evaluation import adapters
from finetune.evaluation.adapters import Adapter
from index.errors import RagError
from index.paths import home
from rag_app.engines.outside import one_line
from rag_app.errors import ModelInvalid

if TYPE_CHECKING:
    from rag_app.engines.checkpoints import Source
    from rag_app.engines.layout import Layout

BASE = "base"
"""The name that stands for the base model alone."""


@dataclass(frozen=True)
class Origin:
    """A model, and the adapter on it where there is one."""

    name: str
    """Of the run or the model: what files are called by."""
    place: Path
    """The folder that exports go to by default."""
    base: "Source"
    adapter: Adapter | None = None
    """None where it is a whole model."""
    method: str = ""
    """Of the training; nothing where there was none."""
    config: Config = field(default_factory=Config)
    """Of the training."""

    @property
    def four_bit(self) -> bool:
        """Whether the adapter was trained on weights of 4 bits."""
        return self.config.four_bit

    @property
    def rounded(self) -> str | None:
        """The GGUF type that the run has trained the weights for."""
        return self.config.qat

    def facts(self, dequantised: bool) -> dict[str, Any]:
        """What a proof says of it."""
        from rag_app.fingerprint import fingerprint

        found: dict[str, Any] = {"name": self.base.name, "fingerprint": fingerprint(self.base)}
        if self.adapter:
            weights = "dequantised" if dequantised else "original"
            found |= {"adapter": str(self.adapter.folder), "method": self.method, "base": weights}
        return found


def find(name: str, model: str | None = None, flag: str = "--model") -> Origin:
    """What a name stands for. Loads nothing.

    Args:
        name: of a run, an adapter, a model, or `base`.
        model: the base, where it is no longer where the run found it.
        flag: by which a person can give it, for the message; '' where there is none.

    Raises:
        CheckpointInvalid: the adapter is damaged, or its base is not here.
        ModelNotFound, ModelInvalid: there is no such thing.
    """
    from finetune import methods
    from rag_app.engines import checkpoints

    adapter = None if name == BASE else adapters.find(name)
    if adapter is None:
        source = checkpoints.find(model) if name == BASE else adapters.model(name)
        plain = source.name.removesuffix(".gguf").rpartition("/")[2]
        return Origin(plain, home() / "export" / plain, source)
    folder = adapter.folder.resolve()
    run = folder.parent if folder.name == "adapter" else folder
    method = methods.method_of(folder)
    config = checked(adapter.run.get("config") or {}, str(folder / adapters.RUN))
    if method == "full":
        return Origin(run.name, run / "export", checkpoints.find(str(folder)), method=method, config=config)
    base = adapters.base_of(adapter, model, flag)
    return Origin(run.name, run / "export", base, adapter, adapter.run.get("method", method), config)


def shape(origin: Origin) -> Any:
    """The model without numbers.

    Raises:
        ModelInvalid: its configuration cannot be read, or it is quantised already.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rag_app.engines import checkpoints

    source, loader = checkpoints.settled(origin.base), AutoModelForCausalLM
    try:
        with checkpoints.quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(**source.files)
            model: Any = loader.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # of several libraries
        raise _unreadable(origin, error) from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelInvalid(f"the model '{origin.base.name}' is quantised already: give the one that it was made of")
    return model


def load(origin: Origin, dequantised: bool = False) -> tuple[Any, Any]:
    """The model, which computes in 32 bits, with its adapter beside the weights; and the tokenizer.

    Args:
        origin: from `find`.
        dequantised: round the base to NF4's grid first, which QLoRA trains on.

    Raises:
        CheckpointInvalid: the adapter is damaged, or of another base.
        ModelInvalid: the base cannot be read.
    """
    from finetune import methods
    from finetune.training import nf4

    if not origin.adapter:
        return whole(origin)
    model, tokenizer = base(origin)
    if dequantised:
        nf4.rounded_(model)
    # 16 bits of the adapter's own would round what comes in
    return methods.load(model, origin.adapter.folder).float().eval(), tokenizer


def base(origin: Origin) -> tuple[Any, Any]:
    """The base in 32 bits, in which weights of 16 are exact, and its tokenizer.

    Raises:
        ModelInvalid: it cannot be read.
    """
    import torch

    return _loaded(origin, torch.float32)


def whole(origin: Origin) -> tuple[Any, Any]:
    """As `base`, with weights that stay as they are in the files, half of the memory: they are widened when used.

    Raises:
        ModelInvalid: it cannot be read.
    """
    model, tokenizer = _loaded(origin, "auto")
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow)
    return model, tokenizer


def _widen(module: Any, inputs: Any) -> None:
    module.narrow = {name: one.data for name, one in module.named_parameters(recurse=False)}
    for one in module.parameters(recurse=False):
        one.data = one.data.float()


def _narrow(module: Any, inputs: Any, output: Any) -> None:
    for name, one in module.named_parameters(recurse=False):
        one.data = module.narrow.pop(name)


def _loaded(origin: Origin, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from rag_app.engines import checkpoints

    source = checkpoints.settled(origin.base)
    try:
        with checkpoints.quiet():
            loader: Any = AutoModelForCausalLM
            model, report = loader.from_pretrained(**source.files, dtype=dtype, output_loading_info=True)
    except Exception as error:  # of several libraries
        raise _unreadable(origin, error) from error
    if lacking := sorted(map(str, report["missing_keys"])):
        raise _unreadable(origin, ValueError(f"it lacks {lacking[0]}"))
    return model.eval(), checkpoints.tokenizer(source)


def _unreadable(origin: Origin, error: Exception) -> ModelInvalid:
    remedy = "give another with --model" if origin.adapter else "name another"
    return ModelInvalid(
        f"the model '{origin.base.name}' cannot be loaded ({one_line(error, 160)}): fetch it again, or {remedy}"
    )


def width(origin: Origin) -> Literal["f16", "bf16"]:
    """The 16 bits that the base is kept in; bf16 where it has more."""
    import torch
    from transformers import AutoConfig

    from rag_app.engines import checkpoints

    source = checkpoints.settled(origin.base)
    with checkpoints.quiet():
        config = AutoConfig.from_pretrained(**source.files)
    return "f16" if config.dtype == torch.float16 else "bf16"


def texts(origin: Origin, data: str | None, layout: "Layout") -> list[list[int]]:
    """Prompts in tokens to weigh and calibrate by: of `data`, else of what the run was trained on, else of the index.

    Args:
        origin: from `find`.
        data: a file of examples, or the folder of an index.
        layout: the model's.

    Raises:
        ExportInvalid: there are none.
        RagError: what was given cannot be read.
    """
    from finetune.data.records import load_examples
    from finetune.export import calibration

    if data:
        return calibration.draw(Path(data), layout)
    if not origin.config.datasets:
        if (home() / "index").is_dir():
            return calibration.draw(home() / "index", layout)
        raise ExportInvalid(f"no text says what '{origin.name}' will be asked: give examples or an index with --data")
    try:
        examples, _ = load_examples(origin.config.datasets, Config(on_bad_record="skip"))
    except RagError as error:
        raise ExportInvalid(f"the training data cannot be read ({error}): give examples with --data") from error
    taught = [one for one in examples if one.part == "train"] or examples
    drawn = random.Random(0).sample(taught, min(calibration.COUNT, len(taught)))
    return calibration.rows(drawn, layout, origin.name)
