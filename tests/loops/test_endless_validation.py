"""Receivers that ask for one validation after another are told before they hold up training for ever."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.loops.mistakes import NeverTaken
from statemachine_trainer.machine.errors import EndlessPosting

DATA = [(torch.zeros(2, 3), torch.zeros(2, 1)) for _ in range(3)]


def trainer(epochs: int = 2) -> Trainer:
    made = Trainer(max_epochs=epochs, device="cpu", progress=False, sanity_batches=0)
    made.loop["epoch"].most_posted = 5
    return made


def fit(made: Trainer) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made.fit(model, DATA, DATA[:1], loss=nn.MSELoss(), optimizer=optimizer)


def validate_again(trainer: Trainer) -> None:
    trainer.post("validate")


def test_a_validation_at_the_end_of_each_validation_is_told() -> None:
    made = trainer()
    made.on("validation_end", validate_again)
    with pytest.raises(EndlessPosting) as told:
        fit(made)
    text = str(told.value)
    assert "6 times in a row before state 'fit.epoch." in text
    assert "'validate' by validate_again (test_endless_validation.py:" in text


@pytest.mark.parametrize("signal", ["batch_end", "epoch_start", "optimizer_step"])
def test_one_at_each_of_these_is_no_chain(signal: str) -> None:
    made = trainer(epochs=10)
    made.on(signal, validate_again)
    fit(made)
    assert made.context.counts.epoch == 10


def test_one_at_the_end_of_each_epoch_is_no_chain_and_the_last_is_told_to_be_too_late() -> None:
    made = trainer(epochs=10)
    made.on("epoch_end", validate_again)
    with pytest.warns(NeverTaken, match="after the last epoch"):
        fit(made)
    assert made.context.counts.epoch == 10


def test_a_validation_that_was_posted_between_batches_may_be_followed_by_a_few() -> None:
    made = trainer()
    done: list[int] = []

    def again(trainer: Trainer) -> None:
        done.append(1)
        if len(done) % 5:
            trainer.post("validate")

    made.on("validation_end", again)
    made.on("batch_end", validate_again)
    fit(made)
    assert made.context.counts.batch == 6


def test_going_on_is_possible_after_the_receiver_was_taken_off() -> None:
    made = trainer()
    subscription = made.on("validation_end", validate_again)
    with pytest.raises(EndlessPosting):
        fit(made)
    subscription.cancel()
    made.run()
    assert made.context.counts.epoch == 2
