"""Checkpoints of a run: when they are written, and where a run finds the one to go on from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from statemachine_trainer.callbacks.finding import EarlierRun, NoCheckpoint, find_checkpoint
from statemachine_trainer.callbacks.interruption import WARNINGS, Interrupted
from statemachine_trainer.callbacks.measured import (
    OtherWeights,
    all_has_run,
    metadata_of,
    refuse_unmeasured,
    unmeasured,
    was_validated,
    would_be_kept,
)
from statemachine_trainer.callbacks.stop import Stop
from statemachine_trainer.control.ownership import Ownership
from statemachine_trainer.intervals import Interval, parse_interval
from statemachine_trainer.loops import foreign_names
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import flags, one_of
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import NotStarted, level_of_caller
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.machine.signals import Moment, Subscription
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Best, Loaded, Retention, Store, Unwritable, WriteFailed
from statemachine_trainer.snapshot.frozen import Base, without_frozen
from statemachine_trainer.snapshot.mirror import Mirror, mirror_given
from statemachine_trainer.snapshot.ranked import do_together, save_alone, save_together
from statemachine_trainer.version import __version__

__all__ = [
    "WARNINGS",
    "Checkpoints",
    "EarlierRun",
    "Interrupted",
    "NoCheckpoint",
    "OtherWeights",
    "find_checkpoint",
]

_LAST = -1000
_BATCH_IN_FLIGHT = re.compile(
    r"context\.in_flight\.(batch|splits?|kept_hiddens|output|loss|aside)\b"
)


class Host(Protocol):
    """What checkpoints need of a trainer.

    Attributes:
        board: The board with the signals of its loops.
    """

    board: SignalBoard

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the fit."""
        ...

    def stateful_callbacks(self) -> list[Any]:
        """Return the callbacks that have a state."""
        ...

    def on(self, name: Any, receiver: Callable[..., Any], /, **options: Any) -> Any:
        """Subscribe."""
        ...


class Checkpoints(HasSettings):
    """Writes checkpoints of a fit into the folder of a run, at boundaries only.

    A checkpoint that is due at a validation's step is written after that validation. A batch in
    flight that cannot be written down (an object of a class of one's own) postpones it until the
    batch is done. Where retention keeps the best by a metric, one is also written whenever this
    metric has just been measured and is among the best: only then are metric and weights of one
    moment. A metric that nobody has logged when the first epoch that validates is over is an error;
    with phases that epoch is one of the last of them, with folds the first fold has to be over.

    Of several ranks each has Checkpoints of the same folder; rank 0 writes, and the state of each is
    in what it writes.

    One run at a time writes to a folder. Beside the checkpoints it holds `run.json`, the record of
    how the run was started.

    Args:
        folder: Where; made when the run begins.
        every: How often: an interval such as "10min", 500 (batches), "1 epoch", `every(100, "step")`.
        retention: Which are kept; the last three unless told otherwise.
        parameters: "all", or "trainable": leave out what is frozen and still as the script made it. That keeps the
            checkpoints of adapters small. A resumed run takes it from its script, and another base is refused.
        mirror: Another place that the checkpoints are sent to in the background: an address such as
            "s3://bucket/runs/mine", or a `Mirror` with options. `resume="auto"` fetches them from there if the folder
            has none, or older ones.
        background: Write in a thread; the run waits for the copy only. A write that fails raises at
            the next one, or at the end of the run.
        at_end: Write one when the fit has ended.
        on_signals: Stop with a checkpoint on SIGTERM, SIGUSR1 and Ctrl-C while `fit` or `run` is
            running in the main thread; a second Ctrl-C stops at once. A signal that you handle
            yourself is left to you.

    Attributes:
        store: The store that holds them.
        last: The folder of the last one written; None if there is none yet.
        on_written: Called with that folder after each, if there is somebody to be told.
    """

    other_names: ClassVar = foreign_names.CHECKPOINTS

    def __init__(
        self,
        folder: str | Path,
        *,
        every: object = "1 epoch",
        retention: Retention | None = None,
        parameters: Literal["all", "trainable"] = "all",
        mirror: str | Mirror | None = None,
        background: bool = False,
        at_end: bool = True,
        on_signals: bool = True,
    ) -> None:
        # Not needed by a fit without checkpoints.
        from statemachine_trainer.callbacks.folder_of_run import FolderOfRun

        flags(self, background=background, at_end=at_end, on_signals=on_signals)
        one_of(self, "parameters", parameters, ("all", "trainable"))
        if retention is not None and not isinstance(retention, Retention):
            raise SettingError(
                f"Checkpoints(retention={retention!r}): give Retention(...), such as "
                "Retention(last=3, best=Best('val_loss'))."
            )
        ours = {"statemachine_trainer": __version__}
        self.store = Store(folder, retention=retention, background=background, versions=ours)
        self.background = background
        self.every = parse_interval(every, "every")
        self.parameters = parameters
        self.mirror = mirror_given(mirror)
        if self.mirror is not None:
            self.mirror.belong_to(self.store.root)
            self.store.settled = partial(self.mirror.send, self.store.root)
        self._folder = FolderOfRun(self.store, self.mirror)
        self.at_end = at_end
        self.on_signals = on_signals
        self.last: Path | None = None
        self.on_written: Callable[[Path], object] | None = None
        self._interval = Interval(self.every)
        self._base: Base | None = None
        self._due = False
        self._told_of_weights = False
        self._postponed_at: int | None = None
        self._wanted = False
        self._stop = Stop(lambda: self._running, self._write_to_stop)
        self._host: Host | None = None
        self._driver: Driver | None = None
        self._subscriptions: list[Subscription] = []

    def __repr__(self) -> str:
        last = "" if self.last is None else f", last={self.last.name!r}"
        return f"Checkpoints({str(self.store.root)!r}, every={self.every!r}{last})"

    # -- when ------------------------------------------------------------------------------------

    def attach(self, host: Host, driver: Driver) -> None:
        """Listen to the loops of a fit; called again, to those that it has now.

        Where they have no `batch_end`, which tells that something was counted, it is asked at each
        boundary whether a checkpoint is due.

        Raises:
            SettingError: They belong to another trainer.
        """
        if self._host is not None and self._host is not host:
            raise SettingError(
                f"The Checkpoints of {str(self.store.root)!r} belong to another trainer. Make one for each."
            )
        self._host, self._driver = host, driver
        for one in self._subscriptions:
            one.cancel()
        self._subscriptions = []
        root = driver.name
        if self._listen(f"{root}*.batch_end", self._batch_ends):
            if not self._listen(f"{root}*.batch_start", self._batch_starts):
                self._listen(f"{root}*.batch_end:exit", self._write_if_due)
        else:
            self._listen(f"{root}.*", self._look_and_write)
        self._listen(f"{root}*.validation_end:exit", self._validated)
        self._listen(f"{root}*.epoch_end", self._epoch_ends)
        self._listen(f"{root}*.epoch_end:exit", self._epoch_has_ended)
        self._listen(f"{root}*.fold_end:exit", self._fold_has_ended)
        self._listen(f"{root}:exit", self._fit_has_ended)

    def _listen(self, name: str, receiver: Callable[..., None]) -> bool:
        assert self._host is not None
        if not self._host.board.has(name):
            return False  # a tree of one's own lacks the state
        self._subscriptions.append(self._host.on(name, receiver, priority=_LAST))
        return True

    def write(self) -> None:
        """Write a checkpoint at the next boundary that can be written down (at this one, if at rest).

        Raises:
            NotStarted: There is no fit whose state could be written.
        """
        driver = self._running
        if driver.path is None and driver.outcome is None:
            raise NotStarted("There is nothing to write before a fit was started.")
        if driver.running and Ranks.here() is not None:
            self._wanted = True  # all ranks write where they meet next
            return
        driver.at_boundary(self._write)
        if not driver.running:
            self._send_rest()  # the process may end now

    # The two that are called in every batch take what receivers get, so that nothing lies between.

    def _batch_ends(self, _trainer: Any, _moment: Moment) -> None:
        assert self._driver is not None
        if self._interval.due(self._driver.context):
            self._due = True

    def _batch_starts(self, _trainer: Any, _moment: Moment) -> None:
        if self._due:
            self._write_if_due()

    def _look(self, ended: Literal["epoch", "run"] | None = None) -> None:
        context = self._context
        if self._interval.due(context, ended):
            self._due = True

    def _write_if_due(self) -> None:
        if self._due:
            self._running.at_boundary(self._write_due)

    def _look_and_write(self) -> None:
        self._look()
        self._write_if_due()

    def _validated(self) -> None:
        self._due = self._due or self._is_among_the_best(self._context.validation_metrics)
        self._write_if_due()

    def _epoch_ends(self) -> None:
        self._look("epoch")  # a fraction of an epoch counts its end before the epoch is counted

    def _epoch_has_ended(self, moment: Moment) -> None:
        context = self._context
        self._look()
        self._due = self._due or self._is_among_the_best(context.train_metrics)
        self._write_if_due()
        if was_validated(context):
            self._look_for_the_best(moment, f"the end of epoch {context.counts.epoch}")

    def _fold_has_ended(self, moment: Moment) -> None:
        self._look_for_the_best(moment, f"the end of a fold ({moment.path!r})")

    def _look_for_the_best(self, moment: Moment, until: str) -> None:
        """Refuse a metric that retention goes by, if nothing is to come that may log it."""
        context, metrics = self._context, [one.metric for one in self.best_rules]
        if unmeasured(context, metrics) is None or not all_has_run(self._running.root, moment.path):
            return
        refuse = partial(refuse_unmeasured, context, metrics, until)
        self._running.at_boundary(refuse)  # after what was due is written

    def _fit_has_ended(self) -> None:
        self._look("run")
        if self.at_end or self._due:
            self._running.at_boundary(self._write_due)

    # -- what ------------------------------------------------------------------------------------

    def _write_due(self) -> None:
        if self._due or self._running.path is None:
            self._due = False
            self._write()

    def _write(self) -> None:
        if not self._has_written():
            self._running.at_boundary(self._write)

    def _has_written(self) -> bool:
        """Write one, unless the batch in flight cannot be written down and will soon be gone."""
        host, counts = self._host, self._context.counts
        assert host is not None
        name = f"step-{counts.step:08d}"
        if counts.batch != counts.step:  # else a later batch of the step would replace this one
            name += f"-batch-{counts.batch:08d}"
        try:
            tree: Mapping[str, Any] = host.state_dict()
            if self._base is not None:
                tree = without_frozen(tree, self._base)
            self.last = self._save(tree, name)
        except Unwritable as error:
            if _BATCH_IN_FLIGHT.match(error.where) is None or not self._may_postpone():
                self._postponed_at = None
                raise
            return False
        self._postponed_at = None
        if self.on_written is not None:
            self.on_written(self.last)
        return True

    def _save(self, tree: Mapping[str, Any], name: str) -> Path:
        ranks, metadata = Ranks.here(), self._metadata()
        if ranks is None:
            return save_alone(self.store, tree, name=name, metadata=metadata)
        sync = self._context.steps.sync
        sync.check_left_out()
        data_ranks = sync.data_ranks
        if data_ranks is not None:
            tree = {**tree, "data_ranks": data_ranks}
        return save_together(ranks, self.store, tree, name=name, metadata=metadata)

    def _may_postpone(self) -> bool:
        """Whether the batch in flight will be gone soon: not at rest, nor if it has outlived the next one."""
        batch = self._context.counts.batch
        if self._postponed_at is None:
            self._postponed_at = batch
        driver = self._running  # at rest the next boundary is this one
        return driver.running and driver.path is not None and batch <= self._postponed_at + 1

    def _metadata(self) -> dict[str, Any]:
        assert self._host is not None
        found = metadata_of(
            self._context, self._host.stateful_callbacks, tell=not self._told_of_weights
        )
        self._told_of_weights = self._told_of_weights or bool(found["of_other_weights"])
        best = {rule.metric: rule.mode for rule in self.best_rules}
        return {"state": self._running.path, **found, "best": best}

    def _is_among_the_best(self, measured: Iterable[str]) -> bool:
        return would_be_kept(self.store, self._context, self.best_rules, measured)

    @property
    def best_rules(self) -> tuple[Best, ...]:
        """The rules by which the best are kept."""
        best = self.store.retention.best
        return best if isinstance(best, tuple) else (best,)

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the interval remembers, and which limit ended the fit, if one did."""
        ended = self._driver is not None and self._driver.path is None
        return {
            "interval": repr(self.every),
            "ticker": dict(self._interval.state_dict()),
            "due": self._due,
            "limit": self._context.limit_reached if ended else None,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on as the saved run would have; with another interval, count from here on.

        Args:
            state: What `state_dict` returned; None if the run was saved without checkpoints.
        """
        self.begin()
        if state is None or state["interval"] != repr(self.every):
            self._interval = Interval(self.every, self._context.counts)
        else:
            self._interval.load_state_dict(state["ticker"])
            self._due = state["due"]

    def begin(self) -> None:
        """Forget what the interval remembers: a new run begins."""
        self._interval = Interval(self.every)
        self._due, self._postponed_at = False, None

    def know_base(self, model: nn.Module) -> None:
        """Look at the weights that the script has made, before anything is trained or loaded."""
        self._base = Base.of(model) if self.parameters == "trainable" else None

    def belong_to(self, owner: Ownership) -> None:
        """Write only while the folder is that of this run."""
        self._folder.owner = owner
        self.store.owned, self.store.check_owned = owner.writing, owner.check

    # -- the folder of the run -------------------------------------------------------------------

    def try_to_write(self) -> None:
        """Learn now, not after the first epoch, that the folder takes nothing; see `FolderOfRun`.

        Raises:
            WriteFailed: There can be no such folder, or nothing can be written in it, or in the mirror.
        """
        self._folder.try_to_write()

    def check_folder(self, loaded: Loaded | None) -> None:
        """Refuse the checkpoints of another run than that of `loaded`; see `FolderOfRun`.

        Raises:
            EarlierRun: The folder has some, and this run does not go on from one of them.
        """
        self._folder.check(loaded)

    def note_start(self, loaded: Loaded | None, *, restart: bool = False) -> None:
        """Begin a run, or go on with one, and write that into its record.

        Args:
            loaded: The checkpoint that it goes on from; None if it begins.
            restart: Set aside what an earlier run left in the folder.
        """
        if loaded is not None and self._running.path is None:
            return  # it had ended
        if loaded is None:
            self.begin()
        self._folder.note_start(loaded, restart=restart)

    # -- signals of the operating system ---------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals of the operating system while the block runs the fit; then wait for the disk.

        Raises:
            Interrupted: One came; the machine stands at the boundary that was written.
            WriteFailed: The disk did not take a checkpoint, or the mirror.
        """
        stop = self._stop
        with stop.listening(self.on_signals):
            try:
                yield
                stop.finish(written_at_end=self.at_end)
                do_together(Ranks.here() if self.background else None, self.store.wait)
            except BaseException as error:
                self._folder.note("failed", error=f"{type(error).__name__}: {error}"[:500])
                if isinstance(error, Exception) and Ranks.are_up():
                    self.store.rest()  # other ranks may wait for what this one writes
                if isinstance(error, Exception):  # a second Ctrl-C waits for nothing
                    with suppress(WriteFailed):  # the log has it
                        self._send_rest()
                raise
        if stop.came is not None:
            self._running.take_pause()  # it stands still: a pause would end the next `run` at once
            self._folder.note("stopped", signal=stop.came, checkpoint=str(self.last))
            with suppress(WriteFailed):  # the log has it
                self._send_rest()
            stop.end_run(self.last)
        if self._running.path is None:
            self._folder.note("ended", outcome=self._running.outcome)
        self._send_rest()

    def _send_rest(self) -> None:
        """Wait for the mirror."""
        if self.mirror is not None:
            self.store.rest()
            self.mirror.wait()

    def _write_to_stop(self) -> bool:
        try:
            self.store.wait()
        except WriteFailed as error:  # of the one before: this one is wanted all the more
            warnings.warn(f"{error}", RuntimeWarning, stacklevel=level_of_caller())
        return self._has_written()

    # -- several ranks ---------------------------------------------------------------------------

    def asked(self) -> tuple[int, bool]:
        """Tell what the other ranks have to hear of.

        Returns:
            The number of the signal that came here, 0 for none; whether `write` was called.
        """
        wanted = self._wanted
        if wanted:  # else a thread may be setting it just now
            self._wanted = False
        return self._stop.signum or 0, wanted

    def agreed(self, signum: int, wanted: bool) -> None:
        """Do at the next boundary, as all ranks do, what was asked for at any of them."""
        if wanted:
            self._wanted = False
            self._running.at_boundary(self._write)
        if signum:
            self._stop.agree(signum)

    # -- parts -----------------------------------------------------------------------------------

    @property
    def _running(self) -> Driver:
        """The driver of the fit, whatever else the trainer runs just now."""
        if self._driver is None:
            raise NoCheckpoint("These checkpoints belong to no trainer: Trainer(checkpoints=...).")
        return self._driver

    @property
    def _context(self) -> Context:
        context: Context = self._running.context
        return context
