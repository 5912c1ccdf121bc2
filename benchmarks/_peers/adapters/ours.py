"""statemachine_trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from _peers.work import Batch, Classifier, Data, Training
from statemachine_trainer import Checkpoints, Monitor, Progress, Trainer, every, log


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if on_batch is not None:
        trainer.on("batch_end", lambda trainer, moment: on_batch())
    trainer.fit(model, data.batches())


def as_used(model: Classifier, data: Data, folder: Path, terminal: TextIO) -> None:
    """Train one pass with bar, logs, black box and checkpoints."""
    run = folder / "run"
    often = every(100, "step")
    trainer = Trainer(
        max_epochs=1,
        device="cpu",
        progress=Progress(Console(file=terminal, force_terminal=True, width=100)),
        callbacks=[Monitor()],
        checkpoints=Checkpoints(run, every=often, background=True, at_end=False),
        run=run,
    )
    trainer.fit(Module(model, logs=True), data.batches())


class Module(nn.Module):
    """The model with its steps."""

    def __init__(self, model: Classifier, *, logs: bool = False) -> None:
        super().__init__()
        self.model = model
        self.logs = logs

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        inputs, targets = batch
        loss = F.cross_entropy(self.model(inputs), targets)
        if self.logs:
            log("loss", loss)
            log("number", 0.5)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss."""
        inputs, targets = batch
        log("validation_loss", F.cross_entropy(self.model(inputs), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.model.configure_optimizers()


def training(model: Classifier, job: Training, *, background: bool = False) -> float:
    """Train as one does; return the last validation loss."""
    often = every(job.every, "step")
    checkpoints = Checkpoints(job.folder / "run", every=often, background=background)
    trainer = Trainer(max_epochs=job.epochs, device="cpu", progress=False, checkpoints=checkpoints)

    @trainer.on("batch_end", every=job.every)
    def write(trainer: Trainer, moment: object) -> None:
        assert trainer.context.loss is not None
        job.write_line(trainer.steps, trainer.context.loss.item())

    metrics = trainer.fit(Module(model), job.train_loader(), job.validation_loader())
    return metrics["validation_loss"]
