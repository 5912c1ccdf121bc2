"""Bad input ends in a clear error, with the machine at a boundary and nothing lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from statemachine_trainer.callbacks import Checkpoints, EarlyStopping
from statemachine_trainer.data.data_errors import BadSource, EmptyLoader, StrayStopIteration
from statemachine_trainer.loops import ManualLoop, OptimizerLoop, ValidationLoop
from statemachine_trainer.loops.loop_errors import (
    ModelError,
    NonFiniteLoss,
    OptimizerError,
    SettingError,
    StepOutputError,
)
from statemachine_trainer.machine.errors import (
    BadReceiver,
    LoopInUse,
    UnknownLoop,
    UnknownSignal,
)
from statemachine_trainer.parallel.parallel_errors import CannotMove
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, Trace, Unsized, make_trainer, numbered

# -- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        [],
        DataLoader(TensorDataset(torch.zeros(0, 1))),
        DataLoader(TensorDataset(torch.zeros(3, 1)), batch_size=4, drop_last=True),
    ],
    ids=["list", "empty data set", "drop_last"],
)
def test_a_loader_known_to_be_empty_is_refused_before_the_fit(data: Any) -> None:
    trainer = make_trainer()
    with pytest.raises(EmptyLoader, match="'train'"):
        trainer.fit(Model(), data)
    assert trainer.path is None
    with pytest.raises(EmptyLoader, match="'validation'"):
        trainer.fit(Model(), numbered(1), data)


def test_an_empty_loader_of_unknown_length_stops_at_its_first_batch_and_may_be_filled() -> None:
    trainer, model = make_trainer(), Model()
    data = Unsized([])
    with pytest.raises(EmptyLoader, match="'train'"):
        trainer.fit(model, data)
    assert trainer.path == "fit.epoch.fetch"
    data.batches = numbered(2)
    trainer.run()
    assert model.trained == [0, 1]


class Breaking(Dataset[torch.Tensor]):
    """Raises for one sample, until it is mended."""

    def __init__(self, bad: int) -> None:
        self.bad = bad
        self.broken = True

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.broken and index == self.bad:
            raise OSError("the disk is gone")
        return torch.tensor([float(index)])


@pytest.mark.parametrize("bad", range(6))
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_that_raises_goes_on_after_the_mend_with_no_batch_lost_or_doubled(
    bad: int, shuffle: bool
) -> None:
    data = Breaking(bad)
    trainer, model = make_trainer(seed=2), Model()
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(model, DataLoader(data, shuffle=shuffle))
    assert trainer.path == "fit.epoch.fetch"
    assert trainer.context.counts.batch == len(model.trained)
    data.broken = False
    trainer.run()
    whole = Model()
    make_trainer(seed=2).fit(whole, DataLoader(data, shuffle=shuffle))
    assert model.trained == whole.trained
    assert torch.equal(model.layer.weight, whole.layer.weight)


def test_a_validation_loader_that_raises_goes_on_after_the_mend() -> None:
    data = Breaking(3)
    trainer, model = make_trainer(), Model()
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(model, numbered(2), DataLoader(data))
    data.broken = False
    trainer.run()
    assert model.validated == [0, 1, 2, 3, 4, 5]
    assert trainer.metrics["value"] == 2.5
    assert model.training


def test_trap_26_a_stop_iteration_in_a_data_set_does_not_end_the_epoch() -> None:
    class Ending(Breaking):
        def __getitem__(self, index: int) -> torch.Tensor:
            if self.broken and index == self.bad:
                next(iter(()))
            return torch.tensor([float(index)])

    data = Ending(2)
    trainer, model = make_trainer(), Model()
    with pytest.raises(StrayStopIteration, match="batch 3 of 'train'"):
        trainer.fit(model, DataLoader(data))
    data.broken = False
    trainer.run()
    assert model.trained == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "data, name",
    [(3, "train"), ("a path", "train"), ({"x": 1}, "train/x"), (torch.zeros(3), "train")],
    ids=str,
)
def test_data_that_cannot_be_read_batch_by_batch_are_refused(data: Any, name: str) -> None:
    with pytest.raises(BadSource, match=f"'{name}'"):
        make_trainer().fit(Model(), data)


# -- batches on another device -------------------------------------------------------------------


class Opaque:
    """A batch that nobody knows how to move."""

    def __init__(self, number: int) -> None:
        self.number = number


class Remote(nn.Module):
    """Its batches may hold anything."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch["number"])
        return self.layer(batch["x"]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch["number"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def mixed(count: int, bad: int) -> list[Any]:
    batches: list[Any] = [{"x": torch.ones(2, 1), "number": number} for number in range(count)]
    batches[bad]["meta"] = Opaque(bad)
    return batches


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_batch_of_unknown_type_on_another_device_is_named_and_not_lost(bad: int) -> None:
    batches = mixed(3, bad)
    trainer, model = Trainer(device="meta", progress=False, max_epochs=1), Remote()
    with pytest.raises(CannotMove, match="Opaque"):
        trainer.fit(model, batches)
    assert trainer.path == "fit.epoch.fetch"
    del batches[bad]["meta"]
    trainer.run()
    assert model.seen == [0, 1, 2]


def test_a_validation_batch_of_unknown_type_is_not_lost_either() -> None:
    batches = mixed(3, 1)
    trainer = Trainer(device="meta", progress=False, max_epochs=1, sanity_batches=0)
    model = Remote()
    with pytest.raises(CannotMove, match="Opaque"):
        trainer.fit(model, [{"x": torch.ones(1, 1), "number": 9}], batches)
    del batches[1]["meta"]
    trainer.run()
    assert model.seen == [9, 0, 1, 2]


def test_a_model_may_move_its_batches_itself() -> None:
    class Moving(Remote):
        def transfer_batch(self, batch: Any, device: torch.device) -> Any:
            return {"x": batch["x"].to(device), "number": batch["number"]}

    trainer, model = Trainer(device="meta", progress=False, max_epochs=1), Moving()
    trainer.fit(model, mixed(3, 1))
    assert model.seen == [0, 1, 2]


# -- training steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output",
    [
        "a loss",
        1.0,
        {"accuracy": 1.0},
        {"loss": 1.0},
        (1.0, 2.0),
        torch.ones(3, requires_grad=True),
        torch.ones(()),
        [torch.ones((), requires_grad=True)],
    ],
    ids=repr,
)
def test_a_training_step_that_returns_a_wrong_type_is_tried_again_after_the_mend(
    output: Any,
) -> None:
    class Wrong(Model):
        wrong = True

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            if self.wrong and batch_idx == 1:
                return output
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(), Wrong()
    with pytest.raises(StepOutputError, match="training step returned"):
        trainer.fit(model, numbered(3))
    assert trainer.path == "fit.epoch.batch.optimizer.forward"
    model.wrong = False
    trainer.run()
    whole = Model()
    make_trainer().fit(whole, numbered(3))
    assert model.trained == [0, 1, 2]
    assert torch.equal(model.layer.weight, whole.layer.weight)


def test_a_model_without_training_step_says_what_to_write() -> None:
    with pytest.raises(ModelError, match=r"no training_step\(batch, batch_idx\)"):
        make_trainer().fit(nn.Linear(1, 1), numbered(1))


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module"):
        make_trainer().fit(lambda x: x, numbered(1))  # type: ignore[arg-type]


# -- optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("returned", [None, [], "sgd", [1]], ids=repr)
def test_a_model_without_a_usable_optimizer_is_refused(returned: Any) -> None:
    class Bad(Model):
        def configure_optimizers(self) -> Any:
            return returned

    trainer, model = make_trainer(), Bad()
    with pytest.raises(OptimizerError):
        trainer.fit(model, numbered(1))
    assert (trainer.path, model.trained) == (None, [])


def test_a_model_without_configure_optimizers_is_told_both_ways() -> None:
    class None_(nn.Linear):  # noqa: N801
        training_step = Model.training_step

    with pytest.raises(OptimizerError, match=r"configure_optimizers\(\).*optimizer="):
        make_trainer().fit(None_(1, 1), numbered(1))


class Diverging(Model):
    """Its loss is NaN at batch 1, until it is mended."""

    nan = True

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.nan and batch_idx == 1 else loss


def test_a_nan_loss_may_raise_with_the_batch_still_to_do() -> None:
    trainer, model = make_trainer(nonfinite_loss="raise"), Diverging()
    with pytest.raises(NonFiniteLoss, match="batch 2 of epoch 1"):
        trainer.fit(model, numbered(3))
    assert trainer.steps == 1
    model.nan = False
    trainer.run()
    assert trainer.steps == 3
    assert torch.isfinite(model.layer.weight).all()


def test_a_nan_loss_may_leave_the_batch_out() -> None:
    trainer, model = make_trainer(nonfinite_loss="skip"), Diverging()
    trainer.fit(model, numbered(3))
    assert (trainer.steps, trainer.context.counts.batch) == (2, 3)
    assert torch.isfinite(model.layer.weight).all()


def test_a_nan_loss_may_go_on() -> None:
    trainer, model = make_trainer(nonfinite_loss="ignore"), Diverging()
    trainer.fit(model, numbered(3))
    assert trainer.steps == 3
    assert torch.isnan(model.layer.weight).all()


# -- settings, receivers, loops ------------------------------------------------------------------


def test_an_unknown_setting_is_named_with_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"'max_epocs'.*max_epochs"):
        Trainer(max_epocs=3)


@pytest.mark.parametrize("callbacks", [[EarlyStopping], EarlyStopping])
def test_a_class_of_callbacks_is_refused(callbacks: Any) -> None:
    with pytest.raises(BadReceiver, match=r"Make one: EarlyStopping\(\.\.\.\)"):
        Trainer(callbacks=callbacks)
    trainer = make_trainer()
    with pytest.raises(BadReceiver, match=r"Make one: EarlyStopping\(\.\.\.\)"):
        trainer.on(EarlyStopping)
    assert trainer.board.subscriptions == []


@pytest.mark.parametrize("callbacks", [EarlyStopping("loss"), "epoch_end", 3])
def test_callbacks_that_are_no_list_are_refused(callbacks: Any) -> None:
    with pytest.raises(SettingError, match=r"Give callbacks=\[\.\.\.\]"):
        Trainer(callbacks=callbacks)


def test_a_name_is_no_callback() -> None:
    with pytest.raises(BadReceiver, match="'epoch_end' is a name"):
        Trainer(callbacks=["epoch_end"])


def test_none_and_false_mean_that_there_are_none() -> None:
    assert Trainer(callbacks=None).board.subscriptions == []
    assert Trainer(checkpoints=False).checkpoints is None


@pytest.mark.parametrize("checkpoints", [True, 10, Checkpoints])
def test_checkpoints_without_a_place_are_refused(checkpoints: Any) -> None:
    with pytest.raises(SettingError, match=r"checkpoints=(Checkpoints\()?'runs/name'"):
        Trainer(checkpoints=checkpoints)


@pytest.mark.parametrize("resume", [True, False, 3])
def test_resuming_from_what_is_no_place_is_refused(resume: Any) -> None:
    with pytest.raises(SettingError, match="use 'auto' or a folder"):
        make_trainer().fit(Model(), numbered(1), resume=resume)


@pytest.mark.parametrize("seed", ["a", 1.5, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(SettingError, match="use a whole number, or None"):
        Trainer(seed=seed)


def test_a_class_of_losses_is_refused() -> None:
    trainer, model = make_trainer(), nn.Linear(1, 1)
    pairs = [(batch, batch) for batch in numbered(1)]
    loss: Any = nn.MSELoss
    with pytest.raises(SettingError, match=r"Make one: MSELoss\(\)"):
        trainer.fit(model, pairs, loss=loss, optimizer=torch.optim.SGD)
    with pytest.raises(SettingError, match=r"Make one: MSELoss\(\)"):
        trainer.validate(model, pairs, loss=loss)


def test_a_graph_of_a_loop_that_is_not_there_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownLoop, match=r"'valdate'.*Did you mean 'validate'"):
        make_trainer().graph("valdate")


def test_settings_of_automatic_optimization_are_refused_for_a_manual_model() -> None:
    class ByHand(Model):
        automatic_optimization = False

    trainer = make_trainer(accumulate=2)
    with pytest.raises(SettingError, match="accumulate"):
        trainer.fit(ByHand(), numbered(1))
    assert isinstance(trainer.loop["optimizer"], OptimizerLoop)


def test_a_subscriber_with_a_wrong_signature_is_refused_when_it_subscribes() -> None:
    trainer = make_trainer()
    with pytest.raises(BadReceiver, match="epoch_end"):
        trainer.on("epoch_end", lambda trainer, moment, extra: None)
    with pytest.raises(BadReceiver, match="cannot be called"):
        trainer.on("epoch_end", 3)  # type: ignore[call-overload]
    with pytest.raises(UnknownSignal, match="epoch_end"):
        trainer.on("epoch_ends", lambda: None)
    assert trainer.board.subscriptions == []


def test_a_receiver_that_raises_leaves_the_fit_at_a_boundary_and_is_told_again() -> None:
    trainer, model = make_trainer(), Model()
    told: list[int] = []
    broken = [True]

    def receiver(trainer: Any) -> None:
        if broken[0] and trainer.context.counts.batch == 2:
            raise RuntimeError("no space left")
        told.append(trainer.context.counts.batch)

    trainer.on("batch_end", receiver)
    with pytest.raises(RuntimeError, match="no space left"):
        trainer.fit(model, numbered(3))
    assert trainer.path == "fit.epoch.batch.batch_end"
    broken[0] = False
    trainer.run()
    assert (told, model.trained) == ([1, 2, 3], [0, 1, 2])


def test_a_hook_that_replaces_the_loop_in_which_the_machine_stands_is_an_error() -> None:
    trainer, model = make_trainer(), Model()
    trace = Trace(trainer)
    hook = trainer.on("forward", lambda trainer: trainer.loop.replace(optimizer=ManualLoop()))
    before = trainer.loop["optimizer"]
    with pytest.raises(LoopInUse, match=r"fit\.epoch\.batch\.optimizer"):
        trainer.fit(model, numbered(3), numbered(1))
    assert trainer.loop["optimizer"] is before
    assert trainer.path == "fit.epoch.batch.optimizer.forward"
    hook.cancel()
    trainer.run()
    assert (model.trained, trace.text) == ([0, 1, 2], "bbbV|")


def test_a_hook_may_replace_a_loop_in_which_the_machine_does_not_stand() -> None:
    class Counting(ValidationLoop):
        def begin(self) -> None:
            begun.append(self.context.counts.epoch)
            super().begin()

    begun: list[int] = []
    trainer, model = make_trainer(max_epochs=2), Model()
    trainer.on("epoch_end", lambda trainer: trainer.loop.replace(validation=Counting()), once=True)
    trainer.fit(model, numbered(1), numbered(1))
    assert begun == [1]
