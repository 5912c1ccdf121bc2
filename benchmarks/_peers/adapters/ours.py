"""statemachine_trainer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from _peers.work import Batch, Classifier, Data, Training
from statemachine_trainer import Checkpoints, Trainer, every, log


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if on_batch is not None:
        trainer.on("batch_end", lambda trainer, moment: on_batch())
    trainer.fit(model, data.batches())


class Module(nn.Module):
    """The model with its steps."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs), targets)

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
