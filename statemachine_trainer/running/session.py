"""The session of a trainer: starts fits, runs them, and evaluates models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.finding import (
    find_checkpoint,
    state_of_rank,
    tell_of_others,
)
from statemachine_trainer.control.ownership import FolderInUse, Ownership
from statemachine_trainer.loops.assembly import Equipment, assemble_evaluation, assemble_fit, go_on
from statemachine_trainer.loops.base import (
    abandon_loops,
    take_limits,
)
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.context_state import take_handed_state
from statemachine_trainer.loops.evaluation import undisturbed
from statemachine_trainer.loops.guest import goes_on_from
from statemachine_trainer.loops.loop_errors import NothingToDo, SettingError
from statemachine_trainer.loops.metrics.log import log, logging_to
from statemachine_trainer.loops.plain import NOTHING_GIVEN, PlainParts
from statemachine_trainer.loops.ranks_compared import check_environment
from statemachine_trainer.loops.settings_checks import flags
from statemachine_trainer.loops.steps import Steps, hooks_of
from statemachine_trainer.loops.total import total_steps
from statemachine_trainer.machine.driver import Driver, Until
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import Recorder
from statemachine_trainer.parallel import numbers_needed_on
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.run_record import wants_resume
from statemachine_trainer.running.arguments import Given, check_loss
from statemachine_trainer.running.audit import Audit
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.fit_state import FitState, Fresh, Host, epoch_of_data
from statemachine_trainer.running.limits import (
    refuse_device_without_numbers,
    refuse_endless,
    refuse_to_do_nothing,
)
from statemachine_trainer.running.predictions import Predictions, PredictionWriter
from statemachine_trainer.running.quick_checks import QuickChecks
from statemachine_trainer.running.rehearsal import (
    audit_unstarted,
    is_rehearsal,
    refuse_in_rehearsal,
)
from statemachine_trainer.running.replaying import ReplayOver, replay
from statemachine_trainer.running.settings_record import tell_changes
from statemachine_trainer.running.subscribing import (
    subscribe,
    tell_of_error,
    tell_of_halt,
    tell_of_return,
)
from statemachine_trainer.running.switches import Switches
from statemachine_trainer.running.weights import BestInModel, Checkpoint, the_rule, weights_of
from statemachine_trainer.snapshot import Loaded
from statemachine_trainer.snapshot.ranked import do_together
from statemachine_trainer.snapshot.rng import seed_everything


class Session:
    """Runs the loops of one trainer.

    `start` prepares a fit, up to the boundary before its first state. `run`, `step` and `moments`
    continue the active machine. `measure` and `predict` evaluate a model. They may do so while a
    fit is paused, and do not change it.

    Args:
        host: The trainer.
        drivers: Its drivers.
        equipment: Its device, precision and seed.
        state: Saves and restores the state of its fit.
        recorder: Records runs; None to record nothing.
        progress: Shows runs; False to show nothing.
        owner: The lock on the folder of the run; None if there is no folder.
        quick: What quick checks change.
        switches: Those of torch that are on while something runs.
    """

    def __init__(
        self,
        host: Host,
        drivers: Drivers,
        equipment: Equipment,
        state: FitState,
        recorder: Recorder | None,
        progress: Progress | Literal[False],
        owner: Ownership | None,
        quick: QuickChecks,
        switches: Switches,
    ) -> None:
        self._host = host
        self._drivers = drivers
        self._fit = drivers.fit
        self._equipment = equipment
        self._state = state
        self._recorder = recorder
        self._progress = progress
        self._owner = owner
        self._quick = quick
        self._switches = switches
        self._listening: Steps | None = None
        self._best: BestInModel | None = None
        self._rehearsed: Audit | None = None
        # By an error, or a state was loaded: callbacks are told when the fit goes on.
        self._halted = False

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
        with self._naming_lost_ranks(), self._taking_folder(anew=anew):
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
        driver = self._fit
        if self._recorder is not None and known is None:
            self._recorder.check_free()
        if goes_on_from(given.model, given.resume):
            given = replace(given, resume=None)
        loaded = self._checkpoint_to_go_on_from(given, begun=known is not None)
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
        with self.in_charge(self._fit):
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
        self._best, self._halted = None, False
        if noting is not None and not given.restart:
            noting.check_folder(loaded)
        if self._recorder is not None:
            self._recorder.close()
        self._share(context)
        if self._host.checkpoints is not None:
            self._host.checkpoints.know_base(context.model)
        with self.in_charge(self._fit):
            if loaded is not None:
                state = state_of_rank(loaded, context)
            if state is not None:
                self._load(
                    state, given.fresh, "the state" if checkpoint is None else checkpoint.name
                )
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
        if self._samples_are_counted():
            context.count_samples()
        self._fit.share(context)
        self._listen(context.steps)

    def _listen(self, steps: Steps) -> None:
        """Subscribe the `on_<state>` methods of a model, and unsubscribe those of the previous model."""
        before, self._listening = self._listening, steps
        if before is not None and not (steps.foreign and before.model is steps.model):
            self._host.board.off(before.receiver())
        if not steps.subscribe(self._host) and hooks_of(steps.model):
            subscribe(self._host.board, steps.model)

    def _samples_are_counted(self) -> bool:
        intervals: list[object] = [one.every for one in self._host.board.subscriptions]
        intervals.append(self._host.checkpoints)
        if any(getattr(getattr(i, "every", None), "unit", None) == "sample" for i in intervals):
            return True
        owners = (getattr(one.receiver, "__self__", None) for one in self._host.board.subscriptions)
        return any(getattr(owner, "counts_samples", False) is True for owner in owners)

    def _load(self, state: Mapping[str, Any], fresh: tuple[Fresh, ...], source: object) -> None:
        """Restore a state, and warn of settings that have changed.

        If a limit or a callback had ended that fit, and would not end it now, it starts again.

        Args:
            state: The state.
            fresh: Parts that are not loaded from it.
            source: Where it comes from, for the message.
        """
        driver = self._fit
        try:
            found = self._state.read(state, fresh)
        except BaseException:
            driver.share(None)  # a fit with half a state cannot continue
            raise
        self._halted = True
        if driver.path is None and self._may_go_on(state):
            driver.start()
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
        self._best, self._halted = None, True

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
        listening = nullcontext() if checkpoints is None else checkpoints.listening()
        with (
            self._owning(driver),
            self.in_charge(driver),
            self._recording(),
            listening,
            self._showing(),
            self._naming_lost_ranks(),  # within `listening`, so that a signal does not come first
        ):
            outcome = driver.run(until)
            if driver.resting and driver is self._fit and checkpoints is not None:
                checkpoints.write()  # the process may end while the fit waits
            return outcome

    def step(self) -> Moment | None:
        """Make one transition and return it; None if the state rests."""
        driver = self._drivers.active
        with self._making_transitions(driver):
            return driver.step()

    def moments(self, until: Until = None) -> Iterator[Moment]:
        """Iterate over the transitions. Everything around a run is undone between two items."""
        transitions = self._drivers.active.moments(until)
        while True:
            driver = self._drivers.active
            with self._making_transitions(driver):
                moment = next(transitions, None)
            if moment is None:
                return
            yield moment

    # -- evaluating ------------------------------------------------------------------------------

    def measure(
        self,
        name: str,
        step: str,
        model: nn.Module | None,
        data: Any,
        parts: PlainParts,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, float]:
        """Run the loop of "validate" or "test" to its end and return the metrics.

        Args:
            name: The name of the loop.
            step: The step of the model that it calls.
            model: The model; None for that of the last run.
            data: One loader or several.
            parts: What a plain model is given: its loss and metrics.
            checkpoint: Evaluate with the weights of this checkpoint.

        Raises:
            NotStarted: There is no model.
            AlreadyRunning: An evaluation of this name is running.
            NothingToDo: There are no data.
        """
        return self._evaluate(name, step, model, data, parts, checkpoint).read_metrics()

    def predict(
        self,
        model: nn.Module | None,
        data: Any,
        checkpoint: Checkpoint | None = None,
        to: str | Path | None = None,
    ) -> Any:
        """Run the loop of "predict" to its end and return the predictions; see `measure`.

        Returns:
            The predictions by batch; with several loaders a list of such lists. `Predictions` if a folder was named.
        """
        if to is not None:
            return self._predict_into(to, model, data, checkpoint)
        self._evaluate("predict", "predict_step", model, data, NOTHING_GIVEN, checkpoint)
        predictions: list[Any] = getattr(self._drivers["predict"].root, "predictions", [])
        return predictions[0] if len(predictions) == 1 else predictions

    def _predict_into(
        self, folder: str | Path, model: nn.Module | None, data: Any, checkpoint: Checkpoint | None
    ) -> Predictions:
        """Predict, and hand each prediction to a file instead of keeping it."""
        driver = self._drivers["predict"]
        writer = PredictionWriter(folder)
        root: Any = driver.root
        kept = getattr(root, "keep", None)
        writing = subscribe(self._host.board, "predict_step:exit", writer.add)
        if kept is not None:
            root.keep = False
        try:
            context = self._evaluate(
                "predict", "predict_step", model, data, NOTHING_GIVEN, checkpoint
            )
        finally:
            writing.cancel()
            if kept is not None:
                root.keep = kept
        if driver.path is not None:
            raise SettingError(
                f"predict(to={str(folder)!r}) was paused. Predictions are written in one go: leave out the pause."
            )
        return writer.finish([name for name, _ in context.validation])

    def _evaluate(
        self,
        name: str,
        step: str,
        model: nn.Module | None,
        data: Any,
        parts: PlainParts,
        checkpoint: Checkpoint | None,
    ) -> Context:
        """Evaluate a model. A paused fit and its checkpoints are not changed."""
        driver, before = self._drivers[name], self._drivers.active
        checkpoint = self._quick.checkpoint(checkpoint)
        if self._quick.dev_batches:
            self._quick.shorten(driver.root)
        model = self._drivers.context.model if model is None else model
        check_loss(parts.loss)
        driver.check_at_rest("start")
        paused = context_of(before) if before.path is not None else None
        context = self._assemble_evaluation(driver, step, model, data, parts)
        context.of_checkpoint = checkpoint is not None
        self._drivers.active = driver
        try:
            with (
                undisturbed(paused),
                weights_of(context.model, checkpoint, self._host.checkpoints),
                self._owning(driver),
                self.in_charge(driver),
                self._recording(),
                self._showing(),
                self._naming_lost_ranks(),
            ):
                driver.start()
                driver.run()
                if checkpoint is not None and driver.path is not None:
                    raise SettingError(
                        f"{name}(checkpoint={checkpoint!r}) was paused. The weights of a checkpoint are in the "
                        "model for one evaluation as a whole: load_weights(model, ...) loads them for good."
                    )
            return context
        except BaseException:
            if checkpoint is not None:
                abandon_loops(driver.root)  # nothing to go on with: the model has its own weights
                driver.share(None)
            if paused is not None:
                abandon_loops(driver.root)
                self._drivers.active = before
            raise
        finally:
            if paused is not None and driver.path is None:
                self._drivers.active = before

    def _assemble_evaluation(
        self, driver: Driver, step: str, model: nn.Module, data: Any, parts: PlainParts
    ) -> Context:
        """Give the loops of an evaluation a new context."""
        abandon_loops(driver.root)
        context = assemble_evaluation(self._equipment, self._host, model, data, step, parts)
        context.steps.subscribe(self._host)
        driver.share(context)
        return context

    # -- around every run ------------------------------------------------------------------------

    @contextmanager
    def in_charge(self, driver: Driver) -> Iterator[None]:
        """Context manager around every run: logging, gradients, switches of torch, clock and limits.

        Within the block `log` writes to the run, also as `self.log` in a model without such a
        method. Gradients are on, and the clock of the run is running. The limits are read from the
        loops, because they may have changed in a pause.

        Args:
            driver: The driver of the machine.

        Raises:
            NotStarted: Nothing was started.
        """
        context = _begun(driver)
        lends = not hasattr(context.model, "log")
        if lends:
            context.model.__dict__["log"] = log
        take_limits(driver.root, driver.path, context)
        context.start_clock()
        try:
            if self._halted and driver is self._fit:
                self._halted = False
                tell_of_return(self._host.board, self._host)
            needed = numbers_needed_on(context.equipment.device)
            with needed, logging_to(context), torch.enable_grad(), self._switches.on():
                yield
        except BaseException as error:
            context.steps.failed(error)
            tell_of_error(self._host.board, error)
            if driver is self._fit:
                self._halted = True
                tell_of_halt(self._host.board, self._host)
            raise
        finally:
            context.stop_clock()
            if lends:
                context.model.__dict__.pop("log", None)

    @contextmanager
    def _taking_folder(self, *, anew: bool) -> Iterator[None]:
        """Lock the folder of the run. The lock stays after the block, unless it fails or nothing is left to run."""
        owner = self._owner
        check_environment(Ranks.here(), self._host)  # before a folder is made
        held, done = owner is not None and owner.held, False
        try:
            # A collective even if this rank has no folder, because another rank may have one.
            do_together(Ranks.here(), lambda: self._take_folder(anew))
            yield
            done = True
        finally:
            if owner is not None and not done and not held:
                owner.give_back()
            elif owner is not None and self._fit.path is None:
                owner.release()

    def _take_folder(self, anew: bool) -> None:
        if (
            self._recorder is not None and self._host.checkpoints is None
        ):  # which look for themselves
            self._recorder.check_writable()
        if self._owner is not None:
            self._owner.take(anew=anew)

    @contextmanager
    def _owning(self, driver: Driver) -> Iterator[None]:
        """Lock the folder of the run from the start of a fit until it has ended.

        If another run has locked the folder, an evaluation runs without it and is not recorded.

        Raises:
            FolderInUse: Another run has locked the folder, or had meanwhile.
        """
        _begun(driver)  # else nothing is to be locked
        owner, fit = self._owner, self._fit
        if owner is None:
            yield
            return
        try:
            owner.take()
        except FolderInUse:
            if driver is fit:
                raise
        try:
            yield
        finally:
            if fit.path is None:
                owner.release()

    def _recording(self) -> AbstractContextManager[None]:
        if self._recorder is None:
            return nullcontext()
        return self._recorder.recording(self._drivers.active)

    @contextmanager
    def _making_transitions(self, driver: Driver) -> Iterator[None]:
        with (
            self._owning(driver),
            self.in_charge(driver),
            self._recording(),
            self._naming_lost_ranks(),
        ):
            yield

    def _naming_lost_ranks(self) -> AbstractContextManager[None]:
        if not Ranks.are_up():
            return nullcontext()
        from statemachine_trainer.running.lost_ranks import naming_lost_ranks

        return naming_lost_ranks(None if self._recorder is None else self._recorder.folder.path)

    def _showing(self) -> AbstractContextManager[None]:
        return self._progress.showing(self._host) if self._progress else nullcontext()


def _begun(driver: Driver) -> Context:
    """Return the context of a driver that is about to run.

    Raises:
        NotStarted: Nothing was started.
    """
    refuse_in_rehearsal()
    context = context_of(driver)
    if context is None:
        raise NotStarted(
            "Nothing was started: call fit(model, loader), or start(model, loader) first."
        )
    return context


def _what_is_resumed(checkpoint: Path, context: Context, *, ended: bool) -> str:
    """Return a line that says where a resumed fit stands."""
    counts = context.counts
    epochs = "1 epoch" if counts.epoch == 1 else f"{counts.epoch} epochs"
    done = f"{epochs}, step {counts.step}"
    if ended:
        return f"nothing is left to do: the fit of {checkpoint} has ended ({done})"
    return f"goes on from {checkpoint} ({done})"
