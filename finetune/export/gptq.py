"""A model in 4 or 8 bits by GPTQ, as GPUs serve it, made in a process of its own. Knows no adapter and proves nothing.

Frantar et al. 2022 (arXiv 2210.17323): weights are rounded a column at a time, and those not yet rounded take up the
error, by the inputs that texts bring them. gptqmodel does this. It prints on stdout, changes functions of other
libraries, and leaves threads behind, none of which a program of ours shall bear.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

from finetune.errors import ExportInvalid
from index.embedding import Progress
from index.precision import cores

BITS = (4, 8)
GROUPS = (32, 64, 128, -1)
"""Inputs of an output that share a scale, which vLLM's kernels know; -1: all of them."""
SCALE = 2
"""Bytes of a scale."""
WEIGHTS = frozenset({".safetensors", ".bin", ".gguf"})
KEPT = ("quant_method", "bits", "group_size", "desc_act", "sym", "lm_head", "checkpoint_format", "pack_dtype")
"""What Transformers and vLLM read of what gptqmodel says of a model; the rest tells of the machine it was made on."""
SPARED = frozenset({"config.json", "model.safetensors.index.json", "complete.json"})
"""Files of the model in 16 bits that are not taken over."""


def check(model: Any, bits: int, group_size: int) -> None:
    """Refuses what cannot be done, before anything is computed.

    Args:
        model: of Transformers; its weights need no numbers.
        bits: 4 or 8.
        group_size: inputs of an output that share a scale; -1: all of them.

    Raises:
        ExportInvalid: gptqmodel is not installed, or the model's matrices cannot be divided so.
    """
    from rag_app.engines import checkpoints

    if lacking := checkpoints.lacking("gptq"):
        raise ExportInvalid(f"GPTQ needs {lacking[0]}: run {lacking[1]}")
    if bits not in BITS:
        raise ExportInvalid(f"GPTQ is offered in 4 and 8 bits, and {bits} are asked for: give --bits 4 or 8")
    widths = sorted({layer.in_features for layer in _layers(model)})
    if not widths:
        raise ExportInvalid("the model has no matrices that GPTQ knows: export it as GGUF")
    if odd := [width for width in widths if width % GROUPS[0]]:
        raise ExportInvalid(f"GPTQ packs weights by {GROUPS[0]}, and the model has rows of {odd[0]}: export it as GGUF")
    fit = [size for size in GROUPS if all(width % size == 0 for width in widths)]
    if group_size not in fit:
        odd = [width for width in widths if group_size > 0 and width % group_size] or widths
        given = " or ".join(map(str, fit))
        raise ExportInvalid(
            f"the model's rows of {odd[0]:,} weights cannot be divided into groups of {group_size}: give --group-size "
            f"{given} (-1: a scale for each row)"
        )


def expected(model: Any, bits: int, group_size: int) -> int:
    """About how many bytes the weights take, within a hundredth; while they are made, it is twice as many."""
    total: int = sum(2 * one.numel() for one in model.parameters())
    for layer in _layers(model):
        rows, width = layer.weight.shape
        groups = width // group_size if group_size > 0 else 1
        packed = rows * width * bits // 8 + rows * groups * (SCALE + bits / 8) + 4 * width  # and each input's group
        total += int(packed) - 2 * rows * width
    return total


def write(
    source: Path,
    folder: Path,
    bits: int,
    group_size: int,
    rows: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> None:
    """Quantises a model of Transformers; tokenizer, chat template and settings are taken over as they are.

    Args:
        source: a folder with the model in 16 bits, as safetensors.
        folder: one that is there and empty, such as `index.folders.staged` gives.
        bits: 4 or 8.
        group_size: inputs of an output that share a scale; -1: all of them.
        rows: texts in tokens that are like those it will read; some ten thousand tokens are enough.
        progress: called with ("quantising", layers done, all).

    Raises:
        ExportInvalid: see `check`; there is no text; or gptqmodel fails, such as for want of memory.
    """
    if not any(rows):
        raise ExportInvalid("there is no text to calibrate GPTQ on: give examples with --data FILE")
    check(_shape(source), bits, group_size)
    with tempfile.TemporaryDirectory(dir=folder.absolute()) as work:
        how = {"bits": bits, "group_size": group_size, "rows": [list(row) for row in rows]}
        Path(work, "job.json").write_text(json.dumps({"source": str(source.absolute()), "work": work, **how}), "utf-8")
        code, said = _run(Path(work, "job.json"), progress or (lambda stage, done, total: None))
        if code:
            raise ExportInvalid(f"gptqmodel cannot quantise the model ({said}): {_remedy(said)}")
        _take(Path(work, "made"), source, folder)


def _shape(source: Path) -> Any:
    """The model without numbers."""
    from finetune.export import origin
    from rag_app.engines import checkpoints

    return origin.shape(origin.Origin(source.name, source, checkpoints.find(str(source))))


def _layers(model: Any) -> Iterator[Any]:
    """What is quantised: all matrices but the embeddings and the head."""
    import torch

    head = model.get_output_embeddings()
    return (one for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not head)


def _remedy(said: str) -> str:
    if "memory" in said.lower() or "SIGKILL" in said:
        return "close other programs, or give fewer texts"
    return "update gptqmodel, or export it as GGUF"


def _take(made: Path, source: Path, folder: Path) -> None:
    """Puts into the folder the weights that were made, and beside them what the source has."""
    for path in made.glob("model*.safetensors*"):
        path.rename(folder / path.name)
    for path in source.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS and path.name not in SPARED:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_bytes())
    found = json.loads((made / "config.json").read_bytes())["quantization_config"]
    settings = {name: found[name] for name in KEPT if name in found}
    config["quantization_config"] = {**settings, "meta": {"quantizer": found["meta"]["quantizer"]}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _run(job: Path, progress: Progress) -> tuple[int, str]:
    """The process's exit code, and its last error."""
    ours = {
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path),
        "GPTQMODEL_CPU_WORKERS": str(max(2, cores())),  # with one, it refuses to start
        "HF_HUB_OFFLINE": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),  # or glibc keeps 20 MB of each layer: 1.4 GB in place of 0.9 in the end
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "finetune.export.gptq", str(job)],  # -P: not what the current folder holds
        cwd=job.parent,  # it leaves a folder of logs in the current one
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ours},
        text=True,
        errors="replace",
    )
    said = ""
    try:
        assert process.stdout
        for line in process.stdout:
            what, _, text = line.strip().partition(" ")
            if what == "step":
                done, total = map(int, text.split())
                progress("quantising", done, total)
            elif text:
                said = text
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    return code, said or f"it ended with {signal.Signals(-code).name if code < 0 else code}"


def _main(file: str) -> int:
    """The process's own part."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends with the one that started it, however that ended
    pipe = os.dup(1)
    os.dup2(2, 1)  # whatever is printed

    def tell(line: str) -> None:
        os.write(pipe, f"{' '.join(line.split())}\n".encode())

    try:
        _quantise(json.loads(Path(file).read_bytes()), tell)
    except Exception as error:  # of several libraries
        tell(f"error {type(error).__name__}: {str(error)[:300]}")
        return 1
    return 0


def _quantise(job: dict[str, Any], tell: Callable[[str], None]) -> None:
    import torch

    torch.set_num_threads(cores())
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.quantizer import Quantizer

    # Of 10 scales up to half as large, the one of the least squared error. It would try 80, in three times as long;
    # none is tried by default: then 4 bits are further from the model, by a KL of 0.26 against 0.21.
    Quantizer.configure = partialmethod(Quantizer.configure, grid=20, maxshrink=0.5)
    how = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        mse=2.0,
        sym=True,  # zero points or another order of columns, which vLLM's fast kernels do not read
        desc_act=False,
        act_group_aware=job["group_size"] > 0,  # columns of large inputs first, group by group
        pack_impl="original",  # the default one compiles C++ for half a minute and saves a second
        offload_to_disk=True,  # only the layer at work is in memory
        offload_to_disk_path=str(Path(job["work"], "layers")),
    )
    model = GPTQModel.load(job["source"], how)
    total = model.model.config.get_text_config().num_hidden_layers
    tell(f"step 0 {total}")

    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            tell(f"step {layer_idx + 1} {total}")

    model.layer_callback = layer_complete
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["rows"]]
    model.quantize(rows, batch_size=1, calibration_data_min_length=0)
    model.save(str(Path(job["work"], "made")))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
