"""Names of other trainers are answered with ours."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.loops.foreign_names import HOOKS
from statemachine_trainer.loops.loop_errors import SettingError, UnknownArgument
from statemachine_trainer.machine.errors import UnknownSignal
from tests.loops.inner_kit import Regression, make_batches, make_trainer


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("train_dataloaders", "train"),
        ("val_dataloaders", "validation"),
        ("datamodule", "train and validation"),
        ("ckpt_path", "resume"),
        ("epochs", "max_epochs, a setting of the Trainer"),
    ],
)
def test_an_argument_of_fit_by_another_name(theirs: str, ours: str) -> None:
    arguments: Any = {theirs: make_batches(2)}
    with pytest.raises(UnknownArgument, match=rf"fit\(\) .* '{theirs}'\. It is called {ours}"):
        make_trainer().fit(Regression(), **arguments)


def test_an_argument_that_is_misspelt_is_a_type_error_that_offers_the_nearest() -> None:
    arguments: Any = {"valdation": make_batches(2)}
    with pytest.raises(TypeError, match="Did you mean 'validation'"):
        make_trainer().fit(Regression(), make_batches(2), **arguments)


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_so_do_evaluations(name: str) -> None:
    with pytest.raises(UnknownArgument, match=rf"{name}\(\) .* It is called data\."):
        getattr(make_trainer(), name)(Regression(), dataloaders=make_batches(2))


def test_a_logger_is_a_callback() -> None:
    with pytest.raises(SettingError, match=r"'logger'.*integrations\.trackers"):
        make_trainer(logger=True)


@pytest.mark.parametrize("name", ["on_train_epoch_end", "train_epoch_end"])
def test_a_signal_by_the_name_of_a_hook(name: str) -> None:
    with pytest.raises(UnknownSignal, match=r"is the signal 'epoch_end' here; see docs/migration"):
        make_trainer().on(name, print)


def test_a_callback_with_hooks_is_told_the_names_of_its_methods() -> None:
    class Watch:
        def on_train_epoch_end(self, trainer: Any) -> None:
            raise AssertionError

        def on_validation_batch_end(self, trainer: Any) -> None:
            raise AssertionError

    with pytest.raises(UnknownSignal) as caught:
        make_trainer(callbacks=[Watch()])
    assert "on_train_epoch_end is on_epoch_end" in str(caught.value)
    assert "on_validation_batch_end is on_exit_validation_step" in str(caught.value)


@pytest.mark.parametrize("signal", sorted(set(HOOKS.values())))
def test_what_is_offered_instead_exists(signal: str) -> None:
    make_trainer().on(signal, print)


def test_an_unknown_name_that_is_nobody_s_hook_is_not_explained() -> None:
    with pytest.raises(UnknownSignal) as caught:
        make_trainer().on("epoch_ends", print)
    assert "Lightning" not in str(caught.value)
