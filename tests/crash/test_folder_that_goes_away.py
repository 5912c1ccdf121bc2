"""The folder of a run is deleted or moved while the run goes on: it is told once, and nothing is lost."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from statemachine_trainer import Run
from statemachine_trainer.callbacks import Checkpoints
from tests.observe.recorded import Net, batches, trainer


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


@pytest.mark.parametrize("go_away", [delete, move])
@pytest.mark.parametrize("background", [False, True])
def test_a_folder_that_goes_away_is_made_again_and_told_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    go_away: Callable[[Path], None],
    background: bool,
) -> None:
    folder = tmp_path / "run"
    one = trainer(checkpoints=Checkpoints(folder, background=background), max_epochs=3)

    @one.on("epoch_start")
    def _(it: object) -> None:
        if one.epoch == 2:
            one.checkpoints.store.wait()  # type: ignore[union-attr]
            go_away(folder)

    with caplog.at_level(logging.WARNING):
        one.fit(Net(), batches(), batches(2))
    (told,) = caplog.messages
    assert f"The folder {folder} of this run is gone" in told
    run = Run(folder)
    assert [record.epoch for record in run.epochs()] == [1, 2, 3]
    assert run.status == "ended"
    again = trainer(checkpoints=folder, max_epochs=4)
    again.fit(Net(), batches(), batches(2), resume="auto")
    assert again.epoch == 4
