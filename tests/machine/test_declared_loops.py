"""What a new loop's class declares wins over what nobody chose; what somebody chose is carried over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from statemachine_trainer import FitLoop, KFoldLoop, ManualLoop, Trainer
from statemachine_trainer.loops import (
    ActiveLearningLoop,
    BatchLoop,
    EpochLoop,
    OptimizerLoop,
    SAMLoop,
    SanityLoop,
    ValidationLoop,
)
from statemachine_trainer.loops.recipes.acquisition import PoolLoop
from statemachine_trainer.loops.recipes.ensemble import EnsembleLoop
from statemachine_trainer.machine import Loop, place
from statemachine_trainer.machine.errors import CannotBuild, LoopDefinitionError
from statemachine_trainer.machine.swap import LostSettings


class OwnStep(OptimizerLoop):
    """Counts how often it stepped."""

    steps = 0

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        type(self).steps += 1
        return super().optimizer_step()


class OwnBatch(BatchLoop):
    optimizer: Loop = place(OwnStep)


class OwnEpoch(EpochLoop):
    batch: Loop = place(OwnBatch)


class PlainBatch(BatchLoop):
    """Declares nothing new."""


class Net(nn.Module):
    def __init__(self, *, automatic: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.automatic_optimization = automatic

    def training_step(self, batch: torch.Tensor, optimizers: Any) -> torch.Tensor | None:
        loss: torch.Tensor = self.layer(batch).square().mean()
        if self.automatic_optimization:
            return loss
        loss.backward()
        optimizers[0].step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


DATA = [torch.ones(4, 2)] * 2


def short(**settings: Any) -> Trainer:
    return Trainer(max_epochs=1, progress=False, device="cpu", **settings)


def long() -> Trainer:
    return Trainer(FitLoop(max_epochs=1), progress=False, device="cpu")


def by_item(trainer: Trainer, path: str, loop: Any) -> None:
    trainer.loop[path] = loop


def by_attribute(trainer: Trainer, path: str, loop: Any) -> None:
    outer, name = trainer.loop.place_of(path)
    setattr(outer, name, loop)


def by_name(trainer: Trainer, path: str, loop: Any) -> None:
    trainer.loop.replace(**{path.rpartition(".")[2]: loop})


def by_path(trainer: Trainer, path: str, loop: Any) -> None:
    trainer.loop.replace(**{path: loop})


def at(root: Loop, path: str) -> Any:
    return root[path]


WAYS = [by_item, by_attribute, by_name, by_path]
DECLARING = [("epoch.batch", OwnBatch), ("epoch", OwnEpoch)]


@pytest.mark.parametrize("swap", WAYS)
@pytest.mark.parametrize("path, cls", DECLARING)
@pytest.mark.parametrize("make", [short, lambda: short(clip_norm=9.0), long])
@pytest.mark.parametrize("instance", [False, True], ids=["class", "instance"])
def test_the_declared_loop_trains_however_the_loop_around_it_was_put_in(
    swap: Callable[[Trainer, str, Any], None],
    path: str,
    cls: type[Loop],
    make: Callable[[], Trainer],
    instance: bool,
) -> None:
    trainer, OwnStep.steps = make(), 0
    swap(trainer, path, cls() if instance else cls)
    trainer.fit(Net(), DATA)
    assert type(at(trainer.loop, "epoch.batch.optimizer")) is OwnStep
    assert OwnStep.steps == 2


@pytest.mark.parametrize("make", [short, long])
def test_it_wins_after_another_swap_too(make: Callable[[], Trainer]) -> None:
    trainer = make()
    trainer.loop["epoch.batch"] = PlainBatch
    trainer.loop["epoch.batch"] = OwnBatch
    assert type(at(trainer.loop, "optimizer")) is OwnStep
    trainer.loop["epoch"] = EpochLoop
    assert type(at(trainer.loop, "optimizer")) is OwnStep  # in a batch loop that somebody chose
    trainer.loop["epoch.batch"] = BatchLoop
    assert type(at(trainer.loop, "optimizer")) is OptimizerLoop
    trainer.loop["epoch.batch"] = OwnBatch()
    assert type(at(trainer.loop, "optimizer")) is OwnStep


@pytest.mark.parametrize("make", [short, long])
@pytest.mark.parametrize("path, cls", DECLARING)
def test_a_loop_that_somebody_chose_is_carried_over(
    make: Callable[[], Trainer], path: str, cls: type[Loop]
) -> None:
    trainer, chosen = make(), SAMLoop(rho=0.1)
    trainer.loop.replace(optimizer=chosen)
    for loop in (cls, cls(), EpochLoop if path == "epoch" else BatchLoop, cls):
        trainer.loop[path] = loop
        assert at(trainer.loop, "optimizer") is chosen


def test_a_loop_given_at_once_is_chosen_too() -> None:
    chosen = SAMLoop()
    trainer = Trainer(FitLoop(epoch=EpochLoop(batch=BatchLoop(optimizer=chosen))), progress=False)
    trainer.loop["epoch"] = OwnEpoch
    assert at(trainer.loop, "optimizer") is chosen


@pytest.mark.parametrize("cls", [OwnEpoch, OwnEpoch()], ids=["class", "instance"])
def test_settings_said_for_what_is_replaced_are_handed_on_inside_too(cls: Any) -> None:
    trainer = short(clip_norm=1.0, split_steps=3, limit_validation_batches=5)
    at(trainer.loop, "optimizer").accumulate = 4
    trainer.loop["epoch"] = copy.deepcopy(cls)
    step: Any = at(trainer.loop, "optimizer")
    assert (type(step), step.clip_norm, step.accumulate) == (OwnStep, 1.0, 4)
    assert at(trainer.loop, "batch").split_steps == 3
    assert at(trainer.loop, "validation").limit_batches == 5


def test_a_default_that_was_looked_at_keeps_what_was_said_for_it() -> None:
    trainer, batch = short(clip_norm=1.0, accumulate=2), OwnBatch()
    at(batch, "optimizer").clip_norm = 5.0
    step = at(batch, "optimizer")
    trainer.loop["epoch.batch"] = batch
    assert at(trainer.loop, "optimizer") is step
    assert step.accumulate == 2


def test_a_loop_made_by_a_function_takes_settings_over() -> None:
    class Made(BatchLoop):
        optimizer: Loop = place(lambda: OwnStep(clip_value=2.0))

    trainer = short(clip_norm=1.0)
    trainer.loop["batch"] = Made
    step: Any = at(trainer.loop, "optimizer")
    assert (step.clip_norm, step.clip_value) == (1.0, 2.0)


def test_a_setting_that_the_new_class_begins_with_wins_over_one_that_nobody_said() -> None:
    class Often(EpochLoop):
        def __init__(self, *, validate_every: object = 0.25, **others: Any) -> None:
            super().__init__(validate_every=validate_every, **others)

    trainer = short()
    trainer.loop["epoch"] = Often
    assert str(at(trainer.loop, "epoch").validate_every.n) == "0.25"
    trainer = short(validate_every=3)
    trainer.loop["epoch"] = Often
    assert at(trainer.loop, "epoch").validate_every.n == 3


class HandsOver(EpochLoop):
    """Declares its batch loop where it is made."""

    def __init__(self, **others: Any) -> None:
        super().__init__(**{"batch": OwnBatch(), **others})


class Assigns(EpochLoop):
    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.batch = OwnBatch()


class Reaches(EpochLoop):
    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self["batch.optimizer"] = OwnStep()


@pytest.mark.parametrize("cls", [HandsOver, Assigns, Reaches])
def test_what_a_class_puts_in_when_it_is_made_is_declared_and_not_chosen(cls: type[Loop]) -> None:
    trainer = short(clip_norm=1.0)
    trainer.loop["epoch"] = cls
    assert type(at(trainer.loop, "optimizer")) is OwnStep
    assert at(trainer.loop, "optimizer").clip_norm == 1.0
    trainer.loop["epoch"] = EpochLoop
    assert type(at(trainer.loop, "optimizer")) is OptimizerLoop
    assert at(trainer.loop, "optimizer").clip_norm == 1.0


def test_a_loop_assigned_after_it_was_made_is_chosen() -> None:
    epoch = EpochLoop()
    epoch.batch = PlainBatch()
    trainer = Trainer(FitLoop(epoch=epoch), progress=False)
    trainer.loop["epoch"] = OwnEpoch
    assert type(at(trainer.loop, "batch")) is PlainBatch


def test_settings_do_not_put_a_stock_loop_in_the_place_of_a_declared_one() -> None:
    class OwnSanity(SanityLoop): ...

    class OwnFit(FitLoop):
        sanity: Loop = place(OwnSanity)

    class OwnEnsemble(EnsembleLoop): ...

    class OwnFolds(KFoldLoop):
        ensemble: Loop = place(OwnEnsemble)

    class OwnPool(PoolLoop): ...

    class OwnLearning(ActiveLearningLoop):
        scoring: Loop = place(OwnPool)

    fit: Any = OwnFit(sanity_batches=1)
    assert (type(fit.sanity), fit.sanity.batches) == (OwnSanity, 1)
    assert type(OwnFolds(2).ensemble) is OwnEnsemble
    assert type(OwnFolds(2, ensemble="vote").ensemble) is OwnEnsemble
    pool: Any = OwnLearning(acquisition="bald").scoring
    assert (type(pool), pool.mc_samples) == (OwnPool, 20)


def test_a_setting_that_a_declared_loop_cannot_take_is_an_error() -> None:
    class Bare(ValidationLoop):
        def __init__(self) -> None:
            super().__init__()

    class OwnFit(FitLoop):
        sanity: Loop = place(Bare)

    with pytest.raises(CannotBuild, match=r"Bare that OwnFit declares for 'sanity'.*batches"):
        OwnFit(sanity_batches=1)


def test_a_loop_that_stands_in_for_another_is_not_chosen_by_that() -> None:
    trainer = short()
    trainer.fit(Net(automatic=False), DATA)
    assert type(at(trainer.loop, "optimizer")) is ManualLoop
    trainer.loop["batch"] = OwnBatch
    OwnStep.steps = 0
    trainer.fit(Net(), DATA)
    assert type(at(trainer.loop, "optimizer")) is OwnStep
    assert OwnStep.steps == 2


def test_it_hands_on_what_was_said_for_the_loop_that_it_stands_in_for() -> None:
    root = FitLoop()
    at(root, "optimizer").clip_norm = 1.0
    root.stand_in("epoch.batch.optimizer", ManualLoop(instead_of=None))
    root["batch"] = OwnBatch()
    assert at(root, "optimizer").clip_norm == 1.0


def test_settings_of_a_loop_deep_in_a_new_one_that_are_lost_are_told() -> None:
    trainer = short(clip_norm=1.0, split_steps=3)
    with pytest.warns(LostSettings, match=r"BatchLoop in 'batch' was given split_steps=3"):
        trainer.loop["epoch"] = EpochLoop(batch=BatchLoop())
    assert at(trainer.loop, "optimizer").clip_norm == 1.0


def test_a_setting_that_was_set_after_the_loop_was_made_is_lost_with_a_word_too() -> None:
    trainer = short()
    at(trainer.loop, "optimizer").clip_norm = 1.0
    with pytest.warns(LostSettings, match="clip_norm=1.0"):
        trainer.loop.replace(optimizer=SAMLoop())


def test_a_swap_that_fails_forgets_nothing_of_who_chose_what() -> None:
    class Broken(OwnBatch):
        transitions = (*BatchLoop.transitions, ["never", "batch_end", "optimizer"])  # type: ignore[assignment]

    trainer = short(clip_norm=1.0)
    with pytest.raises(LoopDefinitionError):
        trainer.loop["batch"] = Broken
    trainer.loop["batch"] = OwnBatch
    step: Any = at(trainer.loop, "optimizer")
    assert (type(step), step.clip_norm) == (OwnStep, 1.0)


def test_copies_know_who_chose_what() -> None:
    chosen, not_chosen = FitLoop(), FitLoop()
    chosen.replace(optimizer=SAMLoop())
    for root, expected in ((chosen, SAMLoop), (not_chosen, OwnStep)):
        twin = copy.deepcopy(root)
        twin["batch"] = OwnBatch
        assert type(twin["optimizer"]) is expected
