"""Callbacks that would hear everything twice, or whose state would be lost, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import Checkpoints, Progress, RunFolder
from statemachine_trainer.callbacks import EarlyStopping
from statemachine_trainer.callbacks.early_stopping import NeverLooked
from statemachine_trainer.loops import KFoldLoop
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import BadReceiver
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, loader
from tests.loops.outer_kit import Model, make_trainer, numbered


class Count:
    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self) -> None:
        self.epochs += 1


def test_the_same_callback_twice_is_refused() -> None:
    count = Count()
    with pytest.raises(BadReceiver, match="The same Count is in `callbacks` twice"):
        Trainer(callbacks=[count, Count(), count])
    trainer = make_trainer(callbacks=[count])
    with pytest.raises(BadReceiver, match=r"This Count is subscribed already.*off\(\.\.\.\)"):
        trainer.on(count)
    trainer.off(count)
    trainer.on(count)
    trainer.fit(Model(), numbered(1))
    assert count.epochs == 1


def test_what_has_an_argument_of_its_own_is_refused_with_its_name(tmp_path: Path) -> None:
    for thing, way_out in (
        (Checkpoints(tmp_path), r"Trainer\(checkpoints=Checkpoints\(\.\.\.\)\)"),
        (RunFolder(tmp_path), r"Trainer\(run=RunFolder\(\.\.\.\)\)"),
        (Progress(), r"Trainer\(progress=Progress\(\.\.\.\)\)"),
    ):
        with pytest.raises(BadReceiver, match=way_out):
            Trainer(callbacks=[thing])


def test_two_callbacks_of_one_class_are_fine() -> None:
    counts = [Count(), Count()]
    make_trainer(callbacks=counts).fit(Model(), numbered(1))
    assert [one.epochs for one in counts] == [1, 1]


@pytest.mark.parametrize("name", ["state_dict", "load_state_dict"])
def test_half_of_what_it_takes_to_be_written_down_is_refused(name: str) -> None:
    missing = {"state_dict": "load_state_dict", "load_state_dict": "state_dict"}[name]
    half: Any = type("Half", (Count,), {name: lambda self, *_: {}})
    with pytest.raises(BadReceiver, match=f"Half has a method {name} and no {missing}"):
        Trainer(callbacks=[half()])


def test_early_stopping_monitors_a_name() -> None:
    wrong: Any = 3
    with pytest.raises(SettingError, match="give the name of a metric"):
        EarlyStopping(wrong)


def test_early_stopping_that_never_has_anything_to_look_at_is_told_at_the_end() -> None:
    trainer = make_trainer(callbacks=[EarlyStopping("value", check="validation_end")])
    with pytest.warns(NeverLooked, match="never looked at 'value'.*'validation_end'") as told:
        trainer.fit(Model(), numbered(2))
    assert told[0].filename == __file__


def test_early_stopping_that_has_looked_is_not() -> None:
    fit = FitLoop(max_epochs=2, sanity_batches=0)
    for loop in (fit, KFoldLoop(2, fit=FitLoop(max_epochs=2, sanity_batches=0))):
        stopping = EarlyStopping("val_acc", mode="max")
        trainer = Trainer(loop, callbacks=[stopping], progress=False, device="cpu")
        trainer.fit(Net(), loader(12), loader(8))
