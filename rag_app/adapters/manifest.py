"""What the folder of an adapter says of itself. Loads no model.

manifest.json                this
adapter.gguf                 the adapter for llama.cpp
adapter_config.json,
adapter_model.safetensors    the same for Transformers, as PEFT keeps it; one form of the two is enough
heldout.jsonl                questions that training has not seen, as `rag-app eval` takes them
run.json                     of the run that made it
proof.json                   of the export that made the GGUF form
complete.json                bytes and SHA-256 of every file (index.folders)
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rag_app.errors import AdapterInvalid
from rag_app.prompt import PROMPT_VERSION

MANIFEST, GGUF, SETTINGS, WEIGHTS = "manifest.json", "adapter.gguf", "adapter_config.json", "adapter_model.safetensors"
HELDOUT, RUN, PROOF = "heldout.jsonl", "run.json", "proof.json"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
"""Of adapters: also the name of a folder, and of a model on a server."""
LARGEST = 1 << 22
"""Bytes of a manifest at most."""
LONGEST = 200
"""Letters of what is said in a word or two."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an adapter."""

    name: str
    base: Mapping[str, str]
    """`name` and `fingerprint` (rag_app.fingerprint) of the model that it was trained on."""
    prompt_version: int
    method: str = "lora"
    rank: int | None = None
    strategy: str = "zero-shot"
    """The strategy whose prompts it was trained with."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run, as written."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on: bytes and SHA-256 by file."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What was measured, by whoever made it and by the gate."""
    made: str = ""
    """When, ISO 8601."""

    @classmethod
    def of_run(cls, run: Mapping[str, Any], name: str, rank: int | None = None) -> "Manifest":
        """From what a run wrote down of itself (`run.json`).

        Args:
            run: the file's content.
            name: of the adapter.
            rank: the largest in its weights, which may be more than the run was told to train at a time.

        Raises:
            AdapterInvalid: it names no base model or no prompt version.
        """
        base = run.get("base_model")
        known: dict[str, Any] = {
            "base": {key: base.get(key) for key in ("name", "fingerprint")} if isinstance(base, dict) else None,
            "prompt_version": run.get("prompt_version"),
            **{key: run[key] for key in ("method", "config", "data") if key in run},
            "made": run.get("started", ""),
        }
        made = cls(name=name, rank=rank, **known)
        if fault := _fault(made):
            raise AdapterInvalid(f"the {RUN} of '{name}' is damaged ({fault}): take another run, or train again")
        return made

    def as_dict(self) -> dict[str, Any]:
        """Its fields; not copied, however deep what they hold is."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def write(self, folder: Path) -> None:
        """Writes it into a folder that is being made.

        Raises:
            AdapterInvalid: what it holds is too deep.
        """
        try:
            text = json.dumps({"version": 1, **self.as_dict()}, indent=1)
        except (RecursionError, ValueError) as error:
            raise AdapterInvalid(f"the manifest of '{self.name}' is damaged: take the adapter anew") from error
        (folder / MANIFEST).write_text(text + "\n", "utf-8")


def read(folder: Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        AdapterInvalid: there is none, or it is damaged or of a later version of the program.
    """
    file = folder / MANIFEST
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError("too large")
        stored = json.loads(file.read_text("utf-8"))
        known = {f.name for f in fields(Manifest)}
        made = Manifest(**{name: value for name, value in stored.items() if name in known})
    except FileNotFoundError as error:
        raise AdapterInvalid(
            f"'{folder}' is no adapter: it has no {MANIFEST}. Name a run, or what was exported of one"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterInvalid(f"'{file}' cannot be read: it is damaged. Add the adapter again") from error
    if stored.get("version") != 1:
        raise AdapterInvalid(f"'{file}' is of another version of this program: update it")
    if fault := _fault(made):
        raise AdapterInvalid(f"'{file}' is damaged ({fault}): add the adapter again")
    return made


def _fault(made: Manifest) -> str:
    if not isinstance(made.name, str) or not NAME.fullmatch(made.name):
        return "its name is none"
    base = made.base
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in ("name", "fingerprint")):
        return "it names no base model"
    if not all(base[key].isprintable() for key in ("name", "fingerprint")):
        return "the name of its base is none"
    if not _number(made.prompt_version):
        return "it names no prompt version"
    if made.rank is not None and not _number(made.rank):
        return "its rank is none"
    for what in ("method", "strategy", "made"):
        text = getattr(made, what)
        if not isinstance(text, str) or not text.isprintable() or len(text) > LONGEST:
            return f"its '{what}' is no text of one line"
    for what in ("config", "data", "scores"):
        if not isinstance(getattr(made, what), dict):
            return f"its '{what}' is no table"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20


def check_prompts(made: Manifest) -> None:
    """Refuses an adapter that was trained with other prompts than those that are rendered now.

    Raises:
        AdapterInvalid: naming both versions.
    """
    if made.prompt_version != PROMPT_VERSION:
        raise AdapterInvalid(
            f"the adapter '{made.name}' was trained with prompts of version {made.prompt_version}, and these are of "
            f"version {PROMPT_VERSION}: train it again"
        )


def check_base(made: Manifest, name: str, fingerprint: str) -> None:
    """Refuses an adapter of another model.

    Args:
        made: the adapter's.
        name: of the model that is to be changed, for the message.
        fingerprint: its own.

    Raises:
        AdapterInvalid: naming both models.
    """
    if made.base["fingerprint"] != fingerprint:
        raise AdapterInvalid(
            f"the adapter '{made.name}' was trained on '{made.base['name']}' ({made.base['fingerprint']}), and "
            f"'{name}' ({fingerprint}) has other weights: give the adapter's own base with --model, unless it is "
            "merged into this one"
        )
