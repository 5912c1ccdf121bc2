"""A loop of training may not take the name of a method that the trainer calls for something else."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from statemachine_trainer import (
    ActiveLearningLoop,
    EpochLoop,
    FitLoop,
    KFoldLoop,
    Phase,
    PhasesLoop,
    Trainer,
    TrainingLoop,
)
from statemachine_trainer.loops.context import Limits
from statemachine_trainer.machine.errors import ReservedName

NAMES = sorted(TrainingLoop._called)


class Plain(TrainingLoop):
    initial = "work"
    transitions = ()
    outcomes = ("done",)

    def work(self) -> Literal["done"]:
        return "done"


def with_state(name: str) -> type[TrainingLoop]:
    def state(self: TrainingLoop) -> Literal["done"]:
        return "done"

    members: dict[str, Any] = {"initial": name, "outcomes": ("done",), name: state}
    return type("Mine", (TrainingLoop,), members)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_cannot_have_the_name_of_a_method_that_others_call(name: str) -> None:
    with pytest.raises(ReservedName, match=f"{name!r}.*something else"):
        Trainer(with_state(name)())


def test_a_method_that_takes_other_arguments_is_refused() -> None:
    class Mine(Plain):
        def schedule(self) -> None: ...  # type: ignore[override]

    with pytest.raises(ReservedName, match=r"TrainingLoop declares `schedule\(self, slot, name\)`"):
        Trainer(Mine())


def test_a_setting_of_such_a_name_is_refused() -> None:
    class Mine(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = "cosine"  # type: ignore[method-assign,assignment]

    with pytest.raises(ReservedName, match="defines 'schedule'"):
        Trainer(Mine())


def test_a_field_of_such_a_name_is_refused() -> None:
    class Mine(Plain):
        limits: int = 3  # type: ignore[assignment]

    with pytest.raises(ReservedName, match="defines 'limits'"):
        Trainer(Mine())


def test_methods_that_are_meant_to_be_overridden_may_be() -> None:
    class Mine(Plain):
        evaluates = True

        def limits(self) -> Limits | None:
            return None

        def restore(self) -> None: ...

    Trainer(Mine())


def test_the_repr_of_a_loop_shows_settings_that_share_their_name_with_a_field_or_a_state() -> None:
    assert repr(KFoldLoop(folds=3)) == "KFoldLoop(folds=3)"
    assert repr(ActiveLearningLoop(query=3, mc_samples=4)).startswith(
        "ActiveLearningLoop(mc_samples=4, query=3"
    )
    assert repr(EpochLoop(validate_every=3)) == "EpochLoop(validate_every=every(3, 'batch'))"
    assert repr(PhasesLoop(Phase("a", FitLoop()), cycles=2)) == "PhasesLoop(Phase('a'), cycles=2)"
