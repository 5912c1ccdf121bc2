"""The file of a journal: an SQLite database that this package may read and write.

The docstring of `observe.journal` describes its tables. Somebody else may have put another file in its place, so each
file is checked before it is used, and each access ends within a limited time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.files import is_regular, parse_json
from statemachine_trainer.observe.readings import PARTS, Reading
from statemachine_trainer.run_record import JOURNAL_FILES

VERSION: Final = 1
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
    epoch INTEGER NOT NULL, step INTEGER NOT NULL, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS metrics (
    entry INTEGER NOT NULL REFERENCES entries (id) ON DELETE CASCADE,
    name TEXT NOT NULL, value REAL, PRIMARY KEY (entry, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS metrics_by_name ON metrics (name);
CREATE VIEW IF NOT EXISTS measured AS
    SELECT kind AS part, epoch, step, name, value, at
    FROM entries JOIN metrics ON metrics.entry = entries.id ORDER BY entries.id;
PRAGMA user_version = {VERSION};
"""
_LONGEST: Final = 1 << 30
"""Bytes of a text in the file."""

WORK: Final = 10.0
"""Seconds that one access may take: a file of somebody else can be made to take for ever."""

_TRY_LATER: Final = frozenset(
    (
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
        *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_AUTH),
        *(sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_ABORT, sqlite3.SQLITE_NOLFS),
    )
)
"""Errors that say nothing of what is in the file: somebody holds it, it took too long, or the disk is full."""


class NewerJournal(sqlite3.DatabaseError):
    """A journal that a newer version of this package wrote."""


class NotAJournal(sqlite3.DatabaseError):
    """A file that is something else."""


def check_journal_files(folder: Path) -> None:
    """Refuse a journal that is no regular file: SQLite would wait for a pipe for ever, and follow a link.

    Raises:
        NotAJournal: It is something else, or what stands beside it is.
    """
    for name in JOURNAL_FILES:
        if os.path.lexists(folder / name) and not is_regular(folder / name):
            raise NotAJournal(f"{name} is not a regular file")


def check_tables(connection: sqlite3.Connection) -> None:
    """Refuse a file in which the tables of a journal are something else.

    Raises:
        NotAJournal: They are.
    """
    found = connection.execute("SELECT type, name FROM sqlite_master LIMIT 1000").fetchall()
    if not {("table", "entries"), ("table", "metrics")} <= set(found):
        raise NotAJournal("it has not the tables of one")
    if any(kind == "trigger" for kind, _ in found):
        raise NotAJournal("it has triggers")


def limit_work(connection: sqlite3.Connection, seconds: float = WORK) -> None:
    """Let what is done next with a file end within so many seconds, and in memory that there is."""
    end = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)


def prepare(connection: sqlite3.Connection) -> None:
    """Make a file a journal, if it is new, and see that it is one.

    Raises:
        NewerJournal, NotAJournal: It is none that can be written here.
    """
    limit_work(connection)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if not pages:
        # The start of a run does not wait for the disk. A crash of the machine soon after it may cost the
        # file, with the little that is in it.
        connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise NewerJournal(f"it is of version {version}, newer than this package")
    if version < VERSION:
        connection.executescript(_SCHEMA)
    # From now on a crash of the machine may cost the newest entries, never the file. A crash of the
    # process costs nothing that was written.
    connection.execute("PRAGMA synchronous = NORMAL")
    check_tables(connection)


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is no journal. An `OSError` is one of the disk."""
    if isinstance(error, NotAJournal):
        return True
    if isinstance(error, NewerJournal) or not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF not in _TRY_LATER


def name_in(facts: object) -> object:
    """Return the name of a checkpoint in the facts of its entry, as they are in the file; None if there is none."""
    try:
        found = parse_json(facts) if isinstance(facts, str | bytes) else None
    except ValueError:
        return None
    return found.get("name") if isinstance(found, dict) else None


def forget_after(connection: sqlite3.Connection, entry: int) -> None:
    """Delete what was measured after an entry; what else was noted stays."""
    kinds = ", ".join(f"'{part}'" for part in PARTS)
    connection.execute(f"DELETE FROM entries WHERE id > ? AND kind IN ({kinds})", (entry,))


def insert_entry(
    connection: sqlite3.Connection,
    at: float,
    kind: str,
    epoch: int,
    step: int,
    facts: Mapping[str, Any],
    reading: Reading | None,
) -> None:
    """Write an entry, with the metrics that were read if there are any.

    Args:
        connection: To the file.
        at: When it was made, in seconds since the epoch.
        kind: Of the entry.
        epoch: Epochs done.
        step: Optimizer steps done.
        facts: What JSON can hold.
        reading: The metrics.

    Raises:
        ValueError, TypeError, OverflowError: No file can hold it.
    """
    row = connection.execute(
        "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (?, ?, ?, ?, ?)",
        (at, kind, epoch, step, json.dumps(facts)),
    ).lastrowid
    if reading is not None:
        values = [(row, name, value) for name, value in reading.metrics().items()]
        connection.executemany("INSERT INTO metrics VALUES (?, ?, ?)", values)  # NaN is NULL
