"""The progress of a run, shown while it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from statemachine_trainer.control.processes import rank_of_process
from statemachine_trainer.loops.base import in_training
from statemachine_trainer.loops.settings_checks import flags, number, refuse
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.epoch_table import MetricsTable, format_duration, format_number
from statemachine_trainer.observe.screens import Bar, LogScreen, Screen, screen_for

if TYPE_CHECKING:
    from statemachine_trainer.loops.context import Context
    from statemachine_trainer.machine.board import SignalBoard
    from statemachine_trainer.machine.signals import Subscription

_EVALUATIONS: Final = {
    "sanity": "sanity check",
    "validation": "validation",
    "test": "test",
    "predict": "prediction",
}
"""What the states of an evaluation are called (`sanity_start`, ...), and what people call it."""


class Console(Protocol):
    """A console of rich: `rich.console.Console`. Importing it takes time that hidden bars need not pay."""

    @property
    def is_interactive(self) -> bool:
        """Whether it can show what moves."""
        ...

    @property
    def width(self) -> int:
        """Characters in a line."""
        ...


class Progress(HasSettings):
    """Shows how far a run is: bars for epoch and evaluation, and a table of each epoch's metrics.

    In a terminal and in a notebook. Elsewhere it is a plain line for each epoch, and one every few
    minutes within long epochs and evaluations, as messages of the logger `statemachine_trainer.progress`
    (INFO); they go to standard output where nobody has set up `logging`.

    It listens to the states of a run only while it runs. States that a tree of loops does not have are
    left out. A loss is read, and the device waited for, only where a bar is redrawn. A step shorter than
    that sees one comparison.

    Args:
        console: Where to show it; standard output unless given.
        table: Show the table of metrics, or the lines of epochs.
        per_second: How often the bars are redrawn at most.
        share: What part of the time redrawing may take; they are redrawn more seldom if need be.
        minutes: From one line to the next within an epoch, where there is no terminal; None shows nothing there,
            neither these lines nor those of epochs.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        table: bool = True,
        per_second: float = 10.0,
        share: float = 0.02,
        minutes: float | None = 5.0,
    ) -> None:
        flags(self, table=table)
        number(self, "per_second", per_second)
        if number(self, "share", share) > 1:
            refuse(self, "share", share, "use a part of the time, at most 1.")
        if console is not None and not hasattr(console, "is_interactive"):
            refuse(self, "console", console, "give a rich.console.Console, or None.")
        if minutes is not None:
            number(self, "minutes", minutes, hint=" None shows nothing where there is no terminal.")
        self._minutes = minutes
        self._console = console
        self._shows_table = table
        self._pause = 1.0 / per_second
        self._costs = 1.0 / share - 1.0
        self._table = MetricsTable()
        self._screen: Screen | None = None
        self._evaluation: _Evaluation | None = None
        self._speed = _Speed()
        self._due = 0.0
        self._kept_until = 0.0

    @contextmanager
    def showing(self, trainer: Any) -> Iterator[None]:
        """Show what a trainer does within the block; whatever ends it, the bars are taken away.

        Within another such block of the same progress (an evaluation called by a hook) that one
        goes on showing. Of several ranks rank 0 shows its progress.
        """
        hidden = self._screen is not None or rank_of_process() > 0
        screen = None if hidden else self._choose_screen()
        if screen is None or not self._open(screen, trainer):
            yield
            return
        self._speed = _Speed()
        listening = self._subscribe(trainer.board)
        try:
            self._attempt(lambda: self._redraw(trainer.context))
            yield
        finally:
            for subscription in listening:
                subscription.cancel()
            self._evaluation = None
            self._close()

    def say(self, text: str) -> None:
        """Show a line of text before anything else is shown. Of several ranks rank 0 does."""
        screen = self._choose_screen() if rank_of_process() == 0 else None
        if screen is not None and self._screen is None and self._open(screen):
            self._attempt(lambda: screen.say(text))
            self._close()

    def _choose_screen(self) -> Screen | None:
        screen = screen_for(cast(Any, self._console))
        if screen is None and self._minutes is not None:
            return LogScreen(60 * self._minutes)
        return screen

    # -- what it listens to ----------------------------------------------------------------------

    def _subscribe(self, board: SignalBoard) -> list[Subscription]:
        """Listen to those of the states of training that the loops have, after all others.

        So what others log at the end of an epoch is in the table.
        """
        receivers: dict[str, Callable[[Any, Moment], None]] = {
            "*.epoch_start:exit": self._epoch_started,
            "*.batch_end": self._batch_ends,
            "*.epoch_end": self._epoch_ends,
        }
        for name in _EVALUATIONS:
            receivers[f"*.{name}_start:exit"] = self._evaluation_started
            receivers[f"*.{name}_step:exit"] = self._evaluated
            receivers[f"*.{name}_end:exit"] = self._evaluation_ended
        made = []
        for signal, receiver in receivers.items():
            if board.has(signal):
                made.append(board.watch(signal, receiver))
        return made

    def _epoch_started(self, trainer: Any, _moment: Moment) -> None:
        if trainer.context.counts.epoch == 0:
            self._table = MetricsTable()
        self._speed.begin(trainer.context.counts.batch)
        self._attempt(lambda: self._redraw(trainer.context))

    def _batch_ends(self, trainer: Any, _moment: Moment) -> None:
        if time.monotonic() < self._due:
            return
        context = trainer.context
        self._speed.measure(context.counts.batch)
        self._attempt(lambda: self._redraw(context))

    def _epoch_ends(self, trainer: Any, _moment: Moment) -> None:
        screen = self._screen
        if self._shows_table and screen is not None:
            self._table.on_epoch_end(trainer)
            self._attempt(lambda: screen.grow(self._table))

    def _evaluation_started(self, trainer: Any, moment: Moment) -> None:
        self._evaluation = _Evaluation(trainer, moment.path)
        self._attempt(lambda: self._redraw(trainer.context))

    def _evaluated(self, trainer: Any, moment: Moment) -> None:
        if self._evaluation is None:  # it was paused, or comes from a snapshot
            self._evaluation = _Evaluation(trainer, moment.path)
        else:
            self._evaluation.done += 1
        if time.monotonic() >= self._due:
            self._attempt(lambda: self._redraw(trainer.context))

    def _evaluation_ended(self, trainer: Any, _moment: Moment) -> None:
        self._evaluation = None
        self._speed.interrupt()
        self._attempt(lambda: self._redraw(trainer.context))

    # -- showing ---------------------------------------------------------------------------------

    def _open(self, screen: Screen, trainer: Any = None) -> bool:
        from rich.errors import LiveError

        try:
            screen.open(trainer)
        except (OSError, LiveError):  # the terminal is gone, or shows something else already
            return False
        self._screen, self._due = screen, 0.0
        self._kept_until = time.monotonic() + screen.pause if screen.pause else 0.0
        return True

    def _close(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            self._close_quietly(screen)

    def _attempt(self, show: Callable[[], None]) -> None:
        """Show something. A terminal that went away ends the showing, not the training."""
        try:
            show()
        except OSError:
            self._close()

    @staticmethod
    def _close_quietly(screen: Screen) -> None:
        try:
            screen.close()
        except OSError:
            return

    def _redraw(self, context: Context) -> None:
        began = time.monotonic()
        if self._screen is None or began < self._kept_until:
            self._due = self._kept_until
            return
        bars = [] if context.train is None else [self._training(context)]
        if self._evaluation is not None:
            bars.append(self._evaluation.bar())
        self._screen.draw(bars)
        now = time.monotonic()
        self._due = now + max(self._pause, self._costs * (now - began))
        if self._screen is not None and self._screen.pause:
            self._due = self._kept_until = now + self._screen.pause

    def _training(self, context: Context) -> Bar:
        counts, limits = context.counts, context.limits
        label = f"epoch {counts.epoch + 1}"
        if limits.max_epochs is not None and math.isfinite(limits.max_epochs):
            label = f"epoch {min(counts.epoch + 1, limits.max_epochs)}/{limits.max_epochs}"
        if limits.max_steps is not None:
            label += f", step {counts.step}/{limits.max_steps}"
        total = counts.batches_per_epoch
        notes = self._speed.notes(None if total is None else total - counts.batch_in_epoch)
        notes += [f"{name} {format_number(value)}" for name, value in _newest(context).items()]
        return Bar(label, counts.batch_in_epoch, total, "  ".join(notes))


class _Speed:
    """How fast batches are done, from one redraw to the next, smoothed."""

    def __init__(self) -> None:
        self._batch = 0
        self._at: float | None = None
        self._rate: float | None = None

    def begin(self, batch: int) -> None:
        """Measure from here on."""
        self._batch, self._at = batch, time.monotonic()

    def interrupt(self) -> None:
        """Do not measure what was since the last time."""
        self._at = None

    def measure(self, batch: int) -> None:
        """Note how many batches of the run are done."""
        before, since = self._at, batch - self._batch
        self.begin(batch)
        if before is None or since <= 0 or self._at is None or self._at <= before:
            return
        rate = since / (self._at - before)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def notes(self, left: int | None) -> list[str]:
        """Return the speed in words, and the time that the rest of the epoch takes."""
        rate = self._rate
        if rate is None:
            return []
        speed = f"{rate:.3g} batch/s" if rate >= 1 else f"{1 / rate:.3g} s/batch"
        return [speed] if left is None else [speed, f"{format_duration(left / rate)} left"]


class _Evaluation:
    """How far a validation, test, prediction or sanity check is.

    Args:
        trainer: The trainer that runs it.
        path: Path of its first state.
    """

    def __init__(self, trainer: Any, path: str) -> None:
        around, _, state = path.rpartition(SEPARATOR)
        driver = trainer.driver
        loop = dict(driver.root.walk(driver.name)).get(around)
        self.label = _EVALUATIONS[state.rpartition("_")[0]]
        self.done: int = getattr(loop, "batches", 0)
        self.total = _batches(loop, trainer.context)

    def bar(self) -> Bar:
        """Return it as a bar."""
        return Bar(self.label, self.done, self.total)


def _batches(loop: Loop | None, context: Context) -> int | None:
    """Return how many batches an evaluation has, over all its loaders; None if that is unknown."""
    total = 0
    for _, feed in context.validation:
        most = in_training(loop).most_batches(feed)
        if most is None:
            return None
        total += most
    return total


def _newest(context: Context) -> dict[str, float]:
    """Return what a bar shows: what was logged for it, else the loss of the batch."""
    logged = context.train_metrics.newest("prog_bar")
    if logged or context.loss is None:
        return logged
    return {"loss": float(context.loss.detach())}
