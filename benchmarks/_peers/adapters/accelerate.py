"""Hugging Face Accelerate: one's own loop, with everything prepared by an `Accelerator`."""

# mypy: disable-error-code="import-not-found,import-untyped,misc"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import ProjectConfiguration
from torch.nn import functional as F

from _peers.work import Classifier, Data, Training


class Lines(GeneralTracker):
    """A tracker that keeps what it is given: the cheapest that there can be."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> list[tuple[int | None, dict[str, Any]]]:
        """What it has kept."""
        return self.kept

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Keep values."""
        self.kept.append((step, values))


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    accelerator = Accelerator(cpu=True)
    module, optimizer, loader = accelerator.prepare(
        model, model.configure_optimizers(), data.loader()
    )
    for inputs, targets in loader:
        loss = F.cross_entropy(module(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if on_batch is not None:
            on_batch()


def as_used(model: Classifier, data: Data, folder: Path, terminal: TextIO) -> None:
    """Train one pass with bar, two logged values, the learning rate and checkpoints."""
    from tqdm import tqdm  # here, as it is no part of the import time of Accelerate

    project = ProjectConfiguration(
        project_dir=str(folder), automatic_checkpoint_naming=True, total_limit=3
    )
    accelerator = Accelerator(cpu=True, log_with=Lines(), project_config=project)
    accelerator.init_trackers("as used")
    module, optimizer, loader = accelerator.prepare(
        model, model.configure_optimizers(), data.loader()
    )
    bar = tqdm(loader, file=terminal)
    for step, (inputs, targets) in enumerate(bar, 1):
        loss = F.cross_entropy(module(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        number = loss.item()
        rate = optimizer.param_groups[0]["lr"]
        accelerator.log({"loss": number, "number": 0.5, "learning rate": rate}, step=step)
        bar.set_postfix(loss=number, refresh=False)
        if step % 100 == 0:
            accelerator.save_state()
    accelerator.end_training()


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    accelerator = Accelerator(cpu=True)
    module, optimizer, train, validation = accelerator.prepare(
        model, model.configure_optimizers(), job.train_loader(), job.validation_loader()
    )
    step = 0
    for _ in range(job.epochs):
        module.train()
        for inputs, targets in train:
            loss = F.cross_entropy(module(inputs), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step % job.every == 0:
                job.write_line(step, loss.item())
                accelerator.save_state(str(job.folder / f"step-{step}"))
        module.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in validation:
                total += F.cross_entropy(module(inputs), targets).item() * len(targets)
                count += len(targets)
    return total / count
