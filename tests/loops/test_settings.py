"""The short way: settings by name, each on the loop that it controls."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.loops import FitLoop
from statemachine_trainer.loops.default_tree import known_settings
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, make_trainer, numbered


def test_each_setting_is_found_on_the_loop_that_it_controls() -> None:
    trainer = make_trainer(
        max_epochs=3,
        max_time="00:01:00",
        validate_every=5,
        limit_train_batches=7,
        split_steps=2,
        carry_hiddens=True,
        clip_norm=1.0,
        limit_validation_batches=0.5,
    )
    loop = trainer.loop
    assert (loop.max_epochs, loop.max_time) == (3, "00:01:00")
    assert (loop.epoch.validate_every.n, loop.epoch.limit_batches) == (5, 7)
    assert (loop.epoch.batch.split_steps, loop.epoch.batch.carry_hiddens) == (2, True)
    assert loop.epoch.batch.optimizer.clip_norm == 1.0
    assert loop.epoch.validation.limit_batches == 0.5


def test_an_unknown_setting_is_an_error_that_offers_the_nearest_names() -> None:
    with pytest.raises(SettingError, match=r"'max_epoch'.*max_epochs"):
        make_trainer(max_epoch=3)


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("accumulate_grad_batches", "accumulate"),
        ("val_check_interval", "validate_every"),
        ("check_val_every_n_epoch", "validate_epochs"),
        ("num_sanity_val_steps", "sanity_batches"),
        ("gradient_accumulation_steps", "accumulate"),
        ("limit_val_batches", "limit_validation_batches"),
    ],
)
def test_another_trainers_name_is_answered_with_ours(theirs: str, ours: str) -> None:
    with pytest.raises(SettingError, match=f"it is called {ours}"):
        make_trainer(**{theirs: 1})
    assert ours in known_settings()


def test_settings_of_the_default_tree_do_not_go_with_a_loop_of_ones_own() -> None:
    with pytest.raises(SettingError, match=r"'accumulate'.*on the loop that it controls"):
        Trainer(FitLoop(max_epochs=1), accumulate=2, progress=False)


def test_a_loop_of_ones_own_has_its_own_settings() -> None:
    trainer = Trainer(FitLoop(max_epochs=2, sanity_batches=0), progress=False, device="cpu")
    model = Model()
    trainer.fit(model, numbered(1))
    assert model.trained == [0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": "3"},
        {"max_steps": -1},
        {"max_time": "soon"},
        {"sanity_batches": -5},
        {"validate_every": 0},
        {"validate_epochs": 0},
        {"limit_train_batches": 1.5},
        {"limit_validation_batches": -1},
        {"limit_test_batches": True},
        {"limit_predict_batches": "all"},
        {"reload_every": 0.5},
        {"accumulate": 0},
        {"clip_norm": 0},
        {"split_steps": 0},
        {"nonfinite_loss": "pray"},
        {"count_steps_of": "some"},
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused_when_the_trainer_is_made(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(StateMachineError):
        make_trainer(**settings)
