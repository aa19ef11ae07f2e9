"""Exports of the bundled model: how long they take, what they need, and how near the result is to its source.

Run on an idle machine: .venv/bin/python -m bench.export
Each is `rag-finetune export` in a process of its own, its proof included. Memory is the most that it and its children
have in use at once, less what it has after the imports; sampled every 10 ms, pages that processes share counted once.
The LoRAs are of rank 16 in all linear layers with random weights. Bars: Q4_K_M within 60 s and 3 times the size of f16;
logits within 0.05 of the source for f16 and for a LoRA on it, also with rsLoRA's scale.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from bench.machine import machine
from rag_app.models import locate

RESULTS = Path(__file__).parent / "results"
WAYS: dict[str, tuple[str, ...]] = {
    "f16": ("base", "--to", "gguf", "--type", "f16"),
    "bf16": ("base", "--to", "gguf", "--type", "bf16"),
    "Q8_0": ("base", "--to", "gguf", "--type", "Q8_0"),
    "Q4_K_M": ("base", "--to", "gguf", "--type", "Q4_K_M"),
    "merged": ("base", "--to", "merged"),
    "gguf-lora": ("lora", "--to", "gguf-lora"),
    "gguf-lora, rslora": ("rslora", "--to", "gguf-lora"),
}
CHILD = """
import sys
import gguf, llama_cpp, peft, safetensors.torch, torch, transformers
from finetune.cli import main
from finetune.export import export
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(sys.argv[1:]))
"""


def adapter(folder: Path, rslora: bool) -> Path:
    """What PEFT saves of a LoRA with random weights on the bundled model."""
    import peft
    import torch

    from rag_app.engines import checkpoints

    model, _ = checkpoints.load(checkpoints.find(None), "auto", "cpu")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_rslora=rslora)
    tuned = peft.get_peft_model(model, config)
    for name, one in tuned.named_parameters():
        if "lora_B" in name:
            one.data = torch.randn_like(one) * 0.01
    tuned.save_pretrained(folder)
    return folder


def memory(process: psutil.Process) -> int:
    """Bytes in use by a process and its children."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for one in tree:
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            total += one.memory_full_info().pss
    return total


def measured(arguments: list[str]) -> tuple[float, float, dict[str, Any]]:
    """Seconds, MB beside the libraries, and the command's own report."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin and child.stdout
    assert child.stdout.readline() == "ready\n"
    process, most, done = psutil.Process(child.pid), 0, threading.Event()
    imported = memory(process)

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, memory(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    child.stdin.write("\n")
    child.stdin.flush()
    report = child.stdout.read()
    assert child.wait() == 0, report
    took = time.perf_counter() - began
    done.set()
    watcher.join()
    return round(took, 1), round((most - imported) / 1e6), json.loads(report)


def main() -> None:
    """Measures, prints and keeps."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {
            "base": "base",
            **{name: str(adapter(Path(folder, name), name == "rslora")) for name in ("lora", "rslora")},
        }
        for name, (source, *arguments) in WAYS.items():
            out = Path(folder, "out", name.replace(", ", "-"))
            model = [] if source == "base" else ["--model", str(locate())]
            took, most, report = measured(["export", sources[source], *arguments, *model, "--out", str(out), "--json"])
            (made,) = report["exports"]
            rows[name] = {"seconds": took, "peak_mb": most, "bytes": made["bytes"], **made["proof"]["measured"]}
            print(name, json.dumps(rows[name]), flush=True)
    (RESULTS / "export.json").write_text(json.dumps({"machine": machine(), "exports": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
