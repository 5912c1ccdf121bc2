"""Files beside the checkpoints never stop a run: they are set aside, told, and the run goes on."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from statemachine_trainer import Run
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe.run import BadJournal
from statemachine_trainer.snapshot import Store
from tests.observe.recorded import Net, batches, trainer

DEEP = "[" * 100_000


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def fact(folder: Path) -> None:
    """A byte inside a fact: SQLite sees nothing wrong with it."""
    path = folder / "journal.sqlite"
    flip(path, path.read_bytes().rindex(b'"settings"'))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def tab_of_a_name(folder: Path) -> None:
    path = folder / "blackbox-0.ring"
    at = path.read_bytes().index(b"post\t") + len(b"post\t")
    flip(path, path.read_bytes().index(b"\t", at))


def time_of_a_lap(folder: Path) -> None:
    flip(folder / "blackbox-0.ring", 1984 + 24 + 8 + 7, bit=6)


def pipes(folder: Path) -> None:
    for name in ("run.json", "journal.sqlite", "blackbox-0.ring", "pins.json", "requests-0.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    os.mkfifo(folder / "blackbox-0.ring.new")
    os.mkfifo(folder / "requests-0.json.new")


def links(folder: Path) -> None:
    (folder / "precious").write_text("keep me")
    for name in ("run.json", "journal.sqlite", "blackbox-0.ring", "blackbox-0.ring.new"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / "precious")


def folders(folder: Path) -> None:
    for name in ("run.json", "journal.sqlite", "blackbox-0.ring", "requests-0.json", "pins.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()


def texts(folder: Path, text: str) -> None:
    for name in ("run.json", "journal.sqlite", "requests-0.json", "pins.json", "page.json"):
        (folder / name).write_text(text)
    for name in ("journal.sqlite-wal", "journal.sqlite-shm", "blackbox-0.ring", "latest"):
        (folder / name).write_text(text)


def hostile_table(folder: Path) -> None:
    """A view without an end, where the table of entries is expected."""
    (folder / "journal.sqlite").unlink()
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        connection.executescript(
            "CREATE VIEW entries AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
            "SELECT id, 0 AS at, 'checkpoint' AS kind, 0 AS epoch, 0 AS step, '{}' AS facts FROM n;"
            "CREATE VIEW metrics AS SELECT id AS entry, 'loss' AS name, 1.0 AS value FROM entries;"
            "PRAGMA user_version = 1;"
        )


def other_types(folder: Path) -> None:
    """Values of other types in the right tables."""
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        connection.executescript(
            "UPDATE entries SET at = 'noon', epoch = 'two', step = x'ff';"
            "UPDATE metrics SET value = 'high';"
            "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (1e300, 'checkpoint', 1, 1, '[]');"
            "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (1, 'train', 1, 1, '{\"epoch\": []}');"
            "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (1, 'begun', 1, 1, '7');"
        )


PLANTS: dict[str, Callable[[Path], None]] = {
    "a fact": fact,
    "a tab of a name": tab_of_a_name,
    "the time of a lap": time_of_a_lap,
    "empty files": lambda folder: texts(folder, ""),
    "nested JSON": lambda folder: texts(folder, DEEP),
    "numbers": lambda folder: texts(folder, "7"),
    "lists": lambda folder: texts(folder, '[{"event": 1}]'),
    "pipes": pipes,
    "links": links,
    "folders": folders,
    "a hostile table": hostile_table,
    "other types": other_types,
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.filterwarnings("ignore:.*Nothing is deleted meanwhile")
def test_a_run_goes_on_whatever_lies_beside_its_checkpoints(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    trainer(checkpoints=folder, max_epochs=1).fit(Net(), batches())
    plant(folder)
    again = trainer(checkpoints=folder, max_epochs=2)
    again.fit(Net(), batches(), resume="auto")
    assert again.epoch == 2
    assert Store(folder).list()[-1].metadata["epoch"] == 2
    for name in ("run.json", "journal.sqlite", "blackbox-0.ring"):
        assert stat.S_ISREG((folder / name).lstat().st_mode), name
    assert Run(folder).status == "ended"
    if (folder / "precious").exists():
        assert (folder / "precious").read_text() == "keep me"


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_who_asks_gets_an_answer_or_an_error_of_ours(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    trainer(checkpoints=folder, max_epochs=1).fit(Net(), batches())
    plant(folder)
    try:
        run = Run(folder)
    except StateMachineError:
        return
    asking: list[Callable[[], object]] = [
        *(run.metrics, run.epochs, run.graph, run.settings, run.history, run.record),
        *(run.rings, run.progress, run.look, run.changed, lambda: run.post("stop")),
        lambda: run.status,
    ]
    for ask in asking:
        try:
            ask()
        except StateMachineError:
            continue


def test_what_is_set_aside_is_kept_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.json").write_text("coffee")
    (tmp_path / "journal.sqlite").write_text("tea" * 1000)
    with caplog.at_level(logging.WARNING):
        trainer(run=tmp_path, max_epochs=1).fit(Net(), batches())
    assert (tmp_path / "damaged-1" / "journal.sqlite").read_text() == "tea" * 1000
    assert (tmp_path / "damaged-2" / "run.json").read_text() == "coffee"
    assert caplog.text.count("It is now in") == 2
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1]
    assert json.loads((tmp_path / "run.json").read_text())["history"][-1]["event"] == "ended"


# -- a journal that somebody holds -----------------------------------------------------------------


def test_entries_wait_while_somebody_holds_the_journal_and_are_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = trainer(run=tmp_path, max_epochs=4)
    one.start(Net(), batches())
    held = sqlite3.connect(tmp_path / "journal.sqlite")
    try:
        held.execute("BEGIN IMMEDIATE")
        one.run(until=lambda trainer: trainer.epoch == 2)
        assert Run(tmp_path).epochs() == []
        assert caplog.text.count("waits in memory; the run goes on") == 1
    finally:
        held.close()
    one.run()
    assert [epoch.epoch for epoch in Run(tmp_path).epochs()] == [1, 2, 3, 4]


def test_a_resume_forgets_what_came_later_although_somebody_holds_the_journal(
    tmp_path: Path,
) -> None:
    trainer(checkpoints=tmp_path, max_epochs=3).fit(Net(), batches())
    oldest = min(tmp_path.glob("0*"))
    held = sqlite3.connect(tmp_path / "journal.sqlite")
    again = trainer(checkpoints=tmp_path, max_epochs=4)
    try:
        held.execute("BEGIN IMMEDIATE")
        again.start(Net(), batches(), resume=oldest)
    finally:
        held.close()
    again.run()
    assert [epoch.epoch for epoch in Run(tmp_path).epochs()] == [1, 2, 3, 4]


def test_a_reader_is_told_of_a_table_without_an_end(tmp_path: Path) -> None:
    trainer(run=tmp_path, max_epochs=1).fit(Net(), batches())
    hostile_table(tmp_path)
    with pytest.raises(BadJournal, match="it has not the tables of one"):
        Run(tmp_path).history()
