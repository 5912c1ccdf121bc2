"""Lightning Fabric: one's own loop, with model, optimizer and loader set up by Fabric."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from torch.nn import functional as F

from _peers.work import Classifier, Data, Training

logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(model, model.configure_optimizers())
    for inputs, targets in fabric.setup_dataloaders(data.loader()):
        loss = F.cross_entropy(module(inputs), targets)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if on_batch is not None:
            on_batch()


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    fabric = Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(str(job.folder)))
    module, optimizer = fabric.setup(model, model.configure_optimizers())
    train = fabric.setup_dataloaders(job.train_loader())
    validation = fabric.setup_dataloaders(job.validation_loader())
    step = 0
    for _ in range(job.epochs):
        module.train()
        for inputs, targets in train:
            loss = F.cross_entropy(module(inputs), targets)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            step += 1
            if step % job.every == 0:
                fabric.log("loss", loss, step=step)
                state = {"model": module, "optimizer": optimizer, "step": step}
                fabric.save(job.folder / f"step-{step}.ckpt", state)
        module.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in validation:
                total += F.cross_entropy(module(inputs), targets).item() * len(targets)
                count += len(targets)
    return total / count
