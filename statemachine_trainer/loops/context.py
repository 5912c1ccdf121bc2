"""The context that the loops of one run share: parts, counters, and the batch in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

import torch
from torch import nn

from statemachine_trainer.data import Feed
from statemachine_trainer.intervals import Counts
from statemachine_trainer.loops.metrics.named import NamedValues
from statemachine_trainer.loops.metrics.sizes import batch_size_of
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.loops.slots import OptimizerSlot, Turns
from statemachine_trainer.parallel import Precision

if TYPE_CHECKING:
    from statemachine_trainer.loops.steps import Steps

# -- How a field of the context lives -------------------------------------------------------------

Scope = Literal["run", "fit", "epoch", "batch"]
"""What a field belongs to. It gets its first value again when a new one of these begins.

Fields of a batch are in flight: an evaluation within a batch puts them aside.
"""

Saved = Literal["plain", "tensors", "apart"]
"""How a snapshot holds a field.

"plain" holds numbers, names and containers of them; "tensors" also tensors in containers; "apart"
means that the object has a state of its own, under a key of its own (see `context_state`).
"""

_SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)


class Reloads(Protocol):
    """What makes loaders anew.

    Attributes:
        takes_epoch: Whether one of the functions that make them takes the epoch.
        made_for: The epoch that the present ones were made for.
    """

    takes_epoch: bool
    made_for: int

    def __call__(self, epoch: int) -> None:
        """Make all of them, for an epoch."""

    def of_epoch(self, epoch: int) -> None:
        """Make those whose functions take the epoch, unless they are those of this epoch already."""


@dataclass(frozen=True, slots=True)
class Life:
    """The declaration of a field: its scope, how it is saved, and whether `begin` resets it."""

    scope: Scope
    saved: Saved | None
    reset: bool


def _state(first: Any, scope: Scope, saved: Saved | None = None) -> Any:
    """Declare a field that `begin` gives its first value.

    Args:
        first: That value, or a type that is called for a new one each time.
        scope: What the field belongs to.
        saved: How a snapshot holds it; None if it follows from other fields.
    """
    return _declared(first, Life(scope, saved, reset=True))


def _part(until_made: Any, scope: Scope = "run", saved: Saved | None = None) -> Any:
    """Declare a part of the run that `begin` leaves alone: it is made from the rest.

    Args:
        until_made: Its value as long as nobody has made it, or a type that is called for one;
            `MISSING` if there is no context without it.
        scope: What it belongs to. Parts of a fit are made by `fresh_start.begin_fit`.
        saved: How a snapshot holds it.
    """
    return _declared(until_made, Life(scope, saved, reset=False))


def _declared(first: Any, life: Life) -> Any:
    metadata = {"life": life}
    if isinstance(first, type):
        return field(default_factory=first, metadata=metadata)
    return field(default=first, metadata=metadata)


@dataclass(slots=True)
class Limits:
    """The limits of a fit; set by the fit loop from its settings.

    Attributes:
        max_epochs: Largest number of epochs; None for no limit.
        min_epochs: Smallest number of epochs; a stop waits for it.
        max_steps: Largest number of optimizer steps, exact.
        min_steps: Smallest number of optimizer steps; a stop waits for it.
        max_batches: Largest number of training batches over the run.
        max_seconds: Longest time of this run, in seconds.
        every_optimizer: Whether `max_steps` counts the steps of all optimizers, or of the first.
    """

    max_epochs: int | None = None
    min_epochs: int = 0
    max_steps: int | None = None
    min_steps: int = 0
    max_batches: int | None = None
    max_seconds: float | None = None
    every_optimizer: bool = False

    def after(self, counts: Counts) -> Limits:
        """Return the same limits for a fit that begins at these counters."""
        later = {
            "max_epochs": counts.epoch,
            "min_epochs": counts.epoch,
            "max_steps": counts.step,
            "min_steps": counts.step,
            "max_batches": counts.batch,
            "max_seconds": counts.seconds,
        }
        moved: dict[str, Any] = {
            name: limit + done
            for name, done in later.items()
            if (limit := getattr(self, name)) is not None
        }
        return replace(self, **moved)


Measured = tuple[int, int, int]
"""When a metric was measured: number of the epoch, batches and steps of the run."""


@dataclass(eq=False, slots=True)
class Context:
    """The state that the loops of one run share. Loops communicate only through it.

    Attributes:
        model: The module that is trained.
        steps: Its steps, each called with the batch and its number.
        trainer: The trainer, handed to steps that name it.
        equipment: What all runs of the trainer have in common; makes feeds.
        slots: The optimizers with their schedulers.
        turns: Which of them work on which batch.
        counted_optimizer: The one whose steps are counted, unless the limits say all.
        device: Where batches are moved.
        precision: Autocast and gradient scaling.
        train: Where the training data stands.
        validation: The validation loaders by name.
        others: Loaders that other loops evaluate on, such as "test" or "pool".
        transfer: Moves a batch to the device; None where it is there already.
        sources: The training and the validation data as they were given.
        reload_data: Makes anew the loaders that were given as functions; None if none was.
        of_checkpoint: Whether the model has the weights of a checkpoint, for an evaluation.
        data_to_come: Gives the context its data; None once it has them. See `have_data`.
        manual: Whether the training step does its own optimization.
        counts: The counters of the run.
        limits: How long the fit goes on.
        batch: The batch in flight, None between batches.
        batch_idx: Its number within the epoch (or within the evaluation of its loader).
        splits: The batch cut along time; one piece unless split.
        split: The piece in the hands of the step.
        split_idx: Its number.
        kept_hiddens: What the step handed on to the next split, detached, for each optimizer.
        optimizer_idx: The optimizer at work.
        dataloader_idx: The loader that is evaluated.
        output: What the last training step returned.
        loss: Its loss; None after a step that returned none.
        piece_start: Samples of the split that are done already, where memory holds a part of it only.
        pieces_loss: The losses of these, weighted by their shares of the split; None if there are none.
        piece_size: The largest number of samples that fits into memory; None as long as all did.
        piece_since: Steps of the run when `piece_size` was set.
        outputs: Outputs of the epoch's steps, if somebody asked for them; else None.
        aside: What was in flight where an evaluation began, for each that is going on.
        finished: Whether a limit of steps was reached: what remains of the batch is left out.
        stopping: Whether the fit ends with the present epoch.
        flushing: Whether the optimizer loop was entered to close open accumulation windows.
        validated_at: The moment (batch, step) of the last validation.
        validated_weights: A fingerprint of the weights that the last validation measured; see
            `fingerprint_of_weights`. An average may have been put in for it.
        results: The metrics of the last pass of each kind, as floats.
        measured: When each of these was measured: (epoch, batch, step).
        sample_size: Finds the number of samples in a batch; None as long as nobody counts samples.
        changes: Settings of loops that were changed while the run went on: each with its value, and that which
            the script had given.
        rates: Settings of optimizers that were changed while the fit ran, each with the number of that change.
        clock: Tells the time in seconds, from any beginning.
    """

    model: nn.Module = _part(MISSING, saved="apart")
    steps: Steps = _part(MISSING)
    trainer: Any = _part(None)
    equipment: Any = _part(None)
    device: torch.device = _part(torch.device("cpu"))
    transfer: Callable[[Any], Any] | None = _part(None)
    manual: bool = _part(False, saved="apart")
    sources: tuple[Any, Any] = _part((None, None))
    of_checkpoint: bool = _part(False)
    data_to_come: Callable[[], None] | None = _part(None)
    reload_data: Reloads | None = _part(None)
    train: Feed = _part(None, saved="apart")
    validation: Sequence[tuple[str, Feed]] = _part((), saved="apart")
    others: dict[str, Sequence[tuple[str, Feed]]] = _part(dict, saved="apart")
    sample_size: Callable[[Any], int | None] | None = _part(None)
    changes: dict[str, tuple[float | None, float | None]] = _part(dict, saved="plain")

    slots: list[OptimizerSlot] = _part(list, "fit", "apart")
    turns: Turns = _part(None, "fit")
    counted_optimizer: int = _part(0, "fit")
    precision: Precision = _part(Precision, "fit", "apart")
    train_metrics: Metrics = _part(Metrics, "fit", "apart")
    validation_metrics: Metrics = _part(Metrics, "fit", "apart")

    counts: Counts = _state(Counts, "fit", "apart")
    limits: Limits = _state(Limits, "fit")
    finished: bool = _state(False, "fit", "plain")
    stopping: bool = _state(False, "fit", "plain")
    flushing: bool = _state(False, "fit", "plain")
    validated_at: tuple[int, int] | None = _state(None, "fit", "plain")
    validated_weights: str | None = _state(None, "fit", "plain")
    results: dict[str, float] = _state(dict, "fit", "plain")
    measured: dict[str, Measured] = _state(dict, "fit", "plain")
    log_table: Metrics | None = _state(None, "fit", "apart")
    log_suffix: str = _state("", "fit", "plain")
    rates: dict[str, tuple[float | None, int]] = _state(dict, "fit", "plain")
    aside: list[dict[str, Any]] = _state(list, "fit", "tensors")

    piece_size: int | None = _state(None, "fit", "plain")
    piece_since: int = _state(0, "fit", "plain")

    outputs: list[Any] | None = _state(None, "epoch", "tensors")

    batch: Any = _state(None, "batch", "tensors")
    batch_idx: int = _state(0, "batch", "plain")
    splits: list[Any] = _state(list, "batch", "tensors")
    split: Any = _state(None, "batch", "tensors")
    split_idx: int = _state(0, "batch", "plain")
    kept_hiddens: dict[int, Any] = _state(dict, "batch", "tensors")
    optimizer_idx: int = _state(0, "batch", "plain")
    dataloader_idx: int = _state(0, "batch", "plain")
    output: Any = _state(None, "batch", "tensors")
    loss: torch.Tensor | None = _state(None, "batch", "tensors")
    piece_start: int = _state(0, "batch", "plain")
    pieces_loss: torch.Tensor | None = _state(None, "batch", "tensors")

    clock: Callable[[], float] = _part(time.monotonic)
    _clock_started: float | None = _part(None)

    def __repr__(self) -> str:
        counts = self.counts
        flying = [name for name in ("batch", "output", "loss") if getattr(self, name) is not None]
        return (
            f"<Context of {type(self.model).__name__}: {counts.epoch} epochs, {counts.batch} batches and "
            f"{counts.step} steps done; in flight: {', '.join(flying) or 'nothing'}>"
        )

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The torch optimizers, in the order in which they were configured."""
        return [slot.optimizer for slot in self.slots]

    @property
    def hiddens(self) -> Any:
        """The hiddens of the previous split, for the optimizer at work; None at the first split."""
        return self.kept_hiddens.get(self.optimizer_idx)

    def keep_hiddens(self, hiddens: Any) -> None:
        """Keep hiddens for the next split of the optimizer at work."""
        self.kept_hiddens[self.optimizer_idx] = hiddens

    def count_step(self, index: int) -> None:
        """Count a step of an optimizer: close its window, and check the limits.

        Your own loops that step optimizers call it after each step.
        """
        slot, counts, limits = self.slots[index], self.counts, self.limits
        slot.window = 0
        slot.steps += 1
        if index == self.counted_optimizer or limits.every_optimizer:
            counts.step += 1
            counts.step_in_epoch += 1
            if counts.step == limits.max_steps:
                self.finished = True

    @property
    def moment(self) -> tuple[int, int]:
        """Batches and steps of the run so far."""
        return self.counts.batch, self.counts.step

    def read_metrics(self) -> dict[str, float]:
        """Return the newest value of every metric: that of the running pass, else of the last one.

        Reading waits for the device.
        """
        return NamedValues({**self.results, **self._measured_now()})

    def measured_at(self, name: str) -> Measured | None:
        """Return when the newest value of a metric was measured; None if there is none.

        Code that acts on a metric compares this with its last action, and so acts once on each value.
        Asking waits for the device.
        """
        if name in self._measured_now():
            return self._now
        return self.measured.get(name)

    @property
    def awaits_validation(self) -> bool:
        """Whether the first validation, with its metrics, has not happened yet."""
        return bool(self.validation) and self.validated_at is None

    def keep_results(self, found: Mapping[str, float]) -> None:
        """Keep the metrics of a pass that ends, and note that they were measured now."""
        self.results = {**self.results, **found}
        self.measured = {**self.measured, **dict.fromkeys(found, self._now)}

    def _measured_now(self) -> dict[str, float]:
        """Return the metrics of the running passes."""
        found = {} if self.train_metrics.over else self.train_metrics.compute()
        if self.log_table is self.validation_metrics:
            found.update(self.validation_metrics.compute())
        return found

    @property
    def _now(self) -> Measured:
        counts = self.counts
        return counts.epoch, counts.batch, counts.step

    @property
    def may_stop(self) -> bool:
        """Whether `min_epochs` and `min_steps` are reached, so that `stop` may be taken."""
        counts, limits = self.counts, self.limits
        return counts.epoch >= limits.min_epochs and counts.step >= limits.min_steps

    @property
    def open_windows(self) -> bool:
        """Whether an optimizer has gradients that it has not stepped with."""
        return any(slot.window for slot in self.slots)

    @property
    def limit_reached(self) -> str | None:
        """Name of the limit that the fit has reached; None if it has reached none."""
        limits, counts = self.limits, self.counts
        for name, most, done in (
            ("max_epochs", limits.max_epochs, counts.epoch),
            ("max_steps", limits.max_steps, counts.step),
            ("max_batches", limits.max_batches, counts.batch),
        ):
            if most is not None and done >= most:
                return name
        if limits.max_seconds is None or not self.may_stop:
            return None
        return "max_time" if self.read_clock() >= limits.max_seconds else None

    @property
    def has_gradients(self) -> bool:
        """Whether there are gradients that the run, or a receiver, may read again."""
        batches = [(self.splits, self.output), *((a["splits"], a["output"]) for a in self.aside)]
        begun = any(splits and output is not None for splits, output in batches)
        return self.manual or self.open_windows or begun

    def put_aside(self) -> None:
        """Put the batch in flight aside, for an evaluation within it."""
        self.aside.append({name: getattr(self, name) for name in _IN_FLIGHT})
        self.begin("batch")

    def take_back(self) -> None:
        """Restore the batch in flight that was put aside last."""
        for name, value in self.aside.pop().items():
            setattr(self, name, value)

    def begin(self, scope: Literal["fit", "epoch", "batch"]) -> None:
        """Reset the fields of a scope, and of the scopes within it.

        A running clock continues, from zero if the counters are reset.
        """
        for name, make in _FIRST_VALUES[scope]:
            setattr(self, name, make())
        if scope == "fit" and self._clock_started is not None:
            self.start_clock()

    def use_optimizers(
        self, slots: list[OptimizerSlot] | None = None, only: Sequence[int] | None = None
    ) -> None:
        """Select the optimizers to use.

        Args:
            slots: The optimizers; None for the present ones.
            only: Numbers of those that work at all, the first of which is the one whose steps are
                counted; None for all of them.
        """
        if slots is not None:
            self.slots = slots
        self.turns = Turns(self.slots, only)
        self.counted_optimizer = 0 if only is None else min(only)

    def have_data(self) -> None:
        """Take the data that are still to come, for who asks before it is their turn."""
        take, self.data_to_come = self.data_to_come, None
        if take is not None:
            take()

    def start_clock(self) -> None:
        """Start counting the seconds of the run."""
        self._clock_started = self.clock() - self.counts.seconds

    def stop_clock(self) -> None:
        """Stop counting seconds, while the run is paused."""
        self.read_clock()
        self._clock_started = None

    def count_samples(self) -> bool:
        """Count samples from now on, which takes time; return whether they were counted already."""
        counted = self.sample_size is not None
        if not counted:
            self.sample_size = batch_size_of
        return counted

    def read_clock(self) -> float:
        """Update the seconds in `counts`, and return those of the run."""
        if self._clock_started is not None:
            counts, seconds = self.counts, self.clock() - self._clock_started
            counts.seconds_in_epoch += seconds - counts.seconds
            counts.seconds = seconds
        return self.counts.seconds

    def seconds_so_far(self) -> float:
        """Return the seconds of the run, and change nothing: another thread may ask."""
        started = self._clock_started
        return self.counts.seconds if started is None else self.clock() - started


# -- What follows from the declarations -----------------------------------------------------------

_LIVES: Final[dict[str, Life]] = {one.name: one.metadata["life"] for one in fields(Context)}


def of_scope(scope: Scope) -> tuple[str, ...]:
    """Return the names of the fields that belong to a scope."""
    return tuple(name for name, life in _LIVES.items() if life.scope == scope)


def saved_as(how: Saved) -> tuple[str, ...]:
    """Return the names of the fields that a snapshot holds in one way."""
    return tuple(name for name, life in _LIVES.items() if life.saved == how)


def _first_value(name: str) -> Callable[[], Any]:
    declared = Context.__dataclass_fields__[name]
    made, first = declared.default_factory, declared.default
    return made if callable(made) else lambda: first


_FIRST_VALUES: Final[dict[str, list[tuple[str, Callable[[], Any]]]]] = {
    scope: [
        (name, _first_value(name))
        for name, life in _LIVES.items()
        if life.reset and life.scope in _SCOPES[place:]
    ]
    for place, scope in enumerate(_SCOPES)
}
_IN_FLIGHT: Final = of_scope("batch")
