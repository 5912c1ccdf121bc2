"""Steps made of a function that finds the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from statemachine_trainer.loops.log import log

_LOGGED = {"training_step": "loss", "validation_step": "val_loss", "test_step": "test_loss"}


def loss_steps(loss_of: Callable[[Any], torch.Tensor]) -> dict[str, Callable[[Any, int], Any]]:
    """Make the steps of training, validation and test; each logs its loss under a name of its own.

    Args:
        loss_of: Finds the loss of a batch, a scalar.
    """

    def logging_as(name: str) -> Callable[[Any, int], Any]:
        def step(batch: Any, _batch_idx: int) -> torch.Tensor:
            loss = loss_of(batch)
            log(name, loss)
            return loss

        return step

    return {step: logging_as(name) for step, name in _LOGGED.items()}
