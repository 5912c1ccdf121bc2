"""Saves the state of a fit as a plain tree, and restores it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from statemachine_trainer.audit.contents import Contents
from statemachine_trainer.audit.hyperparameters import Hyperparameters
from statemachine_trainer.audit.modules_outside import ModulesOutside
from statemachine_trainer.audit.reachable import (
    Roots,
    feeds_of,
    roots_besides_model_and_data,
    roots_of_feed,
)
from statemachine_trainer.audit.report import Audit, audit, check_writable, tell_what_is_not_held
from statemachine_trainer.audit.settings_of_run import Settings, others_than, settings_of_run
from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.checkpoints import Host as HostOfCheckpoints
from statemachine_trainer.data import NotExact
from statemachine_trainer.data.own_generators import not_there
from statemachine_trainer.loops.base import in_training, loops_around, take_limits
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.context_state import (
    context_state,
    load_context_state,
    remake_optimizers,
)
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import NotStarted, level_of_caller
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.wrappers import modules_of
from statemachine_trainer.running.control_panel import ControlPanel
from statemachine_trainer.running.drivers import context_of
from statemachine_trainer.snapshot.frozen import with_frozen
from statemachine_trainer.snapshot.held import lies_within, restore_own, states_found
from statemachine_trainer.snapshot.kinds import is_users
from statemachine_trainer.snapshot.search import Search
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch

if TYPE_CHECKING:
    from statemachine_trainer.audit.changing_values import ChangingValues
    from statemachine_trainer.audit.script_record import ScriptRecord
    from statemachine_trainer.audit.settings_record import Change
    from statemachine_trainer.running.tied_states import TiedStates
    from statemachine_trainer.snapshot.repeated_search import SearchResult

Fresh = Literal["optimizer", "schedulers", "callbacks"]
"""Parts that a resumed fit may take from its script instead of the checkpoint."""

# -- What the parts need of the trainer -----------------------------------------------------------


class Host(HostOfCheckpoints, Protocol):
    """The part of the trainer that its own parts need.

    Attributes:
        board: The board with the signals of all its loops.
        checkpoints: When and where checkpoints are written; None if they are not.
    """

    board: SignalBoard
    checkpoints: Checkpoints | None

    def load_state_dict(self, state: Any) -> None:
        """Restore a state of the fit."""
        ...


class FitState:
    """Saves and restores the state of a fit: machine, context and callbacks.

    Args:
        host: The trainer.
        driver: The driver of its fit.
        callbacks: The callbacks that the trainer was given. Others are found among the receivers.
        hyperparameters: What the user told the trainer and the model.

    Attributes:
        panel: Changes the settings of the fit while it runs.
    """

    def __init__(
        self,
        host: Host,
        driver: Driver,
        callbacks: Sequence[object],
        hyperparameters: Hyperparameters,
    ) -> None:
        self._host = host
        self._driver = driver
        self._callbacks = callbacks
        self._hyperparameters = hyperparameters
        self.panel = ControlPanel(driver)
        self._fresh: tuple[Fresh, ...] = ()
        self._given: dict[str, Settings] = {}
        self._modes: tuple[Context, Settings] | None = None  # those that the script gave the model
        self._outside = ModulesOutside()
        self._values: ChangingValues | None = None  # as a fit with checkpoints begins
        self._contents = Contents()
        self._tied: TiedStates | None = None
        self._script: ScriptRecord | None = None  # what the script has made of this fit
        self._is_noted = False  # whether that was noted before training, and lies in checkpoints

    def write(self) -> dict[str, Any]:
        """Return the whole state at this boundary.

        Raises:
            NotStarted: There was no fit.
        """
        context = context_of(self._driver)
        if context is None:
            raise NotStarted("There is no state before the first fit.")
        checkpoints, callbacks = self._host.checkpoints, self.stateful_callbacks()
        settings = self._settings(context, callbacks)
        search = self._search(context)
        generators = states_found(search)
        of_model = {path: one for path, one in generators.items() if lies_within(one, "model")}
        script = self._script_of(context)
        return {
            "machine": self._driver.state_dict(),
            "context": context_state(
                context,
                of_model,
                gradients=script.needs_gradients(one for _, one in self._driver.loops()),
            ),
            "settings": settings | self._contents_and_script(context, script),
            "given": others_than(self._given, settings),
            "fresh": list(self._fresh),
            "stopped_by": [type(one).__qualname__ for one in callbacks if _asks_to_stop(one)],
            "callbacks": [self._state_of_callback(one, context) for one in callbacks],
            "checkpoints": None if checkpoints is None else checkpoints.state_dict(),
            "generators": {p: one for p, one in generators.items() if p not in of_model},
            "modules": self._outside.state(search, self._held_elsewhere(context, callbacks)),
        }

    def _state_of_callback(self, callback: Any, context: Context) -> dict[str, Any]:
        kind = type(callback)
        if not is_users(kind.__module__):  # ours tie nothing
            return {"kind": kind.__qualname__, "state": callback.state_dict()}
        if self._tied is None:
            # Not needed to build a trainer.
            from statemachine_trainer.running.tied_states import TiedStates

            self._tied = TiedStates()
        return self._tied.written(callback, context)

    def _search(self, context: Context) -> Search | SearchResult:
        """Walk once over all that the fit reaches but its data, for all who look for something there."""
        roots = self._roots(context)
        if self._values is None:
            return Search(roots)
        data: Roots = {}
        for name, feed in feeds_of(context):
            data |= roots_of_feed(name, feed)
        return self._values.look(context.model, roots, data, at=self._driver.path)

    def check_writable(self) -> None:
        """Before the first batch, refuse objects that cannot be saved, and warn of state not held.

        Raises:
            Unwritable: A scheduler, a metric object, a callback or a field holds such an object.

        Warns:
            NotHeld: The fit uses something whose state is not held.
        """
        context = context_of(self._driver)
        if context is not None:
            if self._values is None:
                # Not needed to build a trainer.
                from statemachine_trainer.audit.changing_values import ChangingValues

                self._values = ChangingValues()
            roots = self._roots(context)
            search, seen = self._values.search_at_start(roots)
            self._outside.watch(search, self._held_elsewhere(context))
            check_writable(self._driver, context, self.stateful_callbacks())
            self._tied = None  # which tells of each fit anew
            # The walk over large data sets takes longest, so that it is shared.
            of_data = self._script_of(context).walk_data()
            self._values.begin(
                tell_what_is_not_held(self._host.board, self._driver, context, search, of_data)
            )
            from statemachine_trainer.audit.set_at_beginnings import beginnings, made_once

            self._values.compare_with_start(
                seen,
                beginnings(self._host.board, self._driver),
                made_once(self._script_of(context).codes),
                context.model,
                roots,
            )

    def audit(self) -> Audit:
        """Return the list of objects that checkpoints hold, and that they do not.

        Raises:
            NotStarted: There is no fit.
        """
        context = context_of(self._driver)
        if context is None:
            raise NotStarted("There is nothing to audit before the first fit: audit(model, data).")
        return audit(self._host.board, self._driver, context)

    def _roots(self, context: Context) -> Roots:
        """Return where to look for all but the data, whose feeds look there themselves."""
        roots: Roots = {"model": context.model}
        return roots | roots_besides_model_and_data(self._host.board, self._driver, context)

    def _held_elsewhere(
        self, context: Context, callbacks: Sequence[object] | None = None
    ) -> list[object]:
        """Return the modules that are no modules outside of the model, with all that are in them.

        Args:
            context: The context.
            callbacks: Those that have a state, if they are known already.
        """
        callbacks = self.stateful_callbacks() if callbacks is None else callbacks
        return [context.model, context.steps.whole, *callbacks]

    def read(self, state: Mapping[str, Any], fresh: Sequence[Fresh] = ()) -> list[Change]:
        """Restore a state in a fit that was started with the same model and data.

        The machine comes first, because loops restore by its position. The context comes last but
        for the checkpoints, because it ends with the random number generators.

        Args:
            state: A state from `write`.
            fresh: Parts that are not loaded from it.

        Returns:
            The settings that differ between the state and this fit.

        Raises:
            NotStarted: There is no fit.
            SnapshotMismatch, StateMismatch, DataChanged: It is the state of a different fit.
        """
        # Not needed by a run that begins.
        from statemachine_trainer.audit.settings_record import (
            changes,
            given_by_scripts,
            keep_what_holds,
            well_formed,
        )

        driver, context = self._driver, context_of(self._driver)
        if context is None:
            raise NotStarted("Start a fit first: start(model, loader), then load its state.")
        state = with_frozen(state, context.model)
        script = self._script_of(context)
        was = well_formed(state.get("settings"))  # an earlier version wrote none
        self._is_noted = self._host.checkpoints is not None or "script" in was
        if self._is_noted:
            script.settings()  # of the data too, before anything of them is restored
        driver.load_state_dict(state["machine"])
        self.panel.restore(context, state["context"]["plain"].get("changes", {}))
        context.steps.expect(state["context"])
        remake_optimizers(context, driver.root, state["context"], fresh)
        now = self._settings(context)
        if self._modes is None or self._modes[0] is not context:
            self._modes = context, now["modes"]
        now["modes"] = self._modes[1]  # what is gone back to in a run has modes of the run by now
        self._fresh = tuple(fresh)
        if fresh and self._was_taken(state, was, now):
            fresh = ()
        if "callbacks" not in fresh:
            self._read_callbacks(state["callbacks"])
        for loop in loops_around(driver.root, driver.path):
            in_training(loop).restore()
        _make_loaders_anew(driver, context, state["context"])
        take_limits(driver.root, driver.path, context)
        load_context_state(context, state["context"], fresh)
        if self._host.checkpoints is not None:
            self._host.checkpoints.load_state_dict(state["checkpoints"])
        roots = self._roots(context)
        # Earlier versions saved only those of the model and the data.
        missing = restore_own(roots, state.get("generators", {}))
        self._outside.restore(roots, self._held_elsewhere(context), state.get("modules", {}))
        if missing:
            warnings.warn(
                not_there(missing, "the model, callbacks and loops"),
                NotExact,
                stacklevel=level_of_caller(),
            )
        keep_what_holds(context, was, fresh)
        # Those of the data that this phase, or this epoch, has made.
        contents = self._contents_and_script(context, script)
        loaded = self._settings(context) | contents
        given = well_formed(state.get("given"))  # earlier versions wrote none
        found = [*changes(was, given, now | contents, loaded, fresh)]
        self._given = given_by_scripts(was, given, found) if was else now
        return found

    def _was_taken(
        self, state: Mapping[str, Any], was: Mapping[str, Settings], now: Mapping[str, Settings]
    ) -> bool:
        """Return whether the run has already taken these parts from this script, before it was stopped.

        A script that is restarted passes the same `fresh` each time.
        """
        same = list(self._fresh) == state.get("fresh") and self._kinds() == _kinds_in(state)
        return same and was.get("optimizers") == now["optimizers"]

    def begin(self) -> None:
        """Note that a fit begins without a checkpoint."""
        self._fresh = ()
        context = context_of(self._driver)
        if context is not None:
            self._given = self._settings(context)  # before training changes what the model keeps
            self._modes = context, self._given["modes"]
            self._contents.of(context)
            self._is_noted = self._host.checkpoints is not None
            if self._is_noted:
                self._script_of(context).settings()

    def told(self) -> dict[str, dict[str, str]]:
        """Return all settings of the fit, and short texts that tell whether its data are those of another one."""
        context = context_of(self._driver)
        if context is None:
            return {}
        settings = self._settings(context)
        of_data = {**settings.pop("data", {}), **self._contents.of(context)}
        return {"settings": _flat(settings.values()), "data": _flat([of_data])}

    def still_stopped(self, state: Mapping[str, Any]) -> bool:
        """Return whether a callback would end the fit of this state again."""
        return not state.get("stopped_by") or any(map(_asks_to_stop, self.stateful_callbacks()))

    def _settings(
        self, context: Context, callbacks: Sequence[object] | None = None
    ) -> dict[str, Settings]:
        hyperparameters = self._hyperparameters.record(context)
        return settings_of_run(
            self._driver.loops(),
            self.stateful_callbacks() if callbacks is None else callbacks,
            context,
            hyperparameters,
            self._host.checkpoints,
        )

    def _contents_and_script(self, context: Context, script: ScriptRecord) -> dict[str, Settings]:
        contents: dict[str, Settings] = {"content": self._contents.of(context)}
        return contents | script.settings() if self._is_noted else contents

    def _script_of(self, context: Context) -> ScriptRecord:
        """Return what the script had made when this fit began, or went on."""
        from statemachine_trainer.audit.script_record import ScriptRecord

        if self._script is None or self._script.context is not context:
            of_model = {
                name
                for owner, texts in self._hyperparameters.record(context).items()
                if owner.startswith("the model")
                for name in texts
            }
            self._script = ScriptRecord(
                context, self._host.board, self._roots(context), self.stateful_callbacks(), of_model
            )
        return self._script

    def stateful_callbacks(self) -> list[Any]:
        """Return the callbacks that have a state: given ones first, then in the order of subscription.

        The trainer, its checkpoints and the model are saved elsewhere in the state.
        """
        host, context = self._host, context_of(self._driver)
        owners = [*self._callbacks]
        owners += [getattr(one.receiver, "__self__", None) for one in host.board.subscriptions]
        found = {id(owner): owner for owner in owners}
        for other in (host, host.checkpoints, None):
            found.pop(id(other), None)
        for module in modules_of(context.model) if context is not None else ():
            found.pop(id(module), None)
        return [
            owner
            for owner in found.values()
            if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")
        ]

    def _read_callbacks(self, saved: Sequence[Mapping[str, Any]]) -> None:
        ours, kinds = self.stateful_callbacks(), self._kinds()
        if kinds != [one["kind"] for one in saved]:
            raise SnapshotMismatch(
                f"The checkpoint has the state of the callbacks {[one['kind'] for one in saved]}, this trainer has "
                f"{kinds}. Give the same callbacks in the same order, or begin with new ones: "
                'fit(..., fresh=("callbacks",)).'
            )
        for one, was in zip(ours, saved, strict=True):
            if was.get("ties"):  # earlier versions wrote none
                from statemachine_trainer.running.tied_states import tie_again

                tie_again(was, context_of(self._driver))
            one.load_state_dict(was["state"])

    def _kinds(self) -> list[str]:
        return [type(one).__qualname__ for one in self.stateful_callbacks()]


def _asks_to_stop(callback: object) -> bool:
    return bool(getattr(callback, "asks_to_stop", False))


def _flat(sections: Iterable[Settings]) -> dict[str, str]:
    return {
        f"{of}: {name}": text
        for section in sections
        for of, named in section.items()
        for name, text in named.items()
    }


def _kinds_in(state: Mapping[str, Any]) -> list[str]:
    """Return the kinds of the callbacks that a state holds."""
    return [one["kind"] for one in state["callbacks"]]


def epoch_of_data(state: Mapping[str, Any] | None, root: Loop) -> int:
    """Return the epoch whose data are to be made first.

    Args:
        state: What the fit goes on from; None if it begins.
        root: The loop of the fit.
    """
    train = None if state is None else state["context"]["train"]
    # With `reload_every` they are made as often as the saved run made them.
    return 0 if train is None or _reload_every(root) else int(train["epoch"])


def _reload_every(root: Loop) -> int:
    loops = [one for _, one in root.walk() if isinstance(one, EpochLoop)]
    return next((one.reload_every for one in loops if one.reload_every), 0)


def _make_loaders_anew(driver: Driver, context: Context, saved: Mapping[str, Any]) -> None:
    """Call the functions that make loaders at the same epochs as the saved run did.

    They may make different loaders in different epochs, by the number of the epoch or their own count.
    """
    every = _reload_every(driver.root)
    reload = context.reload_data
    if reload is None or saved["train"] is None:
        return
    if not every and reload.takes_epoch:
        reload.of_epoch(saved["train"]["epoch"])
    if not every:
        return
    for epoch in range(every, saved["train"]["epoch"] + 1, every):
        context.counts.epoch = epoch  # counters are loaded later
        reload(epoch)
