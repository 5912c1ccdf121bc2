"""torchtnt: a unit, with its loops."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torchtnt.framework.callbacks import Lambda
from torchtnt.framework.fit import fit
from torchtnt.framework.state import State
from torchtnt.framework.train import train
from torchtnt.framework.unit import EvalUnit, TrainUnit

from _peers.work import Batch, Classifier, Data, Training

logging.getLogger("torchtnt").setLevel(logging.ERROR)


class Unit(TrainUnit[Batch], EvalUnit[Batch]):
    """What is done with a batch."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.optimizer = model.configure_optimizers()
        self.total, self.count = 0.0, 0
        self.loss = torch.zeros(())

    def train_step(self, state: State, data: Batch) -> None:
        """Train on a batch."""
        inputs, targets = data
        loss = F.cross_entropy(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss

    def on_eval_start(self, state: State) -> None:
        """Begin the mean."""
        self.total, self.count = 0.0, 0

    def eval_step(self, state: State, data: Batch) -> None:
        """Add the loss of a batch to the mean."""
        inputs, targets = data
        self.total += F.cross_entropy(self.model(inputs), targets).item() * len(targets)
        self.count += len(targets)


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    callbacks = []
    if on_batch is not None:
        callbacks.append(Lambda(on_train_step_end=lambda state, unit: on_batch()))
    train(Unit(model), data.batches(), max_epochs=1, callbacks=callbacks)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss.

    Its own savers need torchsnapshot or a process group: the checkpoint is that of the bare loop.
    """
    unit = Unit(model)

    def step_end(state: Any, unit: Any) -> None:
        step = unit.train_progress.num_steps_completed
        if step % job.every == 0:
            job.write_line(step, unit.loss.item())
            states = {name: part.state_dict() for name, part in unit.app_state().items()}
            torch.save(states, job.folder / f"step-{step}.pt")

    fit(
        unit,
        job.train_loader(),
        job.validation_loader(),
        max_epochs=job.epochs,
        callbacks=[Lambda(on_train_step_end=step_end)],
    )
    return unit.total / unit.count
