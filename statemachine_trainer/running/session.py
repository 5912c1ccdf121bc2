"""The session of a trainer: starts fits and runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from statemachine_trainer.audit.report import Audit
from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.finding import find_checkpoint, state_of_rank, tell_of_others
from statemachine_trainer.control.processes import rank_of_process
from statemachine_trainer.loops.assembly import Equipment, assemble_fit, go_on
from statemachine_trainer.loops.base import abandon_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.context_state import take_handed_state
from statemachine_trainer.loops.guest import Guest, goes_on_from
from statemachine_trainer.loops.loop_errors import NothingToDo, SettingError
from statemachine_trainer.loops.settings_checks import flags
from statemachine_trainer.loops.steps import Steps
from statemachine_trainer.loops.total import total_steps
from statemachine_trainer.machine.driver import Until
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import Recorder
from statemachine_trainer.run_record import ask_for_commit, wants_resume
from statemachine_trainer.running.arguments import Given, check_loss
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.fit_state import FitState, Fresh, Host, epoch_of_data
from statemachine_trainer.running.limits import (
    refuse_device_without_numbers,
    refuse_endless,
    refuse_to_do_nothing,
)
from statemachine_trainer.running.quick_checks import QuickChecks
from statemachine_trainer.running.rehearsal import (
    audit_unstarted,
    is_rehearsal,
    refuse_in_rehearsal,
)
from statemachine_trainer.running.replaying import ReplayOver, replay
from statemachine_trainer.running.subscribing import samples_are_counted, subscribe_model
from statemachine_trainer.running.surroundings import Surroundings
from statemachine_trainer.running.weights import BestInModel, the_rule
from statemachine_trainer.snapshot import Loaded
from statemachine_trainer.snapshot.rng import seed_everything


class Session:
    """Runs the loops of one trainer.

    `start` prepares a fit, up to the boundary before its first state. `run`, `step` and `moments`
    continue the active machine.

    Args:
        host: The trainer.
        drivers: Its drivers.
        equipment: Its device, precision and seed.
        state: Saves and restores the state of its fit.
        recorder: Records runs; None to record nothing.
        progress: Shows runs; False to show nothing.
        quick: What quick checks change.
        surroundings: What surrounds each run.
    """

    def __init__(
        self,
        host: Host,
        drivers: Drivers,
        equipment: Equipment,
        state: FitState,
        recorder: Recorder | None,
        progress: Progress | Literal[False],
        quick: QuickChecks,
        surroundings: Surroundings,
    ) -> None:
        self._host = host
        self._drivers = drivers
        self._fit = drivers.fit
        self._equipment = equipment
        self._state = state
        self._recorder = recorder
        self._progress = progress
        self._quick = quick
        self._surroundings = surroundings
        self._listening: Steps | None = None
        self._best: BestInModel | None = None
        self._rehearsed: Audit | None = None

    def fit(self, given: Given, until: Until) -> Mapping[str, float]:
        """Start a fit and run it; see `start` and `run`. Returns the metrics known at the end.

        Raises:
            SettingError: The best weights are to be restored, and nothing says what is best.
        """
        refuse_in_rehearsal()
        flags("fit", restore_best=given.restore_best)
        replayed = replay()
        if replayed is not None:
            given = replayed.starts(self._host, given)
        restores = self._quick.unless_dev_run(given.restore_best, False)
        rule = the_rule(self._host.checkpoints) if restores else None
        self.start(given)
        if replayed is not None and replayed.trainer is self._host:
            replayed.take_over(self._host)
            raise ReplayOver
        if self._fit.path is not None:  # what was resumed may have been at its end
            self.run(until)
        if rule is not None and self._fit.path is None and self._host.checkpoints is not None:
            self._best = BestInModel(self._fit.context.model, rule, self._host.checkpoints)
        return self._drivers.context.read_metrics()

    # -- starting a fit --------------------------------------------------------------------------

    def start(self, given: Given) -> None:
        """Begin a fit, or continue the present one.

        Args:
            given: What to train, with what, and from where.

        Raises:
            AlreadyRunning: A fit is running.
            NothingToDo: There is no model, data was given for a paused fit, or a limit is already
                reached.
            SettingError: The fit would never end, or `resume` names no place.
            NoCheckpoint: `resume` names a place without a checkpoint.
            FolderInUse: Another process is running in the folder of the run.
            EarlierRun: The folder of the checkpoints holds another run.
            SnapshotMismatch, StateMismatch, DataChanged: The checkpoint is that of a different fit.
        """
        if is_rehearsal():
            self._rehearsed = self.audit(given)
            return
        if given.restart and given.resume is not None:
            raise SettingError(
                f"restart=True begins a new fit, and resume={str(given.resume)!r} goes on with one. Give one of them."
            )
        given, replayed = self._quick.given(given), replay()
        if replayed is not None:
            given = replayed.starts(self._host, given)
        known = context_of(self._fit)
        self._fit.check_at_rest("start")
        check_loss(given.parts.loss)
        anew = known is None or given.restart or given.resume is not None
        with self._surroundings.naming_lost_ranks(), self._surroundings.taking_folder(anew=anew):
            self._start(given, known)
        if replayed is not None:
            replayed.has_started(self._host)

    def audit(self, given: Given | None = None) -> Audit:
        """List what a fit would use, without starting it; of the fit that was started unless one is given.

        Raises:
            NotStarted: There is no fit.
            NothingToDo: There is no model.
        """
        known = context_of(self._fit)
        if given is not None and given.model is None and not given.model_alone:
            raise NothingToDo("audit needs the model, too: audit(model, loader).")
        if given is None or given.model is None:
            return self._state.audit() if self._rehearsed is None else self._rehearsed
        if given.model_alone and known is not None and known.steps.whole is given.model:
            return self._state.audit()
        return audit_unstarted(
            self._equipment,
            self._fit,
            self._host,
            given.model,
            given.train,
            given.validation,
            given.parts,
        )

    def _start(self, given: Given, known: Context | None) -> None:
        if self._recorder is not None and known is None:
            self._recorder.check_free()
        if goes_on_from(given.model, given.resume):
            given = replace(given, resume=None)
        loaded = self._checkpoint_to_go_on_from(given, begun=known is not None)
        try:
            self._start_from(loaded, given, known)
        finally:
            if loaded is not None:
                loaded.close()

    def _start_from(self, loaded: Loaded | None, given: Given, known: Context | None) -> None:
        driver = self._fit
        handed = take_handed_state() if loaded is None else None
        model = given.model
        if model is None:
            if known is None:
                raise NothingToDo("fit needs a model: fit(model, loader).")
            model = known.steps.whole
        self._drivers.active = driver
        anew = given.restart or loaded is not None or handed is not None
        if known is None or anew or model is not known.steps.whole:
            self._begin(model, given, loaded, handed)
        elif driver.path is None:
            self._go_on(known, given)
        elif not given.model_alone:
            raise NothingToDo(
                f"The fit of this model is paused in state {driver.path!r}. Go on with `run()`, or begin anew "
                "with `fit(..., restart=True)`."
            )

    def _checkpoint_to_go_on_from(self, given: Given, *, begun: bool) -> Loaded | None:
        """Find the checkpoint that `resume` names. By default `smt resume` means "auto" for a first start."""
        checkpoints, resume = self._host.checkpoints, given.resume
        store = None if checkpoints is None else checkpoints.store
        if resume is None and store is not None and not begun and not given.restart:
            resume = "auto" if wants_resume() else None
        if resume is None:
            return None
        return find_checkpoint(store, resume, None if checkpoints is None else checkpoints.mirror)

    def _go_on(self, context: Context, given: Given) -> None:
        """Restart a fit that has ended, with its counters, optimizers and position in the data."""
        refuse_to_do_nothing(self._fit.root, context)
        if self._best is not None:
            self._best.put_back()
            self._best = None
        go_on(context, given.train, given.validation, given.parts)
        with self._surroundings.in_charge(self._fit):
            self._fit.start()
        if self._recorder is not None:
            self._recorder.go_on()

    def _begin(self, model: nn.Module, given: Given, loaded: Loaded | None, handed: Any) -> None:
        """Begin a fit with a new context, from a saved state if there is one.

        Args:
            model: The model to train.
            given: The data, and how to train.
            loaded: The checkpoint to continue from, if there is one.
            handed: A state to continue from instead that is not one of the trainer's checkpoints.
        """
        state: Any = handed if loaded is None else loaded.tree
        checkpoint = None if loaded is None else loaded.path
        noting = self._host.checkpoints if handed is None else None
        if noting is not None and loaded is None:
            noting.try_to_write()  # before torch imports its compiler, which looks for a temporary folder
        context = self._assemble(model, given, epoch_of_data(state, self._fit.root))
        refuse_device_without_numbers(context, checkpoints=self._host.checkpoints is not None)
        self._best, self._surroundings.halted = None, False
        if noting is not None and not given.restart:
            noting.check_folder(loaded)
        if self._recorder is not None:
            self._recorder.close()
        if (self._recorder is not None or noting is not None) and not rank_of_process():
            ask_for_commit()  # for the record, which is written when all the rest is ready
        self._share(context)
        if self._host.checkpoints is not None:
            self._host.checkpoints.know_base(context.model)
        with self._surroundings.in_charge(self._fit):
            if loaded is not None:
                state = state_of_rank(loaded, context)
            if state is not None:
                self._load(state, given.fresh, loaded)
            if loaded is not None:
                tell_of_others(loaded, context)
            if noting is not None:
                self._state.check_writable()
                noting.note_start(loaded, restart=given.restart)
            if state is None:
                self._state.begin()
                self._fit.start()
        if self._recorder is not None:
            keeps_record = self._host.checkpoints is None
            ended = self._fit.path is None
            self._recorder.begin(checkpoint, keeps_record=keeps_record, ended=ended)
            if self._recorder.set_since and not ended:
                self._state.panel.set_again(self._recorder.set_since)
        if checkpoint is not None and self._progress:
            self._progress.say(_what_is_resumed(checkpoint, context, ended=self._fit.path is None))

    def _assemble(self, model: nn.Module, given: Given, epoch: int) -> Context:
        """Make the context of a fit, and refuse a fit that would never end, or that is already over.

        `epoch` is that whose data are made.
        """
        host, root = self._host, self._fit.root
        self._quick.shorten(root)
        if self._equipment.seed is not None:
            seed_everything(self._equipment.seed)
        context = assemble_fit(
            self._equipment,
            root,
            host,
            model,
            given.train,
            given.validation,
            given.parts,
            epoch,
        )
        refuse_endless(root)
        refuse_to_do_nothing(root, context)
        if host.checkpoints is not None:
            host.checkpoints.attach(host, self._fit)  # loops may have been replaced
        return context

    def _share(self, context: Context) -> None:
        """Give the loops of the fit a new context, and subscribe its model."""
        abandon_loops(self._fit.root)
        if samples_are_counted(self._host):
            context.count_samples()
        self._fit.share(context)
        before, self._listening = self._listening, context.steps
        subscribe_model(context.steps, before, self._host)

    def _load(
        self, state: Mapping[str, Any], fresh: tuple[Fresh, ...], loaded: Loaded | None = None
    ) -> None:
        """Restore a state, and warn of settings that have changed.

        If a limit or a callback had ended that fit, and would not end it now, it starts again.

        Args:
            state: The state.
            fresh: Parts that are not loaded from it.
            loaded: The checkpoint that it comes from, if it does.
        """
        # Not needed by a run that begins.
        from statemachine_trainer.audit.settings_record import tell_changes

        driver = self._fit
        taking_over = (
            nullcontext() if loaded is None else loaded.taken_over(_plain_model(context_of(driver)))
        )
        try:
            with taking_over:
                found = self._state.read(state, fresh)
        except BaseException:
            driver.share(None)  # a fit with half a state cannot continue
            raise
        self._surroundings.halted = True
        if driver.path is None and self._may_go_on(state):
            driver.start()
        source = "the state" if loaded is None else loaded.path.name
        tell_changes(found, source, ended=driver.path is None)

    def total_steps(self) -> int:
        """Return how many optimizer steps the fit makes as a whole; see `total_steps`.

        Raises:
            NotStarted: There is no fit.
            UnknownTotal: It is not known.
        """
        context = self._equipment.newest
        if context is None:
            raise NotStarted("No fit was begun whose steps could be counted: fit(model, loader).")
        fit = self._fit
        return total_steps(fit.root, context, fit.path if fit.context is context else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the fit, with its last weights even if the model has its best ones."""
        tree = self._state.write()
        if self._best is not None:
            self._best.put_last_into(tree)
        return tree

    def checkpoint(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of the fit, with its last weights even if the model has its best ones."""
        with nullcontext() if self._best is None else self._best.aside():
            checkpoints.write()

    def load_state_dict(self, state: Any) -> None:
        """Restore a state of the fit."""
        self._state.read(state)
        self._best, self._surroundings.halted = None, True

    def _may_go_on(self, state: Mapping[str, Any]) -> bool:
        """Return whether the present settings would not have ended this fit."""
        context, saved = context_of(self._fit), state["checkpoints"]
        limited = saved is not None and saved["limit"] is not None
        if context is None or context.limit_reached is not None:
            return False
        return limited or not self._state.still_stopped(state)

    # -- running what was started ----------------------------------------------------------------

    def run(self, until: Until = None) -> str | None:
        """Run to the end, or up to `until`, with handlers for signals of the operating system.

        Returns:
            The outcome; None if the machine paused or rests.
        """
        driver, checkpoints = self._drivers.active, self._host.checkpoints
        listening = None if checkpoints is None else checkpoints.listening()
        with self._surroundings.of_run(driver, listening):
            outcome = driver.run(until)
            if driver.resting and driver is self._fit and checkpoints is not None:
                checkpoints.write()  # the process may end while the fit waits
            return outcome

    def step(self) -> Moment | None:
        """Make one transition and return it; None if the state rests."""
        driver = self._drivers.active
        with self._surroundings.of_transition(driver):
            return driver.step()

    def moments(self, until: Until = None) -> Iterator[Moment]:
        """Iterate over the transitions. Everything around a run is undone between two items."""
        transitions = self._drivers.active.moments(until)
        while True:
            driver = self._drivers.active
            with self._surroundings.of_transition(driver):
                moment = next(transitions, None)
            if moment is None:
                return
            yield moment


def _what_is_resumed(checkpoint: Path, context: Context, *, ended: bool) -> str:
    """Return a line that says where a resumed fit stands."""
    counts = context.counts
    epochs = "1 epoch" if counts.epoch == 1 else f"{counts.epoch} epochs"
    done = f"{epochs}, step {counts.step}"
    if ended:
        return f"nothing is left to do: the fit of {checkpoint} has ended ({done})"
    return f"goes on from {checkpoint} ({done})"


def _plain_model(context: Context | None) -> nn.Module | None:
    """Return the model of a fit, unless it is a guest: they show what is loaded to hooks of their library."""
    return None if context is None or isinstance(context.model, Guest) else context.model
