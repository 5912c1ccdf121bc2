"""A path means what it meant where it was given, wherever the process works later."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import LabelFolder, Run, RunFolder
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.files import NoPath
from statemachine_trainer.snapshot import Store
from statemachine_trainer.snapshot.loading import load_checkpoint, load_weights
from tests.observe.recorded import Net, batches, trainer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process works at first."""
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")  # put back at the end, whatever a test does
    return tmp_path / "home"


def test_a_run_stays_in_its_folder_when_the_working_directory_changes(home: Path) -> None:
    def go_away() -> None:
        os.chdir(home.parent / "away")

    one = trainer(checkpoints="runs/a", max_epochs=4)
    one.on("epoch_end", go_away, once=True)
    trace = one.trace("trace.json")
    one.fit(Net(), batches(), until=lambda trainer: trainer.epoch == 3)
    trace.stop()
    assert one.run_folder == home / "runs" / "a"
    assert [*(home.parent / "away").iterdir()] == []
    assert (home / "trace.json").exists()
    os.chdir(home)
    epochs = []
    again = trainer(checkpoints="runs/a", max_epochs=4)
    again.on("epoch_start", lambda trainer: epochs.append(trainer.epoch))
    again.fit(Net(), batches(), resume="auto")
    assert epochs == [3]
    assert [one.epoch for one in Run("runs/a").epochs()] == [1, 2, 3, 4]


@pytest.mark.parametrize("away_before_the_start", [True, False])
def test_a_path_is_meant_where_the_object_is_made(home: Path, away_before_the_start: bool) -> None:
    settings: list[Any] = [Checkpoints("runs/a"), "runs/b", Path("runs/c")]
    trainers = [trainer(checkpoints=one, max_epochs=1) for one in settings]
    trainers.append(trainer(run=RunFolder("runs/d"), max_epochs=1))
    if away_before_the_start:
        os.chdir(home.parent / "away")
    for one in trainers:
        one.fit(Net(), batches(1))
    assert sorted(one.name for one in (home / "runs").iterdir()) == ["a", "b", "c", "d"]


def test_what_is_read_is_meant_where_it_is_named(home: Path) -> None:
    trainer(checkpoints="runs/a", max_epochs=1).fit(Net(), batches(1))
    run, store, labels = Run("runs/a"), Store("runs/a"), LabelFolder("labels")
    loaded = load_checkpoint("runs/a")
    os.chdir(home.parent / "away")
    assert loaded.path.parent == home / "runs" / "a"
    assert [one.epoch for one in run.epochs()] == [1]
    assert len(store.list()) == 1
    assert labels.folder == home / "labels"


ADDRESSES: dict[str, Callable[[str], object]] = {
    "checkpoints": lambda address: trainer(checkpoints=address),
    "Checkpoints": lambda address: Checkpoints(address),
    "run": lambda address: trainer(run=address),
    "RunFolder": lambda address: RunFolder(address),
    "Run": lambda address: Run(address),
    "Store": lambda address: Store(address),
    "trace": lambda address: trainer(max_epochs=1).trace(address),
    "labels": lambda address: LabelFolder(address),
}


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "memory://run"])
@pytest.mark.parametrize("give", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_that_is_no_path_is_refused_at_once(
    home: Path, give: Callable[[str], object], address: str
) -> None:
    with pytest.raises(NoPath, match=r"is an address, .*give a local folder"):
        give(address)
    assert [*home.iterdir()] == []


def test_a_path_object_of_an_address_is_refused_too(home: Path) -> None:
    with pytest.raises(NoPath):
        trainer(checkpoints=Path("s3://bucket/run"))
    with pytest.raises(NoPath, match="as a text with both slashes"):
        trainer(max_epochs=1).fit(Net(), batches(1), resume=Path("memory://run"))
    with pytest.raises(NoPath, match="as a text with both slashes"):
        load_weights(Net(), Path("memory://run"))
