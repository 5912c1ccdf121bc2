"""A run that stands still as its process ends, or as nobody has it any more: what waits is written, or told."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from statemachine_trainer.observe.journal import Journal
from tests.forking import forked

SCRIPT = """
import sqlite3, sys
from pathlib import Path
from statemachine_trainer import RunFolder
from statemachine_trainer.callbacks import Checkpoints
from tests.observe.recorded import Net, batches, trainer

folder = Path(sys.argv[1])
one = trainer(checkpoints=Checkpoints(folder, every=1000))
one.fit(Net(), batches(), until=lambda one: one.steps == 2)
held = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
held.execute("BEGIN IMMEDIATE")
one.run(until=lambda one: one.steps == 12)  # an epoch has ended
held.execute("ROLLBACK")
assert not held.execute("SELECT * FROM entries WHERE kind = 'train'").fetchall()
"""


def kinds(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        return [kind for (kind,) in connection.execute("SELECT kind FROM entries ORDER BY id")]


def test_what_waits_in_a_paused_run_is_written_as_the_process_ends(tmp_path: Path) -> None:
    with forked("-c", SCRIPT, tmp_path, output=tmp_path / "printed", env=os.environ) as process:
        assert process.wait(100) == 0, (tmp_path / "printed").read_text()
    assert "train" in kinds(tmp_path)


def waiting(folder: Path) -> tuple[Journal, sqlite3.Connection]:
    """Return a journal in which an entry waits, and what holds it."""
    journal = Journal(folder)
    journal.note("begun", 0, 0, {})
    assert journal.flush()
    held = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    journal.note("checkpoint", 0, 1, {"name": "step-1"})
    assert not journal.flush()
    return journal, held


def test_what_waits_is_written_when_a_journal_is_dropped(tmp_path: Path) -> None:
    journal, held = waiting(tmp_path)
    held.close()
    del journal
    assert kinds(tmp_path) == ["begun", "checkpoint"]


def test_what_is_lost_when_a_journal_is_dropped_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, held = waiting(tmp_path)
    with closing(held), caplog.at_level(logging.WARNING):
        del journal
    assert "1 entries of the journal" in caplog.text
    assert "are lost" in caplog.text
