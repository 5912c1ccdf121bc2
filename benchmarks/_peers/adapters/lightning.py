"""Lightning's Trainer, with its progress bar and its summary of the model switched off."""

# mypy: disable-error-code="misc"
from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from _peers.work import Batch, Classifier, Data, Training

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Module(LightningModule):
    """The model with its steps."""

    def __init__(self, model: Classifier, *, logs: bool | Literal["two"]) -> None:
        super().__init__()
        self.model = model
        self.logs = logs

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        inputs, targets = batch
        loss = F.cross_entropy(self.model(inputs), targets)
        if self.logs:
            self.log("loss", loss, prog_bar=True)
            if self.logs == "two":
                self.log("number", 0.5)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss."""
        inputs, targets = batch
        self.log("validation_loss", F.cross_entropy(self.model(inputs), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.model.configure_optimizers()


class Calls(Callback):
    """Calls a function after each batch."""

    def __init__(self, on_batch: Callable[[], None]) -> None:
        self.on_batch = on_batch

    def on_train_batch_end(self, *_: Any) -> None:
        """Call it."""
        self.on_batch()


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if on_batch is None else [Calls(on_batch)],
    )
    trainer.fit(Module(model, logs=False), data.batches())


def as_used(model: Classifier, data: Data, folder: Path, terminal: TextIO) -> None:
    """Train one pass with bar, logs, the learning rate and checkpoints."""
    with redirect_stdout(terminal):
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=CSVLogger(folder),
            enable_model_summary=False,
            callbacks=[
                LearningRateMonitor("step"),
                TQDMProgressBar(refresh_rate=25),
                ModelCheckpoint(folder, every_n_train_steps=100, save_top_k=1),
            ],
        )
        trainer.fit(Module(model, logs="two"), data.batches())


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    trainer = Trainer(
        max_epochs=job.epochs,
        accelerator="cpu",
        logger=CSVLogger(job.folder),
        log_every_n_steps=job.every,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(job.folder, every_n_train_steps=job.every, save_top_k=-1),
        ],
    )
    trainer.fit(Module(model, logs=True), job.train_loader(), job.validation_loader())
    return float(trainer.callback_metrics["validation_loss"])
