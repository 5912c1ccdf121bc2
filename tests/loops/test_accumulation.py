"""Gradient accumulation: windows, the last of which may be incomplete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

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
    unsized,
    weights,
)


def plain_accumulation(batches: list[Batch], windows: list[int], lr: float = 0.1) -> nn.Module:
    """Step after each window; each batch counts by the size of its own window."""
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    left = iter(batches)
    for size in windows:
        optimizer.zero_grad()
        for _ in range(size):
            (mse(net, next(left)) / size).backward()
        optimizer.step()
    assert next(left, None) is None
    return net


@pytest.mark.parametrize("count, size", [(6, 2), (6, 3), (4, 4), (3, 1)])
def test_whole_windows_are_those_of_a_plain_loop(count: int, size: int) -> None:
    batches = make_batches(count)
    model = Regression()
    trainer = make_trainer(accumulate=size)
    trainer.fit(model, batches)
    assert trainer.steps == count // size
    assert_same_weights(model, plain_accumulation(batches, [size] * (count // size)))


def test_the_size_of_windows_may_depend_on_the_epoch() -> None:
    batches = make_batches(4)
    model = Regression()
    trainer = make_trainer(max_epochs=4, accumulate={1: 2, 3: 4})
    trainer.fit(model, batches)
    assert_same_weights(model, plain_accumulation(batches * 4, [1] * 4 + [2] * 4 + [4]))
    assert trainer.steps == 9


def test_the_size_of_windows_may_be_set_between_epochs() -> None:
    batches = make_batches(4)
    model = Regression()
    trainer = make_trainer(max_epochs=3)

    @trainer.on("epoch_start")
    def grow() -> None:
        trainer.loop["optimizer"].accumulate = {0: 1, 1: 2, 2: 4}

    trainer.fit(model, batches)
    assert_same_weights(model, plain_accumulation(batches * 3, [1] * 4 + [2] * 2 + [4]))


@pytest.mark.parametrize("source", [list, unsized])
def test_trap_29_the_last_window_is_scaled_by_its_true_size(source: Any) -> None:
    batches = make_batches(6)
    model = Regression()
    trainer = make_trainer(accumulate=4)
    signals = Signals(trainer, "optimizer_step", "drain", "epoch_end")
    trainer.fit(model, source(batches))
    assert trainer.steps == 2
    # The factor 4 / 2 is exact, so even the bits agree.
    assert_same_weights(model, plain_accumulation(batches, [4, 2]))
    assert signals.fired == ["optimizer_step", "drain", "optimizer_step", "drain", "epoch_end"]


def test_trap_29_gradients_of_equal_batches_are_the_same_in_every_window() -> None:
    seen: list[float] = []

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Any) -> Any:
            return self.weight * batch

        def slope(self) -> float:
            assert self.weight.grad is not None
            return self.weight.grad.item()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            optimizer.register_step_pre_hook(lambda *_: seen.append(self.slope()))
            return optimizer

    make_trainer(accumulate=3).fit(Slope(), [torch.ones(())] * 5)
    assert seen == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    "settings",
    [{"max_batches": 6}, {"limit_train_batches": 6}],
    ids=str,
)
def test_a_window_cut_short_by_a_limit_is_stepped_too(settings: dict[str, Any]) -> None:
    batches = make_batches(9)
    model = Regression()
    trainer = make_trainer(accumulate=4, **settings)
    trainer.fit(model, batches)
    assert trainer.steps == 2
    assert_same_weights(model, plain_accumulation(batches[:6], [4, 2]))


@pytest.mark.parametrize("source", [list, unsized])
@pytest.mark.parametrize("event", ["stop", "end_epoch"])
def test_a_window_cut_short_from_outside_is_stepped_too(event: str, source: Any) -> None:
    batches = make_batches(9)
    model = Regression()
    trainer = make_trainer(accumulate=4)

    @trainer.on("batch_end", when=lambda trainer: trainer.context.counts.batch == 6)
    def interrupt() -> None:
        trainer.post(event)

    trainer.fit(model, source(batches))
    assert trainer.steps == 2
    assert_same_weights(model, plain_accumulation(batches[:6], [4, 2]))


def test_a_window_never_goes_on_into_the_next_epoch() -> None:
    batches = make_batches(6)
    model = Regression()
    trainer = make_trainer(max_epochs=2, accumulate=4)
    trainer.fit(model, batches)
    assert trainer.steps == 4
    assert_same_weights(model, plain_accumulation(batches * 2, [4, 2, 4, 2]))


def test_a_batch_that_is_left_out_makes_its_window_no_smaller() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    batches = make_batches(5)
    model = Model()
    make_trainer(accumulate=2).fit(model, batches)
    assert_same_weights(model, plain_accumulation([batches[0], *batches[2:]], [2, 2]))


@pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.mistakes.NothingLearned")
def test_an_epoch_of_nothing_but_left_out_batches_has_no_step() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None

    model = Model()
    before = weights(model)
    trainer = make_trainer(accumulate=2)
    trainer.fit(model, make_batches(3))
    assert trainer.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_trap_28_a_validation_leaves_the_gradients_of_a_window_alone() -> None:
    class Model(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.had_gradients: list[bool] = []

        def validation_step(self, batch: Batch) -> None:
            window = trainer.context.slots[0].window
            self.had_gradients.append(window > 0)

    batches = make_batches(6)
    model = Model()
    trainer = make_trainer(accumulate=3, validate_every=2, sanity_batches=0)
    trainer.fit(model, batches, make_batches(1, seed=1))
    assert model.had_gradients == [True, True, False]
    assert_same_weights(model, plain_accumulation(batches, [3, 3]))


def test_trap_27_a_step_without_the_batch_number_accumulates_all_the_same() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch) -> Any:  # type: ignore[override]
            return mse(self.net, batch)

    batches = make_batches(6)
    model = Model()
    make_trainer(accumulate=3).fit(model, batches)
    assert_same_weights(model, plain_accumulation(batches, [3, 3]))


def test_clipping_is_of_the_whole_window_scaled_by_its_true_size() -> None:
    batches = make_batches(6)
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for window in (batches[:4], batches[4:]):
        optimizer.zero_grad()
        for batch in window:
            (mse(net, batch) / len(window)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.step()
    model = Regression()
    make_trainer(accumulate=4, clip_norm=0.05).fit(model, batches)
    assert_same_weights(model, net)


def test_several_optimizers_have_a_window_each() -> None:
    batches = make_batches(6)
    model = Pair(lambda one, two: [one, two])
    expected = Pair(lambda one, two: [one, two])
    one, two = expected.configure_optimizers()
    for window in (batches[:4], batches[4:]):
        for position, batch in enumerate(window):
            for index, optimizer in enumerate((one, two)):
                if position == 0:
                    optimizer.zero_grad()
                frozen = expected.two if index == 0 else expected.one
                frozen.requires_grad_(False)
                loss = pair_loss(expected.one, expected.two, batch, index)
                (loss / len(window)).backward()
                frozen.requires_grad_(True)
                # Within a whole window each steps at once, at the end of the data one by one.
                if position == len(window) - 1 and len(window) == 4:
                    optimizer.step()
        if len(window) < 4:
            one.step()
            two.step()
    trainer = make_trainer(accumulate=4)
    signals = Signals(trainer, "optimizer_step", "optimizer_step:next_window")
    trainer.fit(model, batches)
    assert_same_weights(model, expected)
    assert [slot.steps for slot in trainer.context.slots] == [2, 2]
    assert signals.fired == ["optimizer_step"] * 4 + ["optimizer_step:next_window"]


@pytest.mark.parametrize("source", [list, unsized])
def test_windows_of_optimizers_that_take_turns_are_all_stepped_at_the_end(source: Any) -> None:
    batches = make_batches(5)

    def configure(one: Any, two: Any) -> Any:
        return [{"optimizer": one, "frequency": 1}, {"optimizer": two, "frequency": 2}]

    model, expected = Pair(configure), Pair(configure)
    one, two = (config["optimizer"] for config in expected.configure_optimizers())

    def backward(number: int, index: int, size: int) -> None:
        frozen = expected.two if index == 0 else expected.one
        frozen.requires_grad_(False)
        (pair_loss(expected.one, expected.two, batches[number], index) / size).backward()
        frozen.requires_grad_(True)

    # The turns are 0 1 1 0 1; the second window of `two` holds the last batch only.
    backward(0, 0, 2)
    backward(1, 1, 2)
    backward(2, 1, 2)
    two.step()
    backward(3, 0, 2)
    one.step()
    two.zero_grad()
    backward(4, 1, 1)
    two.step()

    trainer = make_trainer(accumulate=2)
    trainer.fit(model, source(batches))
    assert [index for _, index in model.ran] == [0, 1, 1, 0, 1]
    assert [slot.steps for slot in trainer.context.slots] == [1, 2]
    assert not trainer.context.open_windows
    assert_same_weights(model, expected)
