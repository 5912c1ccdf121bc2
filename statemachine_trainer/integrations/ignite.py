"""Handlers and metrics of Ignite, unmodified, in this trainer.

    from ignite.engine import Events
    from ignite.metrics import Accuracy
    from statemachine_trainer import Trainer
    from statemachine_trainer.integrations.ignite import Handlers, metric

    handlers = Handlers()
    handlers.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=100), report)
    trainer = Trainer(max_epochs=10, callbacks=[handlers])
    trainer.fit(model, data, held_out, loss=loss, optimizer=optimizer, metrics={"acc": metric(Accuracy())})

Ignite has to be installed (`pip install pytorch-ignite`). Its engines never run: they only call handlers.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib import import_module
from numbers import Number
from typing import Any, Final

from torch import Tensor, nn

from statemachine_trainer.data import length_of
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.machine.errors import StateMachineError, level_of_caller
from statemachine_trainer.parallel.containers import detach

_FIRED: Final = (
    "STARTED", "EPOCH_STARTED", "ITERATION_STARTED", "ITERATION_COMPLETED", "EPOCH_COMPLETED", "COMPLETED",
)  # fmt: skip
_PLAIN: Final = (Number, str, Tensor, type(None))


class NeverFired(StateMachineError):
    """A handler waits for an event of Ignite that does not exist here."""


class HandlersDiffer(StateMachineError):
    """Other handlers are attached than when the checkpoint was written."""


class HandlerNotHeldWarning(UserWarning):
    """A handler has no state_dict, so a resumed run goes on without what it has remembered."""


class Handlers:
    """A callback that calls handlers of Ignite, at the events and with the state that they expect.

    What handlers and attached metrics leave in `state.metrics` as numbers is logged when the epoch, or the
    validation, ends. `terminate()` stops the fit, `terminate_epoch()` ends the epoch.

    Attributes:
        trainer: The engine to attach handlers of training to. Its `state` has `epoch` and `iteration`
            (from 1 on), `batch`, `output` (what the training step returned), `max_epochs`,
            `epoch_length`, `dataloader` and `metrics`.
        evaluator: The same for each validation of a fit; its output is what `validation_step` returned.

    Raises:
        NeverFired: When the fit begins, if a handler waits for another event.
        HandlersDiffer: When a checkpoint is loaded into other handlers.
    """

    def __init__(self) -> None:
        engine: Any = import_module("ignite.engine")
        self._events = engine.Events
        self.trainer: Any = engine.Engine(lambda *_: None)
        self.evaluator: Any = engine.Engine(lambda *_: None)
        self._started = False

    # -- training --------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any) -> None:
        """Fire STARTED."""
        self._refuse_other_events()
        state = self.trainer.state
        state.metrics = {}
        state.max_epochs = trainer.loop.limits().max_epochs
        state.dataloader = trainer.context.train.loader
        state.epoch_length = _epoch_length(trainer)
        self._started = True
        self._fire(trainer, "STARTED")
        self._refuse_other_events()  # handlers of STARTED may attach more

    def on_epoch_start(self, trainer: Any) -> None:
        """Fire EPOCH_STARTED."""
        self.trainer.state.epoch_length = _epoch_length(trainer)
        self._fire(trainer, "EPOCH_STARTED", begun=1)

    def on_batch_start(self, trainer: Any) -> None:
        """Fire ITERATION_STARTED."""
        self.trainer.state.batch = trainer.context.batch
        self._fire(trainer, "ITERATION_STARTED", begun=1)

    def on_batch_end(self, trainer: Any) -> None:
        """Fire ITERATION_COMPLETED."""
        self.trainer.state.output = detach(trainer.context.output)
        self._fire(trainer, "ITERATION_COMPLETED")
        self.trainer.state.batch = self.trainer.state.output = None

    def on_epoch_end(self, trainer: Any) -> None:
        """Fire EPOCH_COMPLETED, and log metrics."""
        self._fire(trainer, "EPOCH_COMPLETED", begun=1)
        _log_numbers(self.trainer)

    def on_fit_end(self, trainer: Any) -> None:
        """Fire COMPLETED."""
        self._fire(trainer, "COMPLETED")

    # -- validation ------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Any) -> None:
        """Fire STARTED and EPOCH_STARTED of the evaluator."""
        state = self.evaluator.state
        state.epoch, state.iteration, state.max_epochs, state.metrics = 1, 0, 1, {}
        self._fire_evaluator("STARTED")
        self._fire_evaluator("EPOCH_STARTED")

    def on_validation_step(self, trainer: Any) -> None:
        """Fire ITERATION_STARTED of the evaluator."""
        self.evaluator.state.iteration += 1
        self.evaluator.state.batch = trainer.context.batch
        self._fire_evaluator("ITERATION_STARTED")

    def on_exit_validation_step(self, trainer: Any) -> None:
        """Fire ITERATION_COMPLETED of the evaluator."""
        self.evaluator.state.output = detach(trainer.context.output)
        self._fire_evaluator("ITERATION_COMPLETED")
        self.evaluator.state.batch = self.evaluator.state.output = None

    def on_validation_end(self, trainer: Any) -> None:
        """Fire EPOCH_COMPLETED and COMPLETED of the evaluator, and log metrics."""
        self._fire_evaluator("EPOCH_COMPLETED")
        self._fire_evaluator("COMPLETED")
        _log_numbers(self.evaluator)

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what handlers and metrics remember."""
        engines = (self.trainer, self.evaluator)
        return {
            "started": self._started,
            "handlers": [[_name(one), _state_of(one)] for one in self._objects()],
            "metrics": [_numbers(one) for one in engines],
            "counts": [[one.state.epoch, one.state.iteration] for one in engines],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give handlers and metrics back what they have remembered; STARTED is fired before."""
        objects = list(self._objects())
        names, saved = [_name(one) for one in objects], [name for name, _ in state["handlers"]]
        if names != saved:
            raise HandlersDiffer(
                f"The checkpoint has the states of {saved}, and {names} are attached. Attach the same handlers in "
                "the same order."
            )
        engines = (self.trainer, self.evaluator)
        if state["started"] and not self._started:
            self._started = True
            self._refuse_other_events()
            self.trainer._fire_event(self._events.STARTED)
        for thing, (_, one) in zip(objects, state["handlers"], strict=True):
            _load(thing, one)
        for engine, counts, metrics in zip(engines, state["counts"], state["metrics"], strict=True):
            engine.state.epoch, engine.state.iteration = counts
            engine.state.metrics = dict(metrics)

    # -- parts -----------------------------------------------------------------------------------

    def _fire(self, trainer: Any, event: str, begun: int = 0) -> None:
        """Fire an event of training, and do what handlers asked for.

        Args:
            trainer: The trainer.
            event: Its name.
            begun: 1 where the epoch, or the batch, of the event is not counted yet.
        """
        counts, engine = trainer.context.counts, self.trainer
        within_batch = event == "ITERATION_STARTED"
        engine.state.iteration = counts.batch + (begun if within_batch else 0)
        engine.state.epoch = counts.epoch + (event not in ("STARTED", "COMPLETED"))
        engine._fire_event(self._events[event])
        if engine.should_terminate:
            trainer.stop()
        elif engine.should_terminate_single_epoch:
            trainer.post("end_epoch")
        engine.should_terminate = engine.should_terminate_single_epoch = False

    def _fire_evaluator(self, event: str) -> None:
        self.evaluator._fire_event(self._events[event])

    def _refuse_other_events(self) -> None:
        for engine in (self.trainer, self.evaluator):
            for event, handlers in engine._event_handlers.items():
                known = not isinstance(event, self._events) or event.name in _FIRED
                if handlers and not known:
                    raise NeverFired(
                        f"A handler waits for Events.{event.name}, which is not fired here. There are "
                        f"{', '.join(_FIRED)}. For other moments use trainer.on(...); see docs/migration.md."
                    )

    def _objects(self) -> Iterator[Any]:
        """Yield the objects whose methods are handlers, once each; plain functions remember nothing."""
        found: dict[int, Any] = {}
        for engine in (self.trainer, self.evaluator):
            for handlers in engine._event_handlers.values():
                for function, *_ in handlers:
                    parent = getattr(function, "_parent", None)
                    inner = function if parent is None else parent()
                    thing = getattr(inner, "__self__", inner)
                    if not isinstance(thing, types.FunctionType | types.BuiltinFunctionType):
                        found.setdefault(id(thing), thing)
        yield from found.values()


# -- Metrics --------------------------------------------------------------------------------------


class IgniteMetric:
    """A metric of Ignite that is updated with output and targets, as the trainer does; made by `metric`.

    Attributes:
        inside: The metric of Ignite.
    """

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def reset(self) -> None:
        """Begin anew."""
        self.inside.reset()

    def update(self, output: Any, targets: Any) -> None:
        """Take in the answer to a batch."""
        self.inside.update((output, targets))

    def compute(self) -> Any:
        """Return the value over the pass."""
        return self.inside.compute()

    def state_dict(self) -> dict[str, Any]:
        """Return what it has taken in."""
        return _plain_attributes(self.inside)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        _set_attributes(self.inside, state)


def metric(inside: Any) -> IgniteMetric:
    """Make a metric of Ignite one for `fit(metrics=)`, and for `log`.

    Args:
        inside: A metric of `ignite.metrics`, whose `update` takes a pair of output and targets.
    """
    return IgniteMetric(inside)


# -- What handlers remember -----------------------------------------------------------------------


def _epoch_length(trainer: Any) -> int | None:
    """Return the batches of an epoch: as counted, or before the first one as the loader says."""
    counted: int | None = trainer.context.counts.batches_per_epoch
    return length_of(trainer.context.train.loader) if counted is None else counted


def _numbers(engine: Any) -> dict[str, float]:
    found = {}
    for name, value in engine.state.metrics.items():
        if isinstance(value, Number) or (isinstance(value, Tensor) and value.numel() == 1):
            found[name] = float(value)  # type: ignore[arg-type]
    return found


def _log_numbers(engine: Any) -> None:
    for name, value in _numbers(engine).items():
        log(name, value)


def _name(thing: Any) -> str:
    return type(thing).__name__


def _is_metric(thing: Any) -> bool:
    return isinstance(thing, import_module("ignite.metrics").Metric)


def _state_of(thing: Any) -> Any:
    """Return what a handler remembers; None if nobody can tell."""
    if _is_metric(thing):
        return {"metric": _plain_attributes(thing)}
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        return {"own": _as_plain(thing.state_dict())}
    average = getattr(thing, "ema_model", None)
    return {"average": dict(average.state_dict())} if isinstance(average, nn.Module) else None


def _load(thing: Any, state: Any) -> None:
    if state is None:
        warnings.warn(
            f"The handler {_name(thing)} of Ignite has no state_dict: the resumed fit goes on without what it has "
            "remembered. Give it state_dict() and load_state_dict(state).",
            HandlerNotHeldWarning,
            stacklevel=level_of_caller(),
        )
    elif "metric" in state:
        _set_attributes(thing, state["metric"])
    elif "own" in state:
        thing.load_state_dict(deepcopy(state["own"]))
    else:
        thing.ema_model.load_state_dict(state["average"])


def _plain_attributes(thing: Any) -> dict[str, Any]:
    """Return the attributes of a metric that are plain data, and those of metrics inside it."""
    found: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if _is_metric(value):
            found[name] = {"inside": _plain_attributes(value)}
        elif _is_plain(value):
            found[name] = {"value": _as_plain(value)}
    return found


def _set_attributes(thing: Any, state: Mapping[str, Any]) -> None:
    for name, one in state.items():
        if "inside" in one:
            _set_attributes(getattr(thing, name), one["inside"])
        else:
            setattr(thing, name, deepcopy(one["value"]))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _as_plain(value: Any) -> Any:
    """Copy plain data; a mapping of any class as a dict."""
    if isinstance(value, Mapping):
        return {key: _as_plain(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_as_plain(one) for one in value)
    return value.detach().clone() if isinstance(value, Tensor) else value
