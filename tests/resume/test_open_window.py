"""An accumulation window ends with the size that it began with, whatever is set meanwhile."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import SAMLoop, Trainer
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.loops.context import Context


class Ramp(nn.Module):
    """Each batch has the gradient 1, so that the weight tells the sum of the mean gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


BATCHES = [torch.ones(1)] * 8


def trainer_with(accumulate: object, **settings: Any) -> Trainer:
    return Trainer(max_epochs=1, accumulate=accumulate, progress=False, **settings)


@pytest.mark.parametrize(
    "first, then, stop, steps",
    [
        (4, 4, 3, 2),
        (4, 2, 3, 3),  # 4, 2, 2
        (2, 4, 1, 3),  # 2, 4, and 2 that the end of the data leaves
        (4, 1, 3, 5),  # 4, 1, 1, 1, 1
        (8, 2, 3, 1),  # 8
        (4, {0: 2}, 3, 3),
        ({0: 4}, 2, 3, 3),
    ],
)
def test_a_window_that_a_checkpoint_left_open_is_finished_with_its_own_size(
    tmp_path: Path, first: object, then: object, stop: int, steps: int
) -> None:
    trainer = trainer_with(first, checkpoints=tmp_path)
    trainer.fit(Ramp(), BATCHES, until=lambda trainer, _: trainer.context.counts.batch == stop)
    trainer.checkpoint()
    model = Ramp()
    again = trainer_with(then, checkpoints=tmp_path)
    told = pytest.warns(SettingsChanged, match="accumulate was") if first != then else nullcontext()
    with told:
        again.fit(model, BATCHES, resume="auto")
    assert again.steps == steps
    assert float(model.weight.detach()) == -steps  # each step has a mean gradient of 1


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_size_that_is_set_in_the_middle_of_a_window_holds_for_the_next(stop: int) -> None:
    model, trainer = Ramp(), trainer_with(4)

    def change(trainer: Trainer) -> None:
        trainer.loop["epoch.batch.optimizer"].accumulate = 2

    trainer.on("batch_end", change, when=lambda trainer: trainer.context.counts.batch == stop)
    trainer.fit(model, BATCHES)
    assert trainer.steps == 3
    assert float(model.weight.detach()) == -3


def test_the_window_of_a_loop_with_states_of_its_own_is_finished_too(tmp_path: Path) -> None:
    def make(size: int) -> Trainer:
        trainer = Trainer(max_epochs=1, progress=False, checkpoints=tmp_path)
        trainer.loop["epoch.batch.optimizer"] = SAMLoop(accumulate=size)
        return trainer

    trainer = make(4)
    trainer.fit(Ramp(), BATCHES, until=lambda trainer, _: trainer.context.counts.batch == 3)
    trainer.checkpoint()
    model, again = Ramp(), make(2)
    with pytest.warns(SettingsChanged, match="accumulate was 4, is 2 now"):
        again.fit(model, BATCHES, resume="auto")
    assert again.steps == 3
    assert float(model.weight.detach()) == pytest.approx(-3.0)


def test_what_is_left_of_a_window_at_the_end_of_the_data_counts_by_its_own_size() -> None:
    model, trainer = Ramp(), trainer_with(5)

    def change(trainer: Trainer) -> None:
        trainer.loop["epoch.batch.optimizer"].accumulate = 7

    trainer.on("batch_end", change, when=lambda trainer: trainer.context.counts.batch == 6)
    trainer.fit(model, BATCHES)  # 5, and 3 that were divided by 5
    assert trainer.steps == 2
    assert float(model.weight.detach()) == pytest.approx(-2.0)


def test_the_size_of_a_closed_window_says_nothing() -> None:
    trainer = trainer_with(4)
    trainer.fit(Ramp(), BATCHES)
    context: Context = trainer.context
    assert context.slots[0].window == 0
    trainer.loop["epoch.batch.optimizer"].accumulate = 3
    assert trainer.loop["epoch.batch.optimizer"]._window_size(context.slots[0]) == 3
