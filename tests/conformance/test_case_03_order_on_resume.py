"""Case 3: the order of hooks of a resumed fit.

Ours fires nothing while a state is loaded: a run that was stopped goes on with the very signal that
it would have fired next, and one that had reached a limit, raised since, goes on as a fit that is
called again. In Lightning, hooks of loading come before `configure_optimizers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Checkpoints, Trainer, every
from statemachine_trainer.audit.settings_record import SettingsChanged

BATCHES = [(torch.full((2, 2), float(i)), torch.zeros(2, 1)) for i in range(2)]


def fit(folder: Path, *, resume: bool, **limits: Any) -> tuple[Trainer, list[str], list[int]]:
    torch.manual_seed(0)
    checkpoints = Checkpoints(folder, every=every(1, "step"), on_signals=False)
    trainer = Trainer(progress=False, checkpoints=checkpoints, **limits)
    states: list[str] = []
    batches: list[int] = []
    trainer.on("*", lambda moment: states.append(moment.state))
    trainer.on("batch_start", lambda trainer: batches.append(int(trainer.context.batch[0][0, 0])))
    trainer.fit(
        nn.Linear(2, 1),
        BATCHES,
        loss=nn.functional.mse_loss,
        optimizer=torch.optim.SGD,
        resume="auto" if resume else None,
    )
    return trainer, states, batches


def test_a_fit_of_one_epoch_goes_on_with_the_next_one(tmp_path: Path) -> None:
    fit(tmp_path, resume=False, max_epochs=1)
    trainer, states, batches = fit(tmp_path, resume=True, max_epochs=2)
    assert states[:4] == ["fit", "fit_start", "next_epoch", "epoch"]
    assert batches == [0, 1]
    assert "sanity" not in states
    assert (trainer.epoch, trainer.steps) == (2, 4)


def test_a_fit_that_ended_after_its_first_step_goes_on_with_the_second_batch(
    tmp_path: Path,
) -> None:
    fit(tmp_path, resume=False, max_steps=1, max_epochs=5)
    trainer, _, batches = fit(tmp_path, resume=True, max_steps=3, max_epochs=5)
    assert batches == [1, 0]
    assert trainer.steps == 3


def test_a_fit_that_was_stopped_stays_stopped(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=5, progress=False, checkpoints=Checkpoints(tmp_path))
    trainer.on("batch_end", lambda trainer: trainer.stop(), once=True)
    loss, sgd = nn.functional.mse_loss, torch.optim.SGD
    trainer.fit(nn.Linear(2, 1), BATCHES, loss=loss, optimizer=sgd)
    again = Trainer(max_epochs=9, progress=False, checkpoints=Checkpoints(tmp_path))
    with pytest.warns(SettingsChanged, match="max_epochs was 5, is 9 now"):
        again.fit(nn.Linear(2, 1), BATCHES, loss=loss, optimizer=sgd, resume="auto")
    assert again.steps == trainer.steps == 1
