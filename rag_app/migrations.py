"""The tables of the file of conversations, and how an older file becomes a current one. Knows no conversations.

Schema 1 had the messages alone. Schema 2 adds settings for each conversation and a rating for each answer, and an index
that lists conversations without reading their messages. No table that was there is changed, so a program of schema 1
that still runs meanwhile goes on; it sets the number back, and the next write here repeats the migration, which adds
only what is missing.
"""

import sqlite3

SCHEMA = 2
APPLICATION = 0x52414743
"""'RAGC' in the file's header, from schema 2 on: tells our files from those of others."""
TABLES = {
    "messages": """(
    id INTEGER PRIMARY KEY,
    chat TEXT NOT NULL,
    role TEXT NOT NULL,             -- 'user' or 'assistant'
    content TEXT NOT NULL,
    details TEXT NOT NULL,          -- JSON: the whole Answer, and how it ended
    at REAL NOT NULL                -- Unix time
)""",
    "settings": """(
    chat TEXT PRIMARY KEY,
    options TEXT NOT NULL           -- JSON: values by name
)""",
    "ratings": """(
    message INTEGER PRIMARY KEY,    -- id of the answer
    rating INTEGER NOT NULL,        -- 1 good, -1 bad, 0 neither
    comment TEXT NOT NULL,
    correction TEXT NOT NULL,       -- what the answer should have been
    at REAL NOT NULL                -- Unix time
)""",
}


class Refused(Exception):
    """The file is not ours to touch; the text says what it is and what to do."""


def schema(db: sqlite3.Connection) -> int:
    """The schema of a file, 0 when it holds nothing yet; to be called within a transaction.

    Raises:
        Refused: the file belongs to another program, or to a newer version of this one.
    """
    version, application = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    tables = _tables(db, "main")
    if (
        application not in (0, APPLICATION)
        or (version > 1 and not application)
        or (tables and "messages" not in tables)
    ):
        raise Refused("it belongs to another program: move it away")
    if version > SCHEMA:
        raise Refused(f"its schema is {version}, and this version of the program knows {SCHEMA}: update the program")
    if tables and not version:
        raise Refused("it belongs to another program: move it away")
    return version if tables else 0


def upgrade(db: sqlite3.Connection) -> None:
    """Brings a file to the current schema, within the transaction that the caller has begun for writing.

    Raises:
        Refused: as `schema`.
    """
    if schema(db) == SCHEMA:
        return
    for name, columns in TABLES.items():
        db.execute(f"CREATE TABLE IF NOT EXISTS {name} {columns}")
    db.execute("DROP INDEX IF EXISTS messages_chat")
    db.execute("CREATE INDEX IF NOT EXISTS messages_listed ON messages (chat, id, at)")
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def stand_in(db: sqlite3.Connection) -> None:
    """Gives a connection that only reads the tables that an older file lacks, empty; the file stays as it is."""
    for name in TABLES.keys() - _tables(db, "main"):
        db.execute(f"CREATE TEMP TABLE {name} {TABLES[name]}")


def _tables(db: sqlite3.Connection, where: str) -> set[str]:
    sql = f"SELECT name FROM {where}.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    return {str(name) for (name,) in db.execute(sql)}
