"""Documents in, ranked passages out.

>>> from index import Index, build
>>> build(["examples/peft_docs"])
>>> hits = Index.open().search("What is LoRA?")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.builder import BuildReport, build
    from index.chunker import ChunkSettings
    from index.engine import Index
    from index.errors import (
        EncoderNotFound,
        IndexBusy,
        IndexClosed,
        IndexDamaged,
        IndexMismatch,
        LoadError,
        NoDocuments,
        NoIndex,
        QueryInvalid,
        RagError,
    )
    from index.hit import Hit

__all__ = [
    "BuildReport",
    "ChunkSettings",
    "EncoderNotFound",
    "Hit",
    "Index",
    "IndexBusy",
    "IndexClosed",
    "IndexDamaged",
    "IndexMismatch",
    "LoadError",
    "NoDocuments",
    "NoIndex",
    "QueryInvalid",
    "RagError",
    "build",
]
_HOME = {
    "BuildReport": "builder",
    "build": "builder",
    "ChunkSettings": "chunker",
    "Index": "engine",
    "Hit": "hit",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: `rag-app --help` takes 0.2 s so, and 0.5 s otherwise.
    if name not in __all__:
        raise AttributeError(f"module 'index' has no attribute '{name}'")
    value = getattr(import_module(f"index.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
