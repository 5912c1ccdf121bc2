"""Training steps that yield one loss for each optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from statemachine_trainer.loops import OptimizerLoop, Turn, TurnDone, YieldingLoop
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
    pair_loss,
)


def both(one: Any, two: Any) -> Any:
    return [one, two]


class Yielding(nn.Module):
    """`Pair`, but with one step that yields the losses of both of its nets."""

    def __init__(self, configure: Callable[[Any, Any], Any] = both) -> None:
        super().__init__()
        pair = Pair(configure)
        self.one, self.two = pair.one, pair.two
        self.configure_optimizers = pair.configure_optimizers
        self.sent: list[TurnDone] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        for index in range(2):
            done = yield self.loss_of(index, batch)
            self.sent.append(done)

    def loss_of(self, index: int, batch: Batch) -> torch.Tensor:
        return pair_loss(self.one, self.two, batch, index)


def make_yielding(**settings: Any) -> Trainer:
    trainer = make_trainer(**settings)
    trainer.loop.replace(optimizer=YieldingLoop)
    return trainer


def trained(model: nn.Module, *, batches: int = 5, **settings: Any) -> Trainer:
    trainer = make_yielding(**settings)
    trainer.fit(model, make_batches(batches))
    return trainer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 2},
        {"clip_norm": 0.1},
        {"clip_value": 0.01},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp16", "accumulate": 2, "clip_norm": 0.1},
        {"max_steps": 3, "count_steps_of": "all"},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_the_weights_are_those_of_a_step_that_is_called_once_for_each_optimizer(
    settings: dict[str, Any],
) -> None:
    model, expected = Yielding(), Pair(both)
    trainer, usual = make_yielding(**settings), make_trainer(**settings)
    trainer.fit(model, make_batches(5))
    usual.fit(expected, make_batches(5))
    assert_same_weights(model, expected)
    assert trainer.steps == usual.steps
    steps = [[slot.steps for slot in one.context.slots] for one in (trainer, usual)]
    assert steps[0] == steps[1]


def test_parts_of_the_step_may_be_shared_between_the_losses() -> None:
    class Adversaries(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            made = self.one(batch[0])
            yield self.two(torch.cat([made, made], 1)).mean()
            yield -self.two(torch.cat([made, made], 1).detach()).mean()

    model, expected = Adversaries(), Adversaries()
    trained(model)
    first, second = expected.configure_optimizers()
    for inputs, _ in make_batches(5):
        made = expected.one(inputs)
        first.zero_grad()
        expected.two(torch.cat([made, made], 1)).mean().backward()
        first.step()
        second.zero_grad()
        (-expected.two(torch.cat([made, made], 1).detach()).mean()).backward()
        second.step()
    assert_same_weights(model, expected)


def test_gradients_go_to_the_parameters_of_the_optimizer_alone() -> None:
    class Looking(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            yield self.loss_of(0, batch)
            assert all(one.grad is not None for one in self.one.parameters())
            assert all(one.grad is None for one in self.two.parameters())
            yield self.loss_of(1, batch)

    trained(Looking(), batches=1)


def test_one_optimizer_is_enough() -> None:
    class One(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            yield mse(self.net, batch)

    model, expected = One(), Regression()
    trained(model)
    make_trainer().fit(expected, make_batches(5))
    assert_same_weights(model, expected)


@pytest.mark.parametrize(
    "named",
    [
        lambda loss, index: (loss, index),
        lambda loss, index: {"loss": loss, "optimizer_idx": index},
        Turn,
    ],
    ids=["tuple", "mapping", "turn"],
)
def test_a_loss_may_name_its_optimizer_and_come_as_often_as_it_likes(named: Any) -> None:
    class Named(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            for index in (1, 1, 0):
                yield named(self.loss_of(index, batch), index)

    model, expected = Named(), Named()
    trainer = trained(model, gather_outputs=True)
    optimizers = expected.configure_optimizers()
    for batch in make_batches(5):
        for index in (1, 1, 0):
            optimizers[index].zero_grad()
            expected.loss_of(index, batch).backward()
            optimizers[index].step()
    assert_same_weights(model, expected)
    assert [slot.steps for slot in trainer.context.slots] == [5, 10]


def test_the_step_hears_what_became_of_its_turn() -> None:
    model = Yielding()
    trained(model, batches=3, accumulate=2, clip_norm=float("inf"))
    assert [(one.optimizer_idx, one.stepped) for one in model.sent] == [
        (0, False), (1, False), (0, True), (1, True), (0, False), (1, False),
    ]  # fmt: skip
    assert [one.norm is not None for one in model.sent[:4]] == [False, False, True, True]
    assert all(one.loss is not None and not one.loss.requires_grad for one in model.sent)


def test_an_optimizer_may_be_left_out_and_the_others_go_on() -> None:
    class Model(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            for index in range(2):
                skip = index == 0 and batch_idx == 1
                self.sent.append((yield None if skip else self.loss_of(index, batch)))

    model = Model()
    trainer = trained(model, batches=2)
    assert [slot.steps for slot in trainer.context.slots] == [1, 2]
    assert model.sent[2] == TurnDone(0, None)


def test_a_step_that_ends_before_it_yields_leaves_its_batch_out() -> None:
    class Model(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            if batch_idx != 1:
                yield from super().training_step(batch, batch_idx)

    trainer = trained(Model(), batches=3)
    assert [slot.steps for slot in trainer.context.slots] == [2, 2]
    assert trainer.context.counts.batch == 3


def test_optimizers_with_frequencies_are_left_out_where_it_is_not_their_batch() -> None:
    def in_turns(one: Any, two: Any) -> Any:
        return [{"optimizer": one, "frequency": 1}, {"optimizer": two, "frequency": 2}]

    model = Yielding(in_turns)
    trainer = trained(model, batches=6)
    assert [slot.steps for slot in trainer.context.slots] == [2, 4]
    assert [one.stepped for one in model.sent[:6]] == [True, False, False, True, False, True]


def test_schedulers_go_by_the_steps_of_their_optimizer() -> None:
    def configure(one: Any, two: Any) -> Any:
        config = {"scheduler": StepLR(two, 1, gamma=0.5), "interval": "step", "frequency": 2}
        return [one, {"optimizer": two, "lr_scheduler": config}]

    trainer = trained(Yielding(configure), batches=4)
    rates = [one.param_groups[0]["lr"] for one in trainer.context.optimizers]
    assert rates == [0.1, 0.05 * 0.25]


def test_the_borders_have_the_names_that_they_have_elsewhere() -> None:
    trainer = make_yielding()
    signals = Signals(trainer, "forward", "resume", "backward", "optimizer_step")
    trainer.fit(Yielding(), make_batches(1))
    turn = ["backward", "optimizer_step", "resume"]
    assert signals.fired == ["forward", *turn, *turn]


def test_max_steps_of_all_ends_the_step_after_the_turn_that_reached_it() -> None:
    closed: list[bool] = []

    class Closing(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Iterator[Any]:
            try:
                yield self.loss_of(0, batch)
                yield self.loss_of(1, batch)
            except GeneratorExit:
                closed.append(True)
                raise

    trainer = make_yielding(max_epochs=None, max_steps=3, count_steps_of="all")
    trainer.fit(Closing(), make_batches(5))
    assert [slot.steps for slot in trainer.context.slots] == [2, 1]
    assert closed == [True]


class Recurrent(nn.Module):
    """Hands the hidden state of its cell from split to split."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 1)
        self.seen: list[bool] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Returning(Recurrent):
    def training_step(self, batch: Any, hiddens: Any) -> Any:
        self.seen.append(hiddens is not None)
        out, hiddens = self.cell(batch, hiddens)
        yield self.head(out).square().mean()
        return hiddens


def test_hiddens_are_returned_at_the_end_of_the_step() -> None:
    class Usual(Recurrent):
        def training_step(self, batch: Any, hiddens: Any) -> Any:
            out, hiddens = self.cell(batch, hiddens)
            return self.head(out).square().mean(), hiddens

    batches = [torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    model, expected = Returning(), Usual()
    make_yielding(split_steps=2).fit(model, batches)
    make_trainer(split_steps=2).fit(expected, batches)
    assert_same_weights(model, expected)
    assert model.seen[:4] == [False, True, True, False]


# -- mistakes ------------------------------------------------------------------------------------


def stepping(step: Callable[[Yielding, Batch], Any]) -> Yielding:
    class Model(Yielding):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return step(self, batch)

    return Model()


def too_few(model: Yielding, batch: Batch) -> Any:
    yield model.loss_of(0, batch)


def too_many(model: Yielding, batch: Batch) -> Any:
    for index in (0, 1, 1):
        yield model.loss_of(index, batch)


def in_the_wrong_order(model: Yielding, batch: Batch) -> Any:
    yield mse(model.two, batch)
    yield mse(model.one, batch)


def without_a_graph(model: Yielding, batch: Batch) -> Any:
    yield model.loss_of(0, batch).detach()


def no_loss(model: Yielding, batch: Batch) -> Any:
    yield "loss"


def no_scalar(model: Yielding, batch: Batch) -> Any:
    yield model.one(batch[0])


def unknown_optimizer(model: Yielding, batch: Batch) -> Any:
    yield model.loss_of(0, batch), 2


def returning(model: Yielding, batch: Batch) -> Any:
    yield model.loss_of(0, batch)
    yield model.loss_of(1, batch)
    return model.loss_of(1, batch)


@pytest.mark.parametrize(
    "step, told",
    [
        (lambda model, batch: model.loss_of(0, batch), "Write `yield loss`"),
        (too_few, "yielded 1 of 2 losses: optimizer 1 had no turn"),
        (too_many, "more losses than there are optimizers: there are 2"),
        (in_the_wrong_order, "does not depend on any of its parameters"),
        (without_a_graph, "without a gradient"),
        (no_loss, "yielded a str where a loss was expected"),
        (no_scalar, "a loss has one element"),
        (unknown_optimizer, "the optimizer 2; .* from 0 to 1"),
        (returning, "returned a Tensor at its end"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_step_that_is_written_wrong_is_told_so(step: Any, told: str) -> None:
    with pytest.raises(StepOutputError, match=told):
        make_yielding().fit(stepping(step), make_batches(1))


def test_a_step_that_takes_hiddens_has_to_return_them() -> None:
    class Forgetful(Recurrent):
        def training_step(self, batch: Any, hiddens: Any) -> Any:
            yield self.head(self.cell(batch, hiddens)[0]).mean()

    with pytest.raises(StepOutputError, match="return hiddens"):
        make_yielding(split_steps=2).fit(Forgetful(), [torch.zeros(2, 4, 1)])


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            yield mse(self.net, batch)

    with pytest.raises(SettingError, match="LBFGS evaluates the loss itself"):
        make_yielding().fit(Model(torch.optim.LBFGS), make_batches(1))


def test_a_loss_that_is_not_finite_is_an_error_or_is_left_out() -> None:
    class Diverging(Yielding):
        def loss_of(self, index: int, batch: Batch) -> torch.Tensor:
            loss = super().loss_of(index, batch)
            return loss * float("nan") if index else loss

    with pytest.raises(NonFiniteLoss, match="batch 1"):
        trained(Diverging(), nonfinite_loss="raise")
    trainer = trained(Diverging(), nonfinite_loss="skip")
    assert [slot.steps for slot in trainer.context.slots] == [5, 0]


def test_an_error_in_the_middle_of_a_step_says_so_and_the_step_can_not_go_on() -> None:
    def breaking(model: Yielding, batch: Batch) -> Any:
        yield model.loss_of(0, batch)
        raise ValueError("broken")

    trainer = make_yielding()
    with pytest.raises(ValueError, match="broken") as caught:
        trainer.fit(stepping(breaking), make_batches(1))
    assert "fit.epoch.batch.optimizer.resume" in caught.value.__notes__[0]
    with pytest.raises(StepOutputError, match="cannot go on from the middle"):
        trainer.fit(trainer.model)


def test_a_step_that_is_wrong_in_its_middle_can_not_be_led_past_its_mistake() -> None:
    def wrong(model: Yielding, batch: Batch) -> Any:
        yield model.loss_of(0, batch)
        yield "loss"

    trainer = make_yielding()
    with pytest.raises(StepOutputError, match="a str"):
        trainer.fit(stepping(wrong), make_batches(1))
    with pytest.raises(StepOutputError, match="cannot go on from the middle"):
        trainer.fit(trainer.model)


def test_trap_26_a_stray_stop_iteration_does_not_end_the_step_without_a_word() -> None:
    def stray(model: Yielding, batch: Batch) -> Any:
        yield model.loss_of(0, batch)
        next(iter([]))

    with pytest.raises(RuntimeError, match="StopIteration"):
        make_yielding().fit(stepping(stray), make_batches(1))


def test_the_settings_are_those_of_the_loop_that_it_replaces() -> None:
    trainer = make_trainer(accumulate=3, clip_norm=0.5)
    trainer.loop.replace(optimizer=YieldingLoop)
    loop = trainer.loop["epoch.batch.optimizer"]
    assert isinstance(loop, YieldingLoop)
    assert (loop.accumulate, loop.clip_norm) == (3, 0.5)
    trainer.loop.replace(optimizer=OptimizerLoop)
    trainer.fit(Pair(both), make_batches(2))


# -- resuming ------------------------------------------------------------------------------------


class Noisy(Yielding):
    """Draws random numbers in each of its turns."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        for index in (0, 1, 1):
            noise = torch.randn(batch[0].shape) * 0.1
            yield self.loss_of(index, (batch[0] + noise, batch[1])), index


def make_noisy() -> Trainer:
    torch.manual_seed(0)
    trainer = make_yielding(max_epochs=2, accumulate=2, clip_norm=1.0)
    trainer.start(Noisy(), make_batches(3))
    return trainer


def test_trap_25_a_run_can_be_resumed_at_each_boundary_that_can_be_written_down() -> None:
    report = assert_resumable(make_noisy, exhaustive=True)
    assert report.transient


def test_a_run_with_hidden_state_can_be_resumed() -> None:
    def make() -> Trainer:
        trainer = make_yielding(split_steps=2)
        trainer.start(Returning(), [torch.ones(2, 5, 1), torch.zeros(2, 5, 1)])
        return trainer

    assert_resumable(make, exhaustive=True)


def test_a_snapshot_asked_for_in_the_middle_of_a_step_is_taken_after_it() -> None:
    trainer = make_yielding()
    trainer.start(Yielding(), make_batches(1))
    trainer.run(until="optimizer_step")
    taken: list[str | None] = []
    trainer.driver.at_boundary(lambda: taken.append(trainer.path))
    assert taken == []
    trainer.run()
    assert taken == ["fit.epoch.batch.batch_split"]


def test_settings_out_of_range_are_told_by_the_name_of_the_loop() -> None:
    with pytest.raises(SettingError, match="YieldingLoop\\(clip_norm=-1\\)"):
        YieldingLoop(clip_norm=-1)
