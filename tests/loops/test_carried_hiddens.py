"""Hiddens that are carried from batch to batch: contiguous streams of time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from statemachine_trainer import BatchLoop, EpochLoop, FitLoop, Trainer
from statemachine_trainer.loops.loop_errors import SettingError
from tests.loops.inner_kit import assert_same_weights
from tests.loops.test_truncated_bptt import Recurrent, Rivals, make_rnn, make_sequences


def trainer_of(max_epochs: int = 1, **settings: Any) -> Trainer:
    batch = BatchLoop(carry_hiddens=True, **settings)
    return Trainer(FitLoop(max_epochs=max_epochs, epoch=EpochLoop(batch=batch)), progress=False)


def test_the_weights_are_those_of_a_plain_loop_over_streams() -> None:
    batches = make_sequences(3, steps=4)
    rnn = make_rnn()
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    for _ in range(2):
        hiddens = None
        for inputs, targets in batches:
            for start in (0, 2):
                outputs, hiddens = rnn(inputs[:, start : start + 2], hiddens)
                loss = (outputs - targets[:, start : start + 2]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                hiddens = hiddens.detach()
    model = Recurrent()
    trainer_of(max_epochs=2, split_steps=2).fit(model, batches)
    assert_same_weights(model, rnn)


def test_an_epoch_begins_without_hiddens() -> None:
    model = Recurrent()
    trainer_of(max_epochs=2, split_steps=2).fit(model, make_sequences(2, steps=4))
    assert [hiddens is None for hiddens in model.entered] == [True, False, False, False] * 2


def test_whole_batches_carry_them_as_well() -> None:
    model = Recurrent()
    trainer_of().fit(model, make_sequences(3, steps=4))
    assert [hiddens is None for hiddens in model.entered] == [True, False, False]
    assert model.entered[1] is not None
    assert torch.equal(model.entered[1], model.handed_on[0])
    assert model.entered[1].grad_fn is None


def test_each_optimizer_carries_its_own() -> None:
    entered: list[tuple[int, Tensor | None]] = []

    class Model(Rivals):
        def training_step(
            self, batch: Any, optimizer_idx: int, split_idx: int, hiddens: Tensor | None
        ) -> Any:
            entered.append((optimizer_idx, hiddens))
            return super().training_step(batch, optimizer_idx, split_idx, hiddens)

    trainer_of().fit(Model(), make_sequences(2, steps=4))
    (_, first), (_, second), (index, third), (_, fourth) = entered
    assert (first, second, index) == (None, None, 0)
    assert third is not None
    assert fourth is not None
    assert not torch.equal(third, fourth)


def test_a_validation_in_between_leaves_them_alone() -> None:
    class Model(Recurrent):
        def validation_step(self, batch: Any) -> None:
            self.rnn(batch[0])

    batches = make_sequences(4, steps=4)
    alone, validated = Recurrent(), Model()
    trainer_of(split_steps=2).fit(alone, batches)
    trainer = trainer_of(split_steps=2)
    trainer.loop["epoch"].validate_every = 1
    trainer.fit(validated, batches, batches)
    assert_same_weights(validated, alone)


def test_it_is_a_setting_of_the_trainer_as_well() -> None:
    model = Recurrent()
    Trainer(max_epochs=1, carry_hiddens=True, progress=False).fit(model, make_sequences(2, steps=4))
    assert [hiddens is None for hiddens in model.entered] == [True, False]


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_anything_but_true_or_false_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"carry_hiddens=.*True or False"):
        BatchLoop(carry_hiddens=value)
