"""The journal of a run: an SQLite file in its folder, written while it goes on.

    entries: id, at, kind, epoch, step, facts      kind: begun, checkpoint, train, validation, test, step
    metrics: entry, name, value
    measured: a view of the two, for people with an SQL prompt

Entries stand in the order in which things happened. A resume goes back to the entry of its
checkpoint, and a rewind to where the journal stood at its boundary: what was measured after it will
be measured again, and is taken out. Starts and ends of processes are not here but in `run.json`,
which is there without a journal too.

The file itself is in `observe.journal_file`. Reading needs no torch: `observe.run.Run`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from statemachine_trainer.files import parse_json
from statemachine_trainer.observe.journal_file import (
    WORK,
    NewerJournal,
    check_journal_files,
    forget_after,
    insert_entry,
    is_damage,
    limit_work,
    name_in,
    prepare,
)
from statemachine_trainer.observe.readings import Reading
from statemachine_trainer.run_record import JOURNAL, JOURNAL_FILES, BadRecord, set_damaged_aside

_log = logging.getLogger(__name__)

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], object]

_PATIENCE: Final = 5.0
"""Seconds to wait for somebody who holds the file, where an answer is needed."""

_AT_THE_END: Final = 30.0
"""Seconds to wait for that when the run is over, and nothing can be written later."""

_MOST: Final = 100_000
"""Changes that wait in memory; of more, the oldest are lost, and the log says so."""

_INTERRUPTED: Final = 2
"""Accesses in a row that may take longer than that, before the file is set aside."""


class Journal:
    """Writes the journal of a run.

    What is handed in is kept in memory and written in one transaction, at the end of an epoch or a
    validation, and else at most once in `seconds`. Training never waits for the file: while somebody
    else holds it, or the disk is full, what is to be written stays in memory, and is tried again with
    what comes next. What waits when the process ends, or nobody has the journal any more, is tried once more,
    and the log says how much is lost. A file that is no journal is set aside and a new one begun. The log
    says so once.

    Args:
        folder: The folder of the run; made if need be.
        seconds: The longest that an entry waits, as long as others follow.
        may_write: Whether the folder is still that of this run; what is written waits where it is not.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float = 1.0,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self.path = folder / JOURNAL
        self._seconds = seconds
        self._may_write = may_write
        self._waiting: list[Change] = []
        self._written = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._broken = False
        self._told = False
        self._interrupted = 0
        self._place: tuple[int, int] | None = None
        self._dropped = 0
        self._made_in = os.getpid()
        _OPEN.add(self)
        _listen_for_the_end()

    def __del__(self) -> None:
        """Write what waits: a run that is paused may be dropped."""
        if self._waiting:
            self._end(0.0)

    def take(self, reading: Reading) -> None:
        """Write metrics down."""
        self._add(reading.part, reading.epoch, reading.step, reading.facts, reading)
        if reading.part != "step" or time.monotonic() - self._written > self._seconds:
            self.flush()

    def note(self, kind: str, epoch: int, step: int, facts: Mapping[str, Any]) -> None:
        """Write something else down: "begun", "checkpoint", "error" or "recovery"."""
        self._add(kind, epoch, step, facts, None)

    def flush(self, patience: float = 0.0) -> bool:
        """Write what waits, as far as the file can be written now.

        Args:
            patience: Seconds to wait for somebody who holds it.

        Returns:
            Whether nothing waits any more.
        """
        self._written = time.monotonic()
        if self._waiting and not self._broken:
            self._access(self._write, patience)
        return not self._waiting

    def rewind(self, checkpoint: str) -> None:
        """Take out what was measured after a checkpoint: the run goes on from there.

        A checkpoint that is not in the journal was its last entry, lost with the process; then
        nothing is later.
        """

        def forget(connection: sqlite3.Connection) -> None:
            find = "SELECT id, facts FROM entries WHERE kind = 'checkpoint' ORDER BY id DESC"
            rows = connection.execute(find)
            found = next((row for row, facts in rows if name_in(facts) == checkpoint), None)
            if found is not None:
                forget_after(connection, found)

        if self.exists():
            self._change(forget)

    def facts_since(self, checkpoint: str, kind: str) -> list[Any]:
        """Return the facts of the entries of a kind after a checkpoint; none unless it is the newest one."""

        def find(connection: sqlite3.Connection) -> list[Any]:
            rows = connection.execute(
                "SELECT id, facts FROM entries WHERE kind = 'checkpoint' ORDER BY id DESC LIMIT 1"
            ).fetchall()
            if not rows or name_in(rows[0][1]) != checkpoint:
                return []
            since = "SELECT facts FROM entries WHERE kind = ? AND id > ? ORDER BY id"
            return connection.execute(since, (kind, rows[0][0])).fetchall()

        found = self._access(find, _PATIENCE) if self.exists() else None
        try:
            return [parse_json(facts) for (facts,) in found or ()]
        except (ValueError, TypeError):
            return []

    def rewind_to(self, place: int) -> None:
        """Take out what was measured since the journal stood there."""
        self._change(lambda connection: forget_after(connection, place))

    def place(self) -> int | None:
        """Return where the journal stands, for `rewind_to`; None if that cannot be told now."""
        if not self.flush(_PATIENCE):
            return None
        found = self._access(
            lambda connection: connection.execute("SELECT max(id) FROM entries").fetchone(),
            _PATIENCE,
        )
        if found is None:
            return None
        return found[0] if type(found[0]) is int else 0  # there is no entry yet

    def has_measured(self) -> bool:
        """Whether there are metrics in the file."""
        if not self.exists():
            return False
        found = self._access(
            lambda connection: connection.execute("SELECT 1 FROM metrics LIMIT 1").fetchall(),
            _PATIENCE,
        )
        return bool(found)

    def last(self, kind: str) -> Any:
        """Return the facts of the newest entry of a kind; None if there is none that can be read."""
        if self._waiting or not self.exists():
            return None
        find = "SELECT facts FROM entries WHERE kind = ? ORDER BY id DESC LIMIT 1"
        rows = self._access(lambda connection: connection.execute(find, (kind,)).fetchall(), 0.0)
        try:
            return parse_json(rows[0][0]) if rows else None
        except (ValueError, TypeError):
            return None

    def exists(self) -> bool:
        """Whether there is a file, be it a journal or not."""
        return not self._broken and os.path.lexists(self.path)

    def close(self, *, for_good: bool = False) -> None:
        """Write what waits and let go of the file; it is opened again if need be.

        Args:
            for_good: The run is over: wait for somebody who holds the file.
        """
        if for_good:
            self._end(_AT_THE_END)
        else:
            self.flush()
        self._let_go()

    # -- parts -----------------------------------------------------------------------------------

    def _end(self, patience: float) -> None:
        """Write what waits, or say what is lost, once. What a fork of the process has is not its own."""
        if self._made_in != os.getpid() or self.flush(patience):
            return
        _log.warning("%d entries of the journal %s are lost.", len(self._waiting), self.path)
        self._waiting = []

    def _add(
        self, kind: str, epoch: int, step: int, facts: Mapping[str, Any], reading: Reading | None
    ) -> None:
        at = time.time()

        def insert(connection: sqlite3.Connection) -> None:
            insert_entry(connection, at, kind, epoch, step, facts, reading)

        self._keep(insert)

    def _change(self, change: Change) -> None:
        self._keep(change)
        self.flush()

    def _keep(self, change: Change) -> None:
        if self._broken:
            return
        self._waiting.append(change)
        if len(self._waiting) > _MOST:
            del self._waiting[0]
            if not self._dropped:
                _log.warning(
                    "%d entries of the journal %s wait to be written, more than are kept in memory. From now on the "
                    "oldest are lost, until it can be written again; the run goes on.",
                    _MOST,
                    self.path,
                )
            self._dropped += 1

    def _write(self, connection: sqlite3.Connection) -> None:
        with connection:
            for change in self._waiting:
                try:
                    change(connection)
                except (ValueError, TypeError, OverflowError) as error:  # no file holds it
                    _log.warning("An entry of the journal %s is left out: %s.", self.path, error)
        self._waiting = []
        if self._dropped:
            _log.warning("%d entries of the journal %s are lost.", self._dropped, self.path)
        self._dropped = 0

    def _access(self, act: Callable[[sqlite3.Connection], T], patience: float) -> T | None:
        """Do something with the file.

        A file that is no journal is set aside; then it is done with a new one.

        Args:
            act: What to do.
            patience: Seconds to wait for somebody who holds the file.

        Returns:
            What that returned; None if the file cannot be used now.
        """
        if not self._may_write():
            self._let_go()
            return None
        try:
            try:
                self._follow()
                found = act(self._open(patience))
                self._interrupted = 0
                return found
            except (sqlite3.Error, OSError) as error:
                if not is_damage(error) and not self._never_ends(error):
                    raise
                self._set_aside(error)
                return act(self._open(patience))
        except NewerJournal as error:
            self._give_up(error)
        except (sqlite3.Error, OSError, BadRecord) as error:
            self._let_go()
            if not self._told:
                self._told = True
                _log.warning(
                    "The journal %s cannot be written now: %s. What is to be written waits in memory; the run goes on. "
                    "Make room in the folder, or let this user write there.",
                    self.path,
                    str(error),  # what keeps the error keeps this journal
                )
        return None

    def _never_ends(self, error: Exception) -> bool:
        """Whether one access after the other took longer than it may. One alone may be that of a slow disk."""
        interrupted = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
        self._interrupted = self._interrupted + 1 if interrupted else 0
        return self._interrupted > _INTERRUPTED

    def _follow(self) -> None:
        """If the file is gone or another one, begin anew with what it held: the folder was deleted or moved."""
        before, here = self._connection, _place(self.path)
        if before is None or self._pid != os.getpid() or here == self._place:
            return
        self._connection = None
        try:
            self._open(_PATIENCE)
            if here is None and self._connection is not None:
                before.backup(self._connection)
        finally:
            before.close()
        if here is not None:
            _log.warning(
                "Another journal was put into the place of %s while the run went on, and is written from now on.",
                self.path,
            )

    def _open(self, patience: float) -> sqlite3.Connection:
        if self._connection is None or self._pid != os.getpid():
            # A connection must not be carried over a fork; the parent goes on with it.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_journal_files(self.path.parent)
            connection = sqlite3.connect(self.path, timeout=patience, check_same_thread=False)
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._pid = connection, os.getpid()
            self._place = _place(self.path)
        self._connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        limit_work(self._connection, WORK + patience)
        return self._connection

    def _set_aside(self, error: Exception) -> None:
        self._let_go()
        aside = set_damaged_aside(self.path.parent, JOURNAL_FILES)
        _log.warning(
            "%s is no journal that can be read: %s. It is now in %s, and the run begins a new one.",
            self.path,
            error,
            aside,
        )

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        self._waiting = []
        _log.warning("The journal %s ends here: %s. The run goes on.", self.path, error)
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            connection.close()


_OPEN: weakref.WeakSet[Journal] = weakref.WeakSet()
"""The journals of this process, in which entries may wait."""


@cache
def _listen_for_the_end() -> None:
    # When the first journal is made, the run has its folder: what is registered later is called earlier,
    # so the journal is written before the folder is given back.
    atexit.register(_end_all)


def _end_all() -> None:
    """Write what waits in the journals of runs that stand still as the process ends."""
    for journal in [*_OPEN]:
        journal._end(_PATIENCE)


def _place(path: Path) -> tuple[int, int] | None:
    """Return which file a path leads to; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
