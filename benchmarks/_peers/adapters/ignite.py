"""PyTorch-Ignite: an `Engine` around an update function."""

# mypy: disable-error-code="import-not-found,untyped-decorator"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.handlers import Checkpoint, DiskSaver
from ignite.handlers.tqdm_logger import ProgressBar
from ignite.metrics import Loss, RunningAverage
from torch.nn import functional as F

from _peers.work import Batch, Classifier, Data, Training


def _trainer(model: Classifier, optimizer: torch.optim.Optimizer) -> Any:
    def update(engine: Any, batch: Batch) -> torch.Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Engine(update)


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    trainer = _trainer(model, model.configure_optimizers())
    if on_batch is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, on_batch)
    trainer.run(data.batches(), max_epochs=1)


def as_used(model: Classifier, data: Data, folder: Path, terminal: TextIO) -> None:
    """Train one pass with bar, running averages, the learning rate and checkpoints."""
    optimizer = model.configure_optimizers()
    trainer = _trainer(model, optimizer)
    RunningAverage(output_transform=float).attach(trainer, "loss")
    RunningAverage(output_transform=lambda _: 0.5).attach(trainer, "number")
    ProgressBar(file=terminal).attach(trainer, ["loss"])
    saved = {"model": model, "optimizer": optimizer, "trainer": trainer}
    saver = Checkpoint(saved, DiskSaver(str(folder)), n_saved=3)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=100), saver)
    rates: list[float] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note_rate() -> None:
        rates[:] = [group["lr"] for group in optimizer.param_groups]

    trainer.run(data.batches(), max_epochs=1)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    optimizer = model.configure_optimizers()
    trainer = _trainer(model, optimizer)
    evaluator = create_supervised_evaluator(model, metrics={"loss": Loss(F.cross_entropy)})
    validation = job.validation_loader()
    saved = {"model": model, "optimizer": optimizer, "trainer": trainer}
    saver = Checkpoint(saved, DiskSaver(str(job.folder)), n_saved=None)
    often = Events.ITERATION_COMPLETED(every=job.every)
    trainer.add_event_handler(often, saver)

    @trainer.on(often)
    def write(engine: Any) -> None:
        job.write_line(engine.state.iteration, engine.state.output.item())

    @trainer.on(Events.EPOCH_STARTED)
    def training_mode() -> None:
        model.train()

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        evaluator.run(validation)

    trainer.run(job.train_loader(), max_epochs=job.epochs)
    return float(evaluator.state.metrics["loss"])
