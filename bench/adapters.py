"""Adapters swapped into a loaded model: how long it takes, what it is compared with, and whether it computes the same.

Run on an idle machine: .venv/bin/python -m bench.adapters
The bundled model, and adapters of rank 16 in all linear layers (10 MB) with random weights. `swap` is from the request
to an adapter that was never used before, to the logits of one token: reading the file included. `reload` is
`Llama(lora_path=…)` of llama-cpp-python in the same process, and a token. `ready` is a swap less a token without one.
Bars: 50 ms, and 1/20 of a reload.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from rag_app.engines.decoder import Decoder, cut
from rag_app.engines.native import Model
from rag_app.models import locate

RESULTS = Path(__file__).parent / "results"
TIMES = 20
RANK = 16
SHAPES = {
    "attn_q": (576, 576), "attn_k": (576, 192), "attn_v": (576, 192), "attn_output": (576, 576),
    "ffn_gate": (576, 1536), "ffn_up": (576, 1536), "ffn_down": (1536, 576),
}  # fmt: skip
"""Columns and rows of the bundled model's linear layers."""


def write(file: Path, seed: int) -> str:
    """A whole adapter."""
    from gguf import GGUFWriter

    draws = np.random.default_rng(seed)
    writer = GGUFWriter(file, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 32.0)
    for layer in range(30):
        for name, (wide, high) in SHAPES.items():
            a, b = draws.normal(size=(RANK, wide)), draws.normal(size=(high, RANK))
            for part, values in (("lora_a", a / wide**0.5), ("lora_b", b * 0.01)):
                writer.add_tensor(f"blk.{layer}.{name}.weight.{part}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def swaps(files: list[str]) -> dict[str, list[float]]:
    """Milliseconds of swaps and of the token that follows, to adapters new and known, and back to none."""
    model = Model(str(locate()), 4096)
    decoder = Decoder(model)
    prompt = cut([(model.tokens("The", False), True)])
    list(decoder.read(prompt))
    took: dict[str, list[float]] = {"token": [], "new": [], "known": [], "off": []}
    for _ in range(TIMES):
        decoder.forget()
        took["token"].append(seconds(lambda: list(decoder.read(prompt))))
    for kind, uses in [
        *(("new", [(file, 1.0)]) for file in files),
        *(("known", [(file, 1.0)]) for file in files[-4:] * (TIMES // 4)),
        *(("off", []) if n % 2 else ("between", [(files[-1], 1.0)]) for n in range(2 * TIMES)),
    ]:
        decoder.forget()
        took.setdefault(kind, []).append(seconds(lambda uses=uses: list(decoder.read(prompt, adapters=uses))))  # type: ignore[misc]
    return {kind: [round(1000 * one, 3) for one in times] for kind, times in took.items() if kind != "between"}


def reloads(files: list[str]) -> list[float]:
    """Milliseconds of loading model and adapter together, and one token."""
    import llama_cpp

    def once(file: str) -> None:
        model = llama_cpp.Llama(str(locate()), lora_path=file, n_ctx=4096, verbose=False)
        model.eval(model.tokenize(b"The"))
        model.close()

    return [round(1000 * seconds(lambda file=file: once(file)), 1) for file in files[:6]]  # type: ignore[misc]


def main() -> None:
    """Measures, prints and keeps."""
    with tempfile.TemporaryDirectory() as folder:
        files = [write(Path(folder, f"{n}.gguf"), n) for n in range(TIMES)]
        size = Path(files[0]).stat().st_size
        took, reload = swaps(files), reloads(files)
    median = {kind: statistics.median(times) for kind, times in took.items()}
    result = {
        "machine": machine(),
        "adapter_bytes": size,
        "milliseconds": {**took, "reload": reload},
        "median": {**median, "ready": median["new"] - median["token"], "reload": statistics.median(reload)},
        "worst_new": max(took["new"]),
        "reload_over_swap": round(statistics.median(reload) / median["new"], 1),
        "reload_over_ready": round(
            (statistics.median(reload) - median["token"]) / (median["new"] - median["token"]), 1
        ),
    }
    (RESULTS / "adapters.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key not in ("machine", "milliseconds")}, indent=1))


if __name__ == "__main__":
    main()
