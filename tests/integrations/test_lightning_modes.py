"""A module that sets the modes of its own parts for an evaluation has them as in Lightning."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.testing import assert_resumable
from tests.integrations.lightning_kit import (
    Classifier,
    assert_same_bits,
    both,
    data,
    quiet_lightning,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


class SomeParts(Classifier):
    """Measures its batch norm in validations too."""

    def on_validation_model_eval(self) -> None:
        self.net[3].eval()


class NoParts(Classifier):
    def on_validation_model_eval(self) -> None:
        pass


class StaysInEvaluation(Classifier):
    """Trains with but its dropout in training mode from the first validation on."""

    def on_validation_model_eval(self) -> None:
        self.eval()

    def on_validation_model_train(self) -> None:
        self.net[3].train()


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("kind", [SomeParts, NoParts, StaysInEvaluation])
def test_a_validation_gives_the_same_bits(kind: type[Classifier], sanity: int) -> None:
    theirs, ours = both(
        lambda notes: (kind(), []),
        data,
        lambda: data(20, shuffle=False),
        max_epochs=2,
        sanity_batches=sanity,
    )
    assert_same_bits(theirs, ours)
    assert ours.metrics["val_loss"] == pytest.approx(theirs.metrics["val_loss"], rel=1e-5)


def test_a_validation_that_was_stopped_goes_on_in_the_modes_of_the_module() -> None:
    def started() -> Trainer:
        trainer = Trainer(max_epochs=1, device="cpu", progress=False)
        trainer.start(lightning.module(SomeParts()), data(20), data(30))
        return trainer

    assert_resumable(started, examples=12, seed=0)
