"""The sanity check: it finds mistakes in validation early, and leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from statemachine_trainer.loops import SanityLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.log import log
from tests.loops.outer_kit import Model, Trace, Unsized, make_trainer, numbered


@pytest.mark.parametrize(
    "batches, expected", [(2, [0, 1]), (-1, [0, 1, 2]), (9, [0, 1, 2]), (0, [])]
)
def test_so_many_batches_are_tried_before_the_first_epoch(
    batches: int, expected: list[int]
) -> None:
    trainer, model = make_trainer(sanity_batches=batches), Model()
    trainer.fit(model, numbered(1), numbered(3), until="next_epoch")
    assert model.validated == expected


def test_so_many_of_each_loader_are_tried() -> None:
    trainer, model = make_trainer(sanity_batches=2), Model()
    loaders = {"a": numbered(3), "b": Unsized(numbered(1, start=5))}
    trainer.fit(model, numbered(1), loaders, until="next_epoch")
    assert model.validated == [0, 1, 5]


def test_a_mistake_in_validation_is_found_before_training() -> None:
    class Broken(Model):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            raise ValueError("a mistake")

    trainer, model = make_trainer(sanity_batches=2), Broken()
    with pytest.raises(ValueError, match="a mistake"):
        trainer.fit(model, numbered(3), numbered(3))
    assert (trainer.path, model.trained) == ("fit.sanity.sanity_step", [])


def test_hooks_of_validation_do_not_see_it() -> None:
    trainer = make_trainer(sanity_batches=2)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bbV|"


def test_it_is_made_once_and_not_when_a_fit_goes_on() -> None:
    trainer, model = make_trainer(sanity_batches=1), Model()
    checks: list[int] = []
    trainer.on("sanity", lambda: checks.append(1))
    data, validation = numbered(1), numbered(1)
    trainer.fit(model, data, validation)
    trainer.loop.max_epochs = 2
    trainer.fit(model, data, validation)
    assert checks == [1]


class Drawing(Model):
    """Draws from every generator in training and in validation, and counts with torchmetrics."""

    def __init__(self) -> None:
        super().__init__()
        self.logged = torchmetrics.MeanMetric()
        self.silent = torchmetrics.SumMetric()
        self.frozen = nn.Dropout().eval()
        self.drawn: list[float] = []
        self.order: list[Any] = []
        self.updates: list[tuple[float, int]] = []

    def draw(self) -> None:
        self.drawn += [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.draw()
        self.order.append(batch[0].flatten().tolist())
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.draw()
        self.order.append(batch[0].flatten().tolist())
        self.logged.update(batch[0].mean())
        self.silent.update(1.0)
        log("logged", self.logged)


def loader(seed: int, size: int = 6) -> DataLoader[Any]:
    data = TensorDataset(torch.arange(float(size)).unsqueeze(1))
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(data, generator=generator)
    return DataLoader(
        data, batch_size=2, sampler=sampler, generator=torch.Generator().manual_seed(9)
    )


def fit_drawing(sanity_batches: int) -> tuple[Drawing, dict[str, float]]:
    model = Drawing()
    trainer = make_trainer(sanity_batches=sanity_batches, max_epochs=2, seed=5)
    trainer.start(model, loader(1), loader(2))
    while trainer.path != "fit.next_epoch":
        trainer.step()
    assert trainer.metrics == {}
    assert (model.silent.update_count, float(model.silent.sum_value)) == (0, 0.0)
    assert model.logged.update_count == 0
    assert trainer.steps == trainer.epoch == trainer.context.counts.batch == 0
    assert (model.training, model.frozen.training) == (True, False)
    model.drawn.clear()
    model.order.clear()
    trainer.run()
    return model, trainer.metrics


def test_it_leaves_no_trace_in_generators_order_of_data_metrics_and_modes() -> None:
    with_check, metrics = fit_drawing(2)
    without, other_metrics = fit_drawing(0)
    assert with_check.drawn == without.drawn
    assert with_check.order == without.order
    assert metrics == other_metrics
    assert with_check.silent.update_count == without.silent.update_count


def test_the_training_sequence_is_the_same_with_and_without_it() -> None:
    for workers in (0,):
        orders = []
        for sanity in (0, 2):
            model = Drawing()
            shuffled = DataLoader(
                TensorDataset(torch.arange(6.0).unsqueeze(1)),
                batch_size=2,
                shuffle=True,
                num_workers=workers,
            )
            make_trainer(sanity_batches=sanity, seed=1).fit(model, shuffled, shuffled)
            orders.append(model.order[sanity : sanity + 3])
        assert orders[0] == orders[1]


def test_a_loader_that_can_be_read_only_once_is_left_for_the_validation() -> None:
    trainer, model = make_trainer(sanity_batches=2), Model()
    trainer.fit(model, numbered(1), iter(numbered(3)))
    assert model.validated == [0, 1, 2]


@pytest.mark.parametrize("value", [-2, 1.5, True, "all"])
def test_a_number_of_batches_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="SanityLoop\\(batches="):
        SanityLoop(batches=value)


def test_a_loop_put_in_by_class_keeps_the_number() -> None:
    class Own(SanityLoop):
        pass

    trainer, model = make_trainer(sanity_batches=3), Model()
    trainer.loop.replace(sanity=Own)
    trainer.fit(model, numbered(1), numbered(4), until="next_epoch")
    assert model.validated == [0, 1, 2]


def test_a_check_put_in_as_an_instance_is_made_though_the_setting_says_none() -> None:
    trainer, model = make_trainer(sanity_batches=0), Model()
    trainer.loop.replace(sanity=SanityLoop(batches=1))
    trainer.fit(model, numbered(1), numbered(4), until="next_epoch")
    assert model.validated == [0]
