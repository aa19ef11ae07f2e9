"""The adapters of a home: added, put to use, taken back, removed; each change whole or not at all. Loads no model.

RAG_HOME/adapters/NAME/         an adapter (manifest.py), complete or absent (index.folders)
                  active.json   which are in use, and which were (state.py); replaced at once
                  scores.json   what the gate measured, by name
                  .lock         held by whoever changes something
"""

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index import folders, paths
from rag_app.adapters import forms, manifest, sources
from rag_app.adapters.files import Files, Results
from rag_app.adapters.manifest import GGUF, HELDOUT, LARGEST, MANIFEST, NAME, SETTINGS, WEIGHTS, Manifest, check_prompts
from rag_app.adapters.state import OFF, State, Uses, checked, decoded, encoded, shown
from rag_app.adapters.state import Use as Use
from rag_app.errors import AdapterInvalid, AdapterNotFound

ACTIVE = "active.json"
BUNDLED = Path(__file__).parent / "bundled"
AGAIN = "'rag-app adapters use NAME' and 'rag-app adapters off' write it anew"


@dataclass(frozen=True)
class Entry:
    """An adapter that is here."""

    name: str
    folder: Path
    manifest: Manifest
    gguf: Path | None
    """The file for llama.cpp."""
    peft: Path | None
    """The folder for Transformers."""
    bundled: bool = False
    """Whether it came with the program, and stays."""

    @property
    def heldout(self) -> Path | None:
        """Questions that its training has not seen."""
        return _if_there(self.folder / HELDOUT)


class Registry:
    """What a home has; every method sees what other processes did before."""

    def __init__(self, home: Path | None = None) -> None:
        self.root = (home or paths.home()) / "adapters"
        self.files = Files(self.root)
        self.results = Results(self.files)
        """What the gate measured of each."""
        self._seen: tuple[Any, State] | None = None

    def names(self) -> list[str]:
        """Of all adapters, damaged ones too."""
        found = set[str]()
        if self.root.is_dir():
            self.files.mend()
            found = {path.name for path in self.root.iterdir() if _name(path.name) and path.is_dir()}
        with suppress(AdapterInvalid):
            found |= {use.name for use in _default()}
        return sorted(found)

    def get(self, name: str, hashed: bool = False) -> Entry:
        """An adapter.

        Args:
            name: its own.
            hashed: whether every byte of it is looked at, and not the sizes alone.

        Raises:
            AdapterNotFound: there is none of this name.
            AdapterInvalid: it is damaged.
        """
        folder, bundled, remedy = self.root / name, False, "add it again with --force"
        if not NAME.fullmatch(name) or not folder.is_dir():
            there = self.names()
            if name not in there:
                raise AdapterNotFound(f"there is no adapter '{name[:100]}': there are {', '.join(there) or 'none'}")
            if not folder.is_dir():
                folder, bundled, remedy = BUNDLED, True, "install the program again"
        if fault := folders.lack(folder, hashed):
            raise AdapterInvalid(f"the adapter '{name}' is damaged ({fault}): {remedy}")
        peft = folder if (folder / SETTINGS).is_file() and (folder / WEIGHTS).is_file() else None
        return Entry(name, folder, manifest.read(folder), _if_there(folder / GGUF), peft, bundled)

    def in_use(self) -> State:
        """What is in use; cheap, so that it can be asked at every question.

        Raises:
            AdapterInvalid: the file that says it is damaged, or the bundled adapter is.
        """
        file = self.root / ACTIVE
        try:
            stat = file.stat()
            key = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._seen and self._seen[0] == key:
                return self._seen[1]
            if stat.st_size > LARGEST or not file.is_file():  # a pipe would make the reader wait
                raise ValueError("damaged")
            active, history = decoded(file.read_text("utf-8"))
        except FileNotFoundError:
            return State(_default())
        except OSError as error:
            raise AdapterInvalid(f"'{file}' cannot be read ({error.strerror}): check its permissions") from error
        except ValueError as error:
            reason = "damaged" if isinstance(error, UnicodeDecodeError) else str(error)
            raise AdapterInvalid(f"'{file}' is {reason}: {AGAIN}") from error
        state = State(_default() if active is None else active, active is not None, history)
        self._seen = (key, state)
        return state

    def use(self, uses: Sequence[Use], instead_of: State | None = None) -> State:
        """Puts adapters to use in place of those that are; the next question of every running chat has them.

        Args:
            uses: none for the base model as it is.
            instead_of: what has to be in use still, where that was looked at before.

        Raises:
            AdapterNotFound, AdapterInvalid: an adapter is not there, damaged, or trained with other prompts; or
                something else came into use meanwhile.
        """
        wanted = checked(tuple(uses))
        with self.files.locked():
            for use in wanted:
                check_prompts(self.get(use.name, hashed=True).manifest)
            before = self._before()
            if instead_of and instead_of.active != before.active:
                raise AdapterInvalid(
                    f"'{shown(before.active)}' came into use meanwhile, in place of '{shown(instead_of.active)}': run "
                    "it again"
                )
            if not before.chosen or wanted != before.active:
                self.files.write(ACTIVE, encoded(wanted, (*before.history, before.active if before.chosen else None)))
            return self.in_use()

    def off(self) -> State:
        """The base model as it is."""
        return self.use(())

    def rollback(self) -> State:
        """What was in use before; states whose adapters are gone are passed over.

        Raises:
            AdapterNotFound: there is nothing before it.
            AdapterInvalid: as `in_use`.
        """
        with self.files.locked():
            history = list(self.in_use().history)
            while history:
                active = history.pop()
                if all(use.name in self.names() for use in active or ()):
                    self.files.write(ACTIVE, encoded(active, tuple(history)))
                    return self.in_use()
            raise AdapterNotFound("nothing was in use before: 'rag-app adapters use NAME' chooses")

    def add(self, source: str | Path, name: str | None = None, replace: bool = False, base: str | None = None) -> Entry:
        """Takes an adapter in. It is not put to use.

        Args:
            source: a run, a folder, an archive or a GGUF file (sources.py).
            name: instead of its own.
            replace: whether one of the same name makes way.
            base: the model that it is for, where it does not say so or was converted.

        Raises:
            AdapterInvalid: it is no adapter, damaged, of another rank or prompt version, or the name is taken.
            ModelNotFound, ModelInvalid: there is no such base.
            OSError: the disk is full, or a file cannot be read.
        """
        if name is not None:
            self._check_free(name, replace)
        place = paths.expanded(source)
        with sources.opened(place, self.root, base) as found:
            made = dataclasses.replace(found.manifest, name=found.manifest.name if name is None else name)
            check_prompts(made)
            with self.files.locked():
                self._check_free(made.name, replace)
                # earlier results belong to the adapter that makes way, and go before it
                self.results.write(self.results.without(made.name))
                with folders.staged(self.root / made.name) as part:
                    for target, path in found.files.items():
                        shutil.copyfile(path, part / target)
                    rank = forms.check(part, made.rank, found.base)
                    dataclasses.replace(made, rank=rank).write(part)
        return self.get(made.name)

    def remove(self, name: str) -> None:
        """Takes an adapter away.

        Raises:
            AdapterNotFound: there is none of this name.
            AdapterInvalid: it is in use, or came with the program.
        """
        with self.files.locked():
            folder = self.root / name
            if not NAME.fullmatch(name) or not folder.is_dir():
                self.get(name)
                raise AdapterInvalid(
                    f"'{name}' came with the program and stays: 'rag-app adapters off' does without it"
                )
            self._check_idle(name, "'rag-app adapters off' or 'use OTHER' first, then remove it")
            self.results.write(self.results.without(name))
            part = folders.beside(folder, "part")
            folder.rename(part)
            shutil.rmtree(part, ignore_errors=True)

    def row(self, name: str) -> dict[str, Any]:
        """What a list says of an adapter; of a damaged one, under `error`, what is wrong.

        Raises:
            AdapterNotFound: there is none of this name.
        """
        weights = dict[str, float]()
        with suppress(AdapterInvalid):
            weights = {use.name: use.weight for use in self.in_use().active}
        row: dict[str, Any] = {"name": name, "in_use": weights.get(name)}
        try:
            entry = self.get(name)
        except AdapterInvalid as error:
            return {**row, "error": str(error)}
        about = {key: value for key, value in entry.manifest.as_dict().items() if key not in ("name", "config", "data")}
        places = {"gguf": entry.gguf, "peft": entry.peft}
        sizes = {path.name: path.stat().st_size for path in sorted(entry.folder.iterdir()) if path.is_file()}
        return {
            **row,
            "bundled": entry.bundled,
            "forms": [form for form, place in places.items() if place],
            "bytes": sum(sizes.values()),
            **about,
            "files": sizes,
        }

    def show(self, name: str) -> dict[str, Any]:
        """Everything about an adapter: `row`, where it is, its run's settings and data, and the gate's results.

        Raises:
            AdapterNotFound: there is none of this name.
            AdapterInvalid: it is damaged, or the file of results is.
        """
        entry = self.get(name, hashed=True)
        more = {"folder": str(entry.folder), "config": entry.manifest.config, "data": entry.manifest.data}
        return {
            **self.row(name),
            **more,
            "scores": {**entry.manifest.scores, "gate": self.results.read().get(name, [])},
        }

    def _before(self) -> State:
        """What is in use; nothing where nobody can tell any more."""
        try:
            return self.in_use()
        except AdapterInvalid:
            return State()

    def _check_free(self, name: str, replace: bool) -> None:
        if not _name(name) or name in OFF:
            raise AdapterInvalid(
                f"'{name[:100]}' is no name for an adapter: give small letters, digits, '.', '_' and '-' with --name"
            )
        if name in {use.name for use in _default()}:
            raise AdapterInvalid(f"'{name}' came with the program and stays: give another name with --name")
        if not (self.root / name).exists():
            return
        if not replace:
            raise AdapterInvalid(f"there is an adapter '{name}' already: replace it with --force, or give --name")
        self._check_idle(name, "give another name with --name, so that 'use' can compare the two")

    def _check_idle(self, name: str, remedy: str) -> None:
        if name in {use.name for use in self.in_use().active}:
            raise AdapterInvalid(f"'{name}' is in use: {remedy}")


def _name(text: str) -> bool:
    """Whether an adapter may be called so; the files beside them end otherwise."""
    return bool(NAME.fullmatch(text)) and not text.endswith(".json")


def _default() -> Uses:
    """The bundled adapter, where there is one.

    Raises:
        AdapterInvalid: it is damaged.
    """
    return (Use(_name_in(BUNDLED)),) if (BUNDLED / MANIFEST).is_file() else ()


@functools.cache
def _name_in(folder: Path) -> str:
    return manifest.read(folder).name


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
