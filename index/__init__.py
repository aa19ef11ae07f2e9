"""Documents in, ranked passages out.

>>> from index import Index, build
>>> build(["examples/peft_docs"])
>>> hits = Index.open().search("What is LoRA?")
"""

from index.build import BuildReport, build
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
