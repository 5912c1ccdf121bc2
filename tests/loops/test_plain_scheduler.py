"""A plain model has a scheduler by one argument, in every form."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR

from statemachine_trainer import Trainer
from statemachine_trainer.loops.loop_errors import OptimizerError, SettingError
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import Regression, make_batches, make_net, make_trainer

SGD = partial(torch.optim.SGD, lr=0.1)
MSE = torch.nn.functional.mse_loss


def rate_after(scheduler: Any, *, optimizer: Any = SGD, epochs: int = 2, **data: Any) -> float:
    trainer = make_trainer(max_epochs=epochs)
    trainer.fit(
        make_net(), make_batches(4), **data, loss=MSE, optimizer=optimizer, scheduler=scheduler
    )
    rate: float = trainer.context.optimizers[0].param_groups[0]["lr"]
    return rate


@pytest.mark.parametrize(
    "scheduler, rate",
    [
        (partial(ExponentialLR, gamma=0.5), 0.025),
        (lambda optimizer: StepLR(optimizer, 1, 0.5), 0.025),
        ({"scheduler": partial(ExponentialLR, gamma=0.5), "frequency": 2}, 0.05),
        ({"scheduler": partial(ExponentialLR, gamma=0.5), "interval": "step"}, 0.1 / 2**8),
    ],
)
def test_a_function_of_the_optimizer_makes_it(scheduler: Any, rate: float) -> None:
    assert rate_after(scheduler) == pytest.approx(rate)


def test_it_may_be_made_already() -> None:
    net = make_net()
    optimizer = SGD(net.parameters())
    scheduler = ExponentialLR(optimizer, 0.5)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(net, make_batches(4), loss=MSE, optimizer=optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_it_may_watch_a_metric() -> None:
    plateau = partial(ReduceLROnPlateau, patience=0, threshold=10.0, factor=0.5)
    config = {"scheduler": plateau, "monitor": "val_loss"}
    assert rate_after(config, epochs=3, validation=make_batches(2)) == pytest.approx(0.0125)


def test_one_that_takes_the_total_goes_by_steps() -> None:
    made: list[int] = []

    def one_cycle(optimizer: Any, total_steps: int) -> OneCycleLR:
        made.append(total_steps)
        return OneCycleLR(optimizer, 1.0, total_steps=total_steps)

    rate_after(one_cycle)  # one more step than the total would raise
    assert made == [8]


def test_the_optimizer_may_come_with_its_scheduler() -> None:
    def both(parameters: Any) -> dict[str, Any]:
        optimizer = SGD(parameters)
        return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, 0.5)}

    assert rate_after(None, optimizer=both) == pytest.approx(0.025)
    with pytest.raises(OptimizerError, match="that has none yet"):
        rate_after(partial(ExponentialLR, gamma=0.5), optimizer=both)


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    other = ExponentialLR(SGD(make_net().parameters()), 0.5)
    with pytest.raises(OptimizerError, match="made for an optimizer"):
        rate_after(other)


def test_a_fit_that_goes_on_keeps_its_scheduler() -> None:
    trainer, net = make_trainer(max_epochs=1), make_net()
    half, batches = partial(ExponentialLR, gamma=0.5), make_batches(2)
    trainer.fit(net, batches, loss=MSE, optimizer=SGD, scheduler=half)
    trainer.loop.max_epochs = 2
    with pytest.raises(SettingError, match="another `scheduler=`"):
        trainer.fit(net, batches, scheduler=partial(ExponentialLR, gamma=0.1))
    trainer.fit(net, batches, scheduler=half)
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)


def test_it_goes_with_the_optimizer_of_a_model_too() -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Regression(), make_batches(2), scheduler=partial(ExponentialLR, gamma=0.5))
    assert len(trainer.context.slots[0].schedulers) == 1


def test_it_resumes_anywhere() -> None:
    def make() -> Trainer:
        trainer = make_trainer(max_epochs=2)
        config = {"scheduler": partial(ExponentialLR, gamma=0.5), "interval": "step"}
        trainer.start(make_net(), make_batches(3), loss=MSE, optimizer=SGD, scheduler=config)
        return trainer

    assert_resumable(make, examples=5, seed=0)


@pytest.mark.parametrize(
    "scheduler, lacking",
    [(StepLR, "step_size"), (OneCycleLR, "max_lr"), (lambda optimizer, epochs: None, "epochs")],
)
def test_what_needs_more_than_the_optimizer_is_told(scheduler: Any, lacking: str) -> None:
    with pytest.raises(OptimizerError, match=f"needs {lacking} too.*lambda optimizer: "):
        rate_after(scheduler)


def test_an_optimizer_that_does_not_take_the_parameters_is_told() -> None:
    with pytest.raises(OptimizerError, match=r"is called with the parameters.*lambda parameters: "):
        rate_after(None, optimizer=lambda: SGD(make_net().parameters()))
