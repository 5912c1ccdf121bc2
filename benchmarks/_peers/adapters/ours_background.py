"""statemachine_trainer, with checkpoints that are written by a thread."""

from __future__ import annotations

from _peers.adapters.ours import as_used as as_used
from _peers.adapters.ours import steps as steps
from _peers.adapters.ours import training as train
from _peers.work import Classifier, Training


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    return train(model, job, background=True)
