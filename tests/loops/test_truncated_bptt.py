"""Truncated backpropagation through time: splits, hiddens, several optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statemachine_trainer.loops import BatchLoop
from statemachine_trainer.loops.loop_errors import ModelError, SettingError, StepOutputError
from tests.loops.inner_kit import assert_same_weights, make_trainer

Batch = tuple[Tensor, Tensor]


def make_sequences(count: int, steps: int, size: int = 3) -> list[Batch]:
    """Batches of sequences: inputs (size, steps, 2) and targets (size, steps, 4)."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, steps, 2, generator=generator),
            torch.randn(size, steps, 4, generator=generator),
        )
        for _ in range(count)
    ]


def make_rnn(seed: int = 0) -> nn.RNN:
    torch.manual_seed(seed)
    return nn.RNN(2, 4, batch_first=True)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = make_rnn()
        self.seen: list[tuple[int, int, int]] = []
        self.entered: list[Tensor | None] = []
        self.handed_on: list[Tensor] = []

    def training_step(
        self, batch: Batch, batch_idx: int, hiddens: Tensor | None, split_idx: int
    ) -> Any:
        inputs, targets = batch
        self.seen.append((batch_idx, split_idx, inputs.shape[1]))
        self.entered.append(hiddens)
        outputs, hiddens = self.rnn(inputs, hiddens)
        self.handed_on.append(hiddens)
        return {"loss": (outputs - targets).square().mean(), "hiddens": hiddens}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.rnn.parameters(), lr=0.1)


def test_the_weights_are_those_of_a_plain_loop() -> None:
    batches = make_sequences(2, steps=7)
    rnn = make_rnn()
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    for inputs, targets in batches * 2:
        hiddens = None
        for start in range(0, 7, 3):
            outputs, hiddens = rnn(inputs[:, start : start + 3], hiddens)
            loss = (outputs - targets[:, start : start + 3]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hiddens = hiddens.detach()
    model = Recurrent()
    trainer = make_trainer(max_epochs=2, split_steps=3)
    trainer.fit(model, batches)
    assert_same_weights(model, rnn)
    assert trainer.steps == 12
    assert trainer.context.counts.batch == 4
    assert model.seen[:6] == [(0, 0, 3), (0, 1, 3), (0, 2, 1), (1, 0, 3), (1, 1, 3), (1, 2, 1)]


def test_hiddens_are_none_at_first_and_then_what_was_handed_on_detached() -> None:
    model = Recurrent()
    make_trainer(split_steps=3).fit(model, make_sequences(2, steps=7))
    assert [hiddens is None for hiddens in model.entered] == [True, False, False] * 2
    for number, hiddens in enumerate(model.entered):
        if hiddens is not None:
            assert hiddens.grad_fn is None
            assert not hiddens.requires_grad
            assert torch.equal(hiddens, model.handed_on[number - 1])


def test_time_may_be_another_dimension() -> None:
    batches = make_sequences(2, steps=7)
    first = Recurrent()
    make_trainer(split_steps=3).fit(first, batches)

    class TimeFirst(Recurrent):
        def __init__(self) -> None:
            super().__init__()
            self.rnn.batch_first = False

    model = TimeFirst()
    turned = [(inputs.transpose(0, 1), targets.transpose(0, 1)) for inputs, targets in batches]
    make_trainer(split_steps=3, time_dim=0).fit(model, turned)
    assert model.seen == [(number, index, 3) for number, index, _ in first.seen]
    for ours, other in zip(model.parameters(), first.parameters(), strict=True):
        assert torch.allclose(ours, other)


@pytest.mark.parametrize("name", ["split_batch", "tbptt_split_batch"])
def test_the_model_may_split_by_itself(name: str) -> None:
    asked: list[int] = []

    def split(batch: Batch, split_steps: int) -> list[Batch]:
        asked.append(split_steps)
        inputs, targets = batch
        return [(inputs[:, 4:], targets[:, 4:]), (inputs[:, :4], targets[:, :4])]

    model = Recurrent()
    setattr(model, name, split)
    make_trainer(split_steps=3).fit(model, make_sequences(1, steps=7))
    assert asked == [3]
    assert [length for _, _, length in model.seen] == [3, 4]


def test_a_model_that_splits_into_nothing_is_told_so() -> None:
    model = Recurrent()
    model.split_batch = lambda batch, split_steps: None  # type: ignore[assignment]
    with pytest.raises(ModelError, match="split_batch returned a NoneType"):
        make_trainer(split_steps=3).fit(model, make_sequences(1, steps=7))


def test_hiddens_may_be_nested_and_come_in_a_tuple() -> None:
    class Model(Recurrent):
        def training_step(self, batch: Batch, hiddens: Any) -> Any:  # type: ignore[override]
            kept = None if hiddens is None else hiddens["state"][0]
            self.entered.append(kept)
            outputs, state = self.rnn(batch[0], kept)
            return (outputs - batch[1]).square().mean(), {"state": (state, "note")}

    batches = make_sequences(1, steps=6)
    model, expected = Model(), Recurrent()
    make_trainer(split_steps=2).fit(model, batches)
    make_trainer(split_steps=2).fit(expected, batches)
    assert_same_weights(model, expected)
    assert [h is not None and h.grad_fn is None for h in model.entered] == [False, True, True]


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_a_step_that_takes_hiddens_has_to_hand_them_on(output: str) -> None:
    class Model(Recurrent):
        def training_step(self, batch: Batch, hiddens: Any) -> Any:  # type: ignore[override]
            loss = self.rnn(batch[0])[0].mean()
            return loss if output == "tensor" else {"loss": loss}

    with pytest.raises(StepOutputError, match="takes `hiddens` and returned none"):
        make_trainer(split_steps=2).fit(Model(), make_sequences(1, steps=6))


def test_a_split_that_is_left_out_keeps_the_hiddens_before_it() -> None:
    class Model(Recurrent):
        def training_step(
            self, batch: Batch, batch_idx: int, hiddens: Tensor | None, split_idx: int
        ) -> Any:
            output = super().training_step(batch, batch_idx, hiddens, split_idx)
            return None if split_idx == 1 else output

    model = Model()
    trainer = make_trainer(split_steps=2)
    trainer.fit(model, make_sequences(1, steps=6))
    assert trainer.steps == 2
    assert model.entered[2] is not None
    assert torch.equal(model.entered[2], model.handed_on[0])


def test_a_split_whose_loss_is_not_finite_hands_nothing_on() -> None:
    class Model(Recurrent):
        def training_step(
            self, batch: Batch, batch_idx: int, hiddens: Tensor | None, split_idx: int
        ) -> Any:
            output = super().training_step(batch, batch_idx, hiddens, split_idx)
            if split_idx == 1:
                return {name: value * float("nan") for name, value in output.items()}
            return output

    model = Model()
    trainer = make_trainer(split_steps=2, nonfinite_loss="skip")
    trainer.fit(model, make_sequences(1, steps=6))
    assert trainer.steps == 2
    assert model.entered[2] is not None
    assert torch.equal(model.entered[2], model.handed_on[0])


class Rivals(nn.Module):
    """Two recurrent nets, each with an optimizer and hiddens of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList([make_rnn(0), make_rnn(1)])
        self.calls: list[tuple[int, int]] = []

    def training_step(
        self, batch: Batch, optimizer_idx: int, split_idx: int, hiddens: Tensor | None
    ) -> Any:
        self.calls.append((split_idx, optimizer_idx))
        outputs, hiddens = self.nets[optimizer_idx](batch[0], hiddens)
        return (outputs - batch[1]).square().mean(), hiddens

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]


def test_each_of_several_optimizers_keeps_hiddens_of_its_own() -> None:
    batches = make_sequences(2, steps=5)
    plain = nn.ModuleList([make_rnn(0), make_rnn(1)])
    for net in plain:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for inputs, targets in batches:
            hiddens = None
            for start in range(0, 5, 2):
                outputs, hiddens = net(inputs[:, start : start + 2], hiddens)
                loss = (outputs - targets[:, start : start + 2]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                hiddens = hiddens.detach()
    model = Rivals()
    trainer = make_trainer(split_steps=2)
    trainer.fit(model, batches)
    assert_same_weights(model, plain)
    assert model.calls[:6] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert trainer.steps == 6


@pytest.mark.parametrize("max_steps", range(1, 8))
@pytest.mark.parametrize("which", ["first", "all"])
def test_max_steps_is_exact_within_the_splits_of_a_batch(max_steps: int, which: str) -> None:
    model = Rivals()
    trainer = make_trainer(
        max_epochs=None, max_steps=max_steps, count_steps_of=which, split_steps=2
    )
    trainer.fit(model, make_sequences(2, steps=5))
    assert trainer.steps == max_steps
    taken = sum(slot.steps for slot in trainer.context.slots)
    assert taken == (max_steps if which == "all" else 2 * max_steps)


def test_windows_of_accumulation_count_splits() -> None:
    batches = make_sequences(2, steps=6)
    rnn = make_rnn()
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    passes = 0
    for inputs, targets in batches:
        hiddens = None
        for start in range(0, 6, 2):
            size = 4 if passes < 4 else 2
            if passes % 4 == 0:
                optimizer.zero_grad()
            outputs, hiddens = rnn(inputs[:, start : start + 2], hiddens)
            ((outputs - targets[:, start : start + 2]).square().mean() / size).backward()
            passes += 1
            if passes % 4 == 0:
                optimizer.step()
            hiddens = hiddens.detach()
    optimizer.step()
    model = Recurrent()
    trainer = make_trainer(split_steps=2, accumulate=4)
    trainer.fit(model, batches)
    assert trainer.steps == 2
    assert_same_weights(model, rnn)


def test_each_evaluation_of_a_closure_begins_with_the_hiddens_of_the_split_before() -> None:
    def lbfgs(parameters: Any) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=3)

    class Model(Recurrent):
        def configure_optimizers(self) -> Any:
            return lbfgs(self.rnn.parameters())

    batches = make_sequences(2, steps=4)
    rnn = make_rnn()
    optimizer = lbfgs(rnn.parameters())
    for inputs, targets in batches:
        kept: Tensor | None = None
        for start in (0, 2):
            last: list[Tensor] = []

            def closure(kept: Any = kept, start: int = start, last: Any = last) -> Any:
                outputs, hiddens = rnn(inputs[:, start : start + 2], kept)  # noqa: B023
                loss = (outputs - targets[:, start : start + 2]).square().mean()  # noqa: B023
                optimizer.zero_grad()
                loss.backward()
                last.append(hiddens.detach())
                return loss

            optimizer.step(closure)
            kept = last[-1]
    model = Model()
    make_trainer(split_steps=2).fit(model, batches)
    assert_same_weights(model, rnn)


def test_nothing_of_a_batch_is_kept_beyond_it() -> None:
    trainer = make_trainer(split_steps=3)
    trainer.fit(Recurrent(), make_sequences(1, steps=7))
    context = trainer.context
    assert context.splits == []
    assert context.kept_hiddens == {}
    assert (context.batch, context.split, context.output, context.loss) == (None,) * 4


@pytest.mark.parametrize("split_steps", [0, -1, True, 2.5])
def test_a_length_out_of_its_range_is_refused(split_steps: Any) -> None:
    with pytest.raises(SettingError, match="split_steps"):
        BatchLoop(split_steps=split_steps)
