"""Conversations on disk: SQLite, safe under several threads and programs, whole after a kill. Knows no models."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.paths import home
from rag_app.errors import ChatsUnusable

SCHEMA = 1
REMEDY = "make room, check the permissions, or move a damaged file away"
TABLE = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY,
    chat TEXT NOT NULL,
    role TEXT NOT NULL,             -- 'user' or 'assistant'
    content TEXT NOT NULL,
    details TEXT NOT NULL,          -- JSON: the whole Answer, and how it ended
    at REAL NOT NULL                -- Unix time
)
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str
    details: dict[str, Any] = field(default_factory=dict)


class Chats:
    """All conversations of one home folder; the file is made with the first message."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or home() / "chats.sqlite3"

    def add(self, chat: str, turn: Turn) -> None:
        """Appends a message; on disk when this returns.

        Raises:
            ChatsUnusable: it cannot be written.
        """
        with self._opened() as db, db:
            # One transaction from the table on, so that no half-made file is ever seen; and the default journal, since
            # the change to another fails when two programs begin a file at once.
            db.execute("BEGIN IMMEDIATE")
            db.execute(TABLE)
            db.execute("CREATE INDEX IF NOT EXISTS messages_chat ON messages (chat)")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
            row = (chat, turn.role, turn.content, json.dumps(turn.details, ensure_ascii=False), time.time())
            db.execute("INSERT INTO messages (chat, role, content, details, at) VALUES (?, ?, ?, ?, ?)", row)

    def turns(self, chat: str) -> list[Turn]:
        """The messages of a conversation, oldest first; none for one that does not exist.

        Raises:
            ChatsUnusable: the file is damaged or not readable.
        """
        if not self._path.exists():
            return []
        with self._opened() as db:
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                return []  # another program is just beginning the file
            sql = "SELECT role, content, details FROM messages WHERE chat = ? ORDER BY id"
            return [Turn(str(role), str(content), _details(raw)) for role, content, raw in db.execute(sql, (chat,))]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=10)) as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise ChatsUnusable(
                f"the conversations in '{self._path}' cannot be read or kept ({error}): "
                + ("close the other program that uses them" if "locked" in str(error) else REMEDY)
            ) from error


def _details(raw: object) -> dict[str, Any]:
    """What was kept of an answer; nothing where that is damaged."""
    with suppress(TypeError, ValueError):
        details = json.loads(raw)  # type: ignore[arg-type]
        if isinstance(details, dict):
            return details
    return {}
