"""The epoch loop: one pass over the training data, with validation inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from statemachine_trainer.data import END, Feed, limit_batches
from statemachine_trainer.intervals import Every, Interval, parse_interval
from statemachine_trainer.loops.base import TrainingLoop, check_limit
from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.context import Limits
from statemachine_trainer.loops.evaluation import ValidationLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import flags, whole_number
from statemachine_trainer.loops.verbs import begin_epoch, end_epoch, move_batch
from statemachine_trainer.machine.fields import field
from statemachine_trainer.machine.loop import Loop, place


class EpochLoop(TrainingLoop):
    """One pass over the training data.

    Everything that interrupts training is an edge from `fetch`: validation that is due or was
    posted, `stop`, `end_epoch`, a limit that was reached. When the data has ended, `drain` does
    what is left: open accumulation windows and the last validation.

    An epoch that `stop` or a limit cuts short is validated at its end, whatever the interval. The
    data keeps its position, and a later fit continues there. `end_epoch` drops the rest of the
    pass; the epoch is validated if its end is due by the interval. If it is posted when the epoch
    is about to end anyway, it changes nothing, and the next epoch is a whole one.

    Args:
        validate_every: When to validate: an int (batches, counted over the run), a float (fraction
            of an epoch, its end included), or `every(...)`. 1 means after each batch, 1.0 means at
            the end of each epoch.
        validate_epochs: Validate only in every n-th epoch.
        limit_batches: Largest number of batches in an epoch: an int, or a float for a fraction.
        reload_every: Call the functions that make loaders again before every n-th epoch; 0 for never.
        gather_outputs: Keep the outputs of the training steps until the end of the epoch.
        **loops: Loops for `batch` and `validation`.

    Raises:
        SettingError: A setting out of its range.
    """

    initial = "epoch_start"
    transitions = (
        # event            source         destination
        ["epoch_started", "epoch_start", "fetch"],
        ["fetched", "fetch", "batch"],
        ["batch_done", "batch", "fetch"],
        ["validate", "fetch", "validation"],
        ["validation_done", "validation", "fetch"],
        ["exhausted", "fetch", "drain"],
        ["end_epoch", "fetch", "ending"],
        ["cut", "ending", "drain"],
        ["timeout", "fetch", "stopping"],
        ["stop", "fetch", "stopping", "may_stop"],
        ["stopped", "stopping", "drain"],
        ["flush", "drain", "batch"],
        ["flushed", "batch", "drain"],
        ["validate", "drain", "validation"],
        ["drained", "drain", "epoch_end"],
        ["end_epoch", "epoch_end", None],
    )
    outcomes = ("epoch_done",)
    # `fetch` and `drain` also answer `validate`. Without this they would not take a posted one.
    posted = ("end_epoch", "validate")

    batch: Loop = place(BatchLoop)
    validation: Loop = place(ValidationLoop)

    limit: int | None = None
    holding: bool = False
    draining: bool = False
    scheduled: int = 0
    ticker: dict[str, Any] | None = field(None, scope="fit")

    _limits: Limits | None = None
    _watchful: bool = False
    """Whether limits may interrupt the epoch, cached for the `Limits` object that was last looked at."""

    _ticker: Interval | None = None
    """Decides when to validate. Its state is in the field `ticker`, saved each time it is due."""

    def __init__(
        self,
        *,
        validate_every: object = 1.0,
        validate_epochs: int = 1,
        limit_batches: int | float | None = None,
        reload_every: int = 0,
        gather_outputs: bool = False,
        **loops: Any,
    ) -> None:
        super().__init__(**loops)
        self.validate_every = validate_every
        self.validate_epochs = whole_number(self, "validate_epochs", validate_epochs, 1)
        self.limit_batches = limit_batches
        self.reload_every = whole_number(self, "reload_every", reload_every)
        flags(self, gather_outputs=gather_outputs)
        self.gather_outputs = gather_outputs
        if check_limit(limit_batches, "train") == 0:
            raise SettingError(
                f"EpochLoop(limit_batches={limit_batches!r}) leaves nothing to train on. To "
                "evaluate a model call trainer.validate or trainer.test."
            )

    @property
    def validate_every(self) -> Every:
        """The interval of validations. It may be set in any of its forms, also in a pause."""
        return self._every

    @validate_every.setter
    def validate_every(self, value: object) -> None:
        self._every = parse_interval(value, "validate_every")

    # -- states ----------------------------------------------------------------------------------

    def epoch_start(self) -> Literal["epoch_started"]:
        """Begin a pass over the data, or continue one that an earlier fit left unfinished."""
        context = self.context
        begin_epoch(context)
        if context.train.phase in ("begun", "running"):
            self._measure_pass()
        if context.train.phase not in ("begun", "running") or self.limit == 0:
            self._begin_pass()
        gathering = self.gather_outputs or context.steps.wants_outputs
        context.outputs = [] if gathering else None
        self._begin_ticker()
        self._limits = None
        return "epoch_started"

    def fetch(self) -> Literal["fetched", "exhausted", "validate", "timeout"]:
        """Get the next batch and move it to the device, unless a validation or a limit comes first."""
        context = self.context
        if self.draining or context.finished or context.counts.batch_in_epoch == self.limit:
            return self._exhausted()
        if context.limits is not self._limits:
            self._look_at_limits()
        if self._watchful:
            event = self._interruption()
            if event is not None:
                return event
        # The same as `CustomLoop.next_batch` from here on, inlined because it runs in every batch.
        if self.holding:  # it was fetched before, and moving it failed
            move_batch(self, context)
        else:
            batch = context.train.next_batch()
            if batch is END:
                batch = self._batch_of_next_pass()
                if batch is END:
                    return self._exhausted()
            context.batch = batch
            if context.transfer is not None and not context.train.moves:
                move_batch(self, context)
        context.batch_idx = context.counts.batch_in_epoch
        return "fetched"

    def ending(self) -> Literal["cut"]:
        """Note that this epoch has no more batches."""
        self.draining = True
        return "cut"

    def stopping(self) -> Literal["stopped"]:
        """Note that the fit ends with this epoch."""
        self.context.stopping = self.draining = True
        return "stopped"

    def drain(self) -> Literal["flush", "validate", "drained"]:
        """Do what is left when the data has ended: close open windows, then the last validation."""
        context = self.context
        # Checked each time: the step of the last window may reach a limit.
        context.stopping = context.stopping or self._at_limit()
        if context.open_windows:
            context.flushing = True
            return "flush"
        if context.validation and self._last_validation_due():
            return "validate"
        if context.outputs is not None and context.steps.wants_outputs:
            context.steps.training_epoch_end(context.outputs)
        return "drained"

    def epoch_end(self) -> Literal["epoch_done"]:
        """Step the schedulers that count epochs, keep the epoch's metrics, count the epoch."""
        context = self.context
        over = not context.stopping or context.counts.batch_in_epoch == self.limit
        end_epoch(self, context, over=over, schedulers=not context.manual)
        context.outputs = None
        return "epoch_done"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._ticker = self._limits = None

    @property
    def reads_training_data(self) -> bool:
        return True

    def most_batches(self, feed: Feed) -> int | None:
        """Return how many batches of an epoch are trained on at most."""
        return limit_batches(self.limit_batches, feed.length, feed.name)

    @property
    def counts_samples(self) -> bool:
        return self.validate_every.unit == "sample"

    # -- guards and parts ------------------------------------------------------------------------

    def may_stop(self) -> bool:
        """Guard of `stop`: `min_epochs` and `min_steps` are reached."""
        return self.context.may_stop

    def _exhausted(self) -> Literal["exhausted"]:
        # Noted before `drain` works: after a validation that is posted in between, `fetch` must not
        # continue with the data.
        self.draining = True
        return "exhausted"

    def _begin_pass(self) -> None:
        context = self.context
        epoch = context.counts.epoch
        if self.reload_every and context.reload_data is None:
            raise SettingError(
                f"EpochLoop(reload_every={self.reload_every}) needs loaders that can be made anew: "
                "give fit a function that makes one, as in `fit(model, make_loader)`."
            )
        if self.reload_every and epoch and epoch % self.reload_every == 0:
            context.reload_data(epoch)  # type: ignore[misc]
        elif not self.reload_every and context.reload_data and context.reload_data.takes_epoch:
            context.reload_data.of_epoch(epoch)
        context.train.begin(epoch)
        self._measure_pass()

    def _measure_pass(self) -> None:
        """Find how many batches are left of a pass, which an earlier fit may have begun."""
        feed = self.context.train
        known = self.most_batches(feed)
        left = None if known is None else max(0, known - feed.position)
        self.context.counts.batches_per_epoch = left
        # Without a limit, the data itself tells when it ends.
        limit = self.limit_batches
        everything = limit is None or (isinstance(limit, float) and limit == 1.0)
        self.limit = None if everything else left

    def _batch_of_next_pass(self) -> Any:
        """Begin the next pass if the previous one has nothing left for this epoch."""
        if self.context.counts.batch_in_epoch:
            return END
        self._begin_pass()
        return self.context.train.next_batch()

    @property
    def _validates_between(self) -> bool:
        """Return whether the interval can be due within an epoch."""
        every = self.validate_every
        only_at_end = every.unit == "epoch" and (not every.is_fraction or every.n == 1.0)
        return not only_at_end and bool(self.context.validation)

    def _look_at_limits(self) -> None:
        context = self.context
        limits = self._limits = context.limits
        if limits.max_steps is not None and context.counts.step >= limits.max_steps:
            context.finished = True
        if self.counts_samples:
            context.count_samples()
        self._begin_ticker()
        self._watchful = (
            context.finished
            or self._validates_between
            or limits.max_seconds is not None
            or limits.max_batches is not None
        )

    def _at_limit(self) -> bool:
        context = self.context
        most = context.limits.max_batches
        return context.finished or (most is not None and context.counts.batch >= most)

    def _interruption(self) -> Literal["exhausted", "validate", "timeout"] | None:
        context = self.context
        if self._at_limit():
            return self._exhausted()
        most = context.limits.max_seconds
        if most is not None and context.read_clock() >= most and context.may_stop:
            return "timeout"
        if self._validates_between and self._due() and self._may_validate():
            return "validate"
        return None

    def _last_validation_due(self) -> bool:
        due = self._due(ended=True)
        return (due or self.context.stopping) and self._may_validate()

    def _may_validate(self) -> bool:
        """Return whether this epoch validates, and this very moment was not validated yet."""
        context = self.context
        in_turn = (context.counts.epoch + 1) % self.validate_epochs == 0
        return in_turn and context.validated_at != context.moment

    def _begin_ticker(self) -> None:
        """Restore the interval, or begin counting here if it is new."""
        every, remembered = self.validate_every, self.ticker
        if remembered is None or remembered["interval"] != repr(every):
            self._ticker = Interval(every, self.context.counts)
            self._remember()

    def _remember(self) -> None:
        assert self._ticker is not None
        self.ticker = {"interval": repr(self._ticker.every), **self._ticker.state_dict()}

    def _due(self, *, ended: bool = False) -> bool:
        """Return whether the interval is due, now or with the end of the epoch."""
        counts = self.context.counts
        if self.validate_every.unit == "second":
            self.context.read_clock()
        if ended:
            counts = replace(counts, epoch=counts.epoch + 1)
        if self._ticker is None:
            self._ticker = Interval(self.validate_every)
            self._ticker.load_state_dict(self.ticker)  # type: ignore[arg-type]
        due = self._ticker.due(counts, "epoch" if ended else None)
        if due:
            self._remember()
        return due
