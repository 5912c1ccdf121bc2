"""A dev run tries everything on a few batches; an overfitting one trains on the same few again and again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from statemachine_trainer import (
    Checkpoints,
    CompiledStep,
    FitLoop,
    InTurns,
    KFoldLoop,
    OptimizerLoop,
    Trainer,
    load_weights,
)
from statemachine_trainer.data import BadSource
from statemachine_trainer.integrations.trackers import Tracker
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import make_batches, make_net

SGD = partial(torch.optim.SGD, lr=0.1)
FIT: dict[str, Any] = {"loss": nn.functional.mse_loss, "optimizer": SGD}


class Writes(Tracker):
    """Fails if it is told something."""

    def write(self, step: int, metrics: Any) -> None:
        raise AssertionError("a tracker of a dev run was told something")


class Sees(nn.Module):
    """Counts its batches, and keeps the first input of each."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.seen: dict[str, list[float]] = {"train": [], "validation": [], "test": []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("validation", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters())

    def _step(self, name: str, batch: Any) -> torch.Tensor:
        inputs, targets = next(iter(batch.values())) if isinstance(batch, dict) else batch
        self.seen[name].append(float(inputs[0, 0]))
        return nn.functional.mse_loss(self.net(inputs), targets)


def trainer_with(*loops: Any, **settings: Any) -> Trainer:
    return Trainer(*loops, progress=False, device="cpu", **settings)


def shuffled(count: int = 16, size: int = 4) -> DataLoader[Any]:
    data = TensorDataset(torch.arange(2.0 * count).reshape(count, 2), torch.zeros(count, 1))
    return DataLoader(data, batch_size=size, shuffle=True)


@pytest.mark.parametrize("asked, batches", [(True, 1), (2, 2)])
def test_a_dev_run_takes_so_many_batches_of_each_part(asked: Any, batches: int) -> None:
    model, data = Sees(), make_batches(5)
    limits = {"max_epochs": 7, "min_steps": 9, "max_steps": 9, "validate_every": 3}
    trainer = trainer_with(fast_dev_run=asked, **limits)
    trainer.fit(model, data, data)
    trainer.test(model, data)
    assert {name: len(seen) for name, seen in model.seen.items()} == dict.fromkeys(
        model.seen, batches
    )
    assert len(trainer.predict(model.net, data)) == batches


def test_a_dev_run_writes_nothing_and_reads_no_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_with(
        fast_dev_run=True, checkpoints=Checkpoints(tmp_path / "a"), run=tmp_path / "b",
        callbacks=[Writes()], max_epochs=3,
    )  # fmt: skip
    trainer.fit(make_net(), make_batches(2), **FIT, resume="auto", restore_best=True)
    trainer.validate(data=make_batches(2), loss=FIT["loss"], checkpoint="best")
    trainer.checkpoint()
    assert trainer.epoch == 1
    assert [*tmp_path.iterdir()] == []


def test_a_dev_run_goes_through_each_fold() -> None:
    trainer = trainer_with(KFoldLoop(folds=3, fit=FitLoop(max_epochs=9)), fast_dev_run=True)
    model = Sees()
    trainer.fit(model, shuffled())
    assert len(model.seen["train"]) == 3
    assert len(model.seen["test"]) == 3


def test_a_loop_that_is_swapped_in_takes_part() -> None:
    trainer = trainer_with(fast_dev_run=True)
    trainer.loop.replace(epoch=type(trainer.loop.epoch)(limit_batches=4))
    model = Sees()
    trainer.fit(model, make_batches(5))
    assert len(model.seen["train"]) == 1


@pytest.mark.parametrize("several", [False, True])
def test_an_overfitting_fit_sees_the_same_batches_in_each_epoch(several: bool) -> None:
    model, loader = Sees(), shuffled()
    data = {"one": loader} if several else loader
    trainer_with(overfit_batches=2, max_epochs=3, sanity_batches=0).fit(model, data, loader)
    assert model.seen["train"] == [0.0, 8.0] * 3
    assert model.seen["validation"] == [0.0, 8.0] * 3


def test_a_fraction_of_the_batches_is_counted_by_the_loader() -> None:
    model = Sees()
    trainer_with(overfit_batches=0.25, max_epochs=2).fit(model, shuffled)
    assert model.seen["train"] == [0.0] * 2


def test_an_order_that_is_not_known_is_refused() -> None:
    data = shuffled().dataset
    loader = DataLoader(data, batch_size=2, sampler=WeightedRandomSampler([1.0] * 16, 16))
    with pytest.raises(BadSource, match=r"WeightedRandomSampler.*shuffle=False"):
        trainer_with(overfit_batches=1, max_epochs=1).fit(make_net(), loader, **FIT)


def test_a_limit_beside_it_is_refused() -> None:
    trainer = trainer_with(overfit_batches=1, max_epochs=1, limit_train_batches=3)
    with pytest.raises(SettingError, match=r"limit_batches=3.*Leave one of them out"):
        trainer.fit(make_net(), make_batches(2), **FIT)


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_dev_run": -1},
        {"fast_dev_run": 0.5},
        {"fast_dev_run": "yes"},
        {"fast_dev_run": None},
        {"overfit_batches": -1},
        {"overfit_batches": 1.5},
        {"overfit_batches": True},
        {"overfit_batches": None},
        {"overfit_batches": float("nan")},
        {"fast_dev_run": True, "overfit_batches": 2},
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        trainer_with(**settings)


@pytest.mark.parametrize("name", ["fast_dev_runs", "overfit_batch", "determinstic", "benchmarks"])
def test_a_misspelt_name_is_answered_with_the_right_one(name: str) -> None:
    with pytest.raises(SettingError, match=r"fast_dev_run|overfit_batches|deterministic|benchmark"):
        trainer_with(**{name: True})


def test_overfitting_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        trainer = trainer_with(overfit_batches=2, max_epochs=3)
        trainer.start(make_net(), InTurns([shuffled(), shuffled(8)]), shuffled(), **FIT)
        return trainer

    assert_resumable(make_trainer, examples=8, seed=0)


def test_a_dev_run_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        trainer = trainer_with(fast_dev_run=3)
        trainer.start(make_net(), shuffled(), shuffled(), **FIT)
        return trainer

    assert_resumable(make_trainer, examples=6, seed=0)


def test_the_weights_of_an_overfitting_run_are_in_its_checkpoints(tmp_path: Path) -> None:
    net, other = make_net(), make_net(1)
    trainer_with(overfit_batches=1, max_epochs=2, checkpoints=tmp_path).fit(net, shuffled(), **FIT)
    load_weights(other, tmp_path)
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("loop", [OptimizerLoop, partial(CompiledStep, backend="eager")])
def test_both_go_with_other_loops_of_steps(loop: Any) -> None:
    for settings in ({"fast_dev_run": True}, {"overfit_batches": 1, "max_epochs": 1}):
        trainer = trainer_with(**settings)
        trainer.loop.replace(**{"epoch.batch.optimizer": loop()})
        trainer.fit(make_net(), make_batches(3), **FIT)
        assert trainer.steps == 1


def test_a_lightning_module_goes_with_both() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    adapter = pytest.importorskip("statemachine_trainer.integrations.lightning")

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            self.seen: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.seen.append(float(batch[0][0, 0]))
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", float(batch_idx))

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters())

    for settings, seen in (
        ({"fast_dev_run": 2, "max_epochs": 5}, 2),
        ({"overfit_batches": 2, "max_epochs": 3}, 6),
    ):
        lit = Lit()
        trainer_with(**settings).fit(adapter.module(lit), shuffled(), shuffled())
        assert len(lit.seen) == seen
    assert lit.seen == [0.0, 8.0] * 3
