"""Case 14: where schedulers move.

By step: before the batch ends, as in Lightning. By epoch: in the work of `epoch_end`, whether they
monitor a value or not (Lightning moves the others before the end of the last batch). By step on a
monitored value: with the first step after it was measured (Lightning: after the validation).
"""

from __future__ import annotations

from typing import Any

import torch

from statemachine_trainer.loops import log
from tests.loops.inner_kit import Batch, Regression, Signals, make_batches, make_trainer

STEP = "optimizer_step"


def places_of(*, interval: str, monitor: str | None) -> list[str]:
    order: list[str] = []

    class Recorder:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        def step(self, *metrics: float) -> None:
            order.append("moves" + "".join(f" on {value}" for value in metrics))

    class Monitoring(Recorder):
        def step(self, metrics: float) -> None:  # type: ignore[override]
            super().step(metrics)

    class Model(Regression):
        validations = 0

        def validation_step(self, batch: Batch) -> None:
            self.validations += 1
            log("val", float(self.validations))

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        kind = Recorder if monitor is None else Monitoring
        config = {"scheduler": kind(optimizer), "interval": interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": config}

    trainer = make_trainer(validate_every=0.5, sanity_batches=0)
    signals = Signals(trainer, STEP, "batch_end", "validation_end", "epoch_end", "epoch_end:exit")
    signals.fired = order
    trainer.fit(Model(configure), make_batches(4), make_batches(1))
    return order


def test_by_step() -> None:
    batch = [STEP, "moves", "batch_end"]
    half = [*batch, *batch, "validation_end"]
    assert places_of(interval="step", monitor=None) == [*half, *half, "epoch_end", "epoch_end:exit"]


def test_by_epoch() -> None:
    half = [STEP, "batch_end", STEP, "batch_end", "validation_end"]
    end = ["epoch_end", "moves", "epoch_end:exit"]
    assert places_of(interval="epoch", monitor=None) == [*half, *half, *end]


def test_by_step_on_a_monitored_value() -> None:
    first = [STEP, "batch_end", STEP, "batch_end", "validation_end"]
    second = [STEP, "moves on 1.0", "batch_end", STEP, "batch_end", "validation_end"]
    assert places_of(interval="step", monitor="val") == [
        *first,
        *second,
        "epoch_end",
        "epoch_end:exit",
    ]


def test_by_epoch_on_a_monitored_value() -> None:
    half = [STEP, "batch_end", STEP, "batch_end", "validation_end"]
    end = ["epoch_end", "moves on 2.0", "epoch_end:exit"]
    assert places_of(interval="epoch", monitor="val") == [*half, *half, *end]
