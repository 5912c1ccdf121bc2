"""Set-ups that are stopped and resumed at every boundary that is not transient."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.loops import BatchLoop, OptimizerLoop, TrainingLoop
from statemachine_trainer.machine import Loop, field, place
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.setups import Setup
from statemachine_trainer.testing.specimens import Net, Samples
from statemachine_trainer.trainer import Trainer
from tests.resume.setups import SETUPS

pytestmark = pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning")

_SLOW = ("two workers",)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_a_run_is_resumed_to_the_same_bits_at_every_boundary(name: str) -> None:
    report = assert_resumable(SETUPS[name].make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 40
    assert report.unwritable == 0


@pytest.mark.parametrize("name", [name for name in SETUPS if name not in _SLOW])
def test_a_run_is_resumed_to_the_same_bits_at_a_few_boundaries(name: str) -> None:
    assert_resumable(SETUPS[name].make_trainer, examples=2, stops_per_run=2, seed=0)


def test_a_small_run_is_resumed_to_the_same_bits_at_every_boundary() -> None:
    setup = Setup(samples=10, max_epochs=1, accumulate=[(0, 2)], schedule="step")
    report = assert_resumable(setup.make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible


def test_several_stops_in_one_run_are_as_exact_as_one() -> None:
    assert_resumable(Setup(optimization="two").make_trainer, examples=1, stops_per_run=8, seed=5)


class Rounds(TrainingLoop):
    """Learns from each split in two or three rounds, ever more gently; its state is in its fields."""

    initial = "round_start"
    transitions = (
        ["again", "round_start", "learn"],
        ["optimized", "learn", "round_start"],
        ["rounds_done", "round_start", "closing"],
    )
    outcomes = ("optimized", "flushed")
    entries = {"flush": "learn"}

    learn: Loop = place(OptimizerLoop)

    round: int = 0
    total: int = field(0, scope="fit")
    rates: list[float] = field(factory=list, scope="epoch")

    def round_start(self) -> Literal["again", "rounds_done"]:
        if self.round == 2 + self.total % 2:
            return "rounds_done"
        self.round += 1
        self.rates.append(0.1 / (1 + len(self.rates)))
        for group in self.context.optimizers[0].param_groups:
            group["lr"] = sum(self.rates) / (1 + self.total)
        return "again"

    def closing(self) -> Literal["optimized"]:
        self.total += 1
        return "optimized"


def test_a_nested_loop_of_a_users_own_is_resumed_at_every_boundary() -> None:
    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=1, progress=False)
        trainer.loop.replace(batch=BatchLoop(optimizer=Rounds()))
        model = Net(norm=True, dropout=True, nan_at=None, configure=_sgd)
        samples = Samples(15, augment=True, sequences=False)
        trainer.start(model, DataLoader(samples, batch_size=5, shuffle=True))
        return trainer

    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 20


def _sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)
