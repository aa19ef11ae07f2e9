"""Runs llama.cpp's own converter on the folder of a model, for families that we do not write. Knows no model."""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import ExportInvalid
from finetune.export.gguf import staged
from index.embedding import Progress
from rag_app.engines.outside import one_line

NAME = "convert_hf_to_gguf.py"
_SHOWN = re.compile(r"Writing:\s+\d+%")
"""Its progress bar, which is no word of what went wrong."""


def convert(script: Path, folder: Path, file: Path, kind: str, progress: Progress | None = None) -> None:
    """Writes a GGUF file, whole or not at all.

    Args:
        script: llama.cpp's convert_hf_to_gguf.py, or the folder that holds it. It runs with the rights of this program.
        folder: a model of Transformers in 16 bits, with its tokenizer.
        file: is replaced where it is there.
        kind: of the matrices, such as f16, bf16, f32 or q8_0.
        progress: called with ("converting", megabytes written, about all).

    Raises:
        ExportInvalid: there is no such script, or it failed; the message ends with the last line that it said.
        OSError: the folder cannot be written to.
    """
    found = next((one for one in (script, script / NAME) if one.is_file()), None)
    if found is None:
        raise ExportInvalid(f"'{script}' is not llama.cpp's {NAME}, nor a folder with it: get llama.cpp's source code")
    total = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
    with staged(file) as part:
        command = [sys.executable, str(found), str(folder), "--outfile", str(part), "--outtype", kind.lower()]
        code, said = _run(command, part, total, progress or (lambda stage, done, total: None))
        if code or not part.is_file():
            why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ExportInvalid(
                f"llama.cpp's converter wrote no file ({why}): {said or 'it said nothing'}. Take the llama.cpp that "
                "knows this kind of model, and the packages that it asks for"
            )


def _run(command: Sequence[str], part: Path, total: int, progress: Progress) -> tuple[int, str]:
    """Its exit code and the last line that it said."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while True:
                try:
                    code = process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    progress("converting", min(part.stat().st_size if part.exists() else 0, total) >> 20, total >> 20)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    return code, one_line(next((line for line in reversed(lines) if line.strip() and not _SHOWN.match(line)), ""))
