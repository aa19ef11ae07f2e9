"""A model or an adapter by its name: what it stands on, whether it may be used, and both in memory. Trains nothing."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckpointInvalid
from finetune.training import checkpoints
from index import folders
from index.errors import RagError
from index.paths import expanded, home
from rag_app.engines.outside import one_line
from rag_app.errors import ModelInvalid, ModelNotFound
from rag_app.prompt import PROMPT_VERSION

if TYPE_CHECKING:
    from rag_app.engines.checkpoints import Source

RUN, SETTINGS = "run.json", "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """A folder that training wrote, ours or PEFT's."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    """What `run.json` says; nothing where PEFT alone wrote the folder."""


def find(name: str) -> Adapter | None:
    """The adapter in a folder, or in that of its run; None where the name is a model's.

    Raises:
        CheckpointInvalid: it is incomplete, its run is not finished, or it was trained with other prompts.
    """
    place = expanded(name)
    folder = next((one for one in (place, place / "adapter") if _is_adapter(one)), None)
    if folder is None:
        _check_finished(place.parent if place.name == "adapter" else place)
        return None
    if (folder / folders.COMPLETE).exists() and (lack := folders.whole(folder)):
        raise CheckpointInvalid(f"the adapter '{folder}' is not whole: {lack}. Take another, or train again")
    adapter = Adapter(folder, _run(folder))
    version = adapter.run.get("prompt_version", PROMPT_VERSION)
    if version != PROMPT_VERSION:
        raise CheckpointInvalid(
            f"the adapter '{folder}' was trained with prompts of version {version}, and these are of version "
            f"{PROMPT_VERSION}: train it again"
        )
    return adapter


def model(name: str) -> "Source":
    """The model that a name stands for, where it is no adapter's. Loads nothing.

    Raises:
        ModelNotFound, ModelInvalid: there is none.
    """
    from rag_app.engines import checkpoints as models

    try:
        return models.find(name)
    except (ModelNotFound, ModelInvalid) as error:
        on_the_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))  # or meant to be
        if isinstance(error, ModelInvalid) or on_the_hub:
            raise reworded(error, "name another") from error
        raise ModelNotFound(
            f"'{name}' is neither an adapter nor a model: name the folder of a run (by default in "
            f"'{home() / 'runs'}'), a model, or base"
        ) from error


def reworded(error: RagError, remedy: str) -> RagError:
    """The same error for a command to which --model means something else, or nothing."""
    from rag_app import models as files
    from rag_app.engines import checkpoints as models

    return type(error)(str(error).replace(models.REMEDY, remedy).replace(f". {files.REMEDY}", f": {remedy}"))


def base_of(adapter: Adapter, given: str | None = None, flag: str = "") -> "Source":
    """The model that an adapter stands on.

    Args:
        adapter: from `find`.
        given: its name, if a person gave one; by default what the adapter says.
        flag: by which a person can give one, for the message; '' where there is none.

    Raises:
        CheckpointInvalid: it is not here, or has other weights than the one that the adapter was trained on.
        ModelNotFound, ModelInvalid: there is no model of the given name.
    """
    from rag_app.engines import checkpoints as models

    recorded = _recorded(adapter)
    try:
        source = models.find(given or recorded)
    except (ModelNotFound, ModelInvalid) as error:
        if given:
            raise reworded(error, f"give another with {flag}") from error
        what = "is no model" if isinstance(error, ModelInvalid) else "is not here"
        raise CheckpointInvalid(
            f"the adapter '{adapter.folder}' was trained on '{recorded}', which {what}: {_remedy('it', flag)}"
        ) from error
    with suppress(FileNotFoundError):  # of the Hub, and not here yet
        _check(adapter, source, flag)
    return source


def load(adapter: Adapter, base: "Source") -> tuple[Any, Any]:
    """The base with the adapter on it, as they were trained together, and the tokenizer.

    Raises:
        CheckpointInvalid: the adapter is damaged, or of another base.
    """
    from finetune import methods
    from finetune.config import checked
    from finetune.training import base as weights

    config = checked(adapter.run.get("config") or {}, str(adapter.folder / RUN))
    model, tokenizer = weights.load(config.model_copy(update={"nf4_storage": "auto"}), base, "auto")
    _check(adapter, base, "--base")
    return methods.load(model, adapter.folder).eval(), tokenizer


def _is_adapter(folder: Path) -> bool:
    return (folder / RUN).is_file() or (folder / SETTINGS).is_file()


def _check_finished(run: Path) -> None:
    """Refuses the folder of a run that has no adapter yet."""
    begun = checkpoints.some(run)
    if not (begun or (run / "data.json").is_file()) or (run / "config.json").is_file():
        return
    with folders.held(run) as free:
        if free is False:
            raise CheckpointInvalid(f"the run in '{run}' is not at its end yet: wait for it, or name a checkpoint")
    if begun:
        raise CheckpointInvalid(
            f"'{run}' holds the checkpoints of a run that was cut short: rag-finetune train CONFIG.yaml --resume goes "
            "on from them"
        )
    raise CheckpointInvalid(f"the run in '{run}' was cut short before its first checkpoint: train again")


def _run(folder: Path) -> dict[str, Any]:
    if not (folder / RUN).is_file():
        return {}
    run = _json(folder / RUN)
    base = run.get("base_model")
    if (
        not isinstance(base, dict)
        or not isinstance(base.get("fingerprint"), str)
        or not isinstance(run.get("config"), dict)
    ):
        raise CheckpointInvalid(
            f"'{folder / RUN}' names no base model or settings: it is damaged. Take another, or train again"
        )
    return run


def _recorded(adapter: Adapter) -> str | None:
    """What an adapter says of its base's place; None stands for the bundled model."""
    if adapter.run:
        name = adapter.run.get("config", {}).get("base_model")
    else:
        name = _json(adapter.folder / SETTINGS).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def _check(adapter: Adapter, source: "Source", flag: str) -> None:
    from rag_app.engines import checkpoints as models
    from rag_app.fingerprint import fingerprint

    trained_on = adapter.run.get("base_model")
    if not trained_on or fingerprint(source) == trained_on["fingerprint"]:
        return
    if source.gguf and fingerprint(models.settled(source)) == trained_on["fingerprint"]:  # the folder made of it
        return
    remedy = _remedy("the adapter's own base", flag)
    raise CheckpointInvalid(
        f"the adapter '{adapter.folder}' was trained on '{trained_on.get('name')}' ({trained_on['fingerprint']}), and "
        f"'{source.name}' has other weights: {remedy}"
    )


def _remedy(what: str, flag: str) -> str:
    return f"give {what} with {flag}" if flag else f"put {what} back"


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(
            f"'{file}' cannot be read ({one_line(error, 100)}): take another adapter, or train again"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointInvalid(f"'{file}' holds no settings: take another adapter, or train again")
    return found
