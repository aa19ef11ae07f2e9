"""What a measurement ran on: processor, cores, versions. No names of hosts or people."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "faiss-cpu", "bm25s", "numpy", "sentence-transformers")


def machine() -> dict[str, Any]:
    """Facts for the head of a results file."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    flags = sorted(set(re.findall(r"\b(avx2|avx512_bf16|amx_bf16)\b", text)))
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": flags,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
