from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from statemachine_trainer.callbacks import EarlyStopping
from statemachine_trainer.loops.loop_errors import MissingMetric, SettingError
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.trainer import Trainer

BATCHES = [torch.ones(2, 1)] * 2


class Scripted(nn.Module):
    """Logs the values of a list: the n-th in the n-th epoch, in training or in validation.

    Args:
        values: What is logged; the last one for ever after.
        name: The name of the metric.
    """

    def __init__(self, values: Sequence[float], name: str = "val_loss") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.values = list(values)
        self.name = name
        self.validations = 0

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> torch.Tensor:
        if self.name.startswith("train"):
            log(self.name, self.values[min(trainer.epoch, len(self.values) - 1)])
        loss: torch.Tensor = (batch * self.weight).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log(self.name, self.values[min(self.validations, len(self.values) - 1)])
        self.validations += batch_idx == len(BATCHES) - 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    values: Sequence[float], stopping: EarlyStopping, *, name: str = "val_loss", **settings: Any
) -> Trainer:
    """Train for ten epochs at most, without a sanity check."""
    settings = {"max_epochs": 10, "sanity_batches": 0, **settings}
    trainer = Trainer(callbacks=[stopping], progress=False, **settings)
    validation = None if name.startswith("train") else BATCHES
    trainer.fit(Scripted(values, name), BATCHES, validation)
    return trainer


def test_a_fit_ends_when_the_metric_has_not_improved_for_patience_epochs() -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    assert fit([3, 2, 1, 1.5, 1, 0], stopping).epoch == 5
    assert (stopping.best, stopping.best_epoch, stopping.waited) == (1.0, 2, 2)
    assert stopping.reason == ("val_loss has not improved for 2 looks; its best was 1 in epoch 3")


def test_an_improvement_gives_new_patience() -> None:
    assert fit([3, 4, 2, 4, 1, 4, 4], EarlyStopping("val_loss", patience=2)).epoch == 7


def test_a_fit_that_goes_on_improving_runs_to_its_end() -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    assert fit(range(20, 0, -1), stopping).epoch == 10
    assert stopping.reason is None


def test_larger_can_be_better() -> None:
    stopping = EarlyStopping("val_loss", patience=1, mode="max")
    assert fit([1, 2, 3, 2], stopping).epoch == 4
    assert stopping.best == 3


def test_an_improvement_must_exceed_min_delta() -> None:
    stopping = EarlyStopping("val_loss", patience=2, min_delta=0.5)
    assert fit([3, 2.6, 2.5, 1], stopping).epoch == 3
    assert stopping.best == 3


def test_small_improvements_that_add_up_to_min_delta_count() -> None:
    stopping = EarlyStopping("val_loss", patience=3, min_delta=0.5)
    assert fit([3, 2.7, 2.4, 2.1, 1.8, 1.5, 1.2, 0.9, 0.6, 0.3], stopping).epoch == 10


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=10),
    st.integers(1, 4),
    st.sampled_from(["min", "max"]),
)
def test_the_end_is_where_a_plain_search_finds_it(
    values: list[int], patience: int, mode: Any
) -> None:
    sign = 1 if mode == "min" else -1
    played = values + values[-1:] * (10 - len(values))
    end = 10
    for epoch in range(patience, 10):
        before, window = played[: epoch - patience + 1], played[epoch - patience + 1 : epoch + 1]
        if min(sign * v for v in window) >= min(sign * v for v in before):
            end = epoch + 1
            break
    assert fit(values, EarlyStopping("val_loss", patience=patience, mode=mode)).epoch == end


def test_a_metric_of_training_can_be_monitored() -> None:
    stopping = EarlyStopping("train_loss", patience=1)
    assert fit([3, 2, 2], stopping, name="train_loss").epoch == 3


def test_epochs_without_validation_do_not_count_as_looks() -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    assert fit([3, 2, 2, 2], stopping, validate_epochs=2).epoch == 8


def test_each_validation_within_an_epoch_is_a_look_if_asked_for() -> None:
    stopping = EarlyStopping("val_loss", patience=2, check="validation_end")
    trainer = fit([3, 2, 2, 2], stopping, validate_every=1)
    assert (trainer.epoch, trainer.context.counts.batch) == (2, 4)


def test_the_least_number_of_epochs_is_done_all_the_same() -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    assert fit([1], stopping, min_epochs=6).epoch == 6
    assert stopping.reason is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_finite_number_ends_the_fit(value: float) -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    assert fit([3, value, 1], stopping).epoch == 2
    assert stopping.reason == f"val_loss is {value}"
    assert stopping.best == 3


def test_nan_is_no_improvement_where_it_may_happen() -> None:
    stopping = EarlyStopping("val_loss", patience=2, check_finite=False)
    assert fit([math.nan, 3, math.nan, 2, math.nan, math.nan], stopping).epoch == 6
    assert stopping.best == 2


def test_a_metric_that_was_never_logged_is_an_error_that_offers_names() -> None:
    with pytest.raises(MissingMetric, match=r"'val_los'.*Did you mean 'val_loss'\?"):
        fit([1], EarlyStopping("val_los"))


def test_an_evaluation_by_itself_is_no_look() -> None:
    stopping = EarlyStopping("val_loss", patience=1, check="validation_end")
    trainer = Trainer(callbacks=[stopping], progress=False)
    for _ in range(3):
        trainer.validate(Scripted([1]), BATCHES)
    assert stopping.best is None


def test_the_sanity_check_is_no_look() -> None:
    stopping = EarlyStopping("val_loss", patience=1, check="validation_end")
    fit([3, 2, 1], stopping, max_epochs=1, sanity_batches=2)
    assert stopping.waited == 0


def test_a_new_run_begins_anew() -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    trainer = fit([1, 2], stopping)
    trainer.fit(Scripted([5, 4, 3, 4]), BATCHES, BATCHES)
    assert trainer.epoch == 4
    assert stopping.best == 3


def test_a_fit_that_is_continued_has_full_patience_but_remembers_the_best() -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    model = Scripted([1, 2, 3, 2, 2, 2])
    trainer = Trainer(max_epochs=20, callbacks=[stopping], progress=False, sanity_batches=0)
    trainer.fit(model, BATCHES, BATCHES)
    assert trainer.epoch == 3
    trainer.fit(model)
    assert trainer.epoch == 5
    assert stopping.best == 1


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_resumed_fit_ends_where_the_undisturbed_one_does(epoch: int) -> None:
    values = [3, 2, 4, 4, 4, 4]
    model, again = Scripted(values), Scripted(values)
    settings: dict[str, Any] = {"max_epochs": 9, "progress": False, "sanity_batches": 0}
    first = Trainer(callbacks=[EarlyStopping("val_loss")], **settings)
    first.fit(model, BATCHES, BATCHES, until=lambda trainer: trainer.epoch == epoch)
    again.validations = model.validations
    second = Trainer(callbacks=[EarlyStopping("val_loss")], **settings)
    second.start(again, BATCHES, BATCHES)
    second.load_state_dict(first.state_dict())
    second.run()
    assert second.epoch == 5


def test_its_state_is_plain_data_that_comes_back() -> None:
    stopping, again = EarlyStopping("val_loss", patience=2), EarlyStopping("val_loss", patience=2)
    fit([3, 2, 1, 1.5, 1, 0], stopping)
    again.load_state_dict(stopping.state_dict())
    assert again.state_dict() == stopping.state_dict()
    assert (again.best, again.reason) == (stopping.best, stopping.reason)


@pytest.mark.parametrize(
    "settings",
    [
        {"patience": 0},
        {"patience": 1.5},
        {"patience": True},
        {"min_delta": -1.0},
        {"min_delta": math.nan},
        {"mode": "auto"},
        {"check": "batch_end"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="EarlyStopping"):
        EarlyStopping("val_loss", **settings)
