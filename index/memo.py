"""Facts that take long to find out, kept in one small JSON file under the home folder. Losing them only costs time."""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from index.paths import home

FILE = "measured.json"
MOST = 64
"""Facts of a kind; the oldest leave."""


def get(kind: str, key: str) -> Any:
    """The fact, or None where it is not known or the file cannot be read."""
    return _all().get(kind, {}).get(key)


def put(kind: str, key: str, value: Any, *, make_home: bool = False) -> None:
    """Keeps a fact, where the home folder is there (or may be made) and can be written to.

    Only builds make it: whoever searches an index elsewhere shall find no new folder beside the documents.
    """
    with suppress(OSError):
        if make_home:
            home().mkdir(parents=True, exist_ok=True)
        if not home().is_dir():
            return
        facts = _all()
        of_kind = facts.setdefault(kind, {})
        of_kind.pop(key, None)
        of_kind[key] = value
        facts[kind] = dict(list(of_kind.items())[-MOST:])
        _write(home() / FILE, json.dumps(facts, indent=1))


def _all() -> dict[str, dict[str, Any]]:
    try:
        facts = json.loads((home() / FILE).read_text("utf-8"))
        return {kind: dict(of_kind) for kind, of_kind in facts.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, text: str) -> None:
    """In place of the old file at once, so that a reader never sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
