"""pytorch-accelerated: a trainer around Accelerate."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_accelerated import Trainer
from pytorch_accelerated.callbacks import (
    MoveModulesToDeviceCallback,
    TerminateOnNaNCallback,
    TrainerCallback,
)
from torch import nn
from torch.utils.data import DataLoader, default_collate

from _peers.work import Classifier, Data, Listed, Training, first


class Calls(TrainerCallback):
    """Calls a function after each step."""

    def __init__(self, on_batch: Callable[[], None]) -> None:
        self.on_batch = on_batch

    def on_train_step_end(self, trainer: Any, **_: Any) -> None:
        """Call it."""
        self.on_batch()


class Saves(TrainerCallback):
    """Logs the loss and writes a checkpoint every so many steps."""

    def __init__(self, job: Training) -> None:
        self.job = job
        self.step = 0

    def on_train_step_end(self, trainer: Any, batch_output: Any = None, **_: Any) -> None:
        """Do so after the steps that are due."""
        self.step += 1
        if self.step % self.job.every == 0:
            self.job.write_line(self.step, batch_output["loss"].item())
            trainer.save_checkpoint(self.job.folder / f"step-{self.step}.pt")


class FromLoader(Trainer):
    """Reads the training data from the loader that it is given."""

    train_loader: DataLoader[Any] | None = None

    def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
        """Return the loader."""
        self._train_dl_kwargs = {"batch_size": 1}
        return self.train_loader


def _trainer(kind: type[Any], model: Classifier, callbacks: list[Any]) -> Any:
    return kind(
        model=model,
        loss_func=nn.CrossEntropyLoss(),
        optimizer=model.configure_optimizers(),
        callbacks=[MoveModulesToDeviceCallback, TerminateOnNaNCallback, *callbacks],
    )


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    trainer = _trainer(FromLoader, model, [] if on_batch is None else [Calls(on_batch)])
    trainer.train_loader = data.loader()
    trainer.train(Listed([]), num_epochs=1, per_device_batch_size=1, collate_fn=first)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    trainer = _trainer(Trainer, model, [Saves(job)])
    in_order = {"shuffle": False, "num_workers": job.workers}
    trainer.train(
        job.train_set,
        num_epochs=job.epochs,
        eval_dataset=job.validation_set,
        per_device_batch_size=job.batch_size,
        train_dataloader_kwargs=in_order,
        eval_dataloader_kwargs={"num_workers": 0},
        collate_fn=default_collate,
    )
    return float(trainer.run_history.get_latest_metric("eval_loss_epoch"))
