"""A loop written from scratch says a few words, and counters, metrics and data are right."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from statemachine_trainer.loops import CustomLoop, FitLoop, log
from statemachine_trainer.loops.loop_errors import ModelError, StepOutputError
from statemachine_trainer.loops.recipes.custom import OutOfTurn
from statemachine_trainer.machine.errors import UnhandledEvent
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, loader
from tests.loops.outer_kit import Model, numbered


class Plain(CustomLoop):
    """The simplest there is."""

    initial = "epoch_start"
    transitions = (
        ["epoch_started", "epoch_start", "fetch"],
        ["fetched", "fetch", "update"],
        ["updated", "update", "fetch"],
        ["exhausted", "fetch", "epoch_end"],
    )
    outcomes = ("epoch_done",)

    def update(self) -> Literal["updated"]:
        self.backward(self.training_loss())
        self.optimizer_step()
        self.end_batch()
        return "updated"


class EverySecond(Plain):
    """Steps after every second batch: gradients add up."""

    def update(self) -> Literal["updated"]:
        self.backward(self.training_loss() / 2)
        if self.context.batch_idx % 2:
            self.optimizer_step()
        self.end_batch()
        return "updated"


def trainer_of(loop: CustomLoop | None = None, **limits: Any) -> Trainer:
    fit = FitLoop(**limits or {"max_epochs": 2}, sanity_batches=0, epoch=loop or Plain())
    return Trainer(fit, progress=False, device="cpu")


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("loop, accumulate", [(Plain(), 1), (EverySecond(), 2)])
def test_it_trains_to_the_bits_of_the_loops_of_the_package(loop: Any, accumulate: int) -> None:
    torch.manual_seed(0)
    one = Net()
    other = Net()
    other.load_state_dict(one.state_dict())
    torch.manual_seed(1)
    mine = trainer_of(loop)
    mine.fit(one, loader(16))
    torch.manual_seed(1)
    default = Trainer(max_epochs=2, accumulate=accumulate, progress=False, device="cpu")
    default.fit(other, loader(16))
    assert same(one, other)
    assert mine.metrics == default.metrics
    counts, expected = mine.context.counts, default.context.counts
    counts.seconds = expected.seconds = counts.seconds_in_epoch = expected.seconds_in_epoch = 0
    assert counts == expected
    assert mine.context.slots[0].schedulers[0].scheduler.last_epoch == 2


def test_it_goes_on_with_the_data_where_a_limit_on_steps_ended_it() -> None:
    trainer, model = trainer_of(max_steps=3), Model()
    trainer.fit(model, numbered(5))
    trainer.loop.max_steps = 7
    trainer.fit()
    assert model.trained == [0, 1, 2, 3, 4, 0, 1]


def test_samples_are_counted_where_somebody_asks_for_them() -> None:
    trainer = trainer_of(max_epochs=1)
    seen: list[int] = []
    trainer.on("epoch_end", lambda t: seen.append(t.context.counts.sample), every="6 samples")
    trainer.fit(Model(), numbered(3, size=2))
    assert seen == [6]


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(1, 1), nn.Linear(1, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = (self.one(batch) + self.two(batch)).square().mean()
        log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        made = [SGD(part.parameters(), lr=0.1) for part in (self.one, self.two)]
        rates = {"scheduler": StepLR(made[1], 1), "interval": "step"}
        return made, [ExponentialLR(made[0], 0.5), rates]


def test_each_of_several_optimizers_is_stepped_by_its_number() -> None:
    class Both(Plain):
        def update(self) -> Literal["updated"]:
            for number in (0, 1, 1):
                self.backward(self.training_loss(), number)
                self.optimizer_step(number)
            self.end_batch()
            return "updated"

    trainer = trainer_of(Both(), max_epochs=1)
    trainer.fit(Twins(), numbered(2))
    one, two = trainer.context.slots
    assert (one.steps, two.steps, trainer.steps) == (2, 4, 2)
    assert one.optimizer.param_groups[0]["lr"] == 0.05
    assert two.optimizer.param_groups[0]["lr"] == pytest.approx(0.1**5)


def test_a_step_that_returns_no_loss_is_an_error_with_a_way_out() -> None:
    class Silent(Model):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None

    with pytest.raises(StepOutputError, match="no loss for batch 1, and Plain needs one"):
        trainer_of().fit(Silent(), numbered(1))


def test_a_batch_that_was_not_ended_is_noticed_at_the_next() -> None:
    class Forgetful(Plain):
        def update(self) -> Literal["updated"]:
            self.backward(self.training_loss())
            self.optimizer_step()
            return "updated"

    trainer, model = trainer_of(Forgetful()), Model()
    with pytest.raises(OutOfTurn, match=r"batch 1 of epoch 1 is still in flight.*end_batch\(\)"):
        trainer.fit(model, numbered(1))
    assert (trainer.path, model.trained) == ("fit.epoch.fetch", [0])


@pytest.mark.parametrize("number", [0, 1])
def test_a_step_without_new_gradients_is_an_error(number: int) -> None:
    class Hasty(Plain):
        def update(self) -> Literal["updated"]:
            self.backward(self.training_loss(), 1 - number)
            self.optimizer_step(1 - number)
            self.optimizer_step(number)
            return "updated"

    said = r"backward\(loss, 1\)" if number else r"backward\(loss\)"
    trainer = trainer_of(Hasty())
    with pytest.raises(OutOfTurn, match=f"Hasty steps optimizer {number}.*{said}"):
        trainer.fit(Twins(), numbered(1))
    assert trainer.context.slots[number].steps == 0


def test_a_batch_that_could_not_be_moved_is_tried_again() -> None:
    trainer, model = trainer_of(max_epochs=1), Model()
    trainer.start(model, numbered(2))
    fails = [True]

    def move(batch: Any) -> Any:
        if fails.pop() if fails else False:
            raise RuntimeError("no memory on the device")
        return batch

    trainer.context.transfer = move
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.run()
    trainer.run()
    assert model.trained == [0, 1]


def test_it_may_be_the_whole_machine() -> None:
    trainer, model = Trainer(Plain(), progress=False, device="cpu"), Model()
    trainer.fit(model, numbered(3))
    trainer.fit(model)
    assert (model.trained, trainer.epoch) == ([0, 1, 2, 0, 1, 2], 2)


def test_a_ready_state_left_out_of_the_transitions_is_missed_at_once() -> None:
    class Endless(Plain):
        transitions = Plain.transitions[:3]  # type: ignore[assignment]

    with pytest.raises(UnhandledEvent, match=r"fit\.epoch\.fetch.*'exhausted'"):
        trainer_of(Endless())


def make_trainer() -> Trainer:
    trainer = trainer_of(EverySecond())
    trainer.start(Net(), loader(12))
    return trainer


def test_gradients_that_add_up_are_resumed_to_the_same_bits_at_every_boundary() -> None:
    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 15


def test_a_loop_that_never_calls_the_training_step_asks_for_none() -> None:
    class Own(CustomLoop):
        initial = "epoch_start"
        transitions = (
            ["epoch_started", "epoch_start", "fetch"],
            ["fetched", "fetch", "work"],
            ["done", "work", "fetch"],
            ["exhausted", "fetch", "epoch_end"],
        )
        outcomes = ("epoch_done",)

        asks: ClassVar[bool] = False

        def work(self) -> Literal["done"]:
            context = self.context
            own = self.training_loss() if self.asks else context.model(context.batch).pow(2).mean()
            self.backward(own)
            self.optimizer_step()
            self.end_batch()
            return "done"

    class Layer(nn.Linear):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SGD(self.parameters(), 0.1)

    def fit() -> Trainer:
        trainer = Trainer(FitLoop(max_epochs=1, epoch=Own()), progress=False, device="cpu")
        trainer.fit(Layer(2, 1), [torch.ones(4, 2)] * 2)
        return trainer

    assert fit().context.counts.step == 2
    Own.asks = True
    with pytest.raises(ModelError, match="no training_step"):
        fit()
