"""One optimizer: the weights are those of the loop anybody would write, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.loops import OptimizerLoop
from statemachine_trainer.loops.loop_errors import NonFiniteLoss, SettingError
from tests.loops.inner_kit import (
    Batch,
    Regression,
    Signals,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
    mse,
    weights,
)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_weights_are_those_of_a_plain_loop(name: str) -> None:
    batches = make_batches(5)
    net = make_net()
    optimizer = OPTIMIZERS[name](net.parameters())
    for _ in range(3):
        for batch in batches:
            loss = mse(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model = Regression(OPTIMIZERS[name])
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, batches)

    assert trainer.steps == 15
    assert_same_weights(model, net)


def test_the_order_is_forward_zero_grad_backward_step() -> None:
    order: list[str] = []

    class Watched(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            order.append("zero_grad")
            super().zero_grad(set_to_none)

    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            order.append("forward")
            loss = super().training_step(batch, batch_idx)
            loss.register_hook(lambda _: order.append("backward"))
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = Watched(self.parameters(), lr=0.1)
            optimizer.register_step_post_hook(lambda *_: order.append("step"))
            return optimizer

    make_trainer().fit(Model(), make_batches(2))
    assert order == ["forward", "zero_grad", "backward", "step"] * 2


def test_a_step_that_returns_none_leaves_its_batch_out() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    batches = make_batches(5)
    model, expected = Model(), Regression()
    trainer = make_trainer()
    signals = Signals(trainer, "backward", "optimizer_step", "batch_end")
    trainer.fit(model, batches)
    make_trainer().fit(expected, batches[::2])

    assert_same_weights(model, expected)
    assert trainer.steps == 3
    assert trainer.context.counts.batch == 5
    used = ["backward", "optimizer_step", "batch_end"]
    assert signals.fired == [*used, "batch_end", *used, "batch_end", *used]


class Diverging(Regression):
    """The loss of batch 1 is not finite."""

    def __init__(self, value: float = float("nan")) -> None:
        super().__init__()
        self.value = value

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if batch_idx == 1 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_can_be_an_error_and_the_run_can_go_on(value: float) -> None:
    batches = make_batches(3)
    model, expected = Diverging(value), Regression()
    trainer = make_trainer(nonfinite_loss="raise")
    with pytest.raises(NonFiniteLoss, match="batch 2 of epoch 1") as caught:
        trainer.fit(model, batches)
    assert "'fit.epoch.batch.optimizer.forward'" in caught.value.__notes__[0]
    assert trainer.path == "fit.epoch.batch.optimizer.forward"

    model.value = 1.0
    trainer.run()
    make_trainer().fit(expected, batches)
    assert_same_weights(model, expected)


def test_a_loss_that_is_not_finite_can_be_left_out() -> None:
    batches = make_batches(3)
    model, expected = Diverging(), Regression()
    trainer = make_trainer(nonfinite_loss="skip")
    trainer.fit(model, batches)
    make_trainer().fit(expected, [batches[0], batches[2]])
    assert_same_weights(model, expected)
    assert trainer.steps == 2


def test_a_loss_that_is_not_finite_is_ignored_unless_asked_otherwise() -> None:
    model = Diverging()
    make_trainer().fit(model, make_batches(3))
    assert all(parameter.isnan().all() for parameter in weights(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_norm": 0},
        {"clip_norm": -1.0},
        {"clip_norm": "1"},
        {"clip_value": 0.0},
        {"clip_value": True},
        {"accumulate": 0},
        {"accumulate": True},
        {"accumulate": 1.5},
        {"accumulate": {-1: 2}},
        {"accumulate": {0: 0}},
        {"nonfinite_loss": "stop"},
    ],
    ids=str,
)
def test_settings_out_of_their_range_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=name):
        OptimizerLoop(**settings)


def test_parameters_frozen_by_the_user_stay_frozen() -> None:
    model = Regression()
    first = model.net[0]  # type: ignore[index]
    assert isinstance(first, nn.Linear)
    first.requires_grad_(False)
    before = weights(first)
    make_trainer().fit(model, make_batches(3))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(first), strict=True))
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_a_step_that_raises_can_be_mended_and_run_again() -> None:
    class Model(Regression):
        broken = True

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            if batch_idx == 1 and self.broken:
                raise RuntimeError("no such file")
            return super().training_step(batch, batch_idx)

    batches = make_batches(3)
    model, expected = Model(), Regression()
    trainer = make_trainer()
    with pytest.raises(RuntimeError, match="no such file") as caught:
        trainer.fit(model, batches)
    assert "'fit.epoch.batch.optimizer.forward'" in caught.value.__notes__[0]
    model.broken = False
    trainer.run()
    make_trainer().fit(expected, batches)
    assert_same_weights(model, expected)


def test_max_steps_ends_the_fit_after_exactly_as_many_steps() -> None:
    batches = make_batches(4)
    model, expected = Regression(), Regression()
    trainer = make_trainer(max_epochs=None, max_steps=6)
    trainer.fit(model, batches)
    make_trainer().fit(expected, [*batches, *batches[:2]])
    assert trainer.steps == 6
    assert_same_weights(model, expected)
