"""What runs and hardly does what was meant is said, once, with the way out."""

from __future__ import annotations

import copy
import re
from typing import Any, Literal

import pytest
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.callbacks.early_stopping import NeverLooked
from statemachine_trainer.data import BadSource
from statemachine_trainer.loops import FitLoop, Phase, PhasesLoop, TrainingLoop, log
from statemachine_trainer.loops.loop_errors import (
    LikelyMistake,
    ModelError,
    OptimizerError,
    SettingError,
)
from statemachine_trainer.loops.mistakes import (
    ForeignParameters,
    FrozenParameters,
    MisspeltSetting,
    NeverCalled,
    NeverValidated,
    NothingLearned,
    SchedulerNotReturned,
    SharedName,
)
from statemachine_trainer.loops.slots import SteppedByEpochs
from statemachine_trainer.trainer import Trainer
from tests.loops.inner_kit import Batch, Regression, make_batches, make_trainer, mse


class Validated(Regression):
    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        log("val_loss", mse(self.net, batch))


# -- optimizers ----------------------------------------------------------------------------------


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    trainer = make_trainer()
    with pytest.raises(OptimizerError, match=r"None of the 2 parameters that the SGD .* Linear"):
        trainer.fit(
            model, make_batches(2), loss=F.mse_loss, optimizer=SGD(other.parameters(), lr=0.1)
        )
    assert trainer.path is None


def test_so_is_the_optimizer_of_the_model_that_this_one_is_a_copy_of() -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptimizerError, match="or a copy"):
        make_trainer().fit(
            copy.deepcopy(model), make_batches(2), loss=F.mse_loss, optimizer=optimizer
        )


def test_a_layer_that_was_replaced_after_the_optimizer_was_made_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(3, 1)
    with pytest.warns(ForeignParameters, match=r"2 of the 4 parameters.*layer replaced") as told:
        make_trainer().fit(model, make_batches(2), loss=F.mse_loss, optimizer=optimizer)
    assert told[0].filename == __file__


def test_an_optimizer_of_frozen_parameters_alone_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = SGD(model[0].parameters(), lr=0.1)
    with pytest.warns(FrozenParameters, match=r"All of the 2 parameters .* are frozen"):
        make_trainer().fit(model, make_batches(2), loss=F.mse_loss, optimizer=optimizer)


def test_parts_that_thaw_later_and_rates_that_were_loaded_are_no_mistakes() -> None:
    earlier = Regression()
    scheduled = SGD(earlier.parameters(), lr=0.1)
    StepLR(scheduled, 1)

    def configure(parameters: Any) -> Any:
        parts = [[one] for one in parameters]
        optimizers = [SGD(part, lr=0.1) for part in parts]
        for optimizer in optimizers:
            for group in optimizer.param_groups:  # as a state holds it that was loaded
                group["initial_lr"] = scheduled.param_groups[0]["initial_lr"]
        parts[-1][0].requires_grad_(False)
        return optimizers

    model, trainer = Regression(configure), make_trainer(max_epochs=1)
    trainer.on("epoch_start", lambda: model.requires_grad_(True))
    trainer.fit(model, make_batches(2))


def test_a_scheduler_that_is_made_and_not_returned_is_told() -> None:
    def configure(parameters: Any) -> Any:
        optimizer = SGD(parameters, lr=0.1)
        StepLR(optimizer, 1)
        return optimizer

    with pytest.warns(SchedulerNotReturned, match=r"the SGD .*return \[optimizer\], \[scheduler\]"):
        make_trainer().fit(Regression(configure), make_batches(2))


def test_a_scheduler_that_a_manual_step_looks_after_is_its_own_business() -> None:
    class ByHand(Regression):
        automatic_optimization = False

        def training_step(  # type: ignore[override]
            self, batch: Batch, batch_idx: int, optimizers: Any
        ) -> Any:
            mse(self.net, batch).backward()
            optimizers[0].step()

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            self.scheduler = StepLR(optimizer, 1)
            return optimizer

    make_trainer().fit(ByHand(), make_batches(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=20),
        lambda optimizer: CyclicLR(optimizer, 0.1, 0.2),
    ],
)
def test_a_scheduler_that_goes_by_steps_has_to_say_so(make: Any) -> None:
    def configured(**said: str) -> Regression:
        def configure(parameters: Any) -> Any:
            optimizer = SGD(parameters, lr=0.1, momentum=0.5)
            return [optimizer], [{"scheduler": make(optimizer), **said}]

        return Regression(configure)

    with pytest.warns(SteppedByEpochs, match="'interval': 'step'"):
        make_trainer().fit(configured(), make_batches(2))
    for interval in ("step", "epoch"):
        make_trainer().fit(configured(interval=interval), make_batches(2))


# -- steps and hooks -----------------------------------------------------------------------------


def test_a_training_step_that_never_returns_a_loss_is_told_after_the_first_epoch() -> None:
    class Forgetful(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            mse(self.net, batch)

    said = (
        r"the 3 batches of epoch 1: Forgetful\.training_step returned None .*forget `return loss`"
    )
    trainer = make_trainer(max_epochs=3)
    with pytest.warns(NothingLearned, match=said) as told:
        trainer.fit(Forgetful(), make_batches(3))
    assert len(told) == 1


def test_so_is_a_manual_step_that_never_steps() -> None:
    class ByHand(Regression):
        automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            mse(self.net, batch).backward()

    with pytest.warns(NothingLearned, match=r"called step\(\) of no optimizer"):
        make_trainer().fit(ByHand(), make_batches(3))


def test_a_step_that_leaves_out_some_batches_or_a_window_that_spans_the_epoch_is_fine() -> None:
    class Choosy(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return mse(self.net, batch) if batch_idx == 1 else None

    make_trainer().fit(Choosy(), make_batches(3))
    make_trainer(accumulate=10).fit(Regression(), make_batches(3))


def test_hooks_of_lightning_without_on_in_their_names_are_told_with_what_does_their_work() -> None:
    class Moved(Regression):
        def validation_epoch_end(self, outputs: Any) -> None:
            raise AssertionError

        def train_dataloader(self) -> Any:
            raise AssertionError

    with pytest.warns(NeverCalled) as told:
        make_trainer().fit(Moved(), make_batches(2))
    text = str(told[0].message)
    assert "validation_epoch_end: log() in validation_step, and on_validation_end" in text
    assert "train_dataloader" not in text  # fit cannot be called without its data


def test_an_evaluation_step_that_yields_or_is_asynchronous_would_do_nothing() -> None:
    class Yields(Regression):
        def validation_step(self, batch: Batch, batch_idx: int) -> Any:
            yield mse(self.net, batch)

    class Async(Regression):
        async def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return mse(self.net, batch)

    for model, said in ((Yields(), "validation_step yields"), (Async(), "is asynchronous")):
        with pytest.raises(ModelError, match=said):
            make_trainer().fit(model, make_batches(2))


# -- data and validation -------------------------------------------------------------------------


@pytest.mark.parametrize("several", [list, tuple])
def test_several_loaders_in_the_place_of_one_are_refused(several: Any) -> None:
    loader = DataLoader(TensorDataset(*make_batches(1)[0]), 2)
    with pytest.raises(BadSource, match=r"of 2 loaders .*fit\(model, train, validation\)"):
        make_trainer().fit(Validated(), several([loader, loader]))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"validate_every": 100}, "It validates every 100 batches, counted over the run"),
        ({"validate_epochs": 5}, "in every epoch number 5 only"),
    ],
)
def test_a_fit_that_ends_before_its_first_validation_is_told(
    settings: dict[str, int], said: str
) -> None:
    trainer = make_trainer(max_epochs=2, **settings)
    with pytest.warns(NeverValidated, match=said):
        trainer.fit(Validated(), make_batches(3), make_batches(1))


def test_of_several_phases_one_may_go_without_validation() -> None:
    def fit(epochs: int) -> FitLoop:
        loop = FitLoop(max_epochs=epochs, sanity_batches=0)
        loop["epoch"].validate_epochs = 2  # type: ignore[attr-defined]
        return loop

    phases = PhasesLoop(Phase("short", fit(1)), Phase("long", fit(3)))
    trainer = Trainer(phases, progress=False, device="cpu")
    trainer.fit(Validated(), make_batches(2), make_batches(1))
    assert "val_loss" in trainer.metrics


def test_one_name_for_a_metric_of_training_and_one_of_validation_is_told() -> None:
    class Same(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = mse(self.net, batch)
            log("loss", loss)
            return loss

        def validation_step(self, batch: Batch, batch_idx: int) -> Any:
            log("loss", 7.0)

    trainer = make_trainer()
    with pytest.warns(SharedName, match=r"'loss' is logged in training and .*'val_loss'"):
        trainer.fit(Same(), make_batches(3), make_batches(1))
    assert trainer.metrics["loss"] != 7.0


def test_all_of_them_can_be_switched_off_at_once() -> None:
    kinds = (
        ForeignParameters, FrozenParameters, NeverCalled, NeverLooked, NeverValidated,
        NothingLearned, SchedulerNotReturned, SharedName, SteppedByEpochs,
    )  # fmt: skip
    assert all(issubclass(kind, LikelyMistake) for kind in kinds)


def test_a_loader_of_the_model_that_nobody_asks_for_is_told() -> None:
    class Provides(Validated):
        def val_dataloader(self) -> Any:
            return make_batches(1)

    with pytest.warns(NeverCalled, match=r"validation=model\.val_dataloader\(\)"):
        make_trainer().fit(Provides(), make_batches(1))
    model = Provides()
    make_trainer().fit(model, make_batches(1), model.val_dataloader())


class Idle(TrainingLoop):
    """A loop for each batch that trains nothing."""

    initial = "work"
    outcomes = ("optimized",)
    transitions = (["again", "work", "work"],)

    def work(self) -> Literal["again", "optimized"]:
        return "optimized"


def test_a_loop_that_never_calls_the_step_is_told_and_not_the_model() -> None:
    trainer = make_trainer()
    trainer.loop.replace(optimizer=Idle())
    with pytest.warns(
        NothingLearned, match=r"epoch 1: Idle, which is the loop for each batch, did"
    ):
        trainer.fit(Regression(), make_batches(3))


def test_an_edge_whose_event_a_swapped_loop_never_gives_is_not_in_the_graph() -> None:
    trainer = make_trainer()
    assert "flushed" in str(trainer.graph())
    trainer.loop.replace(optimizer=Idle())
    posted = {edge.event for edge in trainer.graph().edges if edge.posted}
    assert posted <= trainer.driver.program.postable
    assert "flushed" not in {edge.event for edge in trainer.graph().edges}


def test_a_misspelt_attribute_of_a_loop_is_told() -> None:
    trainer = make_trainer()
    trainer.loop.max_epoch = 1
    with pytest.warns(MisspeltSetting, match=r"FitLoop at 'fit' has an attribute 'max_epoch'"):
        trainer.fit(Regression(), make_batches(2))


@pytest.mark.parametrize(
    "name, where",
    [
        ("max_epochs", "trainer.loop.max_epochs"),
        ("accumulate", "trainer.loop['optimizer'].accumul"),
    ],
)
def test_a_setting_of_a_loop_is_not_set_on_the_trainer(name: str, where: str) -> None:
    with pytest.raises(SettingError, match=re.escape(f"Set it there: {where}")):
        setattr(make_trainer(), name, 3)
