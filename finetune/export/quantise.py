"""A GGUF file in another of llama.cpp's types, made in a process of its own. Knows no model and no tokens.

llama.cpp heeds no Ctrl-C while it computes, and ends the whole program where it finds what it holds to be impossible.
"""

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ExportInvalid
from finetune.export.gguf import staged
from index.embedding import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREFIX = "LLAMA_FTYPE_MOSTLY_"
FALLBACK = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip
"""What llama.cpp takes for a matrix that is no multiple of a type's block wide; f16 where this does not fit, either."""
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_FALLBACKS = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
_ERROR = 4  # of llama.cpp's levels


def kinds() -> list[str]:
    """The types that the installed llama.cpp can write, by their names."""
    import llama_cpp

    return [name.removeprefix(PREFIX) for name in vars(llama_cpp) if name.startswith(PREFIX)]


def quantise(
    source: Path,
    file: Path,
    kind: str,
    imatrix: "Mapping[str, npt.NDArray[np.float32]] | None" = None,
    progress: Progress | None = None,
) -> int:
    """Quantises a GGUF file to a type such as Q4_0 or Q4_K_M, whole or not at all.

    Args:
        source: in f32, f16 or bf16.
        file: is replaced where it is there.
        kind: one of `kinds`.
        imatrix: how much each column of a matrix matters, by the matrix's name, as `imatrix.measure` gives it.
        progress: called with ("quantising", tensors done, all).

    Returns:
        How many matrices are no multiple of the type's block wide, so that llama.cpp gave them another, larger type.

    Raises:
        ExportInvalid: there is no such type, it needs an importance matrix, or llama.cpp cannot read the file.
        OSError: the disk is full, or the folder cannot be written to.
    """
    if kind not in kinds():
        raise ExportInvalid(f"llama.cpp has no type '{kind}': give one such as Q4_0, Q8_0 or Q4_K_M")
    with staged(file) as part, tempfile.TemporaryDirectory() as folder:
        part.touch()  # or llama.cpp says no word of why it cannot be written
        given = []
        if imatrix is not None:
            from finetune.export.imatrix import save

            save(imatrix, Path(folder, "imatrix.gguf"))
            given = [str(Path(folder, "imatrix.gguf"))]
        code, said, fallbacks = _run(
            [str(source), str(part), kind, *given], progress or (lambda stage, done, total: None)
        )
        if code:
            if shutil.disk_usage(part.parent).free < 1 << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            raise ExportInvalid(f"llama.cpp cannot quantise '{source}' to {kind} ({said}): {_remedy(said)}")
        return fallbacks


def _remedy(said: str) -> str:
    if "imatrix" in said or "importance matrix" in said:
        return "give it an importance matrix, or another type"
    return "write the file anew, or give another type"


def _run(arguments: list[str], progress: Progress) -> tuple[int, str, int]:
    """The process's exit code, its last error, and the matrices of another type."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "finetune.export.quantise", *arguments],  # -P: not what the current folder holds
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
        errors="replace",
    )
    said, fallbacks = "", 0
    try:
        assert process.stdout
        for line in process.stdout:
            what, _, text = line.strip().partition(" ")
            if what == "step":
                done, total = map(int, text.split())
                progress("quantising", done, total)
            elif what == "fallbacks":
                fallbacks = int(text)
            elif text:
                said = text
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    return code, said or f"it ended with {signal.Signals(-code).name if code < 0 else code}", fallbacks


def _hear(level: int, text: bytes, data: Any) -> None:
    """Tells who started the process what matters of llama.cpp's log."""
    line = text.decode("utf-8", "replace")
    if found := _STEP.match(line):
        told = f"step {found[1]} {found[2]}"
    elif found := _FALLBACKS.search(line):
        told = f"fallbacks {found[1]}"
    elif level == _ERROR:
        told = "error " + " ".join(line.rpartition("failed to quantize: ")[2].split())
    else:
        return
    try:
        os.write(1, told.encode() + b"\n")
    except OSError:  # nobody is there any more
        os._exit(1)


def _main(source: str, part: str, kind: str, imatrix: str = "") -> int:
    """The process's own part."""
    import llama_cpp

    from finetune.export.imatrix import load
    from rag_app.engines.native import cores

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    api: Any = llama_cpp
    hear = api.llama_log_callback(_hear)
    api.llama_log_set(hear, ctypes.c_void_p(0))
    settings = api.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(api, PREFIX + kind), cores()
    held = load(Path(imatrix)) if imatrix else {}
    if held:
        settings.imatrix = _columns(held)
    return int(api.llama_model_quantize(source.encode(), part.encode(), settings))


def _columns(held: "Mapping[str, npt.NDArray[np.float32]]") -> Any:
    """An importance matrix as llama.cpp takes it: an array that ends with a nameless entry, and owns no values."""
    import llama_cpp

    api: Any = llama_cpp
    array = (api.llama_model_imatrix_data * (len(held) + 1))()
    pointer = ctypes.POINTER(ctypes.c_float)
    for entry, (name, values) in zip(array, held.items(), strict=False):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(pointer), values.size
    return array


def expected(model: Any, kind: str) -> int:
    """About how many bytes the file of a model takes in a type: within a tenth, for the room on disk."""
    from gguf import GGML_QUANT_SIZES

    known = {one.name: size for one, size in GGML_QUANT_SIZES.items()}

    def bits(name: str, width: int) -> float:
        block, size = known.get(name, known["F16"])
        return 8 * size / block if width % block == 0 else bits(FALLBACK.get(name, "F16"), width)

    body = kind.upper()
    mixed = 1.2 if body == "Q2_K" or body.endswith("_L") else 1.08 if body.endswith("_M") else 1.0  # with larger types
    while body not in known and "_" in body:  # Q4_K_M, IQ3_XS
        body = body.rpartition("_")[0]
    total: float = 60 * model.get_input_embeddings().num_embeddings  # the tokens, and what they are merged of
    ends = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings())}
    for one in model.parameters():
        width = one.shape[-1]
        if one.dim() == 1:
            total += 4 * width
        elif id(one) in ends:
            total += one.numel() * max(bits("Q6_K", width), bits(body, width)) / 8
        else:
            total += one.numel() * bits(body, width) * mixed / 8
    return int(total)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
