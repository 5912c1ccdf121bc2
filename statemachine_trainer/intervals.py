"""Intervals: one type for everything that happens periodically.

`Every` says how often: validations, checkpoints, receivers with `every=` and permanent checkpoints
take one. An `Interval` is one use of it. It remembers when it was last due, and decides from the
counters of a run whether it is due now.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, TypedDict, cast, get_args

from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.keywords import refuses_unknown

Unit = Literal["batch", "step", "epoch", "second", "sample"]
Span = Literal["run", "epoch"]

_SECONDS_IN = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_WORDS: dict[str, str] = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "second"),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), "minute"),
    **dict.fromkeys(("h", "hour", "hours"), "hour"),
    **dict.fromkeys(("d", "day", "days"), "day"),
    **{word: unit for unit in ("batch", "step", "epoch", "sample") for word in (unit, f"{unit}s")},
    "batches": "batch",
}
_BETWEEN_EPOCHS = frozenset(
    {
        *(
            "fit_start",
            "next_epoch",
            "epoch_start",
            "fit_end",
            "divide",
            "fold_start",
            "fold_end",
            "kfold_end",
        ),
        *("learning_start", "labelling", "round_start", "round_end", "query", "learning_end"),
        *("phase_start", "phase_end", "next_phase"),
    }
)
"""States before which no epoch is under way."""

_BESIDE_EPOCHS = frozenset({"sanity", "test", "ensemble", "scoring"})
"""Loops that run while none is."""

_TEXT = re.compile(r"\s*(?:every\s+)?(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE)


class IntervalError(StateMachineError):
    """An invalid interval, or one that cannot be counted here."""


def epoch_in_words(path: str | None, epochs: int) -> str:
    """Return which epoch is under way, for people: they count from 1, where code counts from 0.

    Args:
        path: Path of the state that comes next; None at the end.
        epochs: Epochs done.

    Example:
        >>> epoch_in_words("fit.epoch.fetch", 0), epoch_in_words("fit.next_epoch", 1)
        ('epoch 1', '1 epoch done')
    """
    parts = [] if path is None else path.split(".")
    between = not parts or parts[-1] in _BETWEEN_EPOCHS or not _BESIDE_EPOCHS.isdisjoint(parts[1:])
    return f"{epochs} epoch{'' if epochs == 1 else 's'} done" if between else f"epoch {epochs + 1}"


@dataclass(slots=True)
class Counts:
    """The counters of a run: how much of each has been done.

    `step` counts optimizer steps, `seconds` the time spent in the run (it goes on after a resume
    where it stood). `batches_per_epoch` is None while nobody knows it. `sample` stays 0 unless an
    interval of samples is in use when the run begins: looking into each batch takes time.
    """

    batch: int = 0
    batch_in_epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    epoch: int = 0
    sample: int = 0
    sample_in_epoch: int = 0
    seconds: float = 0.0
    seconds_in_epoch: float = 0.0
    batches_per_epoch: int | None = None

    def begin_epoch(self, batches: int | None = None) -> None:
        """Sets what is counted within the epoch to zero; `batches` is the length of the new one."""
        self.batch_in_epoch = self.step_in_epoch = self.sample_in_epoch = 0
        self.seconds_in_epoch = 0.0
        self.batches_per_epoch = batches

    def state_dict(self) -> dict[str, int | float | None]:
        """The counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state: dict[str, int | float | None]) -> None:
        """Takes over saved counters; those that are not in `state` keep their value."""
        for name in self.__slots__:
            setattr(self, name, state.get(name, getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Every:
    """An interval. Made by `every`, which describes the parameters.

    A whole number and a fraction differ: `every(1, "epoch")` is due after every epoch,
    `every(1.0, "epoch")` is a fraction of one: due at its end, while it still runs. A fraction is
    always counted within the epoch, and always includes its end.
    """

    n: int | float
    unit: Unit = "batch"
    within: Span = "run"
    at_end: bool = False

    def __post_init__(self) -> None:
        _check(self)
        if self.is_fraction:
            object.__setattr__(self, "within", "epoch")
            object.__setattr__(self, "at_end", True)

    @property
    def is_fraction(self) -> bool:
        """Whether `n` is a part of an epoch: a float, with unit "epoch"."""
        return self.unit == "epoch" and isinstance(self.n, float)

    def describe(self) -> str:
        """In words, what was taken: "every 100 batches, counted over the run"."""
        if self.is_fraction:
            if self.n == 1.0:
                return "at the end of each epoch (the fraction 1.0 of it)"
            return f"every {self.n} of an epoch (a fraction), and at its end"
        plural = f"{self.unit}es" if self.unit == "batch" else f"{self.unit}s"
        text = f"every {self.unit}" if self.n == 1 else f"every {self.n} {plural}"
        if self.unit != "epoch":
            text += ", counted over the run" if self.within == "run" else " of an epoch"
        if self.at_end:
            text += f", and at the end of {'the run' if self.within == 'run' else 'each epoch'}"
        return text

    def passed(self, counts: Counts) -> int:
        """How many multiples of the interval lie behind, within its span.

        Raises:
            IntervalError: For a fraction of an epoch whose length is unknown.
        """
        if self.unit == "epoch" and self.is_fraction:
            return self._fractions_passed(counts)
        name: str = self.unit if self.unit != "second" else "seconds"
        if self.within == "epoch":
            name += "_in_epoch"
        count: float = getattr(counts, name)
        return int(count // self.n)

    def _fractions_passed(self, counts: Counts) -> int:
        length = counts.batches_per_epoch
        if length is None:
            if self.n == 1.0:
                return 0  # The end is the only multiple, and it announces itself.
            raise IntervalError(
                f"{self!r} is a fraction of an epoch, but how many batches an epoch has is not "
                "known: the loader has no length. Count batches instead, as in every(100), or use "
                "every(1.0, 'epoch') for the end of each epoch."
            )
        numerator, denominator = _ratio(self.n)
        done = min(counts.batch_in_epoch, length)
        return done * denominator // max(1, length * numerator)

    def __repr__(self) -> str:
        text = f"every({self.n!r}, {self.unit!r}"
        if self.within == "epoch" and not self.is_fraction:
            text += ", within='epoch'"
        if self.at_end and not self.is_fraction:
            text += ", at_end=True"
        return text + ")"


@refuses_unknown
def every(
    n: int | float, unit: Unit = "batch", within: Span = "run", at_end: bool = False
) -> Every:
    """An interval: due each time that `n` more of `unit` are done.

    Args:
        n: A whole number of batches, optimizer steps, epochs or samples; any number of seconds.
            With unit "epoch" a *float* of at most 1.0 is a fraction of an epoch: `every(0.25,
            "epoch")` is due at every quarter. Where the batches do not divide evenly it is due at
            the first batch that reaches the fraction, and at the end too: of 10 batches, 0.3 is
            after 3, 6, 9 and 10.
        unit: What is counted. Samples are the first dimension of the first tensor of a batch.
        within: Count on over the whole run, or anew in each epoch.
        at_end: Also due at the end of the run or of each epoch (as `within` says), unless it was
            due at that very moment anyway.

    Raises:
        IntervalError: For a number that the unit cannot have.
    """
    return Every(n, unit, within, at_end)


def parse_interval(value: object, name: str = "interval") -> Every:
    """An interval from the short forms that settings accept.

    Args:
        value: An int (batches), a float of at most 1.0 (a fraction of an epoch), a `timedelta`, a
            text such as "30s", "10min", "2 epochs", "500 steps", or an `Every`.
        name: Of the setting; errors begin with it.

    Raises:
        IntervalError: The message says how the value was taken.
    """
    try:
        if isinstance(value, Every):
            return value
        if isinstance(value, bool):
            raise IntervalError(f"{value!r} is not an interval; for none, leave the setting out.")
        if isinstance(value, (int, float)):
            return Every(value, "batch" if isinstance(value, int) else "epoch")
        if isinstance(value, datetime.timedelta):
            return Every(value.total_seconds(), "second")
        if isinstance(value, str):
            return _parse_text(value)
    except IntervalError as error:
        raise IntervalError(f"{name}={value!r}: {error}") from None
    raise IntervalError(
        f"{name}={value!r} is a {type(value).__name__}, which is no interval. Give an int "
        "(batches), a float (fraction of an epoch), a timedelta, a text such as '10min', or "
        "every(n, unit)."
    )


class Counting(Protocol):
    """The context of a run, as far as an interval looks at it.

    Attributes:
        counts: The counters of the run.
        batch: The batch in flight.
    """

    counts: Counts
    batch: Any

    def read_clock(self) -> float:
        """Bring the seconds in `counts` up to date."""
        ...

    def count_samples(self) -> bool:
        """Count samples from here on, which takes time; tell whether they were counted already."""
        ...


class HasContext(Protocol):
    """A trainer, as far as an interval looks at it."""

    @property
    def context(self) -> Counting:
        """What the loops of the run share."""
        ...


class IntervalState(TypedDict):
    """What an `Interval` writes down."""

    passed: int
    moment: int
    epoch_began: int


class Interval:
    """Decides whether an interval is due, at most once for each multiple that was passed.

    It may be asked after every batch or less often: counts that jump over a multiple (seconds,
    samples, steps under accumulation) are due once, at the first question after the jump.

    Args:
        every: How often: whatever `parse_interval` takes.
        counts: Where counting begins, when that is not the start of the run: multiples passed by
            then are no longer due.
        name: Of the setting that `every` is; errors begin with it.

    Attributes:
        every: How often.
    """

    def __init__(self, every: object, counts: Counts | None = None, *, name: str = "every") -> None:
        self.every = parse_interval(every, name)
        start = counts if counts is not None else Counts()
        self._epoch_began = start.batch - start.batch_in_epoch
        self._moment = self._now(start)
        self._passed = self.every.passed(start) if start.batch else 0

    def due(self, where: Counts | Counting | HasContext, ended: Span | None = None) -> bool:
        """Whether it is due now. True is answered once; the next question begins after it.

        Args:
            where: The counters of the run, or the context or the trainer that has them: there
                the clock is read first, and samples are counted from the first question on.
            ended: "epoch" or "run" when it is over. It may be told together with the last batch or
                on its own afterwards: one moment is due only once. The end of the run ends its
                epoch.

        Raises:
            IntervalError: For a fraction of an epoch whose length is unknown, and for samples that
                were not counted from the beginning.
        """
        every = self.every
        counts = where if isinstance(where, Counts) else self._up_to_date(where)
        if every.within == "epoch":
            # Told by the batches, exact whole numbers, for seconds too.
            began = counts.batch - counts.batch_in_epoch
            if began != self._epoch_began:
                self._epoch_began = began
                self._passed = 0
        passed = every.passed(counts)
        is_due = passed > self._passed
        if is_due:
            self._passed = passed
        elif ended is not None and every.at_end:
            is_due = self._is_due_at_end(counts, ended)
        if is_due:
            self._moment = self._now(counts)
        return is_due

    def _is_due_at_end(self, counts: Counts, ended: Span) -> bool:
        if self.every.within == "epoch":
            return counts.batch_in_epoch > 0 and self._now(counts) != self._moment
        return ended == "run" and self._now(counts) != self._moment

    def _up_to_date(self, where: Counting | HasContext) -> Counts:
        context: Any = getattr(where, "context", where)
        if self.every.unit == "second":
            context.read_clock()
        elif self.every.unit == "sample":
            self._see_that_samples_are_counted(context)
        counts: Counts = context.counts
        return counts

    def _see_that_samples_are_counted(self, context: Counting) -> None:
        counts = context.counts
        counted = context.count_samples()
        if counts.sample or not counts.batch:
            return
        if not counted:
            raise IntervalError(
                f"{self.every!r} goes by samples, and none were counted in {counts.batch} batch(es), "
                "since nobody asked for it when the fit began. Subscribe before the fit starts, or go "
                "by batches or steps."
            )
        raise IntervalError(
            f"{self.every!r} goes by samples, and the batches do not tell how many they hold: there is no "
            f"tensor with a dimension in a {type(context.batch).__name__}. Go by batches or steps, or "
            "give batches as tensors, tuples, dicts or dataclasses of tensors."
        )

    def _now(self, counts: Counts) -> int:
        """What tells one moment of the run from another, for this unit."""
        if self.every.unit == "second" or self.every.is_fraction:
            return counts.batch
        return cast(int, getattr(counts, self.every.unit))

    def state_dict(self) -> IntervalState:
        """What it was due for. An interval with this state is due at the same counts."""
        return {
            "passed": self._passed,
            "moment": self._moment,
            "epoch_began": self._epoch_began,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state of the same interval."""
        self._passed = state["passed"]
        self._moment = state["moment"]
        self._epoch_began = state["epoch_began"]

    def __repr__(self) -> str:
        return repr(self.every)


@functools.cache
def _ratio(n: float) -> tuple[int, int]:
    """The decimal as it was written, in whole numbers: 0.1 * 3 is not 0.3 in floats."""
    return Fraction(str(n)).as_integer_ratio()


def _check(interval: Every) -> None:
    n, unit = interval.n, interval.unit
    if unit not in get_args(Unit):
        raise IntervalError(f"{unit!r} is no unit; choose from {', '.join(get_args(Unit))}.")
    if interval.within not in get_args(Span):
        raise IntervalError(f"within={interval.within!r}: choose 'run' or 'epoch'.")
    if isinstance(n, bool) or not isinstance(n, (int, float)):
        raise IntervalError(f"n is a number, not {n!r}.")
    if not 0 < n < float("inf"):
        raise IntervalError(f"n={n!r} is never reached: n is a positive number.")
    if unit == "epoch" and isinstance(n, float) and n > 1.0:
        raise IntervalError(
            f"{n!r} is a float, so it is taken as a fraction of an epoch, and those are at most "
            f"1.0. For whole numbers write {max(1, round(n))} (batches) or "
            f"every({max(1, round(n))}, 'epoch')."
        )
    if unit not in ("epoch", "second") and isinstance(n, float):
        raise IntervalError(
            f"{n!r} is a float, and a {unit} has no parts. Write a whole number, or "
            "every(0.25, 'epoch') for a fraction of an epoch."
        )
    if unit == "epoch" and isinstance(n, int) and interval.within == "epoch":
        raise IntervalError("Whole epochs are counted over the run: leave out within='epoch'.")


def _parse_text(text: str) -> Every:
    match = _TEXT.fullmatch(text)
    word = _WORDS.get(match[2].lower()) if match is not None else None
    if match is None or word is None:
        raise IntervalError(
            "a text is a number and a unit: '30s', '10min', '2h', '1 day', '100 batches', "
            "'500 steps', '1000 samples', '2 epochs', '0.25 epochs'."
        )
    n = float(match[1]) if "." in match[1] else int(match[1])
    if word in _SECONDS_IN:
        return Every(n * _SECONDS_IN[word], "second")
    return Every(n, cast(Unit, word))
