"""One fit in Lightning's trainer and one in ours, with everything noted that module and callbacks hear."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning

HOOKS = (
    "setup", "teardown", "prepare_data", "configure_optimizers", "configure_callbacks",
    "configure_model", "on_fit_start", "on_fit_end", "on_sanity_check_start",
    "on_sanity_check_end", "on_train_start", "on_train_end", "on_train_epoch_start",
    "on_train_epoch_end", "on_train_batch_start", "on_train_batch_end", "training_step",
    "on_before_zero_grad", "optimizer_zero_grad", "on_before_backward", "backward",
    "on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping",
    "lr_scheduler_step", "on_validation_model_zero_grad", "on_validation_model_eval",
    "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start",
    "validation_step", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end",
    "on_test_model_eval", "on_test_start", "on_test_epoch_start", "on_test_batch_start",
    "test_step", "on_test_batch_end", "on_test_epoch_end", "on_test_end", "on_predict_start",
    "on_predict_epoch_start", "on_predict_batch_start", "predict_step", "on_predict_batch_end",
    "on_predict_epoch_end", "on_predict_end", "on_before_batch_transfer",
    "transfer_batch_to_device", "on_after_batch_transfer",
)  # fmt: skip


def data(
    samples: int = 60, batch_size: int = 10, *, shuffle: bool = True
) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 8, generator=generator)
    targets = inputs[:, :3].argmax(1)
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=shuffle)


class Classifier(L.LightningModule):
    """Batch norm and dropout, so that modes and random numbers matter."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )

    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def loss(self, batch: Any) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)


def noting(kind: type[Any], notes: list[str], prefix: str = "", leave_out: Any = ()) -> type[Any]:
    """A subclass whose hooks note that they were called, and then do what they do."""

    def hook(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            notes.append(prefix + name)
            return getattr(super(made, self), name)(*args, **kwargs)

        return method

    names = [name for name in HOOKS if hasattr(kind, name) and name not in leave_out]
    made: type[Any] = type(kind.__name__, (kind,), {name: hook(name) for name in names})
    # Lightning looks at signatures to see what a step takes.
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        if name in vars(made):
            vars(made)[name].__wrapped__ = getattr(kind, name)
    return made


@dataclass
class Ended:
    """What is left of a fit."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]
    notes: list[str]
    steps: int
    epochs: int
    module: Any


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's warnings are none of our concern."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_THEIR_NAMES = {
    "clip_norm": "gradient_clip_val",
    "accumulate": "accumulate_grad_batches",
    "validate_every": "val_check_interval",
    "validate_epochs": "check_val_every_n_epoch",
    "sanity_batches": "num_sanity_val_steps",
    "limit_train_batches": "limit_train_batches",
    "reload_every": "reload_dataloaders_every_n_epochs",
}

Make = Callable[[list[str]], tuple[Any, list[Any]]]
"""Makes a module and its callbacks, which may write into the list given."""


def fit_in_lightning(
    make: Make, train: Any = None, validation: Any = None, datamodule: Any = None, **settings: Any
) -> Ended:
    more = {
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        **settings.pop("theirs", {}),
    }
    theirs = {_THEIR_NAMES.get(name, name): value for name, value in settings.items()} | more
    with quiet():
        notes: list[str] = []
        torch.manual_seed(1)
        module, callbacks = make(notes)
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_model_summary=False,
            callbacks=callbacks,
            **theirs,
        )
        torch.manual_seed(2)
        trainer.fit(module, train, validation, datamodule=datamodule)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = dict(module.state_dict())
    return Ended(weights, metrics, notes, trainer.global_step, trainer.current_epoch, module)


def fit_in_ours(
    make: Make, train: Any = None, validation: Any = None, datamodule: Any = None, **settings: Any
) -> Ended:
    notes: list[str] = []
    torch.manual_seed(1)
    module, callbacks = make(notes)
    trainer = Trainer(device="cpu", progress=False, **settings)
    torch.manual_seed(2)
    model = lightning.module(module, callbacks=callbacks, datamodule=datamodule)
    with quiet_lightning():
        trainer.fit(model, train, validation)
    weights = dict(module.state_dict())
    return Ended(weights, trainer.metrics, notes, module.global_step, module.current_epoch, module)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Parts of Lightning that run here warn of what torch has deprecated since."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|torch)\.")
        yield


def both(make: Make, *data: Any, **settings: Any) -> tuple[Ended, Ended]:
    """Fit the same module in both trainers; the data are functions, called for each anew."""
    theirs = fit_in_lightning(make, *(one() for one in data), **settings)
    settings.pop("theirs", None)
    ours = fit_in_ours(make, *(one() for one in data), **settings)
    return theirs, ours


def assert_same_bits(theirs: Ended, ours: Ended) -> None:
    assert theirs.weights.keys() == ours.weights.keys()
    different = [n for n, w in theirs.weights.items() if not torch.equal(w, ours.weights[n])]
    assert different == []
    assert (ours.steps, ours.epochs) == (theirs.steps, theirs.epochs)
