"""Names of other trainers are answered with ours."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from statemachine_trainer import Trainer, log
from statemachine_trainer.loops.default_tree import known_settings
from statemachine_trainer.loops.foreign_names import HOOKS, NOT_HERE, SETTINGS
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


def flags_of_lightning() -> list[str]:
    trainer = pytest.importorskip("lightning.pytorch").Trainer
    return [name for name in inspect.signature(trainer.__init__).parameters if name != "self"]


def test_each_flag_of_lightning_s_trainer_is_a_setting_or_has_an_answer() -> None:
    own = {*known_settings(), *inspect.signature(Trainer.__init__).parameters}
    answered = {*SETTINGS, *NOT_HERE}
    assert [name for name in flags_of_lightning() if name not in own | answered] == []
    assert not own & answered
    assert not set(SETTINGS) & set(NOT_HERE)


@pytest.mark.parametrize(
    "name, answer",
    [
        ("strategy", "DistributedDataParallel"),
        ("track_grad_norm", "optimizer_step"),
        ("log_every_n_steps", "log_every"),
        ("amp_backend", "precision"),
        ("auto_scale_batch_size", "batch_size of the loader"),
        ("inference_mode", "no_grad"),
    ],
)
def test_a_flag_is_answered_with_what_does_its_work(name: str, answer: str) -> None:
    flag: dict[str, Any] = {name: True}
    with pytest.raises(SettingError, match=answer):
        Trainer(**flag)


@pytest.mark.parametrize("setting", sorted(SETTINGS.values()))
def test_a_setting_that_is_offered_instead_exists(setting: str) -> None:
    own = {*known_settings(), *inspect.signature(Trainer.__init__).parameters}
    elsewhere = {"resume", "log_every", "trainer", "torch"}
    assert re.match(r"\w+", setting)[0] in own | elsewhere  # type: ignore[index]


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
@pytest.mark.parametrize("name", ["ckpt_path", "resume"])
def test_an_evaluation_of_a_checkpoint_loads_its_weights_first(call: str, name: str) -> None:
    arguments: Any = {name: "best"}
    with pytest.raises(UnknownArgument, match=r"load_weights\(model, 'runs/name'\)"):
        getattr(make_trainer(), call)(Regression(), make_batches(2), **arguments)


class Logging(Regression):
    """A model that logs with a setting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        log("one", 1.0, **self.settings)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "theirs, advice",
    [("sync_dist", "Leave it out"), ("reduce_fx", "called reduce"), ("prog", "mean 'prog_bar'")],
)
def test_a_setting_of_log_that_there_is_not(theirs: str, advice: str) -> None:
    with pytest.raises(UnknownArgument, match=rf"log\(\) has no argument '{theirs}'.*{advice}"):
        make_trainer().fit(Logging(**{theirs: True}), make_batches(2))
