"""Weights and buffers of modules that are no part of the model are held, if the fit changes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from statemachine_trainer import Trainer
from statemachine_trainer.data import NotExact
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch

BATCHES = [(torch.full((2, 2), float(number)), torch.ones(2, 1)) for number in range(4)]


class Counting(nn.Module):
    """A loss that grows from call to call."""

    calls: torch.Tensor

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(size), persistent=False)

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.calls.sum() * (outputs - targets).pow(2).mean()


class Average:
    """Keeps an average of the weights, as a callback without a state."""

    def __init__(self, model: nn.Module, *, late: bool = False) -> None:
        self.model = model
        self.average: nn.Module | None = None if late else copy.deepcopy(model)

    def on_fit_start(self, _trainer: Trainer) -> None:
        if self.average is None:
            self.average = copy.deepcopy(self.model)

    def on_batch_end(self, _trainer: Trainer) -> None:
        if self.average is not None:
            for mine, other in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mine.data.mul_(0.5).add_(other.data, alpha=0.5)  # no counter of versions sees this


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def stop_and_go_on(folder: Path, make: Any) -> tuple[Trainer, Trainer]:
    """Return a trainer that was never stopped, and one that went on from a checkpoint of another."""
    whole, start = make(None)
    start(whole)
    whole.run()
    stopped, start = make(folder)
    start(stopped)
    stopped.run(until="epoch_end")
    stopped.checkpoint()
    resumed, start = make(folder)
    start(resumed, resume="auto")
    resumed.run()
    return whole, resumed


def same_weights(one: Trainer, other: Trainer) -> bool:
    return all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("closed_over", [False, True])
def test_a_loss_goes_on_with_its_buffers(closed_over: bool, tmp_path: Path) -> None:
    def make(folder: Path | None) -> Any:
        module = Counting()
        loss: Any = (lambda outputs, targets: module(outputs, targets)) if closed_over else module

        def start(trainer: Trainer, **how: Any) -> None:
            trainer.start(make_model(), BATCHES, loss=loss, optimizer=_sgd, **how)

        return Trainer(max_epochs=2, progress=False, checkpoints=folder), start

    whole, resumed = stop_and_go_on(tmp_path, make)
    assert same_weights(whole, resumed)


def test_an_average_in_a_callback_without_a_state_goes_on(tmp_path: Path) -> None:
    averages = []

    def make(folder: Path | None) -> Any:
        model = make_model()
        average = Average(model)
        averages.append(average.average)

        def start(trainer: Trainer, **how: Any) -> None:
            trainer.start(model, BATCHES, loss=nn.MSELoss(), optimizer=_sgd, **how)

        callbacks = [average]
        return Trainer(max_epochs=2, progress=False, checkpoints=folder, callbacks=callbacks), start

    stop_and_go_on(tmp_path, make)
    undisturbed, _, resumed = averages
    assert undisturbed is not None
    assert resumed is not None
    for mine, theirs in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_average_hidden_in_a_list_of_the_model_is_held() -> None:
    model = make_model()
    average = AveragedModel(model)
    model.hidden = [average]  # type: ignore[assignment]
    trainer = Trainer(max_epochs=1, progress=False)
    trainer.start(model, BATCHES, loss=nn.MSELoss(), optimizer=_sgd)
    average.update_parameters(model)
    assert [*trainer.state_dict()["modules"]] == ["model.hidden[0]"]


def test_what_stays_as_it_was_is_not_written(tmp_path: Path) -> None:
    teacher = nn.Linear(2, 1)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        taught: torch.Tensor = teacher(targets.expand(2, 2)).detach()
        return (outputs - targets + taught).pow(2).mean()

    trainer = Trainer(max_epochs=1, progress=False, checkpoints=tmp_path)
    trainer.fit(make_model(), BATCHES, loss=loss, optimizer=_sgd)
    assert trainer.state_dict()["modules"] == {}


def test_one_that_is_made_on_the_way_is_told(tmp_path: Path) -> None:
    def trainer_of(model: nn.Module) -> Trainer:
        callbacks = [Average(model, late=True)]
        return Trainer(max_epochs=2, progress=False, checkpoints=tmp_path, callbacks=callbacks)

    model = make_model()
    stopped = trainer_of(model)
    stopped.start(model, BATCHES, loss=nn.MSELoss(), optimizer=_sgd)
    stopped.run(until="epoch_end")
    stopped.checkpoint()
    model = make_model()
    with pytest.warns(NotExact, match=r"modules that are not there .*: callback Average\.average"):
        trainer_of(model).start(model, BATCHES, loss=nn.MSELoss(), optimizer=_sgd, resume="auto")


def test_one_with_other_tensors_is_refused() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    trainer.start(make_model(), BATCHES, loss=Counting(), optimizer=_sgd)
    trainer.run(until="batch_end")
    state = trainer.state_dict()
    other = Trainer(max_epochs=1, progress=False)
    other.start(make_model(), BATCHES, loss=Counting(size=2), optimizer=_sgd)
    with pytest.raises(SnapshotMismatch, match=r"loss is a Counting with other tensors.*: calls"):
        other.load_state_dict(state)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01)
