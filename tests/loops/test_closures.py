"""Optimizers that evaluate the loss themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from statemachine_trainer.loops.loop_errors import NonFiniteLoss, SettingError, StepOutputError
from tests.loops.inner_kit import (
    Batch,
    Pair,
    Regression,
    Signals,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
    mse,
    pair_loss,
    weights,
)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4)


def plain_lbfgs(batches: list[Batch], prepare: Callable[[Any], object] = lambda _: None) -> Any:
    net = make_net()
    optimizer = lbfgs(net.parameters())
    for batch in batches:

        def closure(batch: Batch = batch) -> torch.Tensor:
            loss = mse(net, batch)
            optimizer.zero_grad()
            loss.backward()
            prepare(net.parameters())
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    return net


def test_the_weights_are_those_of_a_plain_loop() -> None:
    batches = make_batches(4)
    model = Regression(lbfgs)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, batches)
    assert_same_weights(model, plain_lbfgs(batches * 2))
    assert trainer.steps == 8


def test_gradients_are_clipped_at_each_evaluation() -> None:
    batches = make_batches(3)
    model = Regression(lbfgs)
    make_trainer(clip_norm=0.1).fit(model, batches)
    clip = torch.nn.utils.clip_grad_norm_
    assert_same_weights(model, plain_lbfgs(batches, lambda parameters: clip(parameters, 0.1)))


def test_the_state_of_the_work_is_the_optimizer_step() -> None:
    trainer = make_trainer()
    signals = Signals(trainer, "forward", "forward:closure", "backward", "optimizer_step")
    trainer.fit(Regression(lbfgs), make_batches(1))
    assert signals.fired == ["forward", "optimizer_step", "forward:closure"]


def test_an_optimizer_of_ones_own_that_needs_a_closure_gets_one() -> None:
    class Twice(torch.optim.SGD):
        """Two evaluations a step, as in sharpness-aware minimization."""

        def step(self, closure: Any) -> Any:  # type: ignore[override]
            for _ in range(2):
                with torch.enable_grad():
                    loss = closure()
                super().step()
            return loss

    batches = make_batches(2)
    model = Regression(lambda parameters: Twice(parameters, lr=0.1))
    expected = Regression()
    trainer = make_trainer()
    trainer.fit(model, batches)
    make_trainer().fit(expected, [batches[0], batches[0], batches[1], batches[1]])
    assert trainer.steps == 2
    assert_same_weights(model, expected)


def test_it_takes_turns_with_others_whose_parameters_are_frozen_meanwhile() -> None:
    def configure(one: Any, two: Any) -> Any:
        return [torch.optim.LBFGS(one.param_groups[0]["params"], lr=0.5, max_iter=3), two]

    batches = make_batches(3)
    expected = Pair(configure)
    first, second = expected.configure_optimizers()
    for batch in batches:

        def closure(batch: Batch = batch) -> torch.Tensor:
            loss = pair_loss(expected.one, expected.two, batch, 0)
            first.zero_grad()
            loss.backward()
            return loss

        expected.two.requires_grad_(False)
        first.step(closure)
        expected.two.requires_grad_(True)
        expected.one.requires_grad_(False)
        loss = pair_loss(expected.one, expected.two, batch, 1)
        second.zero_grad()
        loss.backward()
        expected.one.requires_grad_(True)
        second.step()
    model = Pair(configure)
    make_trainer().fit(model, batches)
    assert_same_weights(model, expected)


def test_a_step_that_returns_none_leaves_its_batch_out() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    batches = make_batches(3)
    model = Model(lbfgs)
    trainer = make_trainer()
    trainer.fit(model, batches)
    assert_same_weights(model, plain_lbfgs([batches[0], batches[2]]))
    assert trainer.steps == 2


def test_a_batch_can_not_be_left_out_half_way_through_a_step() -> None:
    class Model(Regression):
        calls = 0

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.calls += 1
            return None if self.calls == 2 else super().training_step(batch, batch_idx)

    with pytest.raises(StepOutputError, match="evaluated it again"):
        make_trainer().fit(Model(lbfgs), make_batches(1))


class Diverging(Regression):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx == 1 else loss


def test_a_loss_that_is_not_finite_is_an_error_if_asked_for() -> None:
    with pytest.raises(NonFiniteLoss, match="batch 2"):
        make_trainer(nonfinite_loss="raise").fit(Diverging(lbfgs), make_batches(2))


def test_a_loss_that_is_not_finite_is_left_out_if_asked_for() -> None:
    batches = make_batches(3)
    model = Diverging(lbfgs)
    make_trainer(nonfinite_loss="skip").fit(model, batches)
    assert_same_weights(model, plain_lbfgs([batches[0], batches[2]]))


@pytest.mark.parametrize(
    "settings, way_out", [({"precision": "fp16"}, "bf16"), ({"accumulate": 2}, "accumulate=1")]
)
def test_what_it_can_not_be_combined_with_is_refused(
    settings: dict[str, Any], way_out: str
) -> None:
    model = Regression(lbfgs)
    before = weights(model)
    with pytest.raises(SettingError, match=way_out):
        make_trainer(**settings).fit(model, make_batches(1))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
