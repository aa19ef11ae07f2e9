"""Conversations on disk: SQLite, safe under several threads and programs, whole after a kill. Knows no models.

Each call opens the file anew, so that none goes on with one that was moved away, and a kill leaves nothing to tidy.
"""

import errno
import json
import os
import random
import sqlite3
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from index.paths import home
from index.watch import network
from rag_app import migrations
from rag_app.errors import ChatNotFound, ChatsUnusable, SettingInvalid

PATIENCE = 10.0
"""Seconds that a call waits for other programs to let go of the file."""
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
REMEDY = "make room, check the permissions, or move a damaged file away"
TITLE = 80
"""Most characters of a title."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. Two are equal that say the same."""

    role: str
    content: str
    details: dict[str, Any] = field(default_factory=dict)
    """Of an answer: Answer.as_dict(), 'error' (a line, or empty) and 'stopped' (whether somebody stopped it)."""
    id: int = field(default=0, compare=False)
    """Set when it is read; by it, an answer is rated."""
    at: float = field(default=0.0, compare=False)
    """Unix time at which it was kept."""
    rating: int = field(default=0, compare=False)
    """1 good, -1 bad, 0 not rated."""
    comment: str = field(default="", compare=False)
    correction: str = field(default="", compare=False)
    """What the answer should have been, by the person who rated it."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, as it is listed."""

    id: str
    title: str
    """Its first question, shortened."""
    started: float
    """Unix time of the first message."""
    last: float
    """Unix time of the last message."""
    messages: int
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer."""

    number: int
    """Of the question within the conversation, from 1."""
    question: Turn
    answer: Turn | None
    """None when the program ended before there was one."""


class Chats:
    """All conversations of one home folder; the file is made with the first message.

    Every method raises ChatsUnusable when the file cannot be read or written to: it is damaged, locked for long, of
    another program or a newer version of this one, or there is no room or no permission. A file that may not be
    written to can still be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or home() / "chats.sqlite3"

    def add(self, chat: str, turn: Turn) -> int:
        """Appends a message; on disk when this returns. Returns its id."""
        row = (chat, turn.role, _utf8(turn.content), _json(turn.details), time.time())
        sql = "INSERT INTO messages (chat, role, content, details, at) VALUES (?, ?, ?, ?, ?)"
        return self._write(lambda db: int(db.execute(sql, row).lastrowid or 0))

    def turns(self, chat: str) -> list[Turn]:
        """The messages of a conversation, oldest first; none for one that does not exist."""
        sql = (
            "SELECT role, content, details, id, messages.at, rating, comment, correction "
            "FROM messages LEFT JOIN ratings ON message = id WHERE chat = ? ORDER BY id"
        )
        return [
            Turn(
                str(role),
                str(content),
                _details(raw),
                int(at_id),
                float(at),
                rating or 0,
                comment or "",
                correction or "",
            )
            for role, content, raw, at_id, at, rating, comment, correction in self._read(sql, chat)
        ]

    def chats(self) -> list[Chat]:
        """All conversations that have messages, the latest first."""
        sql = (
            "SELECT chat, min(at), max(at), count(*), (SELECT options FROM settings WHERE settings.chat = m.chat), "
            "(SELECT content FROM messages AS q WHERE q.chat = m.chat AND role = 'user' "
            "ORDER BY id LIMIT 1) FROM messages AS m GROUP BY chat ORDER BY max(at) DESC, max(id) DESC"
        )
        return [
            Chat(
                str(chat), _title(str(question or "")[:400]), float(started), float(last), int(count), _details(options)
            )
            for chat, started, last, count, options, question in self._read(sql)
        ]

    def exists(self, chat: str) -> bool:
        """Whether a conversation has messages or settings."""
        sql = "SELECT 1 FROM messages WHERE chat = ?1 UNION ALL SELECT 1 FROM settings WHERE chat = ?1 LIMIT 1"
        return bool(self._read(sql, chat))

    def find(self, beginning: str) -> Chat:
        """The one conversation whose id is this or begins with it.

        Raises:
            ChatNotFound: there is none, or there are several.
        """
        chats = [chat for chat in self.chats() if chat.id.startswith(beginning) and beginning]
        exact = [chat for chat in chats if chat.id == beginning]
        if len(exact or chats) == 1:
            return (exact or chats)[0]
        if not chats:
            raise ChatNotFound(f"there is no conversation '{beginning}': 'rag-app chats list' shows those there are")
        some = ", ".join(chat.id for chat in chats[:3]) + (", …" if len(chats) > 3 else "")
        raise ChatNotFound(f"{len(chats)} conversations begin with '{beginning}' ({some}): give more of the id")

    def settings(self, chat: str) -> dict[str, Any]:
        """Settings of a conversation by name, as `set_settings` left them."""
        rows = self._read("SELECT options FROM settings WHERE chat = ?", chat)
        return _details(rows[0][0]) if rows else {}

    def set_settings(self, chat: str, settings: dict[str, Any]) -> None:
        """Replaces the settings of a conversation: values that JSON can hold, by name."""
        sql = "INSERT OR REPLACE INTO settings (chat, options) VALUES (?, ?)"
        self._write(lambda db: db.execute(sql, (chat, _json(settings))))

    def rate(
        self,
        chat: str,
        message: int,
        rating: int | None = None,
        comment: str | None = None,
        correction: str | None = None,
    ) -> None:
        """Says what an answer is worth; what is None stays as it was said before.

        Args:
            message: `Turn.id` of the answer.
            rating: 1 good, -1 bad, 0 neither.
            correction: what the answer should have been.

        Raises:
            ChatNotFound: the conversation has no such answer.
        """
        if rating not in (-1, 0, 1, None):
            raise SettingInvalid(f"rating is {rating!r}: give 1 (good), -1 (bad) or 0 (neither)")
        said = {"rating": rating, "comment": comment, "correction": correction}
        changes = {
            name: _utf8(value) if isinstance(value, str) else value for name, value in said.items() if value is not None
        }

        def write(db: sqlite3.Connection) -> None:
            known = "SELECT 1 FROM messages WHERE id = ? AND chat = ? AND role = 'assistant'"
            if not db.execute(known, (message, chat)).fetchone():
                raise ChatNotFound(
                    f"there is no answer {message} in the conversation '{chat}': it may have been deleted"
                )
            db.execute("INSERT OR IGNORE INTO ratings VALUES (?, 0, '', '', 0)", (message,))
            values = {**changes, "at": time.time()}
            columns = ", ".join(f"{name} = :{name}" for name in values)
            db.execute(f"UPDATE ratings SET {columns} WHERE message = :message", {**values, "message": message})

        self._write(write)

    def delete(self, chat: str) -> int:
        """Removes a conversation with its ratings and settings, beyond recovery; returns how many messages it had."""

        def write(db: sqlite3.Connection) -> int:
            db.execute("DELETE FROM ratings WHERE message IN (SELECT id FROM messages WHERE chat = ?)", (chat,))
            db.execute("DELETE FROM settings WHERE chat = ?", (chat,))
            return db.execute("DELETE FROM messages WHERE chat = ?", (chat,)).rowcount

        return self._write(write) if self.exists(chat) else 0

    def export(
        self, chats: Sequence[str] | None = None, note: Callable[[str], None] = lambda line: None
    ) -> Iterator[dict[str, Any]]:
        """A row for each answered question, oldest conversation first; docs/chats.md describes the rows.

        Answers that failed or were stopped are left out unless somebody corrected them.

        Args:
            chats: ids; all by default.
            note: is given a line for each answer that is skipped because what was kept of it is damaged.

        Raises:
            ChatNotFound: one of `chats` has no messages.
        """
        known = {chat.id: chat for chat in reversed(self.chats())}
        for name in known if chats is None else dict.fromkeys(chats):
            if name not in known:
                raise ChatNotFound(f"there is no conversation '{name}': 'rag-app chats list' shows those there are")
            history: list[dict[str, str]] = []
            for exchange in exchanges(self.turns(name)):
                try:
                    row = _row(known[name], exchange, history)
                except (KeyError, TypeError, ValueError, AttributeError):
                    note(f"answer {exchange.number} of the conversation '{name}' is skipped: its sources are damaged")
                    row = None
                if row:
                    yield row
                history += [
                    {"role": turn.role, "content": turn.content}
                    for turn in (exchange.question, exchange.answer)
                    if turn and turn.content
                ]

    def _read(self, sql: str, *values: Any) -> list[Any]:
        """Rows of a query; none from a file that is not there or just being begun."""

        def attempt() -> list[Any]:
            if not self._begun():
                return []
            with closing(self._connect("mode=rw" if self._is_live() else "immutable=1")) as db:
                db.execute("BEGIN")  # one view of the file, while others change it
                if not migrations.schema(db):
                    return []
                migrations.stand_in(db)
                return db.execute(sql, values).fetchall()

        return self._patiently(attempt)

    def _begun(self) -> bool:
        """Whether there is a file; raises OSError where none could be begun: something is in the way, a link broken."""
        if self._path.exists():
            return True
        place = Path(os.path.realpath(self._path)) if self._path.is_symlink() else self._path
        folder = place.parent
        while place == self._path and not os.path.lexists(folder):
            folder = folder.parent  # it is made with the file
        if not folder.is_dir():
            code = errno.ENOTDIR if os.path.lexists(folder) else errno.ENOENT
            raise OSError(code, os.strerror(code), str(folder))
        return False

    def _write(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Does something in one transaction, whole or not at all, on a file of the current schema."""

        def attempt() -> Result:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and not self._writable():
                raise PermissionError("it may not be written to")
            with closing(self._connect("mode=rwc")) as db:
                with db:
                    db.execute("BEGIN")
                    migrations.schema(db)  # of another program's file nothing is changed, its journal neither
                self._prefer_wal(db)
                db.execute("PRAGMA synchronous = FULL")  # what was committed outlives a power cut
                db.execute("PRAGMA fullfsync = ON")  # on macOS too
                db.execute("PRAGMA secure_delete = ON")
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    migrations.upgrade(db)
                    return work(db)

        return self._patiently(attempt)

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        """Repeats an attempt while another program is in the way; each is a transaction, which failed as a whole."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return attempt()
            except (sqlite3.Error, OSError, migrations.Refused) as error:
                busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in BUSY
                if not busy or time.monotonic() > deadline:
                    raise ChatsUnusable(self._complaint(error, busy)) from error
            time.sleep(random.uniform(0.001, 0.02))  # apart from the others that wait

    def _complaint(self, error: Exception, busy: bool) -> str:
        if isinstance(error, migrations.Refused):
            return f"the conversations in '{self._path}' cannot be read or kept: {error}"
        remedy = "close the other program that uses them" if busy else REMEDY
        return f"the conversations in '{self._path}' cannot be read or kept ({error}): {remedy}"

    def _connect(self, how: str) -> sqlite3.Connection:
        uri = f"{Path(os.path.realpath(self._path)).as_uri()}?{how}"
        db = sqlite3.connect(uri, uri=True, timeout=PATIENCE / 10, isolation_level=None)
        db.text_factory = lambda raw: raw.decode(
            "utf-8", "replace"
        )  # damaged text loses a letter, not the conversation
        return db

    def _writable(self) -> bool:
        """Whether this user may write to the file and its folder."""
        real = Path(os.path.realpath(self._path))
        effective = os.access in os.supports_effective_ids
        return all(os.access(place, os.W_OK, effective_ids=effective) for place in (real, real.parent))

    def _is_live(self) -> bool:
        """Whether another program may be writing; if not, the file can be opened as one that nobody changes.

        To read a file with a write-ahead log, SQLite makes files beside it. Where it may not, it fails; and beside a
        file that is read-only, it would leave them read-only too, and they would later stop a writer.
        """
        return self._writable() or Path(f"{os.path.realpath(self._path)}-wal").exists()

    def _prefer_wal(self, db: sqlite3.Connection) -> None:
        """Lets readers and a writer work side by side, where the file system can.

        Two programs that switch a file at the same moment refuse each other at once, and some file systems refuse
        always. Nothing depends on it: the default journal serves as well, and the next write tries again.
        """
        if db.execute("PRAGMA journal_mode").fetchone() != ("wal",) and not network(str(self._path.parent)):
            with suppress(sqlite3.OperationalError):
                db.execute("PRAGMA busy_timeout = 0")
                db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 100)}")


def exchanges(turns: Sequence[Turn]) -> list[Exchange]:
    """The questions of a conversation, each with its answer."""
    found: list[Exchange] = []
    for turn in turns:
        if turn.role == "user":
            found.append(Exchange(len(found) + 1, turn, None))
        elif found:
            found[-1] = Exchange(found[-1].number, found[-1].question, turn)
    return found


def _row(chat: Chat, exchange: Exchange, history: list[dict[str, str]]) -> dict[str, Any] | None:
    """What `export` gives of an exchange; raises what malformed details raise."""
    turn = exchange.answer
    if turn is None:
        return None
    kept = turn.details
    if (kept["error"] or kept["stopped"]) and not turn.correction:
        return None
    question = exchange.question.content
    hits = kept["hits"][: len(kept["hits"]) - kept["dropped"]]
    return {
        "id": f"{chat.id}/{exchange.number}",
        "chat": chat.id,
        "at": turn.at,
        "question": question,
        "history": list(history),
        "query": kept.get("query") or question,
        "passages": [
            {"n": hit["rank"], **{name: hit[name] for name in ("source", "page", "heading", "text", "start", "end")}}
            for hit in hits
        ],
        "answer": turn.content,
        "citations": [dict(citation) for citation in kept["citations"]],
        "refused": bool(kept["refused"]),
        "steps": [dict(step) for step in kept.get("steps", ())],
        "strategy": kept.get("strategy", "zero-shot"),
        "model": kept.get("model", ""),
        "adapters": list(map(str, kept.get("adapters", ()))),
        "prompt_version": kept.get("prompt_version", 0),
        "settings": dict(kept.get("settings", {})),
        "rating": turn.rating,
        "comment": turn.comment,
        "correction": turn.correction,
    }


def _title(question: str) -> str:
    words = " ".join(question.split())
    if len(words) <= TITLE:
        return words
    short = textwrap.shorten(words, TITLE, placeholder=" …")
    return short if len(short) > TITLE // 2 else words[: TITLE - 1] + "…"


def _utf8(text: str) -> str:
    """Text that can be stored: half of a surrogate pair, which a damaged document may hold, cannot."""
    return text.encode("utf-8", "replace").decode()


def _json(values: dict[str, Any]) -> str:
    return _utf8(json.dumps(values, ensure_ascii=False))


def _details(raw: object) -> dict[str, Any]:
    """What was kept beside a message or of settings; nothing where that is damaged."""
    with suppress(TypeError, ValueError, RecursionError):
        details = json.loads(raw)  # type: ignore[arg-type]
        if isinstance(details, dict):
            return details
    return {}
