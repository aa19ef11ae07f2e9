"""What ran: settings, versions, data, base model and machine, to be kept beside what was trained. Trains nothing."""

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune.config import Config
from index.generation import sha256
from index.precision import cores, processor
from rag_app.engines.checkpoints import Source
from rag_app.fingerprint import fingerprint
from rag_app.prompt import PROMPT_VERSION

PACKAGES = ("rag-app", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
PATIENCE = 10.0
"""Seconds for git to answer in."""


def what_ran(config: Config, files: Sequence[Path], base: Source) -> dict[str, Any]:
    """Everything that is needed to know what made an adapter, and to make it again; ready for JSON.

    Args:
        config: the configuration, with defaults.
        files: the data files.
        base: the base model, from `rag_app.engines.checkpoints.find`.

    Raises:
        OSError: a data file or the model's files cannot be read.
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": config.model_dump(mode="json", exclude_unset=True),
        "config_with_defaults": config.model_dump(mode="json"),
        "base_model": {"name": base.name, "place": base.where, "fingerprint": fingerprint(base)},
        "prompt_version": PROMPT_VERSION,
        "data": {str(file): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git(),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """System, processor, cores that this process may use, bytes of memory, and GPUs."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "memory": int(psutil.virtual_memory().total),
        "gpus": [{"name": gpu.name, "memory": gpu.total_memory} for gpu in gpus],
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _git() -> dict[str, Any] | None:
    """The commit of the repository that the current folder is in, and whether tracked files differ from it."""
    commit = _asked("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_asked("status", "--porcelain", "--untracked-files=no"))}


def _asked(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace").strip()
    return ""


def used() -> tuple[int, int]:
    """Bytes of memory that this process has now and had at most; of the GPU's, where it uses one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    return resident()


def resident() -> tuple[int, int]:
    """Bytes of memory that this process has now, and had at most."""
    with suppress(OSError, KeyError):
        rows = (line.split() for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines())
        held = {row[0]: int(row[1]) * 1024 for row in rows if row[0] in ("VmRSS:", "VmHWM:")}
        return held["VmRSS:"], held["VmHWM:"]
    import psutil

    info = psutil.Process().memory_info()
    return int(info.rss), int(getattr(info, "peak_wset", info.rss))
