"""The checkpoints of a run, each complete or absent (`index.folders`). Knows nothing of what their files hold."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from index.folders import beside, lack, read, restore, whole

NAME = re.compile(r"checkpoint-([0-9]+)")


def latest(output_dir: Path, warn: Callable[[str], None] | None = None) -> Path | None:
    """The newest whole checkpoint; None where there is none.

    Args:
        output_dir: the folder of the run; it need not exist.
        warn: is told, in a line, of each newer one that is passed over.
    """
    restore(output_dir)
    for folder in reversed(_checkpoints(output_dir)):
        if not (fault := whole(folder)):
            return folder
        if warn:
            warn(f"'{folder}' is passed over: {fault}")
    return None


def some(output_dir: Path) -> bool:
    """Whether there are checkpoints that were finished, whole or damaged since."""
    return any(not lack(folder, hashed=False) for folder in _checkpoints(output_dir))


def prune(output_dir: Path, keep: int, best: Path | None) -> None:
    """Removes all but the `keep` newest checkpoints and the best one. What was never finished stays: it is not ours."""
    finished = [folder for folder in _checkpoints(output_dir) if not lack(folder, hashed=False)]
    for folder in finished[: -keep or None]:
        if best is None or folder.resolve() != best.resolve():
            part = beside(folder, "part")
            folder.rename(part)  # one that is half removed would look like one that is damaged
            shutil.rmtree(part, ignore_errors=True)


def _checkpoints(output_dir: Path) -> list[Path]:
    """All that are called so, oldest first; by the time at which they were saved, as a run may begin again at 0."""
    if not output_dir.is_dir():
        return []
    found = [(_saved(path), int(match[1]), path) for path in output_dir.iterdir()
             if (match := NAME.fullmatch(path.name)) and path.is_dir()]  # fmt: skip
    return [path for *_, path in sorted(found)]


def _saved(folder: Path) -> float:
    """Unix time; that of the folder where nothing tells it."""
    try:
        return float(read(folder)["saved"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.stat().st_mtime
