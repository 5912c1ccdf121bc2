"""Settings that were given to a loop do not get lost in silence when another takes its place."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

from statemachine_trainer import (
    ClosureLoop,
    CompiledStep,
    EpochLoop,
    KFoldLoop,
    Loop,
    ManualLoop,
    OptimizerLoop,
    SAMLoop,
    Trainer,
    TrainingLoop,
    ValidationLoop,
    YieldingLoop,
)
from statemachine_trainer.machine.swap import LostSettings


def trainer_of(**settings: Any) -> Trainer:
    return Trainer(max_epochs=1, progress=False, **settings)


@pytest.mark.parametrize("kind", [ClosureLoop, SAMLoop, YieldingLoop, OptimizerLoop])
def test_an_instance_without_the_settings_of_the_loop_before_is_warned_of(kind: Any) -> None:
    trainer = trainer_of(clip_norm=1.0, nonfinite_loss="skip")
    said = rf"`optimizer={kind.__name__}\(clip_norm=1\.0, nonfinite_loss='skip'\)`.*give the class"
    with pytest.warns(LostSettings, match=said) as caught:
        trainer.loop.replace(optimizer=kind())
    assert caught[0].filename == __file__


def test_accumulation_that_a_closure_loop_cannot_do_is_not_dropped_in_silence() -> None:
    with pytest.warns(LostSettings, match="was given accumulate=4"):
        trainer_of(accumulate=4).loop.replace(optimizer=ClosureLoop())


def test_a_class_that_inherits_a_setting_and_does_not_take_it_is_warned_of() -> None:
    with pytest.warns(LostSettings, match="given on_oom='split'.*a CompiledStep"):
        trainer_of(on_oom="split").loop.replace(optimizer=CompiledStep)


def test_loops_at_any_depth_are_looked_after() -> None:
    trainer = trainer_of(validate_every=0.25, limit_validation_batches=3)
    with pytest.warns(LostSettings, match=r"EpochLoop\(validate_every=every\(0\.25, 'epoch'\)\)"):
        trainer.loop["epoch"] = EpochLoop()
    with pytest.warns(LostSettings, match=r"ValidationLoop\(limit_batches=3\)"):
        trainer.loop["epoch.validation"] = ValidationLoop()


def test_a_warning_that_is_an_error_leaves_the_loop_in_its_place() -> None:
    trainer = trainer_of(clip_norm=1.0)
    before = trainer.loop["optimizer"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LostSettings):
            trainer.loop.replace(optimizer=SAMLoop())
    assert trainer.loop["optimizer"] is before
    assert before.clip_norm == 1.0


@pytest.mark.parametrize(
    "new",
    [
        SAMLoop,  # a class takes settings over
        SAMLoop(clip_norm=0.5),
        SAMLoop(clip_norm=None),  # said on purpose
        SAMLoop(clip_norm=1.0),
    ],
    ids=["class", "another", "none", "the same"],
)
def test_what_was_said_for_the_new_loop_holds_without_a_word(new: Any) -> None:
    trainer = trainer_of(clip_norm=1.0)
    trainer.loop.replace(optimizer=new)
    assert isinstance(trainer.loop["optimizer"], SAMLoop)


def test_settings_that_are_what_they_are_anyway_are_not_lost() -> None:
    trainer = trainer_of(clip_norm=None, accumulate=1)
    trainer.loop.replace(optimizer=ClosureLoop())
    trainer.loop.replace(optimizer=ManualLoop())
    trainer.loop.replace(optimizer=OptimizerLoop(clip_norm=1.0))


def test_settings_of_a_kind_of_loop_alone_go_with_it() -> None:
    trainer = trainer_of()
    trainer.loop.replace(optimizer=SAMLoop(rho=0.1))
    trainer.loop.replace(optimizer=OptimizerLoop())
    assert not hasattr(trainer.loop["optimizer"], "rho")


def test_a_loop_that_stands_inside_the_new_one_has_lost_nothing() -> None:
    class Around(TrainingLoop):
        initial = "inner"
        outcomes = ("optimized", "flushed")
        entries = {"flush": "inner"}
        inner: Loop

        def __init__(self, inner: Loop) -> None:
            super().__init__()
            self.inner = inner

    trainer = trainer_of(clip_norm=1.0)
    inner = trainer.loop["optimizer"]
    trainer.loop.replace(optimizer=Around(inner))
    assert trainer.loop["optimizer"].inner is inner


def test_a_copy_knows_what_was_said_for_it() -> None:
    trainer = trainer_of(clip_norm=1.0)
    trainer.loop["optimizer"] = copy.deepcopy(trainer.loop["optimizer"])
    with pytest.warns(LostSettings, match="clip_norm"):
        trainer.loop.replace(optimizer=OptimizerLoop())


def test_settings_given_by_position_are_said_too() -> None:
    assert "folds" in KFoldLoop(3)._given
