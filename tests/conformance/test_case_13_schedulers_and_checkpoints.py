"""Case 13: what a checkpoint holds of the schedulers.

Saved at the end of the second and last batch it holds two steps of a scheduler by step, as in
Lightning. Ours departs for schedulers by epoch: Lightning moves them before that batch has ended, here
they move in the work of `epoch_end`, after the last validation, so that a checkpoint at the end of a
batch holds none of it and one at the exit of the epoch's end does. A scheduler by step on a monitored
value moves with its optimizer, so that it is behind nowhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from statemachine_trainer.loops import log
from tests.loops.inner_kit import Batch, Regression, make_batches, make_trainer


class Model(Regression):
    def validation_step(self, batch: Batch) -> None:
        log("val", 1.0)


def held_at(names: list[str], scheduler: Any, **config: Any) -> list[tuple[str, int]]:
    """How often a scheduler has moved, at each firing of the signals."""

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        made = {"scheduler": scheduler(optimizer), **config}
        return {"optimizer": optimizer, "lr_scheduler": made}

    trainer = make_trainer(sanity_batches=0)
    held: list[tuple[str, int]] = []

    def save(trainer: Any, moment: Any) -> None:
        state = trainer.context.slots[0].schedulers[0].scheduler.state_dict()
        held.append((moment.state, state["last_epoch"]))

    for name in names:
        trainer.on(name, save)
    trainer.fit(Model(configure), make_batches(2), make_batches(1))
    return held


def halving(optimizer: Any) -> StepLR:
    return StepLR(optimizer, 1)


def plateau(optimizer: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer)


def test_a_scheduler_by_step_has_moved_when_its_batch_ends() -> None:
    assert held_at(["batch_end"], halving, interval="step") == [("batch_end", 1), ("batch_end", 2)]


def test_a_scheduler_by_epoch_has_moved_when_the_epoch_is_left() -> None:
    names = ["batch_end", "validation_end", "epoch_end", "epoch_end:exit"]
    assert held_at(names, halving) == [
        ("batch_end", 0),
        ("batch_end", 0),
        ("validation_end", 0),
        ("epoch_end", 0),
        ("epoch_end", 1),
    ]


def test_a_monitoring_scheduler_by_step_is_behind_nowhere() -> None:
    held = held_at(
        ["batch_end", "validation_end", "epoch_end:exit"],
        plateau,
        interval="step",
        monitor="val",
    )
    # The first value is there only after the last step of the epoch.
    assert held == [("batch_end", 0), ("batch_end", 0), ("validation_end", 0), ("epoch_end", 0)]


def test_a_monitoring_scheduler_by_epoch_has_moved_when_the_epoch_is_left() -> None:
    held = held_at(["validation_end", "epoch_end", "epoch_end:exit"], plateau, monitor="val")
    assert held == [("validation_end", 0), ("epoch_end", 0), ("epoch_end", 1)]
