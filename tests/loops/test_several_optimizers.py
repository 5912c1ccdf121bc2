"""Several optimizers on the same batches: one after the other, the others' parameters frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.loops.inner_kit import (
    Batch,
    Pair,
    Signals,
    assert_same_weights,
    make_batches,
    make_trainer,
    pair_loss,
)


def both(one: Any, two: Any) -> Any:
    return [one, two]


def plain_pair(batches: list[Batch], windows: int = 1) -> Pair:
    """Two optimizers in turn on each batch, written out."""
    expected = Pair(both)
    optimizers = expected.configure_optimizers()
    for number, batch in enumerate(batches):
        for index, optimizer in enumerate(optimizers):
            frozen = expected.two if index == 0 else expected.one
            frozen.requires_grad_(False)
            loss = pair_loss(expected.one, expected.two, batch, index)
            if number % windows == 0:
                optimizer.zero_grad()
            (loss / windows).backward()
            frozen.requires_grad_(True)
            if number % windows == windows - 1:
                optimizer.step()
    return expected


def test_the_weights_are_those_of_a_plain_loop() -> None:
    batches = make_batches(5)
    model = Pair(both)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, batches)
    assert_same_weights(model, plain_pair(batches * 2))
    assert model.ran[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_weights_are_those_of_a_plain_loop_with_accumulation() -> None:
    batches = make_batches(6)
    model = Pair(both)
    make_trainer(accumulate=3).fit(model, batches)
    assert_same_weights(model, plain_pair(batches, windows=3))


def test_steps_are_those_of_the_first_optimizer_unless_all_are_asked_for() -> None:
    for which, steps in (("first", 3), ("all", 6)):
        trainer = make_trainer(count_steps_of=which)
        trainer.fit(Pair(both), make_batches(3))
        assert trainer.steps == steps
        assert [slot.steps for slot in trainer.context.slots] == [3, 3]


class Looking(Pair):
    """Notes which parameters are trainable where."""

    def __init__(self) -> None:
        super().__init__(both)
        self.trainable: list[tuple[str, ...]] = []

    def look(self) -> None:
        nets = {"one": self.one, "two": self.two}
        self.trainable.append(
            tuple(n for n, net in nets.items() if all(p.requires_grad for p in net.parameters()))
        )

    def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
        self.look()
        loss = super().training_step(batch, batch_idx, optimizer_idx)
        loss.register_hook(lambda _: self.look())
        return loss


def test_the_parameters_of_the_others_are_frozen_in_forward_and_backward_only() -> None:
    model = Looking()
    trainer = make_trainer()
    for name in ("backward", "optimizer_step", "batch_split"):
        trainer.on(name, lambda trainer: model.look())
    trainer.fit(model, make_batches(1))
    between = ("one", "two")
    first = [("one",), between, ("one",)]
    second = [("two",), between, ("two",)]
    assert model.trainable == [between, *first, between, *second, between, between]


def test_activation_checkpointing_finds_the_others_frozen_in_the_backward_pass() -> None:
    class Model(Pair):
        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            return checkpoint(
                pair_loss, self.one, self.two, batch, optimizer_idx, use_reentrant=False
            )

    batches = make_batches(3)
    model = Model(both)
    make_trainer().fit(model, batches)
    assert_same_weights(model, plain_pair(batches))


def test_nothing_stays_frozen_after_an_error() -> None:
    class Model(Pair):
        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            raise RuntimeError("broken")

    model = Model(both)
    with pytest.raises(RuntimeError, match="broken"):
        make_trainer().fit(model, make_batches(1))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_user_froze_stays_frozen() -> None:
    model = Pair(both)
    model.two[0].requires_grad_(False)  # type: ignore[index]
    make_trainer().fit(model, make_batches(2))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["two.0.weight", "two.0.bias"]


def test_a_parameter_that_both_update_is_frozen_for_neither() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Parameter(torch.ones(()))
            self.own = nn.Parameter(torch.ones(()))
            self.frozen: list[tuple[bool, bool]] = []

        def training_step(self, batch: Any, optimizer_idx: int) -> Any:
            self.frozen.append((not self.shared.requires_grad, not self.own.requires_grad))
            return (self.shared * self.own * batch).square()

        def configure_optimizers(self) -> Any:
            sgd = torch.optim.SGD
            return [sgd([self.shared, self.own], lr=0.1), sgd([self.shared], lr=0.1)]

    model = Model()
    make_trainer().fit(model, [torch.ones(())])
    assert model.frozen == [(False, False), (False, True)]


def test_one_optimizer_may_be_left_out_and_the_others_go_on() -> None:
    class Model(Pair):
        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx, optimizer_idx)
            return None if optimizer_idx == 0 and batch_idx == 1 else loss

    trainer = make_trainer()
    signals = Signals(trainer, "forward", "optimizer_step")
    trainer.fit(Model(both), make_batches(2))
    assert [slot.steps for slot in trainer.context.slots] == [1, 2]
    whole = ["forward", "optimizer_step"] * 2
    assert signals.fired == [*whole, "forward", "forward", "optimizer_step"]


@pytest.mark.parametrize("max_steps", range(1, 8))
def test_trap_30_max_steps_is_exact_when_it_counts_the_first(max_steps: int) -> None:
    trainer = make_trainer(max_epochs=None, max_steps=max_steps)
    trainer.fit(Pair(both), make_batches(3))
    assert trainer.steps == max_steps
    assert [slot.steps for slot in trainer.context.slots] == [max_steps, max_steps]
    assert trainer.context.counts.batch == max_steps


@pytest.mark.parametrize("max_steps", range(1, 8))
def test_trap_30_max_steps_is_exact_when_it_counts_all(max_steps: int) -> None:
    trainer = make_trainer(max_epochs=None, max_steps=max_steps, count_steps_of="all")
    trainer.fit(Pair(both), make_batches(3))
    assert trainer.steps == max_steps
    assert [slot.steps for slot in trainer.context.slots] == [-(-max_steps // 2), max_steps // 2]


@pytest.mark.parametrize("max_steps", range(1, 7))
@pytest.mark.parametrize("turns", [(None, None), (1, 2), (2, 1)])
def test_max_steps_is_exact_with_incomplete_windows(
    max_steps: int, turns: tuple[int | None, int | None]
) -> None:
    def configure(one: Any, two: Any) -> Any:
        if turns == (None, None):
            return [one, two]
        return [{"optimizer": o, "frequency": f} for o, f in zip((one, two), turns, strict=True)]

    trainer = make_trainer(max_epochs=None, max_steps=max_steps, count_steps_of="all", accumulate=2)
    trainer.fit(Pair(configure), make_batches(5))
    assert trainer.steps == max_steps == sum(slot.steps for slot in trainer.context.slots)
    assert not trainer.context.open_windows


def test_gradients_left_over_at_max_steps_do_not_leak_into_a_later_fit() -> None:
    batches = make_batches(2)
    expected = Pair(both)
    for index, optimizer in enumerate(expected.configure_optimizers()):
        optimizer.zero_grad()
        frozen = expected.two if index == 0 else expected.one
        frozen.requires_grad_(False)
        for batch in batches:
            (pair_loss(expected.one, expected.two, batch, index) / 2).backward()
        frozen.requires_grad_(True)
        if index == 0:
            optimizer.step()
    # The one step allowed was that of the first optimizer; the gradients of the second are dropped.
    model = Pair(both)
    trainer = make_trainer(max_epochs=None, max_steps=1, count_steps_of="all", accumulate=2)
    trainer.fit(model, batches)
    assert_same_weights(model, expected)
    assert not trainer.context.open_windows


def test_a_parameter_group_added_during_the_run_is_frozen_and_clipped_too() -> None:
    class Model(Pair):
        def __init__(self) -> None:
            super().__init__(both)
            self.late = nn.Parameter(torch.ones(()))
            self.frozen: list[bool] = []

        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            self.frozen.append(not self.late.requires_grad)
            return super().training_step(batch, batch_idx, optimizer_idx) * self.late

    model = Model()
    trainer = make_trainer(clip_norm=1e-6)

    @trainer.on("batch_end", once=True)
    def unfreeze() -> None:
        trainer.context.optimizers[0].add_param_group({"params": [model.late]})

    trainer.fit(model, make_batches(2))
    assert model.frozen == [False, False, False, True]
    assert model.late.grad is not None
    assert model.late.grad.abs() <= 1e-6
