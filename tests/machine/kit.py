"""A small tree of training loops without training, and a recorder, for the tests of the machine."""

from __future__ import annotations

from typing import Any, Literal

from statemachine_trainer.machine import Driver, Loop, place, transient


class Step(Loop):
    initial = "forward"
    transitions = [
        ["forwarded", "forward", "backward"],
        ["backwarded", "backward", "optimizer_step"],
    ]

    def forward(self) -> Literal["forwarded"]:
        return "forwarded"

    @transient
    def backward(self) -> Literal["backwarded"]:
        return "backwarded"

    def optimizer_step(self) -> Literal["optimized"]:
        return "optimized"


class Batch(Loop):
    initial = "batch_start"
    transitions = [
        ["started", "batch_start", "optimizer"],
        ["optimized", "optimizer", "batch_end"],
    ]
    optimizer: Loop = place(Step)

    def batch_start(self) -> Literal["started"]:
        return "started"

    def batch_end(self) -> Literal["batch_done"]:
        return "batch_done"


class Epoch(Loop):
    initial = "epoch_start"
    transitions = [
        ["started", "epoch_start", "fetch"],
        ["fetched", "fetch", "batch"],
        ["exhausted", "fetch", "epoch_end"],
        ["stop", "fetch", "epoch_end"],
        ["batch_done", "batch", "fetch"],
    ]
    batch: Loop = place(Batch)
    seen: int = 0

    def __init__(self, batches: int = 2, **loops: Any) -> None:
        super().__init__(**loops)
        self.batches = batches

    def epoch_start(self) -> Literal["started"]:
        return "started"

    def fetch(self) -> Literal["fetched", "exhausted"]:
        if self.seen == self.batches:
            return "exhausted"
        self.seen += 1
        return "fetched"

    def epoch_end(self) -> Literal["epoch_done"]:
        return "epoch_done"


class Fit(Loop):
    initial = "fit_start"
    outcomes = ("fit_done",)
    transitions = [["started", "fit_start", "epoch"], ["epoch_done", "epoch", "fit_end"]]
    epoch: Loop = place(Epoch)

    def fit_start(self) -> Literal["started"]:
        return "started"

    def fit_end(self) -> Literal["fit_done"]:
        return "fit_done"


BATCH = [
    "fit.epoch.fetch",
    "fit.epoch.batch.batch_start",
    "fit.epoch.batch.optimizer.forward",
    "fit.epoch.batch.optimizer.backward",
    "fit.epoch.batch.optimizer.optimizer_step",
    "fit.epoch.batch.batch_end",
]
"""States of one batch, in the order in which they run."""

WHOLE_RUN = [
    "fit.fit_start",
    "fit.epoch.epoch_start",
    *BATCH,
    *BATCH,
    "fit.epoch.fetch",
    "fit.epoch.epoch_end",
    "fit.fit_end",
]
"""States of a fit of one epoch of two batches."""


def fit_driver(root: Loop | None = None, **options: Any) -> Driver:
    """A driver that stands at the first state of a fit."""
    driver = Driver(Fit() if root is None else root, name="fit", **options)
    driver.start()
    return driver


def path_of(driver: Driver, **options: Any) -> list[str]:
    """Let a driver go on; return the states that work on the way."""
    return [str(moment.source) for moment in driver.moments(**options)]
