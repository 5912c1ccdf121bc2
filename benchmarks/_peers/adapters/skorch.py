"""skorch: the interface of scikit-learn."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.helper import predefined_split
from torch import nn

from _peers.work import Classifier, Data, Listed, Training


class Calls(Callback):
    """Calls a function after each batch of the training."""

    def __init__(self, on_batch: Callable[[], None]) -> None:
        self.on_batch = on_batch

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **_: Any) -> None:
        """Call it."""
        if training:
            self.on_batch()


class Saves(Callback):
    """Logs the loss and writes a checkpoint every so many steps."""

    def __init__(self, job: Training) -> None:
        self.job = job
        self.step = 0

    def on_batch_end(
        self, net: Any, batch: Any = None, training: bool = False, loss: Any = None, **_: Any
    ) -> None:
        """Do so after the training batches that are due."""
        self.step += training
        if training and self.step % self.job.every == 0:
            self.job.write_line(self.step, loss.item())
            net.save_params(
                f_params=str(self.job.folder / f"params-{self.step}.pt"),
                f_optimizer=str(self.job.folder / f"optimizer-{self.step}.pt"),
            )


def _net(model: Classifier, **settings: Any) -> Any:
    return NeuralNet(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=0.1,
        device="cpu",
        verbose=0,
        callbacks__print_log=None,
        **settings,
    )


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    net = _net(
        model,
        max_epochs=1,
        train_split=None,
        iterator_train=lambda dataset, **_: data.batches(),
        callbacks=[] if on_batch is None else [Calls(on_batch)],
    )
    net.fit(Listed([]), None)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    net = _net(
        model,
        max_epochs=job.epochs,
        batch_size=job.batch_size,
        train_split=predefined_split(job.validation_set),
        iterator_train__num_workers=job.workers,
        callbacks=[Saves(job)],
    )
    net.fit(job.train_set, None)
    return float(net.history[-1, "valid_loss"])
