"""What the files of a sentence-transformers folder say of the model, read without loading it. Imports no torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from index import memo

LIBRARY = "sentence_transformers."
LONGEST = 1 << 20
"""Tokenizers without a limit state an astronomic one."""
POOLINGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names under which models save the text to put before a query or a passage; the first that is there counts."""


@dataclass(frozen=True)
class Module:
    """One step of the model, such as Transformer, Pooling, Dense or Normalize."""

    kind: str
    """Name of its class; the full name where it is not one of the library's own."""
    folder: Path
    config: dict[str, Any]


class ModelFiles:
    """A model's folder.

    Raises:
        ValueError, OSError, KeyError, TypeError: the folder holds no such model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = folder / "modules.json"
        steps = _json(listed, list) if listed.is_file() else [{"type": f"{LIBRARY}Transformer", "path": ""}]
        if not steps:
            raise ValueError("modules.json is empty")
        self.modules = [_module(folder, step) for step in steps]
        if not listed.is_file():  # a plain transformers model: the library adds the mean over its tokens
            self.modules.append(Module("Pooling", folder, {"pooling_mode": "mean"}))
        first = self.modules[0].folder
        self.config = _json(first / "config.json") if (first / "config.json").is_file() else {}
        self.text_config: dict[str, Any] = self.config.get("text_config") or self.config
        self._settings = _json_or_empty(folder / "config_sentence_transformers.json")

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer in the form of the `tokenizers` library; some old models have none."""
        return self.modules[0].folder / "tokenizer.json"

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that the model reads, special tokens and prompt included."""
        stated = self.modules[0].config.get("max_seq_length")
        if stated is None:
            limits = [
                _json_or_empty(self.tokenizer_file.with_name("tokenizer_config.json")).get("model_max_length"),
                self.text_config.get("max_position_embeddings"),
            ]
            stated = min((limit for limit in limits if limit and limit > 0), default=LONGEST)
        return min(int(stated), LONGEST)

    @property
    def dimension(self) -> int | None:
        """Size of the vectors, where the configuration tells."""
        width: int | None = None
        for module in self.modules:
            if module.kind == "Transformer":
                width = self.text_config.get("hidden_size") or self.text_config.get("dim")
            elif module.kind == "Pooling":
                size = module.config.get("embedding_dimension") or module.config.get("word_embedding_dimension")
                width = (size or width or 0) * len(pooling_modes(module))
            elif module.kind == "Dense":
                width = int(module.config["out_features"])
            elif module.kind not in ("Normalize", "Dropout", "LayerNorm"):
                return None
        return int(width) if width else None

    def prompt(self, side: str) -> str:
        """What the model wants before a "query" or a "document"."""
        prompts = self._settings.get("prompts") or {}
        return next((str(prompts[name]) for name in PROMPTS[side] if prompts.get(name)), "")

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over the weights, those of dense layers in folders of their own included.

        A digest is kept by the files' path, size and times of change, as reading gigabytes takes seconds. The time of
        the last change of the inode is among them: it moves even when a copy keeps the time of modification.
        """
        files = self.weights()
        stats = [(str(file.resolve()), file.stat()) for file in files]
        key = repr([(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in stats])
        known = memo.get("fingerprints", key)
        if isinstance(known, str) and len(known) == 16:
            return known
        found = _digest(files)
        memo.put("fingerprints", key, found)
        return found

    def weights(self) -> list[Path]:
        """The weight files, in the order of the model's parts."""
        folders = dict.fromkeys(module.folder for module in self.modules)
        found = [file for folder in folders for file in _weights_in(folder, folder != self.folder)]
        if not found:
            raise ValueError("there are no weights (*.safetensors)")
        return found


def pooling_modes(pooling: Module) -> Sequence[str]:
    """How the vectors of tokens become one: "mean", "cls", ..., or several, whose results are joined."""
    modes = pooling.config.get("pooling_mode")
    if modes is None:
        old = [mode for mode in POOLINGS if pooling.config.get(f"pooling_mode_{mode}")]
        modes = [mode.removesuffix("_token").removesuffix("_tokens") for mode in old] or ["mean"]
    return [modes] if isinstance(modes, str) else list(modes)


def _module(folder: Path, step: dict[str, Any]) -> Module:
    kind, path = str(step["type"]), folder / str(step["path"])
    own = kind.startswith(LIBRARY)
    kind = kind.rpartition(".")[2] if own else kind
    name = "sentence_bert_config.json" if kind == "Transformer" else "config.json"
    if kind in ("Pooling", "Dense"):
        return Module(kind, path, _json(path / name))
    return Module(kind, path, _json_or_empty(path / name))


def _weights_in(folder: Path, below: bool) -> list[Path]:
    """Weight files, the safe format first; the model's own folder also holds exports for other engines, below it."""
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.bin"):
        found = sorted(folder.rglob(pattern) if below else folder.glob(pattern))
        if found:
            return found
    return []


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _json(path: Path, kind: type = dict) -> Any:
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, kind):
        raise ValueError(f"{path.name} is no JSON {'object' if kind is dict else 'list'}")
    return value


def _json_or_empty(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = _json(path) if path.is_file() else {}
    return found
