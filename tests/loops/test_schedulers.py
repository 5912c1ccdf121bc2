"""Learning rate schedulers: when they step, and on what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from statemachine_trainer.loops import log
from statemachine_trainer.loops.loop_errors import MissingMetric
from tests.loops.inner_kit import (
    Batch,
    Pair,
    Regression,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
    mse,
)


def scheduled(make: Any, **config: Any) -> Any:
    """A `configure_optimizers` with one scheduler."""

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        scheduler = {"scheduler": make(optimizer), **config}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return configure


def halving(optimizer: Any) -> StepLR:
    return StepLR(optimizer, step_size=1, gamma=0.5)


def rates(trainer: Any, where: str) -> list[float]:
    noted: list[float] = []
    trainer.on(where, lambda: noted.append(trainer.context.optimizers[0].param_groups[0]["lr"]))
    return noted


def test_the_weights_are_those_of_a_plain_loop() -> None:
    batches = make_batches(4)
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    every_step = OneCycleLR(optimizer, max_lr=0.2, total_steps=20)
    for _ in range(3):
        for batch in batches:
            loss = mse(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            every_step.step()

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=20)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    model = Regression(configure)
    make_trainer(max_epochs=3).fit(model, batches)
    assert_same_weights(model, net)


def test_by_epoch_is_the_default() -> None:
    trainer = make_trainer(max_epochs=3)
    noted = rates(trainer, "forward")
    trainer.fit(Regression(scheduled(halving)), make_batches(2))
    assert noted == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_by_step_it_steps_after_each_step_and_before_the_end_of_the_batch() -> None:
    trainer = make_trainer()
    noted = rates(trainer, "batch_end")
    trainer.fit(Regression(scheduled(halving, interval="step")), make_batches(3))
    assert noted == [0.5, 0.25, 0.125]


def test_by_step_it_counts_steps_and_not_batches_under_accumulation() -> None:
    trainer = make_trainer(accumulate=2)
    noted = rates(trainer, "batch_end")
    trainer.fit(Regression(scheduled(halving, interval="step")), make_batches(5))
    assert noted == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.125


def test_trap_37_the_frequency_runs_on_over_epochs() -> None:
    trainer = make_trainer(max_epochs=3)
    noted = rates(trainer, "batch_end")
    trainer.fit(Regression(scheduled(halving, interval="step", frequency=2)), make_batches(3))
    assert noted == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]


def test_the_frequency_of_epochs() -> None:
    trainer = make_trainer(max_epochs=5)
    noted = rates(trainer, "epoch_start")
    trainer.fit(Regression(scheduled(halving, frequency=2)), make_batches(1))
    assert noted == [1.0, 1.0, 0.5, 0.5, 0.25]


class Watched(Regression):
    """Logs made-up losses: of training by batch, of validation by epoch."""

    losses: list[float]

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        log("train", float(batch_idx))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Batch) -> None:
        log("val", self.losses[trainer_epoch(self)])


def trainer_epoch(model: Any) -> int:
    return int(model.trainer_under_test.epoch)


def watched(configure: Any, losses: list[float], trainer: Any) -> Watched:
    model = Watched(configure)
    model.losses = losses
    model.trainer_under_test = trainer
    return model


def plateau(optimizer: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def test_on_a_monitored_value_it_sees_the_validation_of_its_own_epoch() -> None:
    trainer = make_trainer(max_epochs=5)
    noted = rates(trainer, "epoch_start")
    model = watched(scheduled(plateau, monitor="val"), [3.0, 2.0, 2.0, 1.0, 1.0], trainer)
    trainer.fit(model, make_batches(1), make_batches(1))
    assert noted == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.25


def test_by_step_it_takes_each_value_once_and_waits_for_the_first() -> None:
    seen: list[float] = []

    class Recorder:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        def step(self, metrics: float) -> None:
            seen.append(metrics)

    trainer = make_trainer(max_epochs=2, validate_every=2, sanity_batches=0)
    configure = scheduled(Recorder, monitor="val", interval="step")
    model = watched(configure, [3.0, 2.0], trainer)
    trainer.fit(model, make_batches(4), make_batches(1))
    # Validations after batches 2 and 4; the step after each takes its value. The last is followed by none.
    assert seen == [3.0, 3.0, 2.0]


def test_a_value_logged_in_training_can_be_monitored() -> None:
    seen: list[float] = []

    class Recorder(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:  # type: ignore[override]
            seen.append(float(metrics))

    trainer = make_trainer(max_epochs=1)
    model = watched(scheduled(Recorder, monitor="train", interval="step"), [], trainer)
    trainer.fit(model, make_batches(3))
    # Means of the pass so far: 0, (0 + 1) / 2, (0 + 1 + 2) / 3.
    assert seen == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_monitored_value_that_was_never_logged_is_an_error(interval: str) -> None:
    trainer = make_trainer()
    configure = scheduled(plateau, monitor="trian", interval=interval, name="halve")
    with pytest.raises(
        MissingMetric, match=r"halve monitors 'trian'.*Did you mean 'train'"
    ) as error:
        trainer.fit(watched(configure, [], trainer), make_batches(2))
    assert "epoch_end" in error.value.__notes__[0]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_unless_it_is_not_strict(interval: str) -> None:
    trainer = make_trainer()
    configure = scheduled(plateau, monitor="trian", interval=interval, strict=False)
    trainer.fit(watched(configure, [], trainer), make_batches(2))
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 1.0


def test_a_monitor_beside_a_scheduler_that_takes_no_value_is_for_others() -> None:
    trainer = make_trainer(max_epochs=2)
    noted = rates(trainer, "epoch_start")
    trainer.fit(Regression(scheduled(halving, monitor="val")), make_batches(1))
    assert noted == [1.0, 0.5]


def test_metrics_are_read_only_where_a_scheduler_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = 0
    trainer = make_trainer()
    trainer.start(Regression(scheduled(halving, interval="step")), make_batches(3))
    table = trainer.context.train_metrics
    compute = type(table).compute

    def counted(self: Any) -> Any:
        nonlocal reads
        reads += self is table
        return compute(self)

    monkeypatch.setattr(type(table), "compute", counted)
    trainer.run(until="drain")
    assert reads == 0


def test_each_optimizer_has_schedulers_of_its_own() -> None:
    def configure(one: Any, two: Any) -> Any:
        return [one, two], [
            {"scheduler": StepLR(two, 1, gamma=0.5), "interval": "step"},
            {"scheduler": LambdaLR(one, lambda epoch: 10.0**-epoch)},
        ]

    trainer = make_trainer(max_epochs=2)
    trainer.fit(Pair(configure), make_batches(3))
    one, two = (optimizer.param_groups[0]["lr"] for optimizer in trainer.context.optimizers)
    assert one == pytest.approx(0.1 * 0.01)
    assert two == 0.05 * 0.5**6


def test_a_left_out_batch_moves_no_scheduler() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx else super().training_step(batch, batch_idx)

    trainer = make_trainer()
    trainer.fit(Model(scheduled(halving, interval="step")), make_batches(3))
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.5
