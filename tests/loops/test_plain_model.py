"""Training a plain model with a loss and an optimizer, and a model's own hooks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.loops.loop_errors import ModelError, OptimizerError
from statemachine_trainer.machine.errors import UnknownSignal
from tests.loops.inner_kit import (
    Batch,
    Regression,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
)


def plain(batches: list[Batch]) -> nn.Module:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for inputs, targets in batches:
        loss = nn.functional.mse_loss(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("form", ["optimizer", "function", "partial", "lambda"])
def test_a_plain_model_is_trained_with_a_loss_and_an_optimizer(form: str) -> None:
    batches = make_batches(4)
    net = make_net()
    forms: dict[str, Any] = {
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "partial": partial(torch.optim.SGD, lr=0.1),
        "function": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "lambda": lambda _: torch.optim.SGD(net.parameters(), lr=0.1),
    }
    make_trainer(max_epochs=2).fit(net, batches, loss=nn.functional.mse_loss, optimizer=forms[form])
    assert_same_weights(net, plain(batches * 2))


def test_its_batches_may_be_lists() -> None:
    batches = make_batches(4)
    net = make_net()
    lists = [list(batch) for batch in batches]
    sgd = partial(torch.optim.SGD, lr=0.1)
    make_trainer().fit(net, lists, loss=nn.functional.mse_loss, optimizer=sgd)
    assert_same_weights(net, plain(batches))


def test_its_losses_of_validation_and_test_are_logged() -> None:
    trainer = make_trainer()
    net, batches, sgd = make_net(), make_batches(3), partial(torch.optim.SGD, lr=0.1)
    loss = nn.functional.mse_loss
    metrics = trainer.fit(net, batches, batches, loss=loss, optimizer=sgd)
    with torch.no_grad():
        expected = torch.stack([loss(net(x), y) for x, y in batches]).mean().item()
    assert metrics["val_loss"] == pytest.approx(expected)
    assert trainer.test(net, batches, loss=loss) == {"test_loss": pytest.approx(expected)}


def test_predictions_are_what_it_answers_to_the_inputs() -> None:
    net, batches = make_net(), make_batches(2)
    predictions = make_trainer().predict(net, batches)
    with torch.no_grad():
        expected = [net(inputs) for inputs, _ in batches]
    assert all(torch.equal(a, b) for a, b in zip(predictions, expected, strict=True))


def test_a_step_of_its_own_comes_before_the_loss() -> None:
    class Model(Regression):
        called = 0

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.called += 1
            return super().training_step(batch, batch_idx)

    model = Model()
    make_trainer().fit(model, make_batches(2), loss=nn.functional.l1_loss)
    assert model.called == 2


def test_the_optimizer_given_comes_before_configure_optimizers() -> None:
    model = Regression()
    before = [parameter.clone() for parameter in model.parameters()]
    frozen = partial(torch.optim.SGD, lr=0.0)
    make_trainer().fit(model, make_batches(2), optimizer=frozen)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "batch, found",
    [
        (torch.ones(3, 2), "Tensor of 3"),
        ((torch.ones(3, 2),), "tuple of 1"),
        ((1, 2, 3), "tuple of 3"),
        ({"x": 1}, "dict of 1"),
        (7, "int"),
    ],
    ids=str,
)
def test_a_batch_that_is_no_pair_is_explained(batch: Any, found: str) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ModelError, match=f"must be a pair.*it is a {found}") as caught:
        make_trainer().fit(make_net(), [batch], loss=nn.functional.mse_loss, optimizer=sgd)
    assert "forward" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "wrong",
    ["adam", [1], lambda parameters: 3, lambda parameters: None],
    ids=["text", "list", "makes a number", "makes nothing"],
)
def test_something_else_than_an_optimizer_is_refused(wrong: Any) -> None:
    with pytest.raises(OptimizerError, match="optimizer= is an optimizer, or a function"):
        make_trainer().fit(
            make_net(), make_batches(1), loss=nn.functional.mse_loss, optimizer=wrong
        )


def test_a_plain_model_without_a_loss_is_told_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"Sequential has no training_step.*loss=.*optimizer="):
        make_trainer().fit(make_net(), make_batches(1))


def test_a_misspelt_step_is_named() -> None:
    class Model(nn.Module):
        def trainig_step(self, batch: Any) -> Any: ...

    with pytest.raises(ModelError, match="Did you mean 'trainig_step'"):
        make_trainer().fit(Model(), make_batches(1))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"The model is a function; it must be a torch.nn.Module"):
        make_trainer().fit(mse_like, make_batches(1))  # type: ignore[arg-type]


def mse_like(batch: Any) -> Any: ...


# -- hooks of the model --------------------------------------------------------------------------


class Hooked(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def on_epoch_start(self) -> None:
        self.heard.append("epoch_start")

    def on_batch_end(self, trainer: Any) -> None:
        self.heard.append(f"batch_end {trainer.context.counts.batch}")

    def on_exit_epoch_end(self, trainer: Any, moment: Any) -> None:
        self.heard.append(f"{moment.state} {moment.kind}")


def test_methods_named_after_states_are_called_when_these_are_entered() -> None:
    model = Hooked()
    make_trainer().fit(model, make_batches(2))
    assert model.heard == ["epoch_start", "batch_end 1", "batch_end 2", "epoch_end exit"]


def test_they_are_called_once_though_the_model_is_fitted_twice() -> None:
    model = Hooked()
    trainer = make_trainer()
    trainer.fit(model, make_batches(1))
    trainer.fit(model, make_batches(1), restart=True)
    assert model.heard == ["epoch_start", "batch_end 1", "epoch_end exit"] * 2


def test_those_of_an_earlier_model_are_called_no_more() -> None:
    model = Hooked()
    trainer = make_trainer()
    trainer.fit(model, make_batches(1))
    heard = list(model.heard)
    trainer.fit(Regression(), make_batches(1))
    assert model.heard == heard


def test_a_misspelt_hook_is_an_error() -> None:
    class Model(Regression):
        def on_bach_end(self) -> None: ...

    with pytest.raises(UnknownSignal, match="batch_end"):
        make_trainer().fit(Model(), make_batches(1))


def test_the_advice_about_a_missing_step_fits_the_step() -> None:
    model, batches = Regression(), make_batches(2)
    with pytest.raises(ModelError, match=r"no test_step\(batch, batch_idx\)\. Write one, or give"):
        make_trainer().test(model, batches)
    with pytest.raises(ModelError, match=r"batch_idx\)\. Write one, or train a plain model"):
        make_trainer().fit(make_net(), batches, optimizer=partial(torch.optim.SGD, lr=0.1))
