"""PEFT's adapters on a model of Transformers: loaded beside each other, swapped in place. Knows no prompts, no replies.

An adapter that comes in place of one of the same shape takes over its tensors by PEFT's hot swap; the base model's
weights are never read again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rag_app.adapters.manifest import SETTINGS, WEIGHTS
from rag_app.engines.outside import one_line
from rag_app.errors import AdapterInvalid

MOST = 4
"""Adapters that are kept in memory side by side."""

PASSING = frozenset(
    ["base_model_name_or_path", "revision", "inference_mode", "peft_version", "init_lora_weights", "auto_mapping"]
)
"""Settings of PEFT that say nothing of an adapter's shape."""

Use = tuple[str, float]
"""The folder of an adapter and its weight: 1 adds it as it was trained, 0.5 half of it."""
Key = tuple[Any, ...]
"""What tells applied adapters apart: their files' paths, sizes and times of change, and their weights."""


class Tuned:
    """The adapters of one loaded model, which PEFT changes in place."""

    def __init__(self, model: Any) -> None:
        self._base = model
        self._peft: Any = None
        self._names: dict[Key, str] = {}
        """Of those in memory, the one that was used longest ago first."""
        self._applied: Key = ()

    def apply(self, uses: Sequence[Use]) -> Key:
        """Puts these adapters onto the model instead of those that are on it; none gives the base model back exactly.

        Returns:
            What the cached beginnings of prompts that are read with them go by.

        Raises:
            AdapterInvalid: a folder is missing, damaged, or of another model or kind.
        """
        key = tuple((_identity(folder), float(weight)) for folder, weight in uses if weight)
        if key == self._applied:
            return key
        self._applied = ()
        wanted = [identity for identity, _ in key]
        for identity in wanted:
            self._names[identity] = self._names.pop(identity, "") or self._load(identity, wanted)
        if self._peft is not None:
            self._activate([(self._names[identity], weight) for identity, weight in key])
        self._applied = key
        return key

    def _activate(self, named: Sequence[tuple[str, float]]) -> None:
        tuner = self._peft.base_model
        if not named:
            tuner.disable_adapter_layers()
            return
        tuner.enable_adapter_layers()
        tuner.set_adapter([name for name, _ in named], inference_mode=True)
        for module in tuner.modules():
            if hasattr(module, "set_scale"):
                for name, weight in named:
                    module.set_scale(name, weight)

    def _load(self, identity: Key, wanted: Sequence[Key]) -> str:
        import warnings

        folder = identity[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._loaded(folder, wanted)
            except Exception as error:  # PEFT, safetensors and torch each have their own
                raise AdapterInvalid(
                    f"the adapter in '{folder}' cannot be used with this model ({one_line(error, 160)}): take another "
                    "with rag-app adapters use, or none with rag-app adapters off"
                ) from error

    def _loaded(self, folder: str, wanted: Sequence[Key]) -> str:
        settings = _settings(folder)
        free = [one for one in self._names if one not in wanted]
        taken = {} if self._peft is None else self._peft.peft_config
        name = next(f"adapter-{n}" for n in range(len(taken) + 1) if f"adapter-{n}" not in taken)
        if len(self._names) >= MOST and free:
            name = self._names.pop(free[0])
            if _shape(self._peft.peft_config[name]) != _shape(settings):
                self._peft.delete_adapter(name)
        try:
            self._put(folder, name)
            self._check_whole(folder, name)
        except BaseException:
            if self._peft is not None and name in self._peft.peft_config:
                self._peft.delete_adapter(name)
            raise
        return name

    def _put(self, folder: str, name: str) -> None:
        from peft import PeftModel
        from peft.utils.hotswap import hotswap_adapter

        device = str(self._base.device)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, folder, name, autocast_adapter_dtype=False).eval()
        elif name in self._peft.peft_config:
            hotswap_adapter(self._peft, folder, name, torch_device=device)
        else:
            self._peft.load_adapter(folder, name, autocast_adapter_dtype=False, torch_device=device)

    def _check_whole(self, folder: str, name: str) -> None:
        """PEFT passes over tensors that have no place, and leaves those that are missing as they were drawn."""
        from peft import get_peft_model_state_dict
        from safetensors import safe_open

        wanted = set(get_peft_model_state_dict(self._peft, adapter_name=name))
        with safe_open(Path(folder, WEIGHTS), "pt") as file:
            held = set(file.keys())
        if odd := sorted(held ^ wanted):
            raise ValueError(f"{len(odd)} tensors are missing or have no place, such as {odd[0]}")


def _settings(folder: str) -> Any:
    """PEFT's; refuses what does not change layers, such as virtual tokens, and weights that are no safetensors."""
    from peft import PeftConfig

    if not Path(folder, WEIGHTS).is_file():
        raise ValueError(f"it has no {WEIGHTS}")
    settings: Any = PeftConfig.from_pretrained(folder)
    if getattr(settings, "is_prompt_learning", False) or settings.is_adaption_prompt:
        raise ValueError(f"{settings.peft_type.value} adds to the prompt, and only changes of layers can be swapped")
    return settings


def _shape(settings: Any) -> dict[str, Any]:
    """What two adapters must have in common for one to take over the other's tensors."""
    return {name: value for name, value in settings.to_dict().items() if name not in PASSING}


def _identity(folder: str) -> Key:
    try:
        found = [Path(folder, name).stat() for name in (WEIGHTS, SETTINGS)]
    except OSError as error:
        raise AdapterInvalid(
            f"the adapter in '{folder}' cannot be read ({error.strerror}): add it again, or take none with rag-app "
            "adapters off"
        ) from error
    return (folder, *((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in found))
