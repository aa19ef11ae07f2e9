"""What the folder of an adapter holds: settings, tensors and a few words about them. Knows no method.

adapter_config.json          PEFT's settings
adapter_model.safetensors    the weights, with the method's name in its metadata
training.safetensors         what only further training needs; p-tuning and AdaLoRA have it
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckpointInvalid
from rag_app.engines.outside import one_line

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS, WEIGHTS, TRAINING = "adapter_config.json", "adapter_model.safetensors", "training.safetensors"


def write(tensors: "Mapping[str, Tensor]", folder: Path, about: Mapping[str, str], name: str = WEIGHTS) -> None:
    """Writes tensors and a few words about them."""
    from safetensors.torch import save_file

    plain = {key: one.detach().cpu().contiguous() for key, one in tensors.items()}
    save_file(plain, folder / name, metadata={"format": "pt", **about})


def read(folder: Path, name: str = WEIGHTS) -> "dict[str, Tensor]":
    """The tensors in a folder.

    Raises:
        CheckpointInvalid: the file is missing or damaged, or holds numbers that are none.
    """
    from safetensors.torch import load_file

    try:
        found = load_file(folder / name)
    except Exception as error:  # safetensors has its own
        raise _damaged(folder, name, error) from error
    if not all(one.isfinite().all() for one in found.values() if one.is_floating_point()):
        raise _damaged(folder, name, ValueError("it holds NaN or infinity"))
    return found


def metadata(folder: Path) -> dict[str, str]:
    """What is said about the weights in a folder.

    Raises:
        CheckpointInvalid: the file is missing or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _damaged(folder, WEIGHTS, error) from error


def write_settings(settings: Any, folder: Path) -> None:
    """Writes a PeftConfig."""
    training, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(folder))
    settings.inference_mode = training


def read_settings(folder: Path) -> Any:
    """The PeftConfig in a folder.

    Raises:
        CheckpointInvalid: it cannot be read.
    """
    from peft import PeftConfig

    try:
        with quiet():
            return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # of several libraries
        raise _damaged(folder, SETTINGS, error) from error


def check(wanted: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]", folder: Path) -> None:
    """Compares names and shapes.

    Raises:
        CheckpointInvalid: they differ.
    """
    for name in sorted(wanted.keys() | found.keys()):
        here, there = (tuple(one[name].shape) if name in one else "nothing" for one in (wanted, found))
        if here != there:
            raise CheckpointInvalid(
                f"the adapter in '{folder}' is of another base model (it has {there} where this one takes {here}, at "
                f"{name}): name the base model that it was trained on"
            )


def _damaged(folder: Path, name: str, error: Exception) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"{name} in '{folder}' cannot be read ({one_line(error, 160)}): take another checkpoint, or train again"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without PEFT's advice: on names of models, on settings that are as meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
