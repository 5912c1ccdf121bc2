"""Parts of a model are trained from an epoch on, and groups of parameters added in a run resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer, Unfreeze
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.snapshot import SnapshotMismatch
from statemachine_trainer.testing import assert_resumable

DATA = [torch.randn(4, 2, generator=torch.Generator().manual_seed(number)) for number in range(3)]


class Net(nn.Module):
    def __init__(self, *, only_head: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)
        self.only_head = only_head

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.body(batch)).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = self.head if self.only_head else self
        return torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)


def bits(module: nn.Module) -> list[bytes]:
    return [one.numpy().tobytes() for one in module.state_dict().values()]


def trainer_with(*callbacks: Any) -> Trainer:
    return Trainer(max_epochs=3, callbacks=callbacks, progress=False, device="cpu")


class AddsGroup:
    """Lets the optimizer train the body too, from the second epoch on, at a rate of its own."""

    def on_epoch_start(self, trainer: Any) -> None:
        if trainer.epoch == 1:
            (optimizer,) = trainer.context.optimizers
            optimizer.add_param_group({"params": trainer.model.body.parameters(), "lr": 0.01})


def test_a_part_moves_from_its_epoch_on() -> None:
    model, seen = Net(), []
    trainer = trainer_with(Unfreeze("body", epoch=2))
    trainer.on("epoch_end", lambda trainer: seen.append(bits(model.body)))
    before = bits(model.body)
    trainer.fit(model, DATA)
    assert seen[0] == seen[1] == before
    assert seen[2] != before
    assert model.body.training
    assert all(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize("make", [lambda: Unfreeze(epoch=1), lambda: Unfreeze("body", epoch=0)])
def test_settings_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(SettingError, match="Unfreeze"):
        make()


def test_a_name_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(SettingError, match="bodi"):
        trainer_with(Unfreeze("bodi", epoch=1)).fit(Net(), DATA)


@pytest.mark.parametrize("kind", ["unfreeze", "group"])
def test_it_resumes_anywhere(kind: str) -> None:
    def make_trainer() -> Trainer:
        callback: Any = Unfreeze("body", epoch=1) if kind == "unfreeze" else AddsGroup()
        trainer = trainer_with(callback)
        trainer.start(Net(only_head=kind == "group"), DATA)
        return trainer

    assert_resumable(make_trainer, examples=12, seed=0)


def test_a_state_from_before_a_group_was_added_is_loaded_too() -> None:
    ends = []
    for back in (False, True):
        model = Net(only_head=True)
        trainer = trainer_with(AddsGroup())
        trainer.start(model, DATA)
        trainer.remember(last=200)
        if back:
            count = 0
            while trainer.steps < 5:
                trainer.step()
                count += 1
            trainer.rewind(count - 3)
            assert len(trainer.context.optimizers[0].param_groups) == 1
        trainer.run()
        ends.append(bits(model))
    assert ends[0] == ends[1]


def test_another_script_with_fewer_groups_is_still_refused() -> None:
    first = trainer_with()
    first.start(Net(), DATA)
    first.run(until="epoch_end")
    second = trainer_with()
    second.start(Net(only_head=True), DATA)
    with pytest.raises(SnapshotMismatch, match="parameters in group 0"):
        second.load_state_dict(first.state_dict())
