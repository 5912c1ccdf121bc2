"""fastai: a `Learner`, with the optimizer of torch and its progress bar off."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch.nn import functional as F

from _peers.work import Classifier, Data, Training


class Calls(Callback):
    """Calls a function after each batch of the training."""

    def __init__(self, on_batch: Callable[[], None]) -> None:
        self.on_batch = on_batch

    def after_batch(self) -> None:
        """Call it."""
        if self.training:
            self.on_batch()


class Saves(Callback):
    """Logs the loss and writes a checkpoint every so many steps."""

    def __init__(self, job: Training) -> None:
        self.job = job

    def after_batch(self) -> None:
        """Do so after the training batches that are due."""
        step = self.train_iter
        if self.training and step % self.job.every == 0:
            self.job.write_line(step, self.loss.item())
            self.learn.save(f"step-{step}")


class _NoLength:
    """An iterable with the attributes that a `Learner` reads."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.dataset = range(data.count)

    def __len__(self) -> int:
        return self._data.count

    def __iter__(self) -> Any:
        return iter(self._data.batches())


def _learner(model: Classifier, loaders: DataLoaders, callbacks: list[Any], **others: Any) -> Any:
    return Learner(
        loaders,
        model,
        loss_func=F.cross_entropy,
        opt_func=partial(OptimWrapper, opt=torch.optim.SGD),
        lr=0.1,
        cbs=callbacks,
        **others,
    )


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    callbacks = [] if on_batch is None else [Calls(on_batch)]
    learner = _learner(model, DataLoaders(_NoLength(data), [], device="cpu"), callbacks)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    loaders = DataLoaders(job.train_loader(), job.validation_loader(), device="cpu")
    callbacks = [Saves(job), CSVLogger(str(job.folder / "history.csv"))]
    learner = _learner(model, loaders, callbacks, path=job.folder)
    with learner.no_bar(), learner.no_logging():
        learner.fit(job.epochs)
    return float(learner.recorder.values[-1][-1])
