"""The Trainer of Hugging Face transformers.

Its clipping is switched off and its optimizer replaced, so that the work is that of the others.
"""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from _peers.work import Classifier, Data, Training

logging.set_verbosity_error()
os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Module(nn.Module):
    """The model as that Trainer calls it: with the targets, for a dict with the loss."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the logits."""
        logits = self.model(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Calls(TrainerCallback):
    """Calls a function after each step."""

    def __init__(self, on_batch: Callable[[], None]) -> None:
        self.on_batch = on_batch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Call it."""
        self.on_batch()


def _first(items: list[Any]) -> dict[str, torch.Tensor]:
    return {"inputs": items[0][0], "labels": items[0][1]}


def _stacked(items: list[Any]) -> dict[str, torch.Tensor]:
    inputs, labels = zip(*items, strict=True)
    return {"inputs": torch.stack(inputs), "labels": torch.stack(labels)}


class InOrder(Trainer):
    """Reads the training data in order, from the loader that it is given."""

    train_loader: DataLoader[Any]

    def get_train_dataloader(self) -> Any:
        """Return the loader."""
        return self.accelerator.prepare(self.train_loader)


def _trainer(model: Classifier, loader: DataLoader[Any], settings: Any, **others: Any) -> Any:
    settings = {"disable_tqdm": True, **settings}
    optimizer = model.configure_optimizers()
    constant = LambdaLR(optimizer, lambda step: 1.0)
    arguments = TrainingArguments(use_cpu=True, max_grad_norm=0.0, report_to="none", **settings)
    trainer = InOrder(
        Module(model),
        arguments,
        train_dataset=loader.dataset,
        optimizers=(optimizer, constant),
        **others,
    )
    trainer.train_loader = loader
    return trainer


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    settings = {
        "output_dir": "/tmp",
        "max_steps": data.count,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    callbacks = [] if on_batch is None else [Calls(on_batch)]
    _trainer(model, data.loader(_first), settings, callbacks=callbacks).train()


def as_used(model: Classifier, data: Data, folder: Path, terminal: TextIO) -> None:
    """Train one pass with bar, loss and learning rate logged in each step, and checkpoints."""
    settings = {
        "output_dir": str(folder),
        "max_steps": data.count,
        "logging_steps": 1,
        "save_steps": 100,
        "save_total_limit": 3,
        "disable_tqdm": False,
    }
    with redirect_stdout(terminal), redirect_stderr(terminal):
        _trainer(model, data.loader(_first), settings).train()


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    settings = {
        "output_dir": str(job.folder),
        "num_train_epochs": job.epochs,
        "per_device_train_batch_size": job.batch_size,
        "per_device_eval_batch_size": job.batch_size,
        "logging_steps": job.every,
        "save_steps": job.every,
        "eval_strategy": "epoch",
    }
    loader = DataLoader(job.train_set, job.batch_size, num_workers=job.workers, collate_fn=_stacked)
    trainer = _trainer(
        model, loader, settings, eval_dataset=job.validation_set, data_collator=_stacked
    )
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return float(losses[-1])
