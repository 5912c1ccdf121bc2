"""Hugging Face Accelerate: one's own loop, with everything prepared by an `Accelerator`."""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from _peers.work import Classifier, Data, Training


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
