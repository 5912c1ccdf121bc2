"""What waits in memory while a journal cannot be written, and a file that is only slow."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from statemachine_trainer.observe import journal as module
from statemachine_trainer.observe.journal import Journal
from statemachine_trainer.observe.journal_file import is_damage, limit_work


def held(folder: Path) -> tuple[Journal, sqlite3.Connection]:
    """Return a journal, and what holds its file."""
    journal = Journal(folder)
    journal.note("begun", 0, 0, {})
    assert journal.flush()
    other = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return journal, other


def steps(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        return [step for (step,) in connection.execute("SELECT step FROM entries ORDER BY id")]


def test_entries_beyond_those_that_are_kept_are_told_once_and_counted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    journal, other = held(tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            journal.note("checkpoint", 0, step, {"name": str(step)})
        assert [one for one in caplog.messages if "oldest are lost" in one] == caplog.messages
        assert len(caplog.messages) == 1
        other.close()
        assert journal.flush()
    assert "2 entries of the journal" in caplog.messages[-1]
    assert steps(tmp_path) == [0, 3, 4, 5]


def interrupted() -> sqlite3.Error:
    """Return the error of an access that took longer than it may."""
    with closing(sqlite3.connect(":memory:")) as connection:
        limit_work(connection, seconds=0.0)
        endless = (
            "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT * FROM n"
        )
        with pytest.raises(sqlite3.OperationalError, match="interrupted") as caught:
            connection.execute(f"SELECT max(id) FROM ({endless})")
    return caught.value


def test_an_access_that_took_too_long_says_nothing_of_the_file() -> None:
    assert not is_damage(interrupted())


def test_a_file_that_is_slow_once_keeps_its_entries_and_one_that_never_answers_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, other = held(tmp_path)
    other.close()
    slow = [True, False, True, True, True]

    def act(_: sqlite3.Connection) -> None:
        if slow and slow.pop(0):
            raise interrupted()

    for _ in range(4):
        journal._access(act, 0.0)
        assert not list(tmp_path.glob("damaged-*"))
    with caplog.at_level(logging.WARNING):
        journal._access(act, 0.0)
    assert [one.name for one in tmp_path.glob("damaged-*")] == ["damaged-1"]
    assert "is no journal that can be read: interrupted" in caplog.text
