"""Handlers and metrics of Ignite hear and see in this trainer what they do in Ignite's engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("ignite", reason="needs the package `pytorch-ignite`")

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, EMAHandler, PiecewiseLinear, Timer
from ignite.metrics import Accuracy, Average, Precision, RunningAverage

from statemachine_trainer import Trainer
from statemachine_trainer.integrations.ignite import (
    HandlerNotHeldWarning,
    Handlers,
    HandlersDiffer,
    NeverFired,
    metric,
)
from statemachine_trainer.testing import assert_resumable


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(ignite|torch)\.")
        yield


def data(*, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.argmax(1)), batch_size=6, shuffle=shuffle)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 4)


def fit(handlers: Handlers, model: nn.Module | None = None, **settings: Any) -> Trainer:
    model = network() if model is None else model
    one = Trainer(
        **{"max_epochs": 2, "device": "cpu", "progress": False, "sanity_batches": 0, **settings},
        callbacks=[handlers],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one.fit(model, data(), data(), loss=F.cross_entropy, optimizer=optimizer)
    return one


HEARD = (
    Events.STARTED, Events.EPOCH_STARTED(every=2), Events.ITERATION_STARTED(once=3),
    Events.ITERATION_COMPLETED(every=3), Events.EPOCH_COMPLETED, Events.COMPLETED,
)  # fmt: skip


def listen(engine: Any, notes: list[Any]) -> None:
    def note(engine: Any) -> None:
        state = engine.state
        output = None if state.output is None else round(float(state.output), 6)
        notes.append((engine.last_event_name.name, state.epoch, state.iteration, output))

    for event in HEARD:
        engine.add_event_handler(event, note)


def test_events_come_with_the_state_that_they_have_in_ignite() -> None:
    theirs: list[Any] = []
    ours: list[Any] = []
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(_engine: Any, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.detach()

    engine = Engine(step)
    listen(engine, theirs)
    engine.run(data(), max_epochs=2)
    handlers = Handlers()
    listen(handlers.trainer, ours)
    trained = network()
    fit(handlers, trained)
    # Between two steps there is no output here; in Ignite there is the last one.
    assert [one[:3] for one in ours] == [one[:3] for one in theirs]
    completed = [one for one in theirs if one[0] == "ITERATION_COMPLETED"]
    assert [one for one in ours if one[0] == "ITERATION_COMPLETED"] == completed
    assert torch.equal(trained.weight, model.weight)  # type: ignore[arg-type]


def test_a_metric_of_ignite_is_one_of_the_fit() -> None:
    model = network()
    one = Trainer(max_epochs=1, device="cpu", progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = one.fit(
        model, data(), data(), loss=F.cross_entropy, optimizer=optimizer,
        metrics={"acc": metric(Accuracy()), "precision": metric(Precision(average=True))},
    )  # fmt: skip
    expected = Accuracy()
    with torch.no_grad():
        for inputs, targets in data():
            expected.update((model(inputs), targets))
    assert found["val_acc"] == pytest.approx(expected.compute())
    assert set(found) == {"loss", "val_loss", "acc", "val_acc", "precision", "val_precision"}


def test_a_metric_attached_to_an_engine_is_logged() -> None:
    handlers = Handlers()
    Average(output_transform=float).attach(handlers.trainer, "mean_loss")
    Average(output_transform=float).attach(handlers.evaluator, "val_mean_loss")
    one = fit(handlers)
    assert one.metrics["mean_loss"] == pytest.approx(one.metrics["loss"])
    assert one.metrics["val_mean_loss"] == pytest.approx(one.metrics["val_loss"])


def test_early_stopping_of_ignite_ends_the_fit() -> None:
    handlers = Handlers()
    stopping = EarlyStopping(2, lambda engine: -engine.state.epoch, handlers.trainer)
    handlers.trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
    assert fit(handlers, max_epochs=20).epoch == 3


def test_a_schedule_of_ignite_sets_the_learning_rate() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handlers = Handlers()
    schedule = PiecewiseLinear(optimizer, "lr", [(0, 0.0), (8, 0.8)])
    handlers.trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    seen: list[float] = []
    one = Trainer(max_epochs=2, device="cpu", progress=False, callbacks=[handlers])
    one.on("batch_end", lambda: seen.append(optimizer.param_groups[0]["lr"]))
    one.fit(model, data(), loss=F.cross_entropy, optimizer=optimizer)
    assert seen == pytest.approx([0.1 * n for n in range(8)])


def test_an_event_that_is_never_fired_is_refused() -> None:
    handlers = Handlers()
    handlers.trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda: None)
    with pytest.raises(NeverFired, match=r"GET_BATCH_STARTED.*trainer\.on"):
        fit(handlers)


def started(attach: Callable[[Handlers, nn.Module, Any], None]) -> Callable[[], Trainer]:
    def make() -> Trainer:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handlers = Handlers()
        attach(handlers, model, optimizer)
        torch.manual_seed(1)
        one = Trainer(max_epochs=3, device="cpu", progress=False, callbacks=[handlers])
        one.start(
            model, data(shuffle=True), data(), loss=F.cross_entropy, optimizer=optimizer,
            metrics={"acc": metric(Accuracy())},
        )  # fmt: skip
        return one

    return make


def attach_all(handlers: Handlers, model: nn.Module, optimizer: Any) -> None:
    schedule = PiecewiseLinear(optimizer, "lr", [(0, 0.0), (8, 0.8)])
    handlers.trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    RunningAverage(output_transform=float).attach(handlers.trainer, "running")
    Average(output_transform=float).attach(handlers.evaluator, "val_mean")
    EMAHandler(model, momentum=0.1).attach(handlers.trainer)
    stopping = EarlyStopping(2, lambda engine: -engine.state.metrics["val_mean"], handlers.trainer)
    handlers.evaluator.add_event_handler(Events.COMPLETED, stopping)


def test_a_fit_with_handlers_can_be_resumed() -> None:
    assert_resumable(started(attach_all), examples=5)


def state_in_the_middle(one: Trainer) -> Any:
    while one.epoch < 1:
        one.step()
    return one.state_dict()


def test_a_handler_without_a_state_is_told() -> None:
    def attach(handlers: Handlers, *_: Any) -> None:
        Timer().attach(handlers.trainer)

    make = started(attach)
    state = state_in_the_middle(make())
    with pytest.warns(HandlerNotHeldWarning, match=r"Timer of Ignite has no state_dict"):
        make().load_state_dict(state)


def test_other_handlers_than_in_the_checkpoint_are_refused() -> None:
    state = state_in_the_middle(started(attach_all)())
    other = started(lambda handlers, *_: None)()
    with pytest.raises(HandlersDiffer, match=r"PiecewiseLinear.*same order"):
        other.load_state_dict(state)
