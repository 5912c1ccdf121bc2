"""What a training step may take, and what it may return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statemachine_trainer.loops.loop_errors import ModelError, StepOutputError
from tests.loops.inner_kit import (
    Batch,
    Regression,
    assert_same_weights,
    make_batches,
    make_trainer,
    mse,
)

without_steps = pytest.mark.filterwarnings(
    "ignore::statemachine_trainer.loops.mistakes.NothingLearned"
)


class Returning(Regression):
    """Wraps the loss of each step in something else."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return self.wrap(super().training_step(batch, batch_idx))


@dataclass
class ModelOutput:
    """As the models of Hugging Face answer."""

    loss: Tensor
    logits: Tensor | None = None


class DictOutput(dict[str, Any]):
    """As they do in newer versions: a dict with attributes."""

    @property
    def loss(self) -> Any:
        return self["loss"]


ACCEPTED: dict[str, Any] = {
    "a tensor": lambda loss: loss,
    "a tensor of shape (1,)": lambda loss: loss.reshape(1),
    "a parameter-like subclass": lambda loss: loss.as_subclass(Tagged),
    "a dict": lambda loss: {"loss": loss, "predictions": torch.ones(3)},
    "an object with a loss": lambda loss: ModelOutput(loss, torch.ones(3)),
    "a dict with attributes": lambda loss: DictOutput(loss=loss),
}


class Tagged(Tensor):
    pass


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_loss_is_found_in(name: str) -> None:
    batches = make_batches(3)
    model, expected = Returning(ACCEPTED[name]), Regression()
    make_trainer().fit(model, batches)
    make_trainer().fit(expected, batches)
    assert_same_weights(model, expected)


@without_steps
@pytest.mark.parametrize("wrap", [lambda loss: None, lambda loss: {"loss": None}])
def test_none_leaves_the_batch_out(wrap: Any) -> None:
    trainer = make_trainer()
    trainer.fit(Returning(wrap), make_batches(2))
    assert trainer.steps == 0
    assert trainer.context.counts.batch == 2


REFUSED: dict[str, tuple[Any, str]] = {
    "a number": (lambda loss: loss.item(), "a float where a loss was expected"),
    "a text": (lambda loss: "loss", "a str where a loss was expected"),
    "a list": (lambda loss: [loss], "a list where a loss was expected"),
    "a tuple": (lambda loss: (loss, loss), "a tuple where a loss was expected"),
    "a dict without a loss": (lambda loss: {"los": loss}, r"keys \['los'\]; it needs 'loss'"),
    "a dict with a number": (lambda loss: {"loss": 1.5}, "a float where a loss was expected"),
    "an object without a loss": (lambda loss: object(), "object where a loss was expected"),
    "several losses": (lambda loss: loss.expand(3), r"shape \(3,\).*loss.mean\(\)"),
    "a detached loss": (lambda loss: loss.detach(), "without a gradient"),
    "a loss in a dict that is detached": (
        lambda loss: {"loss": loss.detach()},
        "without a gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_place_in_which_it_was_returned_and_mended(name: str) -> None:
    wrap, message = REFUSED[name]
    batches = make_batches(3)
    model, expected = Returning(wrap), Regression()
    trainer = make_trainer()
    with pytest.raises(StepOutputError, match=message) as caught:
        trainer.fit(model, batches)
    assert "'fit.epoch.batch.optimizer.forward'" in caught.value.__notes__[0]
    assert trainer.steps == 0

    model.wrap = lambda loss: loss
    trainer.run()
    make_trainer().fit(expected, batches)
    assert_same_weights(model, expected)


def test_a_loss_that_depends_on_frozen_parameters_only_is_explained() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(1, 1), nn.Linear(1, 1)

        def training_step(self, batch: Any, optimizer_idx: int) -> Any:
            return self.one(batch).sum()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.one, self.two)]

    with pytest.raises(StepOutputError, match="parameters of the others are frozen"):
        make_trainer().fit(Model(), [torch.ones(1, 1)])


# -- signatures ----------------------------------------------------------------------------------


class Taking(nn.Module):
    """A training step of any signature, which notes with what it was called."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.training_step = step(self)
        self.calls: list[Any] = []

    def note(self, *arguments: Any) -> Tensor:
        self.calls.append(arguments)
        return self.weight * 1.0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


SIGNATURES: dict[str, tuple[Any, list[tuple[Any, ...]]]] = {
    "batch": (lambda m: lambda batch: m.note(batch), [("a",), ("b",)]),
    "batch, batch_idx": (
        lambda m: lambda batch, batch_idx: m.note(batch, batch_idx),
        [("a", 0), ("b", 1)],
    ),
    "x, i": (lambda m: lambda x, i: m.note(x, i), [("a", 0), ("b", 1)]),
    "batch, batch_idx=7": (
        lambda m: lambda batch, batch_idx=7: m.note(batch, batch_idx),
        [("a", 0), ("b", 1)],
    ),
    "batch, scale=7": (
        lambda m: lambda batch, scale=7: m.note(batch, scale),
        [("a", 7), ("b", 7)],
    ),
    "batch, *, batch_idx": (
        lambda m: lambda batch, *, batch_idx: m.note(batch, batch_idx),
        [("a", 0), ("b", 1)],
    ),
    "batch, batch_idx, /": (
        lambda m: lambda batch, batch_idx, /: m.note(batch, batch_idx),
        [("a", 0), ("b", 1)],
    ),
    "*args": (lambda m: lambda *args: m.note(*args), [("a", 0), ("b", 1)]),
    "batch, *args": (
        lambda m: lambda batch, *args: m.note(batch, *args),
        [("a", 0), ("b", 1)],
    ),
    "batch, **kwargs": (
        lambda m: lambda batch, **kwargs: m.note(batch, kwargs),
        [("a", {}), ("b", {})],
    ),
    "*args, **kwargs": (
        lambda m: lambda *args, **kwargs: m.note(*args, kwargs),
        [("a", 0, {}), ("b", 1, {})],
    ),
    "batch, optimizer_idx, batch_idx": (
        lambda m: lambda batch, optimizer_idx, batch_idx: m.note(batch, optimizer_idx, batch_idx),
        [("a", 0, 0), ("b", 0, 1)],
    ),
    "batch, i, optimizer_idx": (
        lambda m: lambda batch, i, optimizer_idx: m.note(batch, i, optimizer_idx),
        [("a", 0, 0), ("b", 1, 0)],
    ),
    "batch, split_idx, dataloader_idx=5": (
        lambda m: (
            lambda batch, split_idx, dataloader_idx=5: m.note(batch, split_idx, dataloader_idx)
        ),
        [("a", 0, 0), ("b", 0, 0)],
    ),
    "*args, optimizer_idx": (
        lambda m: lambda *args, optimizer_idx: m.note(*args, optimizer_idx),
        [("a", 0, 0), ("b", 1, 0)],
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_step_is_called_as_its_signature_asks(name: str) -> None:
    step, calls = SIGNATURES[name]
    model = Taking(step)
    make_trainer().fit(model, ["a", "b"])
    assert model.calls == calls


def test_the_step_gets_trainer_and_optimizers_if_it_names_them() -> None:
    model = Taking(lambda m: lambda batch, trainer, optimizers: m.note(trainer, optimizers))
    trainer = make_trainer()
    trainer.fit(model, ["a"])
    assert model.calls == [(trainer, trainer.context.optimizers)]


def test_the_step_may_be_static() -> None:
    class Model(Regression):
        @staticmethod
        def training_step(batch: Batch, batch_idx: int) -> Any:
            return mse(model.net, batch)

    model, expected = Model(), Regression()
    make_trainer().fit(model, make_batches(2))
    make_trainer().fit(expected, make_batches(2))
    assert_same_weights(model, expected)


IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "nothing": (lambda m: lambda: None, "first parameter of .* has to be the batch"),
    "only a keyword": (lambda m: lambda *, batch: None, "has to be the batch"),
    "only keywords": (lambda m: lambda **kwargs: None, "has to be the batch"),
    "the number first": (lambda m: lambda batch_idx, batch: None, "has to be the batch"),
    "a misspelt name": (
        lambda m: lambda batch, batch_idx, optimizr_idx: None,
        "'optimizr_idx' that nothing fills. Did you mean 'optimizer_idx'",
    ),
    "a misspelt keyword": (
        lambda m: lambda batch, *, hidden: None,
        "'hidden' that nothing fills. Did you mean 'hiddens'",
    ),
    "a third one by position": (
        lambda m: lambda batch, batch_idx, optimizer_idx, /: None,
        "'optimizer_idx' that nothing fills",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_signature_that_cannot_be_served_is_an_error_before_anything_runs(name: str) -> None:
    step, message = IMPOSSIBLE[name]
    with pytest.raises(ModelError, match=message):
        make_trainer().fit(Taking(step), ["a"])


# -- gathered outputs ----------------------------------------------------------------------------


def test_outputs_are_gathered_only_for_a_model_that_asks() -> None:
    class Model(Regression):
        outputs: list[Any] | None = None

        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.outputs = outputs

    model = Model()
    trainer = make_trainer()
    trainer.fit(model, make_batches(3))
    assert model.outputs is not None
    assert len(model.outputs) == 3
    assert not any(output.requires_grad for output in model.outputs)

    gathered = []
    trainer = make_trainer()
    trainer.on("epoch_end", lambda trainer: gathered.append(trainer.context.outputs))
    trainer.fit(Regression(), make_batches(3))
    assert gathered == [None]


def test_every_step_of_a_batch_gives_an_output_except_those_left_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            if (batch_idx, optimizer_idx) == (1, 0):
                return None
            return {"loss": self.nets[optimizer_idx](batch).sum(), "of": optimizer_idx}

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]

    gathered: list[Any] = []
    trainer = make_trainer(gather_outputs=True)
    trainer.on("epoch_end", lambda trainer: gathered.extend(trainer.context.outputs))
    trainer.fit(Model(), [torch.ones(1, 1)] * 2)
    assert [output["of"] for output in gathered] == [0, 1, 1]
