"""Case 21: a loop given by class takes over settings and inner loops of the one it replaces."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.loops import EpochLoop, FitLoop
from statemachine_trainer.machine.errors import CannotBuild
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, make_trainer, numbered


class OwnEpoch(EpochLoop):
    pass


class Surprising(EpochLoop):
    def __init__(self, surprise: int) -> None:
        super().__init__()
        self.surprise = surprise


def test_settings_and_inner_loops_are_carried_over() -> None:
    trainer = make_trainer(validate_every=123, limit_train_batches=0.5, reload_every=4)
    old = trainer.loop.epoch
    batch, validation = old.batch, old.validation
    trainer.loop.replace(epoch=OwnEpoch)
    new: Any = trainer.loop.epoch
    assert type(new) is OwnEpoch
    assert (new.validate_every, new.limit_batches, new.reload_every) == (old.validate_every, 0.5, 4)
    assert new.batch is batch
    assert new.validation is validation


def test_a_class_that_needs_other_settings_is_refused_and_nothing_changes() -> None:
    trainer = make_trainer()
    old = trainer.loop.epoch
    with pytest.raises(CannotBuild, match="surprise"):
        trainer.loop.replace(epoch=Surprising)
    assert trainer.loop.epoch is old
    trainer.loop.replace(epoch=Surprising(surprise=1))
    trainer.fit(Model(), numbered(1))


def test_the_fields_begin_anew_unless_they_are_to_be_kept() -> None:
    for policy, expected in (("reset", False), ("keep", True)):
        trainer = make_trainer()
        trainer.loop.epoch.draining = True
        trainer.loop.replace(epoch=OwnEpoch, state=policy)
        assert trainer.loop.epoch.draining is expected


def test_a_whole_tree_may_be_put_together_by_hand() -> None:
    loop = FitLoop(max_epochs=2, sanity_batches=0, epoch=OwnEpoch(limit_batches=1))
    model = Model()
    Trainer(loop, device="cpu", progress=False).fit(model, numbered(3))
    assert model.trained == [0, 0]
