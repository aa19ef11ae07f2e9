"""fp32 or bf16, whichever encodes faster on this machine: guessed by the processor, or measured and remembered."""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from index import memo

PRECISIONS = ("fp32", "bf16")
ENOUGH = 0.5
"""Seconds of measuring a precision after which no further round begins."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def patient_threads() -> None:
    """Has PyTorch's threads wait for each other asleep rather than spinning, where PyTorch is not imported yet.

    A thread that spins takes the processor from the one it waits for. Beside three busy processes on two cores this
    encodes 42 passages/s in place of 16, and on an idle machine as many as before. libgomp reads the variable when it
    is loaded: it stands for that moment only, since llama.cpp's process, which inherits it, does better spinning.
    """
    spec = None if "torch" in sys.modules else find_spec("torch")
    found = Path(spec.origin).parent.glob("lib/libgomp*.so*") if spec and spec.origin else iter(())
    library = next(iter(sorted(found)), None)
    if library is None or {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        return
    os.environ["GOMP_SPINCOUNT"] = "2000"
    try:
        with suppress(OSError):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def remembered(fingerprint: str) -> str | None:
    """What an earlier build measured here with this encoder."""
    found = memo.get("precision", _machine(fingerprint))
    return found if found in PRECISIONS else None


def remember(fingerprint: str, precision: str) -> None:
    """Keeps what was measured, where the home folder can be written to."""
    memo.put("precision", _machine(fingerprint), precision, make_home=True)


def guessed() -> str:
    """bf16 where the processor multiplies it natively, fp32 elsewhere (where bf16 is mostly slower)."""
    patient_threads()
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    flags = torch.backends.cpu.get_cpu_capability()
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16" if "AVX512" in flags.upper() and native else "fp32"


def measured(run: Callable[[str], Callable[[], object]]) -> str:
    """The faster precision.

    Args:
        run: gives, for a precision, what encodes one batch in it.
    """
    best: dict[str, float] = {}
    for precision in PRECISIONS:
        encode = run(precision)
        encode()  # the first call sets up threads and memory
        times: list[float] = []
        while len(times) < 2 or (len(times) < 10 and sum(times) < ENOUGH):
            began = time.perf_counter()
            encode()
            times.append(time.perf_counter() - began)
        best[precision] = min(times)  # whatever else ran can only have slowed it down
    # bf16 costs a little accuracy: it must pay.
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"


def _machine(fingerprint: str) -> str:
    """What the answer depends on: the processor and what PyTorch may use of it, and the model."""
    limits = [
        os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES")
    ]
    return "|".join([processor(), str(cores()), version("torch"), *limits, fingerprint])


def processor() -> str:
    """Its name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
