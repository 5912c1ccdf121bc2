"""Mistakes of the first day: each is answered in words that say what is wrong, where, and the way out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from statemachine_trainer import (
    Best,
    Checkpoints,
    EarlyStopping,
    Trainer,
    load_weights,
    log,
    log_dict,
)
from statemachine_trainer.data.data_errors import BadSource
from statemachine_trainer.files import NoPath
from statemachine_trainer.loops.loop_errors import (
    BadMetricValue,
    ModelError,
    OptimizerError,
    SettingError,
    UnknownArgument,
)
from statemachine_trainer.loops.mistakes import NeverTaken
from statemachine_trainer.machine.errors import BadReceiver, UnknownSetting
from tests.loops.outer_kit import Model, make_trainer, numbered

PAIRS = [(torch.ones(4, 3), torch.ones(4, 1))]


def plain(**given: Any) -> Callable[[], Any]:
    """A fit of a plain model, right but for what is given."""
    parts: dict[str, Any] = {
        "loss": nn.functional.mse_loss,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "model": nn.Linear(3, 1),
        "train": PAIRS,
    }
    parts |= given
    return lambda: make_trainer().fit(parts.pop("model"), parts.pop("train"), **parts)


def stepping(step: Callable[[Model, Any], Any], data: Any = None) -> Callable[[], Any]:
    """A fit of a model with this training step."""

    class Stepping(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return step(self, batch)

    return lambda: make_trainer().fit(Stepping(), numbered(2) if data is None else data)


def configured(configure: Callable[..., Any]) -> Callable[[], Any]:
    """A fit of a model with this `configure_optimizers`."""
    model = type("Configured", (Model,), {"configure_optimizers": configure})()
    return lambda: make_trainer().fit(model, numbered(2))


class Short(Dataset[Tensor]):
    """A data set that forgot its length."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(1)


class Careless(nn.Module):
    def __init__(self) -> None:
        pass


def no_self() -> None: ...


def several() -> Any:
    return ["fit_end"]


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # the model
    "a class": (plain(model=nn.Linear), ModelError, r"the class Linear. Make one: Linear\(...\)"),
    "model and data exchanged": (
        lambda: make_trainer().fit(PAIRS, nn.Linear(3, 1)),  # type: ignore[arg-type]
        ModelError,
        r"is a list.*comes first: fit\(model, loader\)",
    ),
    "no super().__init__()": (plain(model=Careless()), ModelError, r"Begin it with super\(\)"),
    "nothing to train": (plain(model=nn.ReLU()), OptimizerError, "ReLU has no parameters"),
    # the data
    "inputs and targets": (plain(train=PAIRS[0]), BadSource, r"pair of tensors.*TensorDataset"),
    "a class of loaders": (plain(train=DataLoader), BadSource, r"Make one: DataLoader\(dataset\)"),
    "a class of data": (plain(train=TensorDataset), BadSource, "Make one: TensorDataset"),
    "no length": (plain(train=Short()), BadSource, "a data set without a length. Write __len__"),
    # loss, optimizer, scheduler
    "name of a loss": (plain(loss="mse"), SettingError, "loss='mse' cannot be called"),
    "loss of each sample": (
        plain(loss=nn.MSELoss(reduction="none")),
        BadMetricValue,
        "by the reduction='mean' of a loss",
    ),
    "name of a scheduler": (plain(scheduler="cosine"), OptimizerError, "or warmup"),
    "a class of optimizers": (
        configured(lambda self: torch.optim.SGD),
        OptimizerError,
        "the class SGD itself",
    ),
    "parameters": (configured(lambda self: [*self.parameters()]), OptimizerError, "a Parameter in"),
    "what nothing fills": (configured(lambda self, lr: None), OptimizerError, "needs lr, which"),
    "scheduler of another": (
        configured(
            lambda self: (
                [torch.optim.SGD(self.parameters(), 0.1)],
                [StepLR(torch.optim.SGD(self.parameters(), 0.1), 1)],
            )
        ),
        OptimizerError,
        "Make it for the one that is returned",
    ),
    # what is logged
    "value and name": (
        stepping(lambda m, b: log(b.mean(), "a")),
        BadMetricValue,
        "a Tensor as the",
    ),
    "number as name": (
        stepping(lambda m, b: log(len(b), b.mean())),  # type: ignore[arg-type]
        BadMetricValue,
        "The name comes first",
    ),
    "no name": (stepping(lambda m, b: log("", b.mean())), BadMetricValue, "'' as the name"),
    "nowhere": (
        stepping(lambda m, b: log("a", 1.0, on_epoch=False)),
        BadMetricValue,
        "kept nowhere. Say on_step=True",
    ),
    "a list": (stepping(lambda m, b: log_dict([b])), BadMetricValue, "Give a dict of metrics"),  # type: ignore[arg-type]
    # callbacks and receivers
    "None": (
        lambda: Trainer(callbacks=[None]),
        BadReceiver,
        r"callbacks\[0\] is None. Leave it out",
    ),
    "a function": (
        lambda: Trainer(callbacks=[no_self]),
        BadReceiver,
        r"trainer.on\(name, function",
    ),
    "without self": (
        lambda: Trainer(callbacks=[type("C", (), {"on_epoch_end": no_self})()]),
        BadReceiver,
        r"takes no `self`. Write `def no_self\(self\)`",
    ),
    "no name of a signal": (
        lambda: Trainer().on(no_self),
        BadReceiver,
        r"on\('epoch_end', no_self",
    ),
    "nothing": (lambda: Trainer().on(None), BadReceiver, "and no name of a signal"),
    "several names": (
        lambda: Trainer().on(several(), no_self),
        BadReceiver,
        "Subscribe once for",
    ),
    "no methods": (lambda: Trainer(callbacks=[object()]), BadReceiver, "such as on_epoch_end"),
    # settings
    "a class of checkpoints": (
        lambda: Trainer(checkpoints=Checkpoints),  # type: ignore[arg-type]
        SettingError,
        r"Make one: checkpoints=Checkpoints\('runs/name'\)",
    ),
    "exchanged": (lambda: load_weights("runs/a", nn.Linear(1, 1)), NoPath, "a Linear is no path"),  # type: ignore[arg-type]
    "epochs of an evaluation": (
        lambda: Trainer().validate(Model(), numbered(1), max_epochs=1),  # type: ignore[arg-type]
        UnknownArgument,
        r"Trainer\(max_epochs=...\) has it",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_refused_with_the_way_out(mistake: str) -> None:
    act, kind, said = REFUSED[mistake]
    with pytest.raises(kind, match=said):
        act()


@pytest.mark.parametrize(
    "cls, name, said",
    [
        (Checkpoints, "monitor", r"retention=Retention\(best=Best\('val_loss'"),
        (Checkpoints, "save_last", r"Retention\(last=3\)"),
        (Checkpoints, "dirpath", "called folder"),
        (Checkpoints, "every_n_epochs", "every='2 epochs'"),
        (Checkpoints, "save_weights_only", "load_weights"),
        (EarlyStopping, "metric", "called monitor"),
        (EarlyStopping, "restore_best_weights", r"fit\(..., restore_best=True\)"),
        (Best, "monitor", "called metric"),
    ],
)
def test_a_setting_by_the_name_of_another_library_is_answered(
    cls: type, name: str, said: str
) -> None:
    with pytest.raises(UnknownSetting, match=f"{cls.__name__} has no setting '{name}'.*{said}"):
        cls("a", **{name: 1})


# -- errors of torch and Python in a step: a note tells what the batch was --------------------------------


def noted(act: Callable[[], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        act()
    return "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "data, described",
    [
        ([(torch.ones(4, 5), torch.ones(4, 1))], "(tensor(4, 5) float32 on cpu, tensor(4, 1) float32 on cpu)"),
        ([[torch.ones(4, 3).double(), torch.ones(4)]], "[tensor(4, 3) float64 on cpu, tensor(4,) float32 on cpu]"),
        ([(["a"] * 9, 3)], "([str, str, str, str, str, str, ...], int)"),
    ],
)  # fmt: skip
def test_an_error_of_a_plain_step_tells_shapes_types_and_devices(data: Any, described: str) -> None:
    note = f"The batch is {described}; the parameters of Linear are float32 on cpu."
    with pytest.raises((RuntimeError, TypeError)) as caught:
        plain(train=data)()
    assert note in caught.value.__notes__


def test_a_dict_is_described_by_its_keys() -> None:
    data = [{"x": torch.ones(2, 3), "label": {"y": torch.ones(2)}}]
    said = noted(stepping(lambda model, batch: batch["z"], data), KeyError)
    assert "{x: tensor(2, 3) float32 on cpu, label: {y: tensor(2,) float32 on cpu}}" in said


def test_a_loader_that_returns_nothing_is_told() -> None:
    said = noted(stepping(lambda model, batch: batch[0], [None]), TypeError)
    assert "The batch is None: does the data set, or the collate_fn" in said


def test_an_evaluation_tells_its_batch_too() -> None:
    class Failing(Model):
        def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
            raise ValueError("no")

    trainer, batch = make_trainer(), "The batch is tensor(2, 1) float32 on cpu"
    assert batch in noted(lambda: trainer.validate(Failing(), numbered(1)), ValueError)
    assert batch in noted(lambda: trainer.fit(Failing(), numbered(1), numbered(1)), ValueError)


def test_an_error_while_a_batch_is_made_says_so() -> None:
    samples: Any = [torch.ones(3), torch.ones(4)]
    data = DataLoader(samples, batch_size=2)
    said = noted(plain(train=data), RuntimeError)
    assert "The batch was being made: by the data set, its sampler or the collate_fn" in said
    assert "The batch is" not in said


def test_a_backward_pass_too_many_and_another_device_tell_the_usual_reason() -> None:
    def backward(model: Model, batch: Tensor) -> Tensor:
        loss: Tensor = model.layer(batch).square().mean()
        loss.backward()
        return loss

    assert "call backward() itself? The trainer does so" in noted(stepping(backward), RuntimeError)

    def elsewhere(model: Model, batch: Tensor) -> Tensor:
        raise RuntimeError("Expected all tensors to be on the same device, but found two")

    assert "torch.zeros(3, device=x.device)" in noted(stepping(elsewhere), RuntimeError)


@pytest.mark.parametrize("name", ["trainer", "current_epoch", "device", "hparams", "optimizers"])
def test_a_name_of_lightning_in_a_plain_model_is_told(name: str) -> None:
    said = noted(stepping(lambda model, batch: getattr(model, name)), AttributeError)
    assert f"{name!r} is a name of Lightning's." in said
    assert "The batch is" not in said
    said = noted(stepping(lambda model, batch: model.other), AttributeError)
    assert "Lightning" not in said


def test_an_error_of_a_receiver_or_of_ours_has_no_note_of_the_batch() -> None:
    trainer = make_trainer()
    trainer.on("backward", lambda: 1 / 0)
    assert "The batch" not in noted(lambda: trainer.fit(Model(), numbered(1)), ZeroDivisionError)
    assert "The batch" not in noted(stepping(lambda m, b: log("a", "b")), BadMetricValue)


# -- names that a trainer does not have ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, said",
    [
        ("current_epoch", "Here it is trainer.epoch."),
        ("callback_metrics", "Here it is trainer.metrics."),
        ("train", r"Here it is trainer.fit\(model, loader\)."),
        ("save_checkpoint", r"trainer.checkpoint\(\) at once."),
        ("max_epochs", "It is a setting of a loop: trainer.loop.max_epochs."),
        ("metrcs", "Did you mean 'metrics'"),
        ("nothing_like_it", "'nothing_like_it'.$"),
    ],
)
def test_reading_what_a_trainer_does_not_have_says_what_it_is_called(name: str, said: str) -> None:
    trainer = Trainer()
    with pytest.raises(AttributeError, match=f"A trainer has no attribute '{name}'.*{said}|{said}"):
        getattr(trainer, name)
    assert not hasattr(trainer, name)


def test_an_error_within_a_property_of_a_trainer_is_not_hidden() -> None:
    class Broken(Trainer):
        @property
        def broken(self) -> int:
            raise AttributeError("the real one")

    with pytest.raises(AttributeError, match="the real one"):
        _ = Broken().broken


@pytest.mark.parametrize(
    "name, said",
    [
        ("should_stop", r"trainer.stop\(\)"),
        ("max_epochs", "Set it there: trainer.loop.max_epochs = ..."),
        ("max_epoch", "nobody would read it. Did you mean 'max_epochs'"),
        ("current_epoch", "trainer.epoch"),
    ],
)
def test_setting_what_nobody_would_read_is_refused(name: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        setattr(Trainer(), name, 3)


def test_an_attribute_of_ones_own_may_be_set_and_copied() -> None:
    trainer: Any = Trainer()
    trainer.notes = ["mine"]
    assert copy.copy(trainer).notes == ["mine"]


# -- what would pass without a word -----------------------------------------------------------------------


def test_an_event_posted_after_the_end_is_told_and_a_stop_is_not() -> None:
    trainer = make_trainer()
    trainer.fit(Model(), numbered(1))
    with pytest.warns(NeverTaken, match="'validate' was posted after 'fit' had ended"):
        trainer.post("validate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.post("stop")
        trainer.stop()


def test_two_tensors_of_one_shape_may_be_two_batches() -> None:
    model = Model()
    make_trainer().fit(model, tuple(numbered(2)))
    assert model.trained == [0, 1]


def test_a_file_of_a_checkpoint_and_a_folder_nearly_named_are_answered(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoints=tmp_path / "mine")
    trainer.fit(Model(), numbered(1))
    assert trainer.checkpoints is not None
    newest = trainer.checkpoints.last
    assert newest is not None
    with pytest.raises(Exception, match=r"is one file of a checkpoint.*Name that: "):
        load_weights(Model(), tmp_path / "mine" / newest.name / "manifest.json")
    with pytest.raises(Exception, match=r"no such folder exists\. Did you mean 'mine'"):
        load_weights(Model(), tmp_path / "mien")


class Unreadable(Exception):
    """An error without words."""

    def __str__(self) -> str:
        raise RuntimeError("not this one")


@pytest.mark.parametrize("error", [Unreadable(), ValueError("mine")])
def test_what_raises_when_it_is_described_hides_no_error(error: Exception) -> None:
    class Odd:
        @property
        def shape(self) -> Any:
            raise RuntimeError("not this one")

    def step(model: Model, batch: Any) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        stepping(step, [Odd()])()
    assert caught.value is error
