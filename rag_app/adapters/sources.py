"""What of a run, folder, file or archive is an adapter's, and what it is called. Writes nothing and loads no model.

RUN/adapter/              as training writes it: PEFT's two files and run.json
    export/gguf-lora/     as `rag-finetune export RUN --to gguf-lora` does: both forms become one adapter
FOLDER/                   one that has a manifest.json, or one that PEFT wrote
FILE.gguf                 a LoRA adapter for llama.cpp
ARCHIVE                   of one of these folders
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import folders
from index.errors import RagError
from index.generation import sha256
from rag_app.adapters import archive, header, manifest
from rag_app.adapters.manifest import GGUF, HELDOUT, MANIFEST, NAME, PROOF, RUN, SETTINGS, WEIGHTS, Manifest
from rag_app.errors import AdapterInvalid, ModelNotFound
from rag_app.prompt import PROMPT_VERSION

if TYPE_CHECKING:
    from rag_app.engines.checkpoints import Source

LIMITS = {
    GGUF: 4 << 30, WEIGHTS: 4 << 30, HELDOUT: 1 << 28, SETTINGS: 1 << 22, RUN: 1 << 24, PROOF: 1 << 22,
    MANIFEST: 1 << 22, folders.COMPLETE: 1 << 22,
}  # fmt: skip
"""Files that are read, and their bytes at most. Nothing else is: no script, and no weights that are pickled."""
ABOUT = (MANIFEST, folders.COMPLETE)
"""Those that are made anew, and not taken."""
EXPORT = Path("export", "gguf-lora")


@dataclass(frozen=True)
class Found:
    """What is to become an adapter of the registry."""

    files: dict[str, Path]
    """By the names that they will have."""
    manifest: Manifest
    base: "Source | None"
    """The model that it is for, where it is here."""


@contextmanager
def opened(source: Path, within: Path, base: str | None = None) -> Iterator[Found]:
    """Gives what a person named, until the end.

    Args:
        source: a folder or a file.
        within: where archives are unpacked.
        base: the model that it is for, instead of what it says itself.

    Raises:
        AdapterInvalid: it is no adapter, damaged, or does not say what it is for.
        ModelNotFound, ModelInvalid: there is no such base.
        OSError: it cannot be read.
    """
    name = os.path.basename(os.path.realpath(source))  # noqa: PTH119  (Path's raises for a link to itself)
    if source.is_dir():
        yield _found(*_folder(source, name), base)
    elif not source.is_file():
        raise AdapterInvalid(f"there is no '{source}': name a run, a folder, an archive or a GGUF file")
    elif name.lower().endswith(archive.ENDS):
        end = next(end for end in archive.ENDS if name.lower().endswith(end))
        with archive.unpacked(source, within, frozenset(LIMITS)) as folder:
            try:
                found = _found(*_folder(folder, name[: -len(end)]), base)
            except AdapterInvalid as error:
                raise AdapterInvalid(str(error).replace(str(folder), str(source))) from error
            yield found
    elif name.lower().endswith(".gguf"):
        if header.read(source, header.MODELS).facts.get("general.type") not in ("adapter", None):
            raise AdapterInvalid(f"'{source}' holds a whole model, no adapter: give it with --model")
        yield _found({GGUF: source}, _unnamed(name[:-5]), base)
    else:
        raise AdapterInvalid(
            f"'{source}' is no adapter: name a run, a folder, a GGUF file, or an archive ({', '.join(archive.ENDS)})"
        )


def _found(files: dict[str, Path], made: Manifest, base: str | None) -> Found:
    """With the base that was given or that it names, if this machine has it."""
    if not files.keys() & {GGUF, WEIGHTS}:
        raise AdapterInvalid(
            f"'{made.name}' holds no weights ({GGUF}, or {SETTINGS} with {WEIGHTS}): a pickle such as "
            "adapter_model.bin is never read; save them as safetensors"
        )
    from rag_app.engines import checkpoints
    from rag_app.fingerprint import fingerprint

    if base is not None:
        try:
            model = checkpoints.find(None if base == "base" else base)
        except ModelNotFound as error:
            raise ModelNotFound(str(error).replace("--model", "--base")) from error
        try:
            own = fingerprint(model)
        except FileNotFoundError as error:
            raise AdapterInvalid(f"the weights of '{model.name}' are not here: fetch it before") from error
        return Found(files, replace(made, base={"name": model.name, "fingerprint": own}), model)
    if not made.base:
        raise AdapterInvalid(
            f"nothing says which model '{made.name}' was trained on: give it with --base MODEL, a GGUF file, a folder "
            "or a Hub id"
        )
    for place in (made.config.get("base_model"), None):  # none: the bundled model, or the one in $RAG_MODEL
        with suppress(RagError, OSError, ValueError):
            model = checkpoints.find(place if isinstance(place, str) else None)
            if fingerprint(model) == made.base["fingerprint"]:
                return Found(files, made, model)
    return Found(files, made, None)


def _folder(folder: Path, name: str) -> tuple[dict[str, Path], Manifest]:
    """The files in a folder, and its manifest."""
    if folder.name == "adapter" and (folder.parent / EXPORT / MANIFEST).is_file():
        folder, name = folder.parent, folder.parent.resolve().name
    if (folder / MANIFEST).is_file():
        return _files(folder, folder), manifest.read(folder)
    exported = folder / EXPORT if (folder / EXPORT / MANIFEST).is_file() else None
    trained = next((one for one in (folder / "adapter", folder) if (one / SETTINGS).is_file()), None)
    if trained is None and exported is None:
        if any((one / "config.json").is_file() for one in (folder / "adapter", folder)):
            raise AdapterInvalid(f"'{folder}' holds a whole model, no adapter: give it with --model")
        if any(folder.glob("checkpoint-*")):
            raise AdapterInvalid(
                f"the run in '{folder}' was cut short: rag-finetune train CONFIG.yaml --resume goes on"
            )
        raise AdapterInvalid(f"'{folder}' is no adapter: name a run, or what was exported of one")
    if trained is None:
        assert exported
        return _folder(exported, name)
    files = _files(trained, folder)
    ran = _object(files[RUN]) if RUN in files else None
    if exported:
        other = _files(exported, folder)
        if RUN in other and _object(other[RUN]) != ran:
            raise AdapterInvalid(
                f"'{exported}' was exported before the last training: run rag-finetune export '{folder}' --to "
                "gguf-lora --force, then add again"
            )
        files = {**other, **files}
    return files, _unnamed(name) if ran is None else Manifest.of_run(ran, named(name))


def _unnamed(name: str) -> Manifest:
    """Of an adapter that another program made; it will be asked with today's prompts."""
    return Manifest(name=named(name), base={}, prompt_version=PROMPT_VERSION)


def named(name: str) -> str:
    """A name for an adapter, from that of a folder or file.

    Raises:
        AdapterInvalid: nothing of it is left.
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower())[:64].strip("._-")
    if not NAME.fullmatch(plain):
        raise AdapterInvalid(f"'{name}' makes no name for an adapter: give one with --name")
    return plain


def _files(folder: Path, root: Path) -> dict[str, Path]:
    """Those that are taken, each as it was when its folder was finished."""
    files = {}
    for name, most in LIMITS.items():
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            raise AdapterInvalid(f"'{path}' leads out of '{root}': put the file itself there")
        if not path.is_file():
            raise AdapterInvalid(f"'{path}' is no file: put one there, or take it away")
        if (size := path.stat().st_size) > most:
            raise AdapterInvalid(f"'{path}' has {size:,} bytes, and no adapter's has more than {most:,}: take another")
        files[name] = path
    if folders.COMPLETE in files and (fault := _lack(folder, files)):
        raise AdapterInvalid(f"'{folder}' is not as it was written ({fault}): take the adapter anew")
    left = {*ABOUT} if {SETTINGS, WEIGHTS} <= files.keys() else {*ABOUT, SETTINGS, WEIGHTS}
    return {name: path for name, path in files.items() if name not in left}


def _lack(folder: Path, files: dict[str, Path]) -> str:
    """As `index.folders.whole`, of the files that are read: an archive may lack the others."""
    try:
        written = dict(folders.read(folder)["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{folders.COMPLETE} cannot be read"
    for name in LIMITS.keys() & ({*written, *files} - {folders.COMPLETE}):
        if name not in files:
            return f"{name} is missing"
        if written.get(name) != [files[name].stat().st_size, sha256(files[name])]:
            return f"{name} has changed"
    return ""


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterInvalid(f"'{file}' is damaged: take another run, or train again") from error
    if not isinstance(found, dict):
        raise AdapterInvalid(f"'{file}' is damaged: take another run, or train again")
    return found
