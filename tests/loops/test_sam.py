"""Sharpness-aware minimization: climb, and step with the gradient of above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from statemachine_trainer.loops import SAMLoop, log
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
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
)

RHO = 0.1


def make_sam(*, rho: float = RHO, same_noise: bool = True, **settings: Any) -> Trainer:
    trainer = make_trainer(**settings)
    own = {name: settings[name] for name in settings if hasattr(SAMLoop(), name)}
    trainer.loop.replace(optimizer=SAMLoop(rho=rho, same_noise=same_noise, **own))
    return trainer


def climb(parameters: list[nn.Parameter], loss: torch.Tensor) -> list[torch.Tensor]:
    """The first of the two steps, written out; returns where it began."""
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    before = [parameter.detach().clone() for parameter in parameters]
    grads = [parameter.grad for parameter in parameters]
    norm = torch.stack([torch.linalg.vector_norm(g) for g in grads if g is not None]).norm()
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            assert grad is not None
            parameter.add_(grad * (RHO / (norm + 1e-12)))
    for parameter in parameters:
        parameter.grad = None
    return before


def descend(parameters: list[nn.Parameter], before: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


def plain_sam(batches: list[Batch], make: Callable[[Any], torch.optim.Optimizer]) -> nn.Module:
    net = make_net()
    parameters = list(net.parameters())
    optimizer = make(net.parameters())
    for batch in batches:
        before = climb(parameters, mse(net, batch))
        mse(net, batch).backward()
        descend(parameters, before)
        optimizer.step()
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    ],
    ids=["momentum", "adamw"],
)
def test_the_weights_are_those_of_a_loop_written_out(make: Any) -> None:
    batches = make_batches(5)
    model = Regression(make)
    trainer = make_sam(max_epochs=2)
    trainer.fit(model, batches)
    assert_same_weights(model, plain_sam(batches * 2, make))
    assert trainer.steps == 10


def test_the_graph_shows_both_steps() -> None:
    trainer = make_sam()
    names = ("forward", "climb", "forward_above", "backward", "descend", "optimizer_step")
    signals = Signals(trainer, *names)
    trainer.fit(Regression(), make_batches(1))
    assert signals.fired == [*names]


def test_with_accumulation_each_batch_climbs_by_itself() -> None:
    batches = make_batches(5)
    model = Regression()
    trainer = make_sam(accumulate=2)
    trainer.fit(model, batches)
    net = make_net()
    parameters = list(net.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for window in (batches[:2], batches[2:4], batches[4:]):
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in window:
            before = climb(parameters, mse(net, batch))
            (mse(net, batch) / 2).backward()
            total = [
                t + p.grad for t, p in zip(total, parameters, strict=True) if p.grad is not None
            ]
            descend(parameters, before)
        for parameter, grad in zip(parameters, total, strict=True):
            parameter.grad = grad * (2 / len(window))
        optimizer.step()
    for ours, plain in zip(model.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-6, atol=1e-7)
    assert trainer.steps == 3


def test_the_gradients_that_are_clipped_are_those_of_above() -> None:
    model = Regression()
    trainer = make_sam(clip_norm=0.01)
    trainer.fit(model, make_batches(2))
    grads = [one.grad for one in model.parameters() if one.grad is not None]
    assert torch.stack([grad.norm() for grad in grads]).norm() <= 0.0101


def test_several_optimizers_climb_one_after_the_other_each_by_itself() -> None:
    batches = make_batches(3)
    model, expected = Pair(lambda *both: list(both)), Pair(lambda *both: list(both))
    make_sam().fit(model, batches)
    optimizers = expected.configure_optimizers()
    for batch in batches:
        for index, (net, other) in enumerate(
            ((expected.one, expected.two), (expected.two, expected.one))
        ):
            other.requires_grad_(False)
            own = list(net.parameters())
            before = climb(own, pair_loss(expected.one, expected.two, batch, index))
            pair_loss(expected.one, expected.two, batch, index).backward()
            descend(own, before)
            other.requires_grad_(True)
            optimizers[index].step()
    assert_same_weights(model, expected)


def test_fp16_scales_both_passes() -> None:
    class Gentle(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 1e-3

    model, expected = Gentle(), Gentle()
    trainer = make_sam(precision="fp16", max_epochs=2)
    trainer.fit(model, make_batches(4))
    assert trainer.steps == 8
    make_sam(precision="32", max_epochs=2).fit(expected, make_batches(4))
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_schedulers_go_by_the_steps() -> None:
    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        config = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    trainer = make_sam()
    trainer.fit(Regression(configure), make_batches(2))
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.1 / 4


class Noisy(Regression):
    """With dropout, batch normalisation, and a log."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5))
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.losses: list[float] = []
        self.kept: list[torch.Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        inputs, targets = batch
        inputs = self.drop(self.norm(inputs))
        self.kept.append(inputs != 0)
        loss = mse(self.net, (inputs, targets))
        self.losses.append(float(loss.detach()))
        log("loss", loss)
        return loss


def test_both_passes_draw_the_same_random_numbers_unless_told_otherwise() -> None:
    for same in (True, False):
        model = Noisy()
        torch.manual_seed(3)
        make_sam(same_noise=same).fit(model, make_batches(3, size=16))
        pairs = list(zip(model.kept[::2], model.kept[1::2], strict=True))
        assert all(torch.equal(*pair) for pair in pairs) is same


def test_statistics_and_metrics_are_those_of_the_first_pass() -> None:
    model = Noisy()
    trainer = make_sam()
    trainer.fit(model, make_batches(3))
    assert int(model.norm.num_batches_tracked or 0) == 3
    assert trainer.metrics["loss"] == pytest.approx(sum(model.losses[::2]) / 3)


def test_the_output_of_a_step_is_that_of_its_first_pass() -> None:
    model = Noisy()
    heard: list[float] = []
    trainer = make_sam()
    trainer.on("optimizer_step", lambda trainer: heard.append(trainer.context.output.item()))
    trainer.fit(model, make_batches(2))
    assert heard == model.losses[::2]


def test_hiddens_are_those_of_the_first_pass() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = nn.GRU(1, 3, batch_first=True)
            self.given: list[Any] = []
            self.made: list[torch.Tensor] = []

        def training_step(self, batch: Any, hiddens: Any) -> Any:
            self.given.append(hiddens)
            out, hiddens = self.cell(batch, hiddens)
            self.made.append(hiddens.detach())
            return out.square().mean(), hiddens

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Recurrent()
    make_sam(split_steps=2).fit(model, [torch.ones(2, 4, 1)])
    first, above, second, above_too = model.given
    assert first is None
    assert above is None
    assert torch.equal(second, model.made[0])
    assert torch.equal(second, above_too)


def test_a_loss_above_that_is_not_finite_is_left_out_and_the_weights_are_back() -> None:
    class Edgy(Regression):
        calls = 0

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.calls += 1
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.calls == 4 else loss

    batches = make_batches(3)
    model = Edgy()
    trainer = make_sam(nonfinite_loss="skip")
    trainer.fit(model, batches)
    left = [batches[0], batches[2]]
    assert_same_weights(model, plain_sam(left, lambda p: torch.optim.SGD(p, lr=0.1)))
    assert trainer.steps == 2


def test_a_step_that_returns_none_leaves_its_batch_out_but_not_half_of_it() -> None:
    class Model(Regression):
        outputs = [None, 1, 1, 1, None]

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if self.outputs.pop(0) is None else loss

    trainer = make_sam()
    with pytest.raises(StepOutputError, match="needs the loss twice"):
        trainer.fit(Model(), make_batches(3))
    assert trainer.steps == 1


def test_a_run_goes_on_after_an_error_above() -> None:
    class Failing(Noisy):
        fails = True

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if len(self.losses) == 4 and self.fails:
                self.fails = False
                raise RuntimeError("broken")
            return loss

    model, expected = Failing(), Noisy()
    for one in (model, expected):
        torch.manual_seed(5)
        trainer = make_sam()
        if one is model:
            with pytest.raises(RuntimeError, match="broken"):
                trainer.fit(one, make_batches(3))
            trainer.fit(one)
        else:
            trainer.fit(one, make_batches(3))
    assert_same_weights(model, expected)
    assert torch.equal(model.norm.running_mean, expected.norm.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("rho", [0, -1, True, "big", float("nan")])
def test_a_radius_that_makes_no_sense_is_refused(rho: Any) -> None:
    with pytest.raises(SettingError, match="rho="):
        SAMLoop(rho=rho)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused() -> None:
    with pytest.raises(SettingError, match="LBFGS evaluates the loss itself"):
        make_sam().fit(Regression(torch.optim.LBFGS), make_batches(1))


def make_noisy() -> Trainer:
    torch.manual_seed(0)
    trainer = make_sam(max_epochs=2, accumulate=2, clip_norm=1.0)
    trainer.start(Noisy(), make_batches(3))
    return trainer


def test_a_run_can_be_resumed_also_while_the_weights_are_above() -> None:
    report = assert_resumable(make_noisy, exhaustive=True)
    assert len(report.tried) == report.boundaries - report.transient
