"""What a step makes because it is not there yet is told, if a resumed run would make another one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.callbacks import Checkpoints

Make = Callable[[Any, torch.Tensor], None]
BATCHES = [torch.full((2, 3), place / 7) for place in range(3)]


class Net(nn.Module):
    shift: Any

    def __init__(self, make: Make, **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.make = make
        for name, value in attributes.items():
            setattr(self, name, value)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.make(self, batch)
        return self.layer(batch + self.shift).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def center(model: Any, batch: torch.Tensor) -> None:
    if not hasattr(model, "shift"):
        model.shift = batch.mean(0)


def draw(model: Any, batch: torch.Tensor) -> None:
    if model.shift is None:
        model.shift = torch.randn(3)


def draw_by_name(model: Any, batch: torch.Tensor) -> None:
    if getattr(model, "shift", None) is None:
        model.shift = torch.rand(3)


def keep_first_loss(model: Any, batch: torch.Tensor) -> None:
    loss = model.layer(batch).mean()
    if model.shift is None:
        model.shift = loss.detach()


def mask(model: Any, batch: torch.Tensor) -> None:
    if not hasattr(model, "shift"):
        model.shift = torch.tril(torch.ones(batch.shape[1], batch.shape[1]))[0]


def draw_with_a_seed(model: Any, batch: torch.Tensor) -> None:
    if not hasattr(model, "shift"):
        generator = torch.Generator().manual_seed(0)
        model.shift = torch.randn(3, generator=generator)


def draw_each_time(model: Any, batch: torch.Tensor) -> None:
    model.shift = torch.randn(3)
    if model.shift.sum() > 0:
        model.shift = torch.zeros(3)


def make_a_buffer(model: Any, batch: torch.Tensor) -> None:
    if not hasattr(model, "shift"):
        model.register_buffer("shift", batch.mean(0))


def told(folder: Path, model: nn.Module) -> list[str]:
    """Return the lines of the warnings of a fit with checkpoints."""
    keeping = Checkpoints(folder / "run", every=1)
    trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=keeping)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, BATCHES)
    texts = [str(one.message) for one in caught if one.category is NotHeld]
    return [line.strip() for text in texts for line in text.splitlines()[1:]]


@pytest.mark.parametrize(
    "make, attributes",
    [
        (center, {}),
        (draw, {"shift": None}),
        (draw_by_name, {}),
        (keep_first_loss, {"shift": None}),
    ],
)
def test_what_is_drawn_or_follows_from_the_first_batch_is_told_once(
    tmp_path: Path, make: Make, attributes: dict[str, Any]
) -> None:
    (line,) = told(tmp_path, Net(make, **attributes))
    assert line.startswith(
        "attribute 'shift' of the module at the top of the model (Net), which was made"
    )
    assert "when it was first needed" in line


@pytest.mark.parametrize("make", [mask, draw_with_a_seed, draw_each_time, make_a_buffer])
def test_what_is_made_the_same_again_or_is_held_is_not_told(tmp_path: Path, make: Make) -> None:
    assert told(tmp_path, Net(make)) == []


def test_what_was_there_before_the_fit_is_not_told(tmp_path: Path) -> None:
    assert told(tmp_path, Net(center, shift=torch.zeros(3))) == []
