"""Every setting of every public class refuses what it cannot mean, with an error of our own."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import statemachine_trainer
from statemachine_trainer import Trainer
from statemachine_trainer.machine.errors import StateMachineError

REQUIRED: dict[str, dict[str, Any]] = {
    "Best": {"metric": "val"},
    "Checkpoints": {"folder": "run"},
    "EarlyStopping": {"monitor": "val"},
    "InTurns": {"loaders": {"one": [1]}},
    "LabelFolder": {"folder": "labels"},
    "Mirror": {"address": "memory://run"},
    "Mixture": {"loaders": {"one": [1]}},
    "RunFolder": {"folder": "run"},
    "Together": {"loaders": {"one": [1]}},
    "warmup": {"steps": 10},
}
NOT_MADE_BY_USERS = {"Driver", "Graph", "Loop", "Moment", "StateMachineError", "Turn", "TurnDone"}
NEED_LOOPS = {"CustomLoop", "Phase", "PhasesLoop", "TrainingLoop"}
MEANT = {
    ("FitLoop", "sanity_batches", -1),  # all
    ("SanityLoop", "batches", -1),
    ("CompiledStep", "verify", 7),  # every seventh step
}


def kinds_of(hint: Any) -> set[Any]:
    """Return the types that a hint allows; those of a Literal as they are."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(kinds_of, typing.get_args(hint)))
    return {Literal if typing.get_origin(hint) is Literal else typing.get_origin(hint) or hint}


def wrong_for(hint: Any) -> list[Any]:
    """Return values that a setting with this hint cannot mean."""
    kinds = kinds_of(hint)
    if kinds & {object, Any}:
        return []
    wrong: list[Any] = [object()]
    if bool in kinds and str not in kinds:
        wrong += ["no", "", 2.5] + ([] if kinds & {int, float} else [1])
    if kinds & {int, float}:
        wrong += [-1, math.nan]
        wrong += [] if bool in kinds else [True]
        wrong += [] if str in kinds else ["5", ""]
        wrong += [] if float in kinds else [1.5]
    elif str in kinds:
        wrong += [5, 1.5, ""]
    if Literal in kinds and str not in kinds:
        wrong += ["nonsense", 7, ""]
    return wrong


def settings() -> Iterator[tuple[str, str, Any]]:
    for name in statemachine_trainer.__all__:
        kind = getattr(statemachine_trainer, name)
        if not inspect.isclass(kind) or name in NOT_MADE_BY_USERS | NEED_LOOPS:
            continue
        hints = typing.get_type_hints(kind.__init__)
        for one in inspect.signature(kind.__init__).parameters.values():
            if one.name in hints and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
                for value in wrong_for(hints[one.name]):
                    if (name, one.name, value) not in MEANT:
                        yield name, one.name, value


def label(value: Any) -> str:
    return "object()" if type(value) is object else repr(value)


@pytest.mark.parametrize(
    "name, setting, value",
    [pytest.param(n, s, v, id=f"{n}({s}={label(v)})") for n, s, v in settings()],
)
def test_a_setting_refuses_what_it_cannot_mean(
    name: str, setting: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {**REQUIRED.get(name, {}), setting: value}
    with pytest.raises(StateMachineError):
        getattr(statemachine_trainer, name)(**arguments)
    assert not [*tmp_path.iterdir()]


OF_THE_DEFAULT_TREE: dict[str, list[Any]] = {
    "max_epochs": ["5", -1, math.nan, True],
    "accumulate": ["2", 0, True, 1.5, {0: True}],
    "clip_norm": ["1", -1, math.nan, True],
    "clip_value": ["1", math.nan],
    "validate_every": ["", -1, math.nan, True],
    "validate_epochs": ["1", 0, True],
    "limit_train_batches": ["1", -1, math.nan, True],
    "limit_test_batches": ["1", -1, math.nan, True],
    "reload_every": ["1", -1],
    "gather_outputs": ["no", 1],
    "split_steps": ["1", -1, True],
    "time_dim": ["1", math.nan, True],
    "carry_hiddens": ["no"],
    "nonfinite_loss": ["x", 1],
    "sanity_batches": ["1", -2, True],
    "max_time": ["x", -1, math.nan, True],
}


@pytest.mark.parametrize(
    "setting, value",
    [(setting, value) for setting, values in OF_THE_DEFAULT_TREE.items() for value in values],
)
def test_so_does_one_of_the_default_tree(setting: str, value: Any) -> None:
    arguments: Any = {setting: value}
    with pytest.raises(StateMachineError, match=setting.split("_")[-1]):
        Trainer(**arguments)
