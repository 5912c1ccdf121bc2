"""The journal of a run: an SQLite file in its folder, written while it goes on.

    entries: id, at, kind, epoch, step, facts      kind: begun, checkpoint, train, validation, test, step
    metrics: entry, name, value
    measured: a view of the two, for people with an SQL prompt

Entries stand in the order in which things happened. A resume goes back to the entry of its
checkpoint, and a rewind to where the journal stood at its boundary: what was measured after it will
be measured again, and is taken out. Starts and ends of processes are not here but in `run.json`,
which is there without a journal too.

Reading needs no torch: `observe.run.Run`.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.observe.readings import PARTS, Reading
from statemachine_trainer.run_record import JOURNAL

_log = logging.getLogger(__name__)

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
_PATIENCE: Final = 5.0
"""Seconds to wait for somebody who holds the file."""


class Journal:
    """Writes the journal of a run.

    What is handed in is kept in memory and written in one transaction, at the end of an epoch or a
    validation, and else at most once in `seconds`. Nothing that goes wrong with the file harms the
    run: the log says so once, and the journal ends there.

    Args:
        folder: The folder of the run; made if need be.
        seconds: The longest that an entry waits, as long as others follow.
    """

    def __init__(self, folder: Path, *, seconds: float = 1.0) -> None:
        self.path = folder / JOURNAL
        self._seconds = seconds
        self._waiting: list[tuple[float, str, int, int, Mapping[str, Any], Reading | None]] = []
        self._written = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._broken = False

    def take(self, reading: Reading) -> None:
        """Write metrics down."""
        self._add(reading.part, reading.epoch, reading.step, reading.facts, reading)
        if reading.part != "step" or time.monotonic() - self._written > self._seconds:
            self.flush()

    def note(self, kind: str, epoch: int, step: int, facts: Mapping[str, Any]) -> None:
        """Write something else down: "begun" or "checkpoint"."""
        self._add(kind, epoch, step, facts, None)

    def _add(
        self, kind: str, epoch: int, step: int, facts: Mapping[str, Any], reading: Reading | None
    ) -> None:
        if not self._broken:
            self._waiting.append((time.time(), kind, epoch, step, facts, reading))

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        self._written = time.monotonic()
        if not waiting or self._broken:
            return
        try:
            with self._open() as connection:
                for at, kind, epoch, step, facts, reading in waiting:
                    _insert(connection, at, kind, epoch, step, facts, reading)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def rewind(self, checkpoint: str) -> None:
        """Take out what was measured after a checkpoint: the run goes on from there.

        A checkpoint that is not in the journal was its last entry, lost with the process; then
        nothing is later.
        """
        self.flush()
        if self._broken or not self.path.exists():
            return
        find = "SELECT id, facts FROM entries WHERE kind = 'checkpoint' ORDER BY id DESC"
        try:
            with self._open() as connection:
                rows = connection.execute(find)
                ids = (row for row, facts in rows if json.loads(facts).get("name") == checkpoint)
                found = next(ids, None)
                if found is not None:
                    _forget_after(connection, found)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def place(self) -> int:
        """Return where the journal stands, for `rewind_to`."""
        self.flush()
        if self._broken or not self.path.exists():
            return 0
        try:
            with self._open() as connection:
                (last,) = connection.execute("SELECT max(id) FROM entries").fetchone()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return 0
        return last or 0

    def rewind_to(self, place: int) -> None:
        """Take out what was measured since the journal stood there."""
        self.flush()
        if self._broken or not self.path.exists():
            return
        try:
            with self._open() as connection:
                _forget_after(connection, place)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def has_measured(self) -> bool:
        """Whether there are metrics in the file."""
        if not self.path.exists():
            return False
        try:
            with self._open() as connection:
                return bool(connection.execute("SELECT 1 FROM metrics LIMIT 1").fetchall())
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return False

    def last(self, kind: str) -> Any:
        """Return the facts of the newest entry of a kind; None if there is none."""
        if self._broken or not self.path.exists():
            return None
        find = "SELECT facts FROM entries WHERE kind = ? ORDER BY id DESC LIMIT 1"
        try:
            with self._open() as connection:
                rows = connection.execute(find, (kind,)).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return None
        return json.loads(rows[0][0]) if rows else None

    def close(self) -> None:
        """Write what waits and let go of the file; it is opened again if need be."""
        self.flush()
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        # A connection must not be carried over a fork; the parent goes on with it.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # A crash of the machine may cost the newest entries, never the file. A crash of the
            # process costs nothing that was written.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version}, newer than this package")
            if version < VERSION:
                connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        self._connection, self._pid = connection, os.getpid()
        return connection

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        self._waiting = []
        _log.warning("The journal %s ends here: %s. The run goes on.", self.path, error)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _forget_after(connection: sqlite3.Connection, entry: int) -> None:
    """Delete what was measured after an entry; what else was noted stays."""
    kinds = ", ".join(f"'{part}'" for part in PARTS)
    connection.execute(f"DELETE FROM entries WHERE id > ? AND kind IN ({kinds})", (entry,))


def _insert(
    connection: sqlite3.Connection,
    at: float,
    kind: str,
    epoch: int,
    step: int,
    facts: Mapping[str, Any],
    reading: Reading | None,
) -> None:
    row = connection.execute(
        "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (?, ?, ?, ?, ?)",
        (at, kind, epoch, step, json.dumps(facts)),
    ).lastrowid
    if reading is not None:
        values = [(row, name, value) for name, value in reading.metrics().items()]
        connection.executemany("INSERT INTO metrics VALUES (?, ?, ?)", values)  # NaN is NULL
