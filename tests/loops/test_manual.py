"""Manual optimization: the training step steps its own optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from statemachine_trainer.loops import FitLoop, ManualLoop, OptimizerLoop
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.trainer import Trainer
from tests.loops.inner_kit import (
    Batch,
    Regression,
    Signals,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
    mse,
)

without_steps = pytest.mark.filterwarnings(
    "ignore::statemachine_trainer.loops.mistakes.NothingLearned"
)


class Adversaries(nn.Module):
    """Two nets trained by hand: the second one at every second batch only."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = make_net(0), make_net(1)

    def training_step(self, batch: Batch, batch_idx: int, optimizers: Any, trainer: Any) -> Any:
        first, second = optimizers
        loss = mse(self.one, batch)
        first.zero_grad()
        trainer.backward(loss)
        first.step()
        if batch_idx % 2:
            second.zero_grad()
            trainer.backward(mse(self.two, batch))
            second.step()
        return {"loss": loss.detach()}

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.one.parameters(), lr=0.1),
            torch.optim.Adam(self.two.parameters(), lr=0.01),
        ]


def plain_adversaries(batches: list[Batch]) -> Adversaries:
    expected = Adversaries()
    first, second = expected.configure_optimizers()
    for number, batch in enumerate(batches):
        first.zero_grad()
        mse(expected.one, batch).backward()
        first.step()
        if number % 2:
            second.zero_grad()
            mse(expected.two, batch).backward()
            second.step()
    return expected


def test_the_weights_are_those_of_a_plain_loop() -> None:
    batches = make_batches(4)
    model = Adversaries()
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, batches)
    assert_same_weights(model, plain_adversaries(batches * 2))


def test_steps_are_counted_as_in_automatic_optimization() -> None:
    for which, steps in (("first", 4), ("all", 6)):
        trainer = make_trainer(count_steps_of=which)
        trainer.fit(Adversaries(), make_batches(4))
        assert trainer.steps == steps
        assert trainer.context.counts.step_in_epoch == steps
        assert [slot.steps for slot in trainer.context.slots] == [4, 2]


@pytest.mark.parametrize("max_steps", range(1, 7))
def test_max_steps_ends_the_fit_with_the_batch_that_reaches_it(max_steps: int) -> None:
    batches = make_batches(4)
    model = Adversaries()
    trainer = make_trainer(max_epochs=None, max_steps=max_steps)
    trainer.fit(model, batches)
    assert trainer.steps == max_steps
    assert_same_weights(model, plain_adversaries((batches * 2)[:max_steps]))


def test_max_steps_is_noticed_though_it_is_passed_in_the_middle_of_a_step() -> None:
    trainer = make_trainer(max_epochs=None, max_steps=2, count_steps_of="all")
    trainer.fit(Adversaries(), make_batches(4))
    # Batch 0 makes one step, batch 1 two: what the step does by itself is not cut short.
    assert trainer.steps == 3
    assert trainer.context.counts.batch == 2


def test_its_only_state_takes_the_place_of_forward_backward_and_step() -> None:
    trainer = make_trainer()
    trainer.fit(Adversaries(), make_batches(1))
    assert isinstance(trainer.loop["optimizer"], ManualLoop)
    assert "manual_step" in str(trainer.graph())
    trainer = make_trainer(max_epochs=1)
    trainer.loop.replace(optimizer=ManualLoop())
    signals = Signals(trainer, "fit.epoch.batch.*")
    trainer.fit(Adversaries(), make_batches(1))
    assert [name for name in signals.fired if ":" not in name][2:4] == ["optimizer", "manual_step"]


@pytest.mark.parametrize(
    "settings",
    [{"accumulate": 2}, {"clip_norm": 1.0}, {"clip_value": 1.0}, {"nonfinite_loss": "skip"}],
    ids=str,
)
def test_settings_of_automatic_optimization_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=f"optimizes by hand.*{name}="):
        make_trainer(**settings).fit(Adversaries(), make_batches(1))


@without_steps
def test_schedulers_are_left_to_the_step() -> None:
    class Model(Regression):
        automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": StepLR(optimizer, 1), "interval": "epoch"},
        }

    trainer = make_trainer(max_epochs=3)
    trainer.fit(Model(configure), make_batches(2))
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 1.0


@without_steps
@pytest.mark.parametrize("output", [None, 3.0, "note", {"anything": 1}, torch.ones(3)], ids=str)
def test_the_step_may_return_anything(output: Any) -> None:
    class Model(Adversaries):
        def training_step(self, batch: Batch) -> Any:  # type: ignore[override]
            return output

    trainer = make_trainer()
    seen = []
    trainer.on("batch_end", lambda trainer: seen.append(trainer.context.output))
    trainer.fit(Model(), make_batches(1))
    assert seen == [output]


@without_steps
def test_hiddens_are_handed_on_without_a_loss() -> None:
    class Model(Adversaries):
        entered: list[Any]

        def training_step(self, batch: Any, hiddens: Any) -> Any:  # type: ignore[override]
            self.entered.append(hiddens)
            return {"hiddens": batch.sum() * next(self.parameters()).sum()}

    model = Model()
    model.entered = []
    make_trainer(split_steps=2).fit(model, [torch.ones(1, 4)])
    assert model.entered[0] is None
    assert model.entered[1].grad_fn is None


def test_hiddens_that_are_asked_for_have_to_be_handed_on() -> None:
    class Model(Adversaries):
        def training_step(self, batch: Any, hiddens: Any) -> Any:  # type: ignore[override]
            return None

    with pytest.raises(StepOutputError, match="returned none"):
        make_trainer(split_steps=2).fit(Model(), [torch.ones(1, 4)])


def test_optimizers_of_ones_own_need_no_configure_optimizers_to_return_them() -> None:
    class Model(Adversaries):
        def configure_optimizers(self) -> Any:
            self.mine = [torch.optim.SGD(self.one.parameters(), lr=0.1)]

        def training_step(self, batch: Batch, optimizers: Any) -> Any:  # type: ignore[override]
            assert optimizers == []
            self.mine[0].zero_grad()
            mse(self.one, batch).backward()
            self.mine[0].step()

    batches = make_batches(3)
    model, expected = Model(), Regression()
    trainer = make_trainer()
    trainer.fit(model, batches)
    make_trainer().fit(expected, batches)
    assert_same_weights(model.one, expected)
    assert trainer.steps == 0


def test_closures_of_optimizers_work() -> None:
    class Model(Regression):
        automatic_optimization = False

        def training_step(self, batch: Batch, optimizers: Any) -> Any:
            (optimizer,) = optimizers

            def closure() -> Any:
                optimizer.zero_grad()
                loss = mse(self.net, batch)
                loss.backward()
                return loss

            optimizer.step(closure)

    def lbfgs(parameters: Any) -> Any:
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=3)

    batches = make_batches(3)
    model, expected = Model(lbfgs), Regression(lbfgs)
    trainer = make_trainer()
    trainer.fit(model, batches)
    make_trainer().fit(expected, batches)
    assert_same_weights(model, expected)
    assert trainer.steps == 3


def test_the_optimizers_are_as_they_were_after_the_step() -> None:
    trainer = make_trainer(precision="fp16")
    trainer.fit(Adversaries(), make_batches(2))
    for optimizer in trainer.context.optimizers:
        assert "step" not in vars(optimizer)
        assert not optimizer._optimizer_step_post_hooks


def test_a_model_that_does_not_optimize_by_hand_gets_the_optimizer_loop_back() -> None:
    batches = make_batches(3)
    trainer = make_trainer()
    loop = trainer.loop["optimizer"]
    trainer.fit(Adversaries(), batches)
    model, expected = Regression(), Regression()
    trainer.fit(model, batches)
    make_trainer().fit(expected, batches)
    assert trainer.loop["optimizer"] is loop
    assert_same_weights(model, expected)


@without_steps
def test_a_manual_loop_that_somebody_put_there_stays() -> None:
    root = FitLoop(max_epochs=1)
    root["optimizer"] = ManualLoop()
    trainer = Trainer(root, device="cpu", progress=False)
    model = Regression()
    trainer.fit(model, make_batches(2))
    assert trainer.steps == 0
    assert isinstance(root["optimizer"], ManualLoop)


def test_an_optimizer_loop_of_ones_own_is_not_replaced() -> None:
    class Mine(OptimizerLoop):
        pass

    root = FitLoop(max_epochs=1)
    root["optimizer"] = Mine()
    trainer = Trainer(root, device="cpu", progress=False)

    class Model(Regression):
        automatic_optimization = False

    trainer.fit(Model(), make_batches(2))
    assert type(root["optimizer"]) is Mine
    assert trainer.steps == 2
