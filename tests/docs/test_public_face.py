"""The public names: listed, loaded when they are used, with hints that resolve and a short repr."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statemachine_trainer
from statemachine_trainer import (
    Checkpoints,
    EarlyStopping,
    FitLoop,
    OptimizerLoop,
    Run,
    Trainer,
    observe,
    testing,
)

NAMES = statemachine_trainer.__all__


@pytest.mark.parametrize("package", [statemachine_trainer, observe, testing])
def test_dir_shows_what_is_public_and_nothing_else(package: Any) -> None:
    assert dir(package) == sorted(package.__all__)
    assert not [name for name in dir(package) if name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_is_what_it_is_called(name: str) -> None:
    thing = getattr(statemachine_trainer, name)
    assert getattr(thing, "__name__", name) == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        statemachine_trainer.Trianer  # noqa: B018


def test_the_machine_is_there_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from statemachine_trainer import Loop, Driver; "
        "from statemachine_trainer import StateMachineError, Moment; print(Loop.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Loop\n", "")


def functions_of(thing: Any) -> Iterator[Any]:
    """Return a public thing and, of a class, its public methods and properties."""
    yield thing
    if not inspect.isclass(thing):
        return
    for name, member in inspect.getmembers(thing):
        if name.startswith("_") and name != "__init__":
            continue
        if inspect.isfunction(member):
            yield member
        elif isinstance(member, property):
            yield member.fget


@pytest.mark.parametrize("name", NAMES)
def test_type_hints_can_be_resolved(name: str) -> None:
    for function in functions_of(getattr(statemachine_trainer, name)):
        typing.get_type_hints(function)


def test_a_repr_says_what_somebody_looks_for(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    trainer = Trainer(max_epochs=2, clip_norm=1.0, checkpoints=checkpoints, progress=False)
    assert repr(trainer.loop) == "FitLoop(max_epochs=2)"
    assert repr(trainer.loop["epoch.batch.optimizer"]) == "OptimizerLoop(clip_norm=1.0)"
    assert repr(trainer).startswith("<Trainer of 'fit' (FitLoop): not started, checkpoints in ")
    assert repr(checkpoints) == f"Checkpoints({str(tmp_path)!r}, every=every(1, 'epoch'))"
    data = [(torch.ones(2, 2), torch.ones(2, 1))] * 2
    trainer.fit(nn.Linear(2, 1), data, loss=nn.MSELoss(), optimizer=torch.optim.SGD)
    assert "ended with 'fit_done', 2 epochs done, step 4" in repr(trainer)
    assert repr(Run(tmp_path)) == f"Run({str(tmp_path)!r})"
    assert repr(EarlyStopping("val")) == "EarlyStopping('val', patience=3, waited=0)"
    assert repr(trainer.graph()).startswith("<Graph 'fit': ")
    for one in (trainer, trainer.loop, checkpoints, trainer.graph(), trainer.context):
        assert len(repr(one)) < 300


def test_a_loop_of_one_s_own_has_a_repr_too() -> None:
    class Mine(OptimizerLoop):
        def __init__(self, rate: Any, *, weights: Any = None) -> None:
            super().__init__()
            self.weights = weights

    assert repr(Mine(1)) == "Mine()"
    assert len(repr(Mine(1, weights=torch.zeros(1000)))) < 100
    assert repr(FitLoop()) == "FitLoop()"
