"""Evaluation loops: validation, test, sanity check and prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Literal

import torch

from statemachine_trainer.data import END, Feed, limit_batches
from statemachine_trainer.loops.base import TrainingLoop, check_limit
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import MetricConflict, TrainingError
from statemachine_trainer.loops.metrics.fingerprint import fingerprint_of_weights
from statemachine_trainer.loops.metrics.objects import load_torchmetrics_state, torchmetrics_state
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.loops.mistakes import warn_of_shared_names
from statemachine_trainer.loops.settings_checks import flags, whole_number
from statemachine_trainer.loops.verbs import move_batch
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.fields import field
from statemachine_trainer.parallel import map_leaves
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.rng import (
    devices_in_use,
    isolated_rng,
    restore_rng,
    rng_state,
)


class NothingToEvaluate(UserWarning):
    """A validation was posted, but there is no validation data."""


class GradientsOff(TrainingError):
    """A step of an evaluation needs gradients, which are off."""


_ASKED_FOR_GRADIENTS: Final = (
    "does not require grad",
    "Differentiated Tensors",
    "does not have a grad_fn",
)
"""Parts of torch's error messages for a backward pass without a graph."""


class EvaluationLoop(TrainingLoop):
    """One pass over each of several loaders, without gradients and with the model in evaluation mode.

    It may be used in any loop. The batch in flight is put aside meanwhile, so an evaluation between
    two splits of a batch, or between backward pass and step, changes nothing. Existing gradients
    are not touched. The mode (training or evaluation) of every sub-module is restored afterwards.
    With several loaders, the names of metrics get the name of the loader: "loss/clean", or "loss/0"
    if loaders have no names. The batch and the output of the step are kept until the next batch is
    fetched.

    A subclass names its states: `class ValidationLoop(EvaluationLoop, states="validation")` has
    `validation_start`, `validation_fetch`, `validation_step` and `validation_end`, which call
    `begin`, `next_batch`, `evaluate` and `finish`. The docstrings of the states come from these
    methods. Override the methods to change the work, or declare your own `transitions` and states
    and call the methods from there.

    Class arguments:
        states: Prefix of the names of the four states.
        answer: Event of the step state.
        outcome: Event with which the loop ends; `<states>_done` by default.

    Args:
        limit_batches: Largest number of batches of each loader: an int, or a float for a fraction.
        **loops: Loops for places that a subclass declares.

    Raises:
        BadLimit: The limit is invalid.
    """

    step_name: ClassVar[str] = "validation_step"

    loader: int = 0
    begun: bool = False
    done: int = 0
    limit: int | None = None
    holding: bool = False
    modes: dict[str, bool] | None = None

    def __init_subclass__(
        cls,
        *,
        states: str | None = None,
        answer: str = "evaluated",
        outcome: str | None = None,
        **kwargs: Any,
    ) -> None:
        if states is not None:
            _declare_states(cls, states, answer, outcome or f"{states}_done")
        super().__init_subclass__(**kwargs)

    def __init__(self, *, limit_batches: int | float | None = None, **loops: Any) -> None:
        super().__init__(**loops)
        self.limit_batches = limit_batches
        check_limit(limit_batches, self.kind)

    @property
    def kind(self) -> str:
        """The kind of evaluation: "validation", "test" or "predict"."""
        return self.step_name.removesuffix("_step")

    # -- the work of the states ------------------------------------------------------------------

    def begin(self) -> None:
        """Go into evaluation mode.

        Clears the table of metrics, and puts the batch in flight aside.
        """
        self.leave_training()
        table = self.table()
        if self.context.log_table is not table:  # else a receiver has logged a metric already
            table.begin()
        self.context.log_table = table
        if not self.feeds():
            warnings.warn(
                f"There are no data for the {self.kind} that was asked for, so none is done. Give "
                "them to fit.",
                NothingToEvaluate,
                stacklevel=level_of_caller(),
            )
        self.context.put_aside()

    def next_batch(self) -> bool:
        """Get the next batch of the loaders.

        Returns:
            False if all loaders have ended.
        """
        context = self.context
        feeds = self.feeds()
        if not self.holding:
            context.batch = context.split = context.output = None
        while self.loader < len(feeds):
            name, feed = feeds[self.loader]
            if not self.begun:
                self.limit = self.most_batches(feed)
                if self.limit != 0:
                    feed.begin(context.counts.epoch)
                self.begun = True
            batch = context.batch if self.holding else self._read(feed)
            if batch is not END:
                self._hand_over(batch)
                context.log_suffix = self._suffix(name) if len(feeds) > 1 else ""
                return True
            feed.close()
            self._refuse_mixed_metrics()
            if self.loader < len(feeds) - 1:
                self.table().settle()
            self.loader, self.done, self.begun = self.loader + 1, 0, False
        context.log_suffix = ""
        return False

    def evaluate(self) -> None:
        """Evaluate the batch.

        Calls the step without gradients.
        """
        context = self.context
        if context.model.training and not context.steps.keeps_modes:
            self.leave_training()
        context.output = self.call_step()

    def call_step(self) -> Any:
        """Call the step on the batch, without gradients and in the precision of the run.

        Raises:
            GradientsOff: The step needs gradients.
        """
        context = self.context
        step = context.steps.get(self.step_name)
        try:
            with torch.no_grad(), context.precision.context():
                return step(context.batch, context.batch_idx)
        except RuntimeError as error:
            if not any(said in str(error) for said in _ASKED_FOR_GRADIENTS):
                raise
            raise GradientsOff(
                f"{self.step_name} asks for gradients, and an evaluation runs without them (under "
                "torch.no_grad()). Write `with torch.enable_grad():` around the part of it that needs "
                f"them, its forward pass included. (torch: {error})"
            ) from error

    def finish(self) -> None:
        """Keep the metrics and go back to training mode.

        Restores the mode of every sub-module.
        """
        context = self.context
        found = self.table().compute()
        self.restore_modes()
        if self.kind == "validation":
            warn_of_shared_names(context, found)
        context.keep_results(found)
        context.validated_at = context.moment
        if self.kind == "validation":
            context.validated_weights = fingerprint_of_weights(context.model)

    def leave_training(self) -> None:
        """Go into evaluation mode; the first time, remember the mode of every sub-module."""
        model = self.context.model
        if self.modes is None:
            self.modes = {name: module.training for name, module in PlainNames(model).modules()}
        model.eval()

    def restore_modes(self) -> None:
        """Restore the mode of every sub-module and the batch in flight; stop logging to this table."""
        context = self.context
        if context.aside:
            context.take_back()
        if self.modes is not None:
            for name, module in PlainNames(context.model).modules():
                module.training = self.modes.get(name, module.training)
        self.modes = None
        context.log_table, context.log_suffix = context.train_metrics, ""

    def abandon(self) -> None:
        """Undo the changes of an unfinished evaluation."""
        if self.modes is not None:
            self.restore_modes()

    @property
    def evaluates(self) -> bool:
        return True

    # -- what subclasses change ------------------------------------------------------------------

    def feeds(self) -> Sequence[tuple[str, Feed]]:
        """Return the loaders by name."""
        return self.context.validation

    def table(self) -> Metrics:
        """Return the table that `log` fills."""
        return self.context.validation_metrics

    def most_batches(self, feed: Feed) -> int | None:
        """Return the largest number of batches of a loader to evaluate."""
        return limit_batches(self.limit_batches, feed.length, feed.name)

    # -- parts -----------------------------------------------------------------------------------

    def _read(self, feed: Feed) -> Any:
        return END if self.done == self.limit else feed.next_batch()

    def _hand_over(self, batch: Any) -> None:
        """Move a batch to the device. If that fails, keep the batch for another try."""
        context = self.context
        context.batch = batch
        move_batch(self, context)
        context.split = context.batch
        context.batch_idx, context.dataloader_idx = self.done, self.loader
        self.done += 1

    def _refuse_mixed_metrics(self) -> None:
        """Refuse a metric object that the training step logs, too: it would mix both.

        Raises:
            MetricConflict: There is such an object.
        """
        context = self.context
        if self.table() is context.train_metrics:
            return
        training = context.train_metrics.objects()
        for metric in self.table().objects():
            if any(metric is one for one in training):
                raise MetricConflict(
                    f"One {type(metric).__name__} was logged in training and in {self.kind}, and would "
                    "have one value for both. Make two objects, such as self.train_accuracy and "
                    "self.val_accuracy."
                )

    def _suffix(self, name: str) -> str:
        return "/" + name.removeprefix(f"{self.kind}/")


def _declare_states(cls: type[EvaluationLoop], states: str, answer: str, outcome: str) -> None:
    """Give a class its four states, with transitions and outcome, unless it declares its own."""
    start, fetch, step, end = (f"{states}_{part}" for part in ("start", "fetch", "step", "end"))
    started = f"{states}_started"
    cls.initial = start
    cls.transitions = (
        # event      source destination
        [started, start, fetch],
        ["fetched", fetch, step],
        [answer, step, fetch],
        ["exhausted", fetch, end],
    )
    cls.outcomes = (outcome,)

    def begin(self: EvaluationLoop) -> str:
        self.begin()
        return started

    def next_batch(self: EvaluationLoop) -> str:
        return "fetched" if self.next_batch() else "exhausted"

    def evaluate(self: EvaluationLoop) -> str:
        self.evaluate()
        return answer

    def finish(self: EvaluationLoop) -> str:
        self.finish()
        return outcome

    written: tuple[tuple[str, Callable[[EvaluationLoop], str], tuple[str, ...]], ...] = (
        (start, begin, (started,)),
        (fetch, next_batch, ("fetched", "exhausted")),
        (step, evaluate, (answer,)),
        (end, finish, (outcome,)),
    )
    for name, state, answers in written:
        if name in vars(cls):
            continue
        work = getattr(cls, state.__name__)
        state.__doc__ = (work.__doc__ or "").partition("\n")[0]
        state.__annotations__ = {"return": Literal[answers]}
        state.__name__, state.__qualname__ = name, f"{cls.__qualname__}.{name}"
        state.__module__ = cls.__module__
        setattr(cls, name, state)


class ValidationLoop(EvaluationLoop, states="validation"):
    """Validation, within an epoch or by itself."""


class TestLoop(EvaluationLoop, states="test"):
    """A test of the model."""

    __test__ = False  # not a test case of pytest

    step_name = "test_step"


class SanityLoop(EvaluationLoop, states="sanity"):
    """A few validation batches before the first epoch, to find mistakes early.

    Leaves no trace: random number generators (also those of the loaders), metrics and modes are
    restored. Loaders that can be read only once are left out.

    Args:
        batches: Number of batches of each loader; -1 for all.

    Raises:
        SettingError: It is not a whole number from -1.
    """

    before: dict[str, Any] | None = None

    def __init__(self, *, batches: int = 2) -> None:
        super().__init__()
        self.batches = whole_number(self, "batches", batches, -1, " -1 means all, 0 none.")

    def begin(self) -> None:
        """Remember the random number generators, the metric objects and the position in the data."""
        self.before = {
            "rng": rng_state(devices_in_use()),
            "torchmetrics": torchmetrics_state(self.context.model),
            "feeds": [feed.state_dict() for _, feed in self.feeds()],
        }
        super().begin()

    def finish(self) -> None:
        """Restore the random number generators, the metric objects and the position in the data."""
        assert self.before is not None
        self.restore_modes()
        self.table().begin()
        load_torchmetrics_state(self.context.model, self.before["torchmetrics"])
        for (_, feed), state in zip(self.feeds(), self.before["feeds"], strict=True):
            if not _is_one_shot(feed):
                feed.load_state_dict(state)
        restore_rng(self.before["rng"])
        self.before = None

    @property
    def has_no_work(self) -> bool:
        return self.batches == 0

    def most_batches(self, feed: Feed) -> int | None:
        """Return the number of batches of a loader to try."""
        if _is_one_shot(feed):
            return 0
        return limit_batches(None if self.batches == -1 else self.batches, feed.length, feed.name)


def _is_one_shot(feed: Feed) -> bool:
    return isinstance(feed.loader, Iterator)


class PredictionLoop(EvaluationLoop, states="predict", answer="predicted"):
    """Collects the output of `predict_step` (or of the model itself) for each batch.

    The batch and its predictions are in the context until the next batch is fetched, so that a
    receiver of `predict_step:exit` can save them.

    Args:
        keep: Collect the predictions on the CPU; False if a receiver handles them.
        limit_batches: Largest number of batches of each loader.
    """

    step_name = "predict_step"

    predictions: list[list[Any]] = field(factory=list)

    def __init__(self, *, keep: bool = True, limit_batches: int | float | None = None) -> None:
        super().__init__(limit_batches=limit_batches)
        flags(self, keep=keep)
        self.keep = keep

    def begin(self) -> None:
        """Go into evaluation mode."""
        super().begin()
        self.predictions = [[] for _ in self.feeds()]

    def evaluate(self) -> None:
        """Predict the batch; keep the predictions on the CPU."""
        super().evaluate()
        if self.keep:
            self.predictions[self.loader].append(map_leaves(_to_cpu, self.context.output))

    def finish(self) -> None:
        """Go back to training mode."""
        self.restore_modes()


def _to_cpu(leaf: Any) -> Any:
    return leaf.cpu() if hasattr(leaf, "cpu") else leaf


@contextmanager
def undisturbed(fit: Context | None) -> Iterator[None]:
    """Protect a paused fit from an evaluation: its metric objects, and its random numbers.

    Args:
        fit: The context of the paused fit, if there is one.
    """
    if fit is None:
        yield
        return
    metrics = torchmetrics_state(fit.model)
    try:
        with isolated_rng():
            yield
    finally:
        load_torchmetrics_state(fit.model, metrics)
