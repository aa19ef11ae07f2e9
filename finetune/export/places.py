"""Where exports go: places that are free, with room, kept by one export at a time; and how a file gets there.

Knows no format.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import ExportInvalid
from finetune.export import families, origin, proof
from finetune.export.origin import Origin
from finetune.export.proof import Proof
from finetune.export.wanted import Wanted
from finetune.methods import files
from index import folders
from index.generation import flush
from index.paths import expanded


def places(found: Origin, wanted: Wanted) -> dict[str, Path]:
    """Where things go, by their types.

    Raises:
        ExportInvalid: something is there, and may not be replaced.
        RagError: the same, of a folder.
    """
    found_places = _named(found, wanted)
    for place in found_places.values():
        _check(place, wanted, found)
    return found_places


def _named(found: Origin, wanted: Wanted) -> dict[str, Path]:
    out = Path(os.path.realpath(expanded(wanted.out))) if wanted.out else None  # a link keeps leading to it
    if wanted.to != "gguf":
        kind = {"gptq": f"gptq-{wanted.bits}", "merged": "merged"}.get(wanted.to, wanted.types[0])
        return {kind: out or found.place / wanted.to}
    if out and out.suffix == ".gguf" and not out.is_dir():
        if len(wanted.types) > 1:
            raise ExportInvalid(f"'{out}' is one file, and {len(wanted.types)} types are as many: give --out a folder")
        return {wanted.types[0]: out}
    return {kind: (out or found.place) / f"{found.name}-{kind}.gguf" for kind in wanted.types}


def _check(place: Path, wanted: Wanted, found: Origin) -> None:
    from finetune.compress.prune import free  # not before it is known that nothing has to be said

    read = [Path(found.base.where, found.base.gguf or ""), *([found.adapter.folder] if found.adapter else ())]
    if any(place == one or place in one.parents for one in (path.resolve() for path in read)):
        raise ExportInvalid(f"'{place}' is what is read, and would be lost: give another --out")
    if wanted.to != "gguf":
        free(place, wanted.force)
    elif place.is_dir():
        raise ExportInvalid(f"'{place}' is a folder: give another --out")
    elif place.exists() and not wanted.force:
        raise ExportInvalid(f"'{place}' is there already: give another --out, or replace it with --force")


@contextmanager
def work(parent: Path) -> Iterator[Path]:
    """A folder for what is being made, beside where it will be; other exports are kept out until the end.

    Raises:
        ExportInvalid: another one is at work there.
        OSError: the disk is full, or the folder cannot be written to.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with folders.held(parent) as alone:
        if alone is False:
            raise ExportInvalid(f"another export is writing into '{parent}': wait for it, or give --out another folder")
        folders.restore(parent)
        made = folders.beside(parent / "export", "part")
        try:
            made.mkdir()
            with folders.held(made):
                yield made
        except OSError as error:
            if "requested and" in str(error):  # numpy's words for a file that was cut short
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(parent)) from error
            raise
        finally:
            shutil.rmtree(made, ignore_errors=True)


def sizes(found: Origin, wanted: Wanted) -> dict[str, int]:
    """About how many bytes everything takes that is on the disk at the same time, by its type.

    Raises:
        ExportInvalid: the model is of a kind that cannot be made that.
        ModelInvalid: its configuration cannot be read.
    """
    from finetune.export.quantise import expected

    plain = origin.shape(found)
    made = {kind: expected(plain, kind) for kind in {"f16", *(wanted.types if wanted.to == "gguf" else ())}}
    if wanted.to.startswith("gguf") and not wanted.converter:
        families.of(plain.config)  # it would be refused later
    if wanted.to == "gguf-lora":
        assert found.adapter
        made["lora"] = 2 * (found.adapter.folder / files.WEIGHTS).stat().st_size
    elif wanted.converter:
        made["merged"] = made["f16"]
    elif wanted.to == "gptq":
        from finetune.export import gptq

        gptq.check(plain, wanted.bits, wanted.group_size)
        made["gptq"] = made["layers"] = gptq.expected(plain, wanted.bits, wanted.group_size)
    return made


def check_room(folder: Path, needed: int) -> None:
    """Refuses what the disk cannot take.

    Raises:
        ExportInvalid: naming both sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportInvalid(
            f"there is no room in '{folder}': this takes {amount(needed)}, and {amount(free)} are free; make room, or "
            "give another --out"
        )


def amount(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def publish(file: Path, place: Path, checked: Proof, work: Path) -> None:
    """Puts the proof into its place, and then the file: one that is there has its proof, whatever ends the process.

    Between the two an old file has a new proof, which has another hash than the file.
    """
    flush(file)
    checked.write(work / proof.NAME)
    (work / proof.NAME).replace(place.with_name(f"{place.name}.{proof.NAME}"))
    file.replace(place)
    flush(place.parent)
