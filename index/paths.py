"""Where the program keeps what it writes, and how a path is shown. Touches no file."""

import os
from contextlib import suppress
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the user's home for ~, which stays where there is no such user, as in ~nobody."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path's raises)


def home() -> Path:
    """The one folder that everything is written under: `$RAG_HOME`, where ~ is the user's, else `./.rag`."""
    return expanded(os.environ.get("RAG_HOME") or ".rag")


def default_index() -> Path:
    """The index that commands use when `--index` is not given."""
    return home() / "index"


def shown(source: str) -> str:
    """`source` (an absolute path) as a person wants to read it: relative where it lies below the current folder."""
    with suppress(ValueError):
        source = Path(source).relative_to(Path.cwd()).as_posix()
    return " ".join(printable(source).splitlines())


def printable(text: str) -> str:
    """Text from a document or a file name without what would command a terminal; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
