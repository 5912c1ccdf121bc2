"""Case 15: a validation within an accumulation window.

Six batches, windows of three, a validation after every second batch: gradients are there at the
validations after batches 2 and 4, and the steps see those of whole windows. Ours departs at the third
validation: the gradients of a step that is over are cleared when the next window opens, not before.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.loops.inner_kit import make_trainer


class Slope(nn.Module):
    """The gradient of each batch is its own value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.at_validations: list[float | None] = []
        self.at_steps: list[float | None] = []

    def gradient(self) -> float | None:
        return None if self.weight.grad is None else self.weight.grad.item()

    def training_step(self, batch: Any) -> Any:
        return self.weight * batch

    def validation_step(self, batch: Any) -> None:
        self.at_validations.append(self.gradient())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(lambda *_: self.at_steps.append(self.gradient()))
        return optimizer


def test_the_gradients_of_the_window_are_kept() -> None:
    model = Slope()
    trainer = make_trainer(accumulate=3, validate_every=2, sanity_batches=0)
    windows: list[int] = []
    trainer.on("validation_start", lambda: windows.append(trainer.context.slots[0].window))
    batches = [torch.tensor(value) for value in (3.0, 6.0, 9.0, 12.0, 15.0, 18.0)]
    trainer.fit(model, batches, [torch.zeros(())])
    assert windows == [2, 1, 0]
    assert model.at_validations[:2] == [3.0, 4.0]
    assert model.at_steps == pytest.approx([6.0, 15.0])
