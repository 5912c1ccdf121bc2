"""Getting a fit ready: it begins, goes on after its end, or goes on from a state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from statemachine_trainer.callbacks.checkpoints import find_checkpoint
from statemachine_trainer.loops.assembly import Equipment, assemble_fit, go_on
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.errors import NothingToDo
from statemachine_trainer.loops.evaluation import abandon_loops
from statemachine_trainer.loops.metrics import batch_size_of
from statemachine_trainer.loops.state import take_handed_state
from statemachine_trainer.observe.recorder import Recorder
from statemachine_trainer.running.charge import in_charge
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.given import Given, check_loss
from statemachine_trainer.running.host import Host
from statemachine_trainer.running.limits import refuse_endless, refuse_to_do_nothing
from statemachine_trainer.running.subscribing import ModelHooks
from statemachine_trainer.runs import wants_resume
from statemachine_trainer.snapshot import Loaded
from statemachine_trainer.snapshot.rng import seed_everything


class Starter:
    """Gets the fits of one trainer ready to run, up to the boundary before the first state.

    Args:
        host: The trainer.
        drivers: Its drivers.
        equipment: Where and how precisely it computes, and with which seed.
        recorder: Records the fits; None if nothing is kept.
    """

    def __init__(
        self, host: Host, drivers: Drivers, equipment: Equipment, recorder: Recorder | None
    ) -> None:
        self._host = host
        self._drivers = drivers
        self._driver = drivers.fit
        self._equipment = equipment
        self._recorder = recorder
        self._hooks = ModelHooks(host)

    def start(self, given: Given, *, restart: bool, resume: str | Path | None) -> None:
        """Begin a fit, or go on with the one that there is.

        Args:
            given: What to train, and with what.
            restart: Begin anew, whatever there is to go on with.
            resume: Where to look for a checkpoint to go on from.

        Raises:
            AlreadyRunning: A fit is running.
            NothingToDo: There is no model, data for a fit that is paused, or a limit that is reached.
            SettingError: The fit would never end, or `resume` names no place.
            NoCheckpoint: `resume` names a place without a checkpoint.
            FolderInUse: Another process is running in the folder of the run.
            EarlierRun: The folder of the checkpoints is that of another run.
            SnapshotMismatch, StateMismatch, DataChanged: The state is of another fit.
        """
        driver = self._driver
        driver.check_at_rest("start")
        check_loss(given.loss)
        known = context_of(driver)
        if self._recorder is not None and known is None:
            self._recorder.check_free()
        loaded = self._checkpoint_to_go_on_from(resume, restart=restart, begun=known is not None)
        handed = take_handed_state() if loaded is None else None
        anew = restart or loaded is not None or handed is not None
        model = given.model
        if model is None:
            if known is None:
                raise NothingToDo("fit needs a model: fit(model, loader).")
            model = known.steps.whole
        self._drivers.active = driver
        if known is None or anew or model is not known.steps.whole:
            self._begin(model, given, loaded, handed, restart=restart)
        elif driver.path is None:
            self._go_on(known, given)
        elif not given.model_alone:
            raise NothingToDo(
                f"The fit of this model is paused in state {driver.path!r}. Go on with `run()`, or begin anew "
                "with `fit(..., restart=True)`."
            )

    def _checkpoint_to_go_on_from(
        self, resume: str | Path | None, *, restart: bool, begun: bool
    ) -> Loaded | None:
        """Find what `resume` names; what `smt resume` asks for holds for a first start that says nothing."""
        checkpoints = self._host.checkpoints
        store = None if checkpoints is None else checkpoints.store
        if resume is None and store is not None and not begun and not restart:
            resume = "auto" if wants_resume() else None
        return None if resume is None else find_checkpoint(store, resume)

    # -- going on after the end --------------------------------------------------------------------

    def _go_on(self, context: Context, given: Given) -> None:
        """Start a fit that has ended once more, with its counters, optimizers and data as they stand."""
        refuse_to_do_nothing(self._driver.root, context)
        go_on(self._equipment, context, given.train, given.validation, given.loss, given.optimizer)
        with in_charge(self._driver):
            self._driver.start()
        if self._recorder is not None:
            self._recorder.go_on()

    # -- beginning ---------------------------------------------------------------------------------

    def _begin(
        self, model: nn.Module, given: Given, loaded: Loaded | None, handed: Any, *, restart: bool
    ) -> None:
        """Begin a fit with a context of its own, and from a state, if there is one.

        Args:
            model: The model to train.
            given: The data, and how to train.
            loaded: The checkpoint that it goes on from, if there is one.
            handed: A state that it goes on from instead, and that is none of the trainer's checkpoints.
            restart: Set aside the checkpoints of an earlier run, where they would be refused.
        """
        driver = self._driver
        state: Any = handed if loaded is None else loaded.tree
        context = self._assemble(model, given)
        noting = self._host.checkpoints if handed is None else None
        if noting is not None and not restart:
            noting.check_folder(loaded)
        if self._recorder is not None:
            self._recorder.close()
        self._share(context)
        with in_charge(driver):
            if state is not None:
                self._load(state)
            if noting is not None:
                noting.note_start(loaded, restart=restart)
            if state is None:
                driver.start()
        if self._recorder is not None:
            checkpoint = None if loaded is None else loaded.path
            self._recorder.begin(checkpoint, keeps_record=self._host.checkpoints is None)

    def _assemble(self, model: nn.Module, given: Given) -> Context:
        """Make the context of a fit, and refuse one that would never end, or is over already."""
        driver, equipment, host = self._driver, self._equipment, self._host
        if equipment.seed is not None:
            seed_everything(equipment.seed)
        context = assemble_fit(
            equipment,
            driver.root,
            host,
            model,
            given.train,
            given.validation,
            given.loss,
            given.optimizer,
        )
        refuse_endless(driver.root)
        refuse_to_do_nothing(driver.root, context)
        if host.checkpoints is not None:
            host.checkpoints.attach(host, driver)  # loops may have been replaced
        return context

    def _share(self, context: Context) -> None:
        """Let the loops of the fit work on a context, and its model listen."""
        abandon_loops(self._driver.root)
        if self._samples_are_counted():
            context.sample_size = batch_size_of
        self._driver.share(context)
        self._hooks.subscribe(context.model)

    def _samples_are_counted(self) -> bool:
        intervals: list[object] = [one.every for one in self._host.board.subscriptions]
        intervals.append(self._host.checkpoints)
        return any(getattr(getattr(i, "every", None), "unit", None) == "sample" for i in intervals)

    # -- going on from a state ---------------------------------------------------------------------

    def _load(self, state: Mapping[str, Any]) -> None:
        """Stand where a state was taken; if a limit had ended that fit and now is higher, begin again."""
        driver = self._driver
        try:
            self._host.load_state_dict(state)
        except BaseException:
            driver.share(None)  # half a state is nothing to go on with
            raise
        context, saved = context_of(driver), state["checkpoints"]
        ended = driver.path is None and saved is not None and saved["limit"] is not None
        if ended and context is not None and context.limit_reached is None:
            driver.start()
