"""A keyword that a public class does not take is an error that names the class, and what was meant."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import statemachine_trainer
from statemachine_trainer import (
    Best,
    FitLoop,
    KFoldLoop,
    Loop,
    PhasesLoop,
    Trainer,
    every,
    load_weights,
    place,
)
from statemachine_trainer.integrations import trackers
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import UnknownLoop, UnknownSetting
from statemachine_trainer.machine.keywords import HasSettings, settings_of

NOT_MADE_BY_USERS = {"Driver", "Graph", "Moment", "StateMachineError", "Turn", "TurnDone"}
PUBLIC = [getattr(statemachine_trainer, name) for name in statemachine_trainer.__all__]
CLASSES = [one for one in PUBLIC if inspect.isclass(one) and one.__name__ not in NOT_MADE_BY_USERS]
TRACKERS = [trackers.TensorBoard, trackers.MLflow]


def misspelt() -> Iterator[tuple[type, str, str]]:
    """Yield each setting of each public class, and how it is typed in haste."""
    for kind in [*CLASSES, *TRACKERS]:
        for name in sorted(settings_of(kind)):
            if len(name) > 3 and f"{name[:-2]}{name[-1]}" not in settings_of(kind):
                yield kind, name, f"{name[:-2]}{name[-1]}"


@pytest.mark.parametrize("kind", [one for one in CLASSES if one is not Trainer])
def test_each_public_class_refuses_what_it_does_not_know(kind: type) -> None:
    assert issubclass(kind, HasSettings)
    with pytest.raises(UnknownSetting, match=f"^{kind.__name__} has no setting 'nonsense'"):
        kind(nonsense=1)


TAKES_ANY = {"log", "log_dict", "find_batch_size", "find_learning_rate"}
"""They look at their settings themselves, or hand them to the trainer."""

FUNCTIONS = [one for one in PUBLIC if inspect.isfunction(one) and one.__name__ not in TAKES_ANY]
METHODS = [
    name
    for name, _ in inspect.getmembers(Trainer, inspect.isfunction)
    if not name.startswith("_") and name not in ("backward", "moments", "on", "post")
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_public_function_refuses_what_it_does_not_know(function: Any) -> None:
    needed = [
        None
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    with pytest.raises(
        UnknownSetting, match=rf"^{function.__name__}\(\) has no argument 'nonsense'"
    ):
        function(*needed, nonsense=1)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_of_the_trainer_refuses_what_it_does_not_know(name: str) -> None:
    needed = [None, None] if name == "resume" else []
    with pytest.raises(UnknownSetting, match=rf"^{name}\(\) has no argument 'nonsense'"):
        getattr(Trainer(progress=False), name)(*needed, nonsense=1)


@pytest.mark.parametrize(
    "call, near",
    [
        (lambda: every(1, units="step"), "Did you mean 'unit'"),  # type: ignore[call-arg]
        (lambda: load_weights(None, "runs", bets="loss"), "Did you mean 'best'"),  # type: ignore[arg-type, call-arg]
        (lambda: Trainer(progress=False).run(untill="step"), "Did you mean 'until'"),  # type: ignore[call-arg]
    ],
)
def test_a_misspelt_argument_is_told_with_the_right_one(call: Any, near: str) -> None:
    with pytest.raises(UnknownSetting, match=near):
        call()


@pytest.mark.parametrize(
    "kind, name, typed",
    [pytest.param(*one, id=f"{one[0].__name__}({one[2]})") for one in misspelt()],
)
def test_a_misspelt_setting_is_told_with_the_right_one(kind: type, name: str, typed: str) -> None:
    with pytest.raises(UnknownSetting) as told:
        kind(**{typed: 3})
    text = str(told.value)
    assert text.startswith(f"{kind.__name__} has no setting {typed!r}. ")
    assert f"{name!r}" in text.partition("Did you mean ")[2]


PLACES = [
    (Trainer, "patience", "EarlyStopping has it: EarlyStopping(..., patience=3)."),
    (Trainer, "folds", "KFoldLoop has it: KFoldLoop(folds=3)."),
    (Trainer, "loss", "`fit` has it: trainer.fit(..., loss=3)."),
    (Trainer, "batch_size", "It is one of the loader: DataLoader("),
    (Trainer, "lr", "It is one of the optimizer, "),
    (KFoldLoop, "max_epochs", "A loop inside has it: KFoldLoop(fit=FitLoop(max_epochs=3))."),
    (KFoldLoop, "split_steps", "fit=FitLoop(epoch=EpochLoop(batch=BatchLoop(split_steps=3)))"),
    (PhasesLoop, "max_epochs", "Trainer has it: Trainer(max_epochs=3). FitLoop has one, too."),
    (FitLoop, "checkpoints", "Trainer has it: Trainer(checkpoints=3)."),
    (FitLoop, "patiense", "EarlyStopping has it: EarlyStopping(..., patience=3)."),
]


@pytest.mark.parametrize("kind, name, told", PLACES)
def test_a_setting_of_another_class_is_told_with_its_home(kind: type, name: str, told: str) -> None:
    with pytest.raises(UnknownSetting) as caught:
        kind(**{name: 3})
    assert told in str(caught.value)


def test_what_the_trainer_does_not_know_is_an_error_of_settings_too() -> None:
    with pytest.raises(SettingError, match="Did you mean 'checkpoints'"):
        Trainer(checkpoint="runs/mine")


@pytest.mark.parametrize("function", ["fit", "start", "resume", "audit", "validate", "moments"])
def test_functions_of_the_trainer_say_where_a_setting_belongs(function: str) -> None:
    call = getattr(Trainer(progress=False), function)
    with pytest.raises(UnknownSetting, match=r"Trainer has it: Trainer\(clip_norm=1\.0\)"):
        next(call(None, None, clip_norm=1.0))  # `moments` begins when somebody asks for the first


def test_an_option_of_a_subscription_that_is_misspelt_is_told() -> None:
    with pytest.raises(
        statemachine_trainer.StateMachineError, match=r"'evry'\. Did you mean 'every'"
    ):
        Trainer(progress=False).on("epoch_end", print, evry=2)


class Inner(Loop):
    initial = "work"
    transitions = (["done", "work", "work"],)

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size


class Outer(Loop):
    initial = "inner"
    transitions = (["done", "inner", "inner"],)
    inner: Loop = place(Inner)

    def __init__(self, width: int = 1, **own: Any) -> None:
        super().__init__()
        self.width, self.own = width, own


def test_loops_of_users_are_looked_at_as_far_as_they_do_not_do_so_themselves() -> None:
    assert Outer(anything=1).own == {"anything": 1}
    with pytest.raises(
        UnknownSetting, match=r"^Inner has no setting 'sise'. Did you mean 'size'\?"
    ):
        Inner(sise=3)  # type: ignore[call-arg]
    with pytest.raises(UnknownLoop, match="'optimiser'"):
        FitLoop(optimiser=Inner())


def test_settings_are_copied_and_pickled_as_before() -> None:
    rule = Best("val_loss", k=2)
    assert copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule)) == rule
