"""A start that cannot be made leaves what was there, or nothing: never half of something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.callbacks.early_stopping import EarlyStopping
from statemachine_trainer.loops.loop_errors import NothingToDo, SettingError
from statemachine_trainer.machine.errors import AlreadyRunning, NotStarted
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch
from tests.loops.outer_kit import Model, make_trainer, numbered


def test_a_start_that_is_refused_leaves_the_paused_fit() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(3), until="batch_end")
    with pytest.raises(NothingToDo, match="is paused in state"):
        trainer.start(model, numbered(5))
    trainer.loop.max_epochs = None
    with pytest.raises(SettingError, match="never end"):
        trainer.start(Model(), numbered(5))
    trainer.loop.max_epochs = 1
    trainer.run()
    assert model.trained == [0, 1, 2]


def test_a_fit_cannot_be_started_by_a_receiver_of_it() -> None:
    trainer, model = make_trainer(), Model()
    subscription = trainer.on("batch_end", lambda trainer: trainer.start(model, numbered(1)))
    with pytest.raises(AlreadyRunning, match="cannot start it"):
        trainer.fit(model, numbered(3))
    subscription.cancel()
    trainer.run()
    assert model.trained == [0, 1, 2]


def test_half_a_state_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    first = make_trainer(checkpoints=tmp_path)
    first.fit(Model(), numbered(2))
    other = make_trainer(callbacks=[EarlyStopping("value")], checkpoints=tmp_path)
    with pytest.raises(SnapshotMismatch, match="EarlyStopping"):
        other.fit(Model(), numbered(2), resume="auto")
    with pytest.raises(NotStarted, match="Nothing was started"):
        other.run()


def test_checkpoints_that_are_put_in_place_before_the_start_are_the_trainer_s(
    tmp_path: Path,
) -> None:
    trainer = make_trainer()
    trainer.checkpoints = Checkpoints(tmp_path)
    trainer.fit(Model(), numbered(2))
    resumed: Any = make_trainer(max_epochs=2, checkpoints=tmp_path)
    resumed.fit(Model(), numbered(2), resume="auto")
    assert (resumed.epoch, resumed.steps) == (2, 4)
