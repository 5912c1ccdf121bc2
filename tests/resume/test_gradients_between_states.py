"""A loop from scratch may keep gradients from one state, and one batch, to the next: checkpoints hold them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from statemachine_trainer import Trainer, TrainingLoop, field
from statemachine_trainer.audit.script_record import _goes_backward_by_itself
from statemachine_trainer.loops import OptimizerLoop
from statemachine_trainer.testing import assert_resumable

DATA = list(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)))


class TwoPasses(TrainingLoop):
    initial = "first"
    transitions = [["first_done", "first", "adjust"], ["adjusted", "adjust", "second"]]
    outcomes = ("optimized",)

    first_loss: float = 0.0
    scale: float = 1.0

    def first(self) -> Literal["first_done"]:
        self.context.optimizers[0].zero_grad()
        loss = self._loss()
        loss.backward()
        self.first_loss = loss.item()
        return "first_done"

    def adjust(self) -> Literal["adjusted"]:
        self.scale = 1 / (1 + self.first_loss)
        return "adjusted"

    def second(self) -> Literal["optimized"]:
        self.context.loss = self._loss()
        (self.scale * self.context.loss).backward()
        self.context.optimizers[0].step()
        self.context.count_step(0)
        return "optimized"

    def _loss(self) -> torch.Tensor:
        loss: torch.Tensor = self.context.steps.training(self.context.split, self.context.batch_idx)
        return loss


class EveryOther(TrainingLoop):
    """Steps after each second batch, with the gradients of both."""

    initial = "forward"
    outcomes = ("optimized",)

    batches: int = field(default=0, scope="run")

    def forward(self) -> Literal["optimized"]:
        context = self.context
        context.loss = context.steps.training(context.split, context.batch_idx)
        context.loss.backward()
        self.batches += 1
        if self.batches % 2 == 0:
            context.optimizers[0].step()
            context.optimizers[0].zero_grad()
            context.count_step(0)
        return "optimized"


class Narrower(OptimizerLoop):
    def backward(self) -> Literal["backward_done", "next_optimizer", "optimized"]:
        return super().backward()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 1))

    def training_step(self, batch: torch.Tensor, _batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def trainer_with(loop: TrainingLoop) -> Trainer:
    made = Trainer(max_epochs=2, progress=False)
    made.loop.replace(optimizer=loop)
    made.start(Net(), DATA)
    return made


def two_passes() -> Trainer:
    return trainer_with(TwoPasses())


def every_other() -> Trainer:
    return trainer_with(EveryOther())


def test_gradients_between_two_states_are_held() -> None:
    assert_resumable(two_passes, examples=16, seed=0)


def test_gradients_between_two_batches_are_held() -> None:
    assert_resumable(every_other, examples=16, seed=0)


def test_loops_of_this_package_keep_account_of_theirs() -> None:
    assert _goes_backward_by_itself(TwoPasses())
    assert not _goes_backward_by_itself(Narrower())
    assert not _goes_backward_by_itself(OptimizerLoop())
