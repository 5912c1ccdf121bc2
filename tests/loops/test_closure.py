"""Optimizers that evaluate the loss themselves, each evaluation a round of states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from statemachine_trainer.loops import ClosureLoop
from statemachine_trainer.loops.loop_errors import NonFiniteLoss, SettingError, StepOutputError
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.loops.inner_kit import (
    Batch,
    Pair,
    Regression,
    Signals,
    assert_same_weights,
    make_batches,
    make_trainer,
    mse,
)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4)


def searching(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, max_iter=6, line_search_fn="strong_wolfe")


def make_closing(**settings: Any) -> Trainer:
    trainer = make_trainer(**settings)
    trainer.loop.replace(optimizer=ClosureLoop)
    return trainer


@pytest.mark.parametrize("configure", [lbfgs, searching])
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1}, {"precision": "bf16"}])
def test_the_weights_are_those_of_one_state_for_all_evaluations(
    configure: Any, settings: dict[str, Any]
) -> None:
    model, expected = Regression(configure), Regression(configure)
    trainer, usual = (make(max_epochs=2, **settings) for make in (make_closing, make_trainer))
    trainer.fit(model, make_batches(3))
    usual.fit(expected, make_batches(3))
    assert_same_weights(model, expected)
    assert trainer.steps == usual.steps == 6


class LeastSquares(nn.Module):
    """A linear model on all of its data, whose solution is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4, 1, dtype=torch.float64))

    def training_step(self, batch: Batch) -> torch.Tensor:
        return torch.mean((batch[0] @ self.weights - batch[1]).square())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            [self.weights],
            tolerance_grad=1e-12,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )


def problem() -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(20, 1, generator=generator, dtype=torch.float64)


def test_lbfgs_reaches_the_solution_of_least_squares_on_the_path_of_a_plain_loop() -> None:
    model, plain = LeastSquares(), LeastSquares()
    make_closing(max_epochs=3).fit(model, [problem()])
    optimizer = plain.configure_optimizers()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = plain.training_step(problem())
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)  # type: ignore[arg-type]
    assert torch.equal(model.weights, plain.weights)
    solution = torch.linalg.lstsq(*problem()).solution
    assert torch.allclose(model.weights, solution, rtol=0, atol=1e-7)


def test_the_graph_is_that_of_evaluations() -> None:
    trainer = make_closing()
    signals = Signals(trainer, "closure", "forward", "backward", "optimizer_step")
    trainer.fit(
        Regression(lambda parameters: torch.optim.LBFGS(parameters, max_iter=3)), make_batches(1)
    )
    evaluation = ["closure", "forward", "backward"]
    assert signals.fired == [*evaluation * 3, "closure", "optimizer_step"]


def test_the_loss_is_evaluated_as_often_as_in_a_plain_loop() -> None:
    class Counting(Regression):
        calls = 0

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.calls += 1
            return super().training_step(batch, batch_idx)

    model, expected = Counting(searching), Counting(searching)
    make_closing().fit(model, make_batches(2))
    make_trainer().fit(expected, make_batches(2))
    assert model.calls == expected.calls


def test_it_may_be_one_of_several_and_any_optimizer_will_do() -> None:
    def configure(one: Any, two: Any) -> Any:
        return [torch.optim.LBFGS(one.param_groups[0]["params"], lr=0.5, max_iter=3), two]

    model, expected = Pair(configure), Pair(configure)
    make_closing().fit(model, make_batches(3))
    make_trainer().fit(expected, make_batches(3))
    assert_same_weights(model, expected)


def test_an_optimizer_may_move_before_it_asks() -> None:
    class Lookahead(torch.optim.SGD):
        """Evaluates the loss away from where it stands, and writes into the gradients."""

        def step(self, closure: Any) -> Any:  # type: ignore[override]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(1.5)
            for _ in range(2):
                with torch.enable_grad():
                    loss = closure()
                for parameter in self.param_groups[0]["params"]:
                    parameter.grad.mul_(0.5)
                super().step()
            return loss

    def configure(parameters: Any) -> Any:
        return Lookahead(parameters, lr=0.1, momentum=0.9)

    model, expected = Regression(configure), Regression(configure)
    make_closing().fit(model, make_batches(3))
    make_trainer().fit(expected, make_batches(3))
    assert_same_weights(model, expected)


def test_schedulers_and_outputs_go_by_the_step_and_not_by_the_evaluation() -> None:
    class Model(Regression):
        outputs: list[Any]

        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.outputs = outputs

    def configure(parameters: Any) -> Any:
        optimizer = lbfgs(parameters)
        config = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    model = Model(configure)
    trainer = make_closing()
    trainer.fit(model, make_batches(2))
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.5 / 4
    assert len(model.outputs) == 2


def test_each_evaluation_begins_with_the_hiddens_of_the_split_before() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = nn.GRU(1, 3, batch_first=True)
            self.given: list[Any] = []

        def training_step(self, batch: Any, hiddens: Any) -> Any:
            self.given.append(hiddens)
            out, hiddens = self.cell(batch, hiddens)
            return (out - 0.5).square().mean(), hiddens

        def configure_optimizers(self) -> Any:
            return lbfgs(self.parameters())

    model, expected = Recurrent(), Recurrent()
    make_closing(split_steps=2).fit(model, [torch.ones(2, 4, 1)])
    make_trainer(split_steps=2).fit(expected, [torch.ones(2, 4, 1)])
    assert_same_weights(model, expected)
    half = len(model.given) // 2
    assert model.given[:half] == [None] * half
    assert all(torch.equal(one, model.given[half]) for one in model.given[half:])


@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_max_steps_is_exact(max_steps: int) -> None:
    trainer = make_closing(max_epochs=None, max_steps=max_steps)
    trainer.fit(Regression(lbfgs), make_batches(2))
    assert trainer.steps == max_steps


# -- batches that are left out, mistakes ----------------------------------------------------------


def test_a_step_that_returns_none_leaves_its_batch_out() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    batches = make_batches(3)
    model, expected = Model(lbfgs), Regression(lbfgs)
    trainer = make_closing()
    trainer.fit(model, batches)
    make_trainer().fit(expected, [batches[0], batches[2]])
    assert_same_weights(model, expected)
    assert trainer.steps == 2


def test_a_batch_can_not_be_left_out_half_way_through_a_step() -> None:
    class Model(Regression):
        calls = 0

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.calls += 1
            return None if self.calls == 2 else super().training_step(batch, batch_idx)

    with pytest.raises(StepOutputError, match="evaluated it again"):
        make_closing().fit(Model(lbfgs), make_batches(1))


def test_a_loss_that_is_not_finite_is_an_error_if_asked_for() -> None:
    class Diverging(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * float("nan")

    with pytest.raises(NonFiniteLoss, match="batch 1"):
        make_closing(nonfinite_loss="raise").fit(Diverging(lbfgs), make_batches(1))


def test_fp16_is_refused() -> None:
    with pytest.raises(SettingError, match="bf16"):
        make_closing(precision="fp16").fit(Regression(lbfgs), make_batches(1))


def test_an_error_of_the_optimizer_leaves_its_state_as_it_was_and_the_run_goes_on() -> None:
    class Failing(torch.optim.LBFGS):
        fails = True

        def step(self, closure: Any) -> Any:  # type: ignore[override]
            result: Any = super().step(closure)  # type: ignore[no-untyped-call]
            if self.fails:
                raise RuntimeError("broken")
            return result

    def configure(parameters: Any) -> Any:
        return Failing(parameters, lr=0.5, max_iter=4)

    model, expected = Regression(configure), Regression(lbfgs)
    trainer = make_closing()
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(model, make_batches(2))
    trainer.context.optimizers[0].fails = False  # type: ignore[attr-defined]
    trainer.fit(model)
    make_trainer().fit(expected, make_batches(2))
    assert_same_weights(model, expected)


# -- resuming ------------------------------------------------------------------------------------


class Noisy(Regression):
    """Draws random numbers at each evaluation."""

    def __init__(self, configure: Any) -> None:
        super().__init__(configure)
        self.norm = nn.BatchNorm1d(2)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        inputs, targets = batch
        return mse(self.net, (self.norm(inputs + 0.1 * torch.randn(inputs.shape)), targets))


def make_noisy() -> Trainer:
    torch.manual_seed(0)
    trainer = make_closing(max_epochs=1, clip_norm=10.0)
    trainer.start(Noisy(searching), make_batches(2))
    return trainer


def test_a_run_can_be_resumed_between_any_two_evaluations() -> None:
    report = assert_resumable(make_noisy, exhaustive=True)
    assert report.boundaries > 30
    assert len(report.tried) == report.boundaries - report.transient


def test_accumulation_that_another_loop_had_is_not_dropped_in_silence() -> None:
    trainer = make_trainer(accumulate=4)
    with pytest.raises(SettingError, match=r"ClosureLoop\(accumulate=4\): it does not accumulate"):
        trainer.loop.replace(optimizer=ClosureLoop)
    assert trainer.loop["optimizer"].accumulate == 4
