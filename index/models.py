"""A model in memory, one batch at a time: plain BERT by `index.bert`, all others by sentence-transformers."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from index import bert
from index.modelfiles import ModelFiles
from index.precision import cores, patient_threads

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

BATCH_TOKENS = {"cpu": 1024, "gpu": 65_536}
"""Tokens in a batch, padding included: enough to keep all cores busy. With twice as many on a CPU, the C library gives
the memory of every batch back to the system and fetches it again page by page: 174 passages/s in place of 198."""


class Piece(NamedTuple):
    """A text that fits the model's window."""

    text: str
    ids: list[int]
    """Its tokens with the prompt's and the special ones."""


class Model(Protocol):
    """A model in memory."""

    precision: str
    dimension: int
    batch_tokens: int
    """How many tokens to give at once."""

    def __call__(self, pieces: Sequence[Piece], side: str, prompt: str) -> "Vectors":
        """One batch, (len(pieces), dimension) float32, of any norm; `side` is "query" or "document"."""
        ...


def load_model(files: ModelFiles, precision: str) -> Model:
    """The model in a precision, "fp32" or "bf16", on the first GPU or on all the cores that this process may use."""
    patient_threads()
    import torch

    torch.set_num_threads(cores())
    if bert.fits(files) and not torch.accelerator.is_available():
        try:
            return Plain(files, precision)
        except KeyError:  # the weights of another model under BERT's name
            pass
    return Library(str(files.folder), precision)


class Plain:
    """A BERT on the CPU."""

    def __init__(self, files: ModelFiles, precision: str) -> None:
        self.precision, self.batch_tokens = precision, BATCH_TOKENS["cpu"]
        self._bert = bert.Bert(files, precision)
        self.dimension = self._bert.width

    def __call__(self, pieces: Sequence[Piece], side: str, prompt: str) -> "Vectors":
        """One batch, (len(pieces), dimension) float32."""
        return self._bert([piece.ids for piece in pieces])


class Library:
    """Any model, as the sentence-transformers library computes it."""

    def __init__(self, path: str, precision: str) -> None:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        import torch
        from sentence_transformers import SentenceTransformer

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = SentenceTransformer(path, local_files_only=True, model_kwargs={"dtype": dtype})
        self.precision = precision
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.batch_tokens = BATCH_TOKENS["cpu" if self._model.device.type == "cpu" else "gpu"]

    def __call__(self, pieces: Sequence[Piece], side: str, prompt: str) -> "Vectors":
        """One batch, (len(pieces), dimension) float32."""
        method = self._model.encode_query if side == "query" else self._model.encode_document
        texts = [piece.text for piece in pieces]
        found = method(texts, prompt=prompt, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        vectors: Vectors = found.float().cpu().numpy()
        return vectors
