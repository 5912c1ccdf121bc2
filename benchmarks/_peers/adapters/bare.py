"""The loop that one writes by hand: the measure of the others, and what the method makes of 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from torch.nn import functional as F

from _peers.work import Classifier, Data, Training


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    optimizer = model.configure_optimizers()
    for inputs, targets in data.batches():
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_batch is not None:
            on_batch()


def as_used(model: Classifier, data: Data, folder: Path, terminal: TextIO) -> None:
    """Train one pass; there is nothing else to use."""
    steps(model, data, None)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    optimizer = model.configure_optimizers()
    train, validation = job.train_loader(), job.validation_loader()
    step = 0
    for _ in range(job.epochs):
        model.train()
        for inputs, targets in train:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % job.every == 0:
                job.write_line(step, loss.item())
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step}, job.folder / f"step-{step}.pt")
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in validation:
                total += F.cross_entropy(model(inputs), targets).item() * len(targets)
                count += len(targets)
    return total / count
