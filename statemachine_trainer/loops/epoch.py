"""The epoch loop: one pass over the training data, with validation inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from statemachine_trainer.data import END, limit_batches
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

    `fetch` is where everything that interrupts training has its edge: validation that is due or
    was posted, `stop`, `end_epoch`, a limit that was reached. What is left to do when the data
    have ended (an open accumulation window, the last validation) is seen to by `drain`.

    An epoch that is cut short by `stop` or by a limit is validated at its end, whatever the
    interval. Its data stay where they are: a later fit goes on with them. `end_epoch` gives up the
    rest of the pass; the epoch is validated if its end is a moment of the interval. Posted when the
    epoch is about to end anyway, it changes nothing, and the next epoch is a whole one.

    Args:
        validate_every: When to validate: an int (batches, counted over the run), a float (fraction
            of an epoch, its end included), or `every(...)`. So 1 is after each batch, and 1.0 is
            at the end of each epoch.
        validate_epochs: Validate in every n-th epoch only.
        limit_batches: Batches in an epoch at most: an int, or a float for a fraction.
        reload_every: Make anew, before every n-th epoch, the loaders that were given as functions;
            0 for never.
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
    # `validate` is an answer of `fetch` and `drain` as well: without this they would not take it.
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
    """Whether something but the data may interrupt the epoch, by the limits last looked at: they are
    another object whenever they were read anew."""

    _ticker: Interval | None = None
    """Decides by the interval. What it remembers is in the field `ticker`, written when it fires:
    what it learns between two firings follows from the counters."""

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
        """The interval of validations; set in any of its forms, also in a pause."""
        return self._every

    @validate_every.setter
    def validate_every(self, value: object) -> None:
        self._every = parse_interval(value, "validate_every")

    # -- states ----------------------------------------------------------------------------------

    def epoch_start(self) -> Literal["epoch_started"]:
        """Begin a pass over the data, or go on with one that an earlier fit left unfinished."""
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
        """Get the next batch and move it to the device, unless something else comes first."""
        context = self.context
        if self.draining or context.finished or context.counts.batch_in_epoch == self.limit:
            return self._exhausted()
        if context.limits is not self._limits:
            self._look_at_limits()
        if self._watchful:
            event = self._interruption()
            if event is not None:
                return event
        # From here on as in `CustomLoop.next_batch`, written out: this is paid in every batch.
        if not self.holding:
            batch = context.train.next_batch()
            if batch is END:
                batch = self._batch_of_next_pass()
                if batch is END:
                    return self._exhausted()
            context.batch = batch
        if self.holding or (context.transfer is not None and not context.train.moves):
            move_batch(self, context)
        context.batch_idx = context.counts.batch_in_epoch
        return "fetched"

    def ending(self) -> Literal["cut"]:
        """Note that there are no more batches in this epoch."""
        self.draining = True
        return "cut"

    def stopping(self) -> Literal["stopped"]:
        """Note that the fit ends with this epoch."""
        self.context.stopping = self.draining = True
        return "stopped"

    def drain(self) -> Literal["flush", "validate", "drained"]:
        """See to what is left when the data have ended: open windows, then the last validation."""
        context = self.context
        # Asked anew each time: the step of the last window may be the one that reaches a limit.
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
        """Step the schedulers that go by epochs, keep the epoch's metrics, count the epoch."""
        context = self.context
        over = not context.stopping or context.counts.batch_in_epoch == self.limit
        end_epoch(self, context, over=over, schedulers=not context.manual)
        context.outputs = None
        return "epoch_done"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._ticker = self._limits = None

    @property
    def counts_samples(self) -> bool:
        return self.validate_every.unit == "sample"

    # -- guards and parts ------------------------------------------------------------------------

    def may_stop(self) -> bool:
        """Guard of `stop`: the least number of epochs and steps is done."""
        return self.context.may_stop

    def _exhausted(self) -> Literal["exhausted"]:
        # Noted before `drain` works: a validation that is posted in between comes back to `fetch`,
        # which must not go on with the data then.
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
            context.reload_data()  # type: ignore[misc]
        context.train.begin(epoch)
        self._measure_pass()

    def _measure_pass(self) -> None:
        """Find how many batches are left of a pass, which may be one that an earlier fit began."""
        feed = self.context.train
        known = limit_batches(self.limit_batches, feed.length, feed.name)
        left = None if known is None else max(0, known - feed.position)
        self.context.counts.batches_per_epoch = left
        # Where nobody limits them the data know best when they end.
        limit = self.limit_batches
        everything = limit is None or (isinstance(limit, float) and limit == 1.0)
        self.limit = None if everything else left

    def _batch_of_next_pass(self) -> Any:
        """Begin the next pass if the one before had nothing left for this epoch."""
        if self.context.counts.batch_in_epoch:
            return END
        self._begin_pass()
        return self.context.train.next_batch()

    @property
    def _validates_between(self) -> bool:
        """Whether the interval has moments that are not ends of epochs."""
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
        """Whether this is a validating epoch, and this very moment was not validated yet."""
        context = self.context
        in_turn = (context.counts.epoch + 1) % self.validate_epochs == 0
        return in_turn and context.validated_at != context.moment

    def _begin_ticker(self) -> None:
        """Go on with the interval as it stood, or begin counting here if it is new."""
        every, remembered = self.validate_every, self.ticker
        if remembered is None or remembered["interval"] != repr(every):
            self._ticker = Interval(every, self.context.counts)
            self._remember()

    def _remember(self) -> None:
        assert self._ticker is not None
        self.ticker = {"interval": repr(self._ticker.every), **self._ticker.state_dict()}

    def _due(self, *, ended: bool = False) -> bool:
        """Ask the interval whether it is due, now or with the end of the epoch."""
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
