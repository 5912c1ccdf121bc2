"""The trainer: what people hold in their hands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never, TypeVar, overload

import torch
from torch import nn

from statemachine_trainer.callbacks.checkpoints import Checkpoints, NoCheckpoint, find_checkpoint
from statemachine_trainer.callbacks.given import callbacks_given, check_made, checkpoints_given
from statemachine_trainer.debugging import Breakpoint, Memory, Rewound, Where
from statemachine_trainer.debugging.breakpoints import Breakpoints
from statemachine_trainer.debugging.debugger import Debugger
from statemachine_trainer.loops.assembly import (
    Equipment,
    assemble_evaluation,
    assemble_fit,
    go_on,
)
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.errors import NothingToDo, SettingError
from statemachine_trainer.loops.evaluation import abandon_loops, undisturbed
from statemachine_trainer.loops.every import Every
from statemachine_trainer.loops.guest import Guest
from statemachine_trainer.loops.interval import CountedInterval
from statemachine_trainer.loops.log import log, logging_to
from statemachine_trainer.loops.metrics import batch_size_of
from statemachine_trainer.loops.model import Loss, MakeOptimizer, hooks_of
from statemachine_trainer.loops.other_names import advice_on_hooks, check_arguments
from statemachine_trainer.loops.settings import (
    check_names,
    default_tree,
    evaluation_loops,
    only_of_evaluation,
)
from statemachine_trainer.loops.state import (
    context_state,
    load_context_state,
    remake_optimizers,
    take_handed_state,
)
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.driver import Driver, Until
from statemachine_trainer.machine.errors import NotStarted, UnknownLoop, UnknownSignal, suggest
from statemachine_trainer.machine.extraction import receivers_on
from statemachine_trainer.machine.graph import Graph
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.machine.subscription import Subscription
from statemachine_trainer.observe.profile import Profile
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import Recorder, RunFolder
from statemachine_trainer.observe.trace import Trace
from statemachine_trainer.runs import wants_resume
from statemachine_trainer.snapshot import Loaded
from statemachine_trainer.snapshot.errors import SnapshotMismatch
from statemachine_trainer.snapshot.rng import seed_everything

if TYPE_CHECKING:
    from statemachine_trainer.page import Page

F = TypeVar("F", bound=Callable[..., Any])

_FIT = ("model", "train", "validation", "loss", "optimizer", "restart", "resume", "until")
_EVALUATION = ("model", "data", "loss")


class Trainer:
    """Trains a model by a loop that is a state machine.

    The loop can be looked at (`graph`), listened to (`on`), changed (`loop.replace`), run whole (`fit`), up
    to a place (`run(until=...)`) or one transition at a time (`step`, `moments`).

    Example:
        >>> trainer = Trainer(max_epochs=3, clip_norm=1.0)
        >>> @trainer.on("epoch_end")
        ... def report(trainer, moment):
        ...     print(trainer.epoch, trainer.metrics)

    Args:
        loop: The loop of `fit`; the default tree, built with the settings, unless given.
        callbacks: A list of objects with `on_<state>` methods.
        checkpoints: When and where checkpoints are written; a folder means `Checkpoints(folder)`, None or
            False none.
        run: The folder of the run, in which its black box and its journal are kept, or a `RunFolder` that
            says what; that of the checkpoints unless given. False for none.
        device: Where to train: "auto" (an accelerator if there is one), "cpu", "cuda:1", ...
        precision: "32", "bf16" (autocast) or "fp16" (autocast and gradient scaling).
        seed: Seeds python, numpy and torch at the beginning of each new fit; None leaves them alone.
        seed_samples: Seed each sample of the data from (seed, epoch, index), so that the number of
            workers does not matter; None does so where there are workers.
        prefetch: Read the training data one batch ahead, and move that batch to the device while the
            step runs; see `Prefetch` for what that means for random numbers.
        progress: Show a progress bar and the table of metrics, where there is a terminal or a notebook;
            or a `Progress` of your own.
        **settings: Of the default tree, such as `max_epochs`, `accumulate`, `validate_every`; each is
            handed to the loop that it controls.

    Raises:
        SettingError: A setting that nobody knows, or one out of its range.
        BadReceiver: A callback that hears nothing, or a class of callbacks instead of an object.
    """

    def __init__(
        self,
        loop: Loop | None = None,
        *,
        callbacks: Iterable[object] | None = (),
        checkpoints: Checkpoints | str | Path | Literal[False] | None = None,
        run: RunFolder | str | Path | bool | None = None,
        device: str | torch.device = "auto",
        precision: str | int = "32",
        seed: int | None = None,
        seed_samples: bool | None = None,
        prefetch: bool = False,
        progress: bool | Progress = True,
        **settings: Any,
    ) -> None:
        check_names(settings)
        if loop is not None and (extra := set(settings) - set(only_of_evaluation(settings))):
            raise SettingError(
                f"{sorted(extra)[0]!r} is a setting of the default tree, but a loop of your own was given. Set it "
                "on the loop that it controls."
            )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise SettingError(
                f"seed={seed!r}: use a whole number, or None to leave the seeds alone."
            )
        self._equipment = Equipment(device, precision, seed, seed_samples, prefetch=prefetch)
        self.board = SignalBoard()
        root = loop if loop is not None else default_tree(settings)
        roots: dict[str, Loop] = {"fit": root, **evaluation_loops(settings)}
        self._drivers = {
            name: Driver(one, name=name, sender=self, board=self.board)
            for name, one in roots.items()
        }
        self._active = self._drivers["fit"]
        self._debugger = Debugger(self._active, self.state_dict, self.load_state_dict)
        self._profile: Profile | None = None
        self._hooked: nn.Module | None = None
        self._progress = Progress() if progress is True else progress
        self._callbacks = callbacks_given(callbacks)
        for callback in self._callbacks:
            self.on(callback)
        self.checkpoints = checkpoints_given(checkpoints)
        if self.checkpoints is not None:
            self.checkpoints.attach(self, self._drivers["fit"])
        self._recorder = self._debugger.recorder = self._make_recorder(run, settings)

    # -- running ---------------------------------------------------------------------------------

    def fit(
        self,
        model: nn.Module | None = None,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        restart: bool = False,
        resume: str | Path | None = None,
        until: Until = None,
        **unknown: Never,
    ) -> Mapping[str, float]:
        """Train a model, to the end or up to `until`.

        Called again with the same model it goes on: from where it was paused, or, if it had ended, with
        the counters, the optimizers and the data as they stood.

        Args:
            model: A module with `training_step(batch, batch_idx)` and `configure_optimizers()`, or any
                module with `loss` and `optimizer`.
            train: A `DataLoader`, a list or iterable of batches, a data set, or a function that makes
                one. A data set by itself is read one sample a batch, in its order; for more say
                `DataLoader(data, batch_size=32, shuffle=True)`.
            validation: The same, or a list or dict of several.
            loss: For a plain model: called as `loss(model(inputs), targets)`.
            optimizer: An optimizer, or a callable that makes one of the parameters.
            restart: Begin anew instead of going on.
            resume: Go on from a checkpoint: "auto" (the newest of this trainer's checkpoints; the first
                start if there is none yet), a folder of checkpoints, or one checkpoint. A fit that a
                limit had ended goes on if that limit was raised.
            until: Pause there; see `run`.
            **unknown: None; names of other trainers get an error that says ours.

        Returns:
            The metrics known at the end.

        Raises:
            NothingToDo: The limits were reached by an earlier fit.
            SettingError: `resume` names no place, or `loss` is a class.
            UnknownArgument: An argument that there is none of.
            NoCheckpoint: `resume` names a place without a checkpoint.
            EarlierRun: The folder of the checkpoints is that of another run.
            SnapshotMismatch, StateMismatch, DataChanged: The checkpoint is of another model, loop tree or
                data.
            Interrupted: A signal of the system stopped the run, with a checkpoint.
        """
        check_arguments("fit", unknown, _FIT)
        self.start(
            model, train, validation, loss=loss, optimizer=optimizer, restart=restart, resume=resume
        )
        if self.path is not None:  # what was resumed may have been at its end
            self.run(until)
        return self.metrics

    def resume(
        self,
        run: str | Path,
        model: nn.Module,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        until: Until = None,
    ) -> Mapping[str, float]:
        """Go on with a run from its newest whole checkpoint, or from one checkpoint.

        The same as `fit(..., resume=run)`. A script that is to be right for the first start and for every
        restart says `fit(..., resume="auto")`; `smt resume RUN` starts it again.

        Args:
            run: The folder of the run, or of one of its checkpoints.
            model: As for `fit`, as are the others.
            train: The training data of the run.
            validation: Its validation data.
            loss: For a plain model.
            optimizer: For a model that configures none.
            until: Pause there; see `run`.

        Raises:
            NoCheckpoint: There is none.
        """
        return self.fit(
            model, train, validation, loss=loss, optimizer=optimizer, resume=run, until=until
        )

    def start(
        self,
        model: nn.Module | None = None,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        restart: bool = False,
        resume: str | Path | None = None,
    ) -> None:
        """Get a fit ready to run, up to the boundary before its first state; then `run`, `step` or `moments`.

        Takes what `fit` takes. Where a fit of the same model is paused, nothing changes.
        """
        driver = self._drivers["fit"]
        driver.check_at_rest("start")
        _check_loss(loss)
        known = self._context_of(driver)
        loaded = self._checkpoint_to_go_on_from(resume, restart=restart, begun=known is not None)
        state: Any = take_handed_state() if loaded is None else loaded.tree
        anew, restart = restart, restart or state is not None
        going_on = known is not None and not restart and (model is None or model is known.model)
        if model is None and not going_on and known is None:
            raise NothingToDo("fit needs a model: fit(model, loader).")
        self._active = driver
        if going_on and driver.path is not None:
            if any(one is not None for one in (train, validation, loss, optimizer)):
                raise NothingToDo(
                    f"The fit of this model is paused in state {driver.path!r}. Go on with `run()`, or begin anew "
                    "with `fit(..., restart=True)`."
                )
            return
        # A state that was handed over is none of this trainer's checkpoints.
        noting = None if state is not None and loaded is None else self.checkpoints
        if going_on:
            assert known is not None
            self._refuse_to_do_nothing(known)
            go_on(self._equipment, known, train, validation, loss, optimizer)
        else:
            if self._equipment.seed is not None:
                seed_everything(self._equipment.seed)
            model = model if model is not None else known.model  # type: ignore[union-attr]
            context = assemble_fit(
                self._equipment, driver.root, self, model, train, validation, loss, optimizer
            )
            self._refuse_endless(driver.root)
            self._refuse_to_do_nothing(context)
            if self.checkpoints is not None:
                self.checkpoints.attach(self, driver)  # loops may have been replaced
            if noting is not None and not anew:
                noting.check_folder(loaded)
            if self._recorder is not None:
                self._recorder.close()
            self._share(context)
        with self._in_charge(driver):
            if state is not None:
                self._load(state)
            if noting is not None and not going_on:
                noting.note_start(loaded, restart=anew)
            if state is None:
                driver.start()
        if self._recorder is not None and going_on:
            self._recorder.go_on()
        elif self._recorder is not None:
            checkpoint = None if loaded is None else loaded.path
            self._recorder.begin(checkpoint, keeps_record=self.checkpoints is None)

    def _checkpoint_to_go_on_from(
        self, resume: str | Path | None, *, restart: bool, begun: bool
    ) -> Loaded | None:
        """Find what `resume` names; what `smt resume` asks for holds for a first start that says nothing."""
        store = self.checkpoints.store if self.checkpoints is not None else None
        if resume is None and store is not None and not begun and not restart:
            resume = "auto" if wants_resume() else None
        return None if resume is None else find_checkpoint(store, resume)

    def _share(self, context: Context) -> None:
        """Let the loops of `fit` work on a context that was just assembled."""
        driver = self._drivers["fit"]
        abandon_loops(driver.root)
        if self._samples_are_counted():
            context.sample_size = batch_size_of
        driver.share(context)
        self._hook(context.model)

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.load_state_dict(state)
        except BaseException:
            self._drivers["fit"].share(None)  # half a state is nothing to go on with
            raise
        self._go_on_if_limit_was_raised(state)

    def validate(
        self,
        model: nn.Module | None = None,
        data: Any = None,
        *,
        loss: Loss | None = None,
        **unknown: Never,
    ) -> dict[str, float]:
        """Evaluate a model with its `validation_step`; return the metrics.

        As `test` and `predict` it may be called while a fit is paused, or by a receiver of one: it
        leaves no trace in the fit, its generators of random numbers and metric objects included.
        """
        check_arguments("validate", unknown, _EVALUATION)
        return self._evaluate("validate", "validation_step", model, data, loss).read_metrics()

    def test(
        self,
        model: nn.Module | None = None,
        data: Any = None,
        *,
        loss: Loss | None = None,
        **unknown: Never,
    ) -> dict[str, float]:
        """Evaluate a model with its `test_step`; return the metrics."""
        check_arguments("test", unknown, _EVALUATION)
        return self._evaluate("test", "test_step", model, data, loss).read_metrics()

    def predict(
        self, model: nn.Module | None = None, data: Any = None, **unknown: Never
    ) -> list[Any]:
        """Return what the model answers for each batch (`predict_step`, or the model itself).

        Returns:
            A list of the answers by batch, on the CPU; with several loaders a list of such lists.
        """
        check_arguments("predict", unknown, _EVALUATION[:2])
        self._evaluate("predict", "predict_step", model, data, None)
        predictions: list[Any] = getattr(self._drivers["predict"].root, "predictions", [])
        return predictions[0] if len(predictions) == 1 else predictions

    def run(self, until: Until = None) -> str | None:
        """Go on with what was started, to the end or up to `until`.

        Args:
            until: A name, as `on` takes it, or a condition of `(trainer, moment)`.

        Returns:
            The outcome of the loop, or None if it paused, or rests until something comes from outside.
        """
        listening = nullcontext() if self.checkpoints is None else self.checkpoints.listening()
        with self._in_charge(self._active), self._recording(), listening, self._showing():
            outcome = self._active.run(until)
            if self._active.resting and self._active is self._drivers["fit"]:
                self._write_at_rest()
            return outcome

    def step(self) -> Moment | None:
        """Make one transition and return it."""
        with self._in_charge(self._active), self._recording():
            return self._active.step()

    def moments(self, *args: Any, until: Until = None, **kwargs: Any) -> Iterator[Moment]:
        """Iterate over the transitions of a fit; it stands still between two items.

        Args:
            *args: As for `fit`; without any, what was started goes on.
            until: As for `run`; the item that meets it is the last.
            **kwargs: As for `fit`.
        """
        if args or kwargs or self._active.path is None:
            self.start(*args, **kwargs)
        transitions = self._active.moments(until)
        while True:
            with self._in_charge(self._active), self._recording():
                moment = next(transitions, None)
            if moment is None:
                return
            yield moment

    def pause(self) -> None:
        """Let `run` and `fit` return at the next boundary."""
        self._active.pause()

    def post(self, event: str) -> None:
        """Post an event to the running loop, such as "stop", "validate" or "end_epoch".

        From a receiver or another thread too. After the end it does nothing.

        Raises:
            UnknownEvent: No loop takes it.
            NotStarted: Nothing was started yet, and a start forgets what was posted before.
        """
        driver = self._active
        driver.post(event)
        if driver.path is None and driver.outcome is None and not driver.running:
            driver.withdraw(event)
            raise NotStarted(
                f"{event!r} was posted before the start, which would forget it. Post it after start(model, "
                "loader), or from a receiver: trainer.on('fit_start', lambda trainer: ...)."
            )

    def stop(self) -> None:
        """Post "stop": the epoch ends, with its validation, and the fit with it, unless a minimum holds it back."""
        self.post("stop")

    # -- debugging -------------------------------------------------------------------------------

    def breakpoint(
        self,
        name: str | None = None,
        *,
        when: Callable[..., Any] | None = None,
        once: bool = False,
    ) -> Breakpoint:
        """Let `run` and `fit` return where a state is entered, a transition made, or a condition holds.

        They return at the boundary, before the work of the state; `stopped_at` tells the breakpoint, and
        `run` goes on from there.

        Args:
            name: A name, as `on` takes it: "backward", "epoch_end:exit", "fetch:exhausted"; every state
                unless given.
            when: A condition, called with as many of `(trainer, moment)` as it takes, such as
                `lambda trainer: trainer.loss > 10`.
            once: Remove it when it is met.

        Raises:
            BadBreakpoint: Neither was given, or the fit has no such place.
            UnknownSignal: Nothing has this name.
        """
        return self._debugger.breakpoints.add(name, when=when, once=once)

    @property
    def breakpoints(self) -> Breakpoints:
        """The breakpoints of the fit, in the order in which they were set; `remove` takes one off."""
        return self._debugger.breakpoints

    @property
    def stopped_at(self) -> Breakpoint | None:
        """The breakpoint at which the fit stands."""
        return self._debugger.breakpoints.stopped_at

    def where(self) -> Where:
        """Tell where the machine stands and what may happen next. Reading the loss waits for the device."""
        return Where.of(self._active, self._context_of(self._active), self.stopped_at)

    def remember(self, *, last: int = 20, at: str = "*") -> Memory:
        """Keep the last boundaries of the fit in memory from now on, so that `rewind` can go back to them.

        Each is a whole copy of the state, as a checkpoint is.

        Args:
            last: How many are kept.
            at: The states at whose entry one is kept, such as "batch_start"; all unless given.
        """
        return self._debugger.remember(last=last, at=at)

    def rewind(self, transitions: int = 1) -> Rewound:
        """Go back to an earlier boundary of the fit: weights, counters, data and random numbers as they were.

        Going on from there gives the same bits. The journal forgets what was measured since, for it will be
        measured again; checkpoints, and what callbacks without a state were told, stay as they are.

        Args:
            transitions: How many to go back. Where no boundary was kept there, it goes back to the nearest
                earlier one, and says so.

        Raises:
            NothingRemembered: `remember` was not called, or keeps nothing that is so far back.
        """
        driver = self._drivers["fit"]
        driver.check_at_rest("rewind")
        with self._in_charge(driver):
            rewound = self._debugger.rewind(transitions)
        self._active = driver
        return rewound

    # -- listening -------------------------------------------------------------------------------

    @overload
    def on(self, name: str, /, **options: Any) -> Callable[[F], F]: ...
    @overload
    def on(self, name: str, receiver: Callable[..., Any], /, **options: Any) -> Subscription: ...
    @overload
    def on(self, name: object, /, **options: Any) -> list[Subscription]: ...
    def on(self, name: Any, receiver: Any = None, /, **options: Any) -> Any:
        """Subscribe to signals: `@trainer.on("epoch_end")`, `on(name, function)` or `on(callback)`.

        See `SignalBoard.on` for names, patterns and options. Here `every=` takes intervals over the counters
        of the run too: `every(50, "step")`, "10min", 0.25 (of an epoch); a plain int counts firings.
        """
        check_made(name)
        interval = options.get("every")
        if isinstance(interval, Every | str | float | timedelta):
            options["every"] = CountedInterval(interval)
        try:
            return self.board.on(name, receiver, **options)
        except UnknownSignal as error:
            advice = advice_on_hooks(name)
            if not advice:
                raise
            raise UnknownSignal(f"{error} {advice}") from None

    def off(self, receiver: Any) -> None:
        """Cancel all subscriptions of a function or of an object."""
        self.board.off(receiver)

    def describe(self) -> str:
        """Return every signal somebody listens to, with its receivers in the order in which they are called."""
        return self.board.describe()

    # -- looking ---------------------------------------------------------------------------------

    @property
    def loop(self) -> Any:
        """The loop of `fit`; replace parts of it with `trainer.loop.replace(...)`."""
        return self._drivers["fit"].root

    @property
    def machine(self) -> Chart:
        """The `transitions` machine of what ran last, or of `fit`."""
        return self._active.machine

    @property
    def driver(self) -> Driver:
        """The driver of what ran last, or of `fit`."""
        return self._active

    @property
    def path(self) -> str | None:
        """Path of the state about to run."""
        return self._active.path

    @property
    def context(self) -> Context:
        """What is in flight: batch, loss, counters, optimizers.

        Raises:
            NotStarted: Nothing was run yet.
        """
        context = self._context_of(self._active)
        if context is None:
            raise NotStarted("There is no context before the first fit, validate, test or predict.")
        return context

    @property
    def _counting(self) -> Context:
        """The context of the fit, if there was one: an evaluation counts no epochs."""
        return self._context_of(self._drivers["fit"]) or self.context

    @property
    def model(self) -> nn.Module:
        """The model of what ran last."""
        return self.context.model

    @property
    def epoch(self) -> int:
        """Epochs done in this fit; within an epoch, its number from 0."""
        return self._counting.counts.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps done in this fit."""
        return self._counting.counts.step

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric. Reading them waits for the device."""
        return self.context.read_metrics()

    @property
    def loss(self) -> float:
        """The loss in flight; NaN between batches. Reading it waits for the device."""
        loss = self.context.loss
        return math.nan if loss is None else float(loss.detach())

    def profile(self, *, annotate: bool = False, synchronize: bool = False) -> Profile:
        """Measure from now on how long each state works; see `Profile`.

        Called again it returns the profile that is being made, until that is stopped.

        Args:
            annotate: Name the states in traces of `torch.profiler`, too.
            synchronize: Wait for the device at the end of each state's work.
        """
        if self._profile is None or not self._profile.running:
            self._profile = Profile(self._drivers.values(), self.board, synchronize=synchronize)
        if annotate:
            self._profile.annotate()
        return self._profile

    def trace(self, path: str | Path) -> Trace:
        """Write what happens from now on to a file for ui.perfetto.dev; see `Trace`."""
        return Trace(path, [*self._drivers.values()], self.board, lambda: self.metrics)

    def graph(self, name: str = "fit", *, subscribers: bool = False) -> Graph:
        """Return the graph of a loop ("fit", "validate", "test", "predict"), the running state lit.

        With `subscribers` it names who listens to each state and event.

        Raises:
            UnknownLoop: There is no loop of this name.
        """
        driver = self._drivers.get(name)
        if driver is None:
            raise UnknownLoop(
                f"The trainer has no loop {name!r}. {suggest(str(name), self._drivers)} The graph of a loop "
                "inside: graph().open(path)."
            )
        receivers = receivers_on(self.board) if subscribers else None
        return Graph.of(driver.machine, current=driver.path, receivers=receivers)

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run; None if nothing of it is kept."""
        return None if self._recorder is None else self._recorder.folder.path

    def serve(self, *, port: int = 0, open_browser: bool = False) -> Page:
        """Serve a live page of the fit, for this machine alone; see `statemachine_trainer.page.serve`."""
        from statemachine_trainer.page import serve

        return serve(self, port=port, open_browser=open_browser)

    def backward(self, loss: torch.Tensor) -> None:
        """Propagate a loss backward, scaled if the precision asks for it; for manual optimization."""
        scaler = self.context.precision.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    # -- writing down ----------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write a checkpoint at the next boundary that can be written down (at this one, if at rest).

        Raises:
            NoCheckpoint: The trainer has no `checkpoints`.
        """
        if self.checkpoints is None:
            raise NoCheckpoint(
                "This trainer writes no checkpoints: Trainer(checkpoints='runs/name')."
            )
        self.checkpoints.write()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the fit at this boundary, as a plain tree.

        Tensors are those of the run, not copies.
        """
        driver = self._drivers["fit"]
        context = self._context_of(driver)
        if context is None:
            raise NotStarted("There is no state before the first fit.")
        return {
            "machine": driver.state_dict(),
            "context": context_state(context),
            "callbacks": [
                {"kind": type(one).__qualname__, "state": one.state_dict()}
                for one in self.stateful_callbacks()
            ],
            "checkpoints": None if self.checkpoints is None else self.checkpoints.state_dict(),
        }

    def load_state_dict(self, state: Any) -> None:
        """Stand where `state_dict` was taken, in a fit that was started with the same model and data.

        No signal fires. The generators of random numbers are set last. The fit takes over the tensors of
        the tree: it is good for one loading.

        Raises:
            SnapshotMismatch, StateMismatch, DataChanged: It is of another fit.
        """
        driver = self._drivers["fit"]
        context = self._context_of(driver)
        if context is None:
            raise NotStarted("Start a fit first: start(model, loader), then load its state.")
        driver.load_state_dict(state["machine"])
        saved, ours = state["callbacks"], self.stateful_callbacks()
        kinds = [type(one).__qualname__ for one in ours]
        if kinds != [one["kind"] for one in saved]:
            raise SnapshotMismatch(
                f"The checkpoint has the state of the callbacks {[one['kind'] for one in saved]}, this trainer has "
                f"{kinds}. Give the same callbacks in the same order."
            )
        for one, was in zip(ours, saved, strict=True):
            one.load_state_dict(was["state"])
        remake_optimizers(context, driver.root, state["context"])
        for loop in self._loops_around_state(driver):
            if hasattr(loop, "restore"):
                loop.restore()
        self._read_limits(driver, context)
        load_context_state(context, state["context"])
        if self.checkpoints is not None:
            self.checkpoints.load_state_dict(state["checkpoints"])

    def stateful_callbacks(self) -> list[Any]:
        """Return the callbacks that have a state: those given first, then in the order of their subscription."""
        context = self._context_of(self._drivers["fit"])
        elsewhere = [
            self,
            self.checkpoints,
            *(context.model.modules() if context is not None else ()),
        ]
        owners = [*self._callbacks]
        owners += [getattr(one.receiver, "__self__", None) for one in self.board.subscriptions]
        found: dict[int, Any] = {}
        for owner in owners:
            stateful = hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")
            if stateful and not any(owner is other for other in elsewhere):
                found.setdefault(id(owner), owner)
        return list(found.values())

    # -- parts -----------------------------------------------------------------------------------

    def _evaluate(
        self, name: str, step: str, model: nn.Module | None, data: Any, loss: Loss | None
    ) -> Context:
        driver = self._drivers[name]
        if model is None:
            model = self.context.model
        _check_loss(loss)
        driver.check_at_rest("start")
        before = self._active
        paused = self._context_of(before) if before.path is not None else None
        abandon_loops(driver.root)
        context = assemble_evaluation(self._equipment, self, model, data, step, loss)
        if isinstance(model, Guest):
            model.subscribe(self)
        driver.share(context)
        self._active = driver
        try:
            with (
                self._in_charge(driver),
                self._recording(),
                self._showing(),
                undisturbed(paused),
            ):
                driver.start()
                driver.run()
            return context
        except BaseException:
            if paused is not None:
                abandon_loops(driver.root)
                self._active = before
            raise
        finally:
            if paused is not None and driver.path is None:
                self._active = before

    def _write_at_rest(self) -> None:
        """Write a checkpoint where the machine waits: the process may end before it goes on."""
        if self.checkpoints is not None:
            self.checkpoints.write()

    def _showing(self) -> AbstractContextManager[None]:
        return self._progress.showing(self) if self._progress else nullcontext()

    def _make_recorder(
        self, run: RunFolder | str | Path | bool | None, settings: Mapping[str, Any]
    ) -> Recorder | None:
        checkpoints = self.checkpoints
        folder = RunFolder.of(run, None if checkpoints is None else checkpoints.store.root)
        if folder is None:
            return None
        recorder = Recorder(folder, [*self._drivers.values()], settings)
        if checkpoints is not None:
            checkpoints.on_written = recorder.checkpoint_written
        return recorder

    def _recording(self) -> AbstractContextManager[None]:
        return nullcontext() if self._recorder is None else self._recorder.recording(self._active)

    def _loops_around_state(self, driver: Driver) -> list[Any]:
        """The loops that the machine stands in, outermost first; the root alone where it has ended."""
        found = [driver.root]
        names = (driver.path or "").split(SEPARATOR)[1:-1]
        for name in names:
            found.append(found[-1].loops_inside()[name])
        return found

    def _read_limits(self, driver: Driver, context: Context) -> None:
        """Take over the limits of the innermost fit that the machine stands in."""
        for loop in reversed(self._loops_around_state(driver)):
            if hasattr(loop, "limits"):
                context.limits = loop.limits()
                return

    def _context_of(self, driver: Driver) -> Context | None:
        context = driver.context
        return context if isinstance(context, Context) else None

    @contextmanager
    def _in_charge(self, driver: Driver) -> Iterator[None]:
        """Let `log` reach the run, also as `self.log` in a model that has no such method."""
        context = self._context_of(driver)
        if context is None:
            raise NotStarted(
                "Nothing was started: call fit(model, loader), or start(model, loader) first."
            )
        lends = not hasattr(context.model, "log")
        if lends:
            context.model.__dict__["log"] = log
        self._read_limits(driver, context)
        context.start_clock()
        try:
            with logging_to(context), torch.enable_grad():
                yield
        except BaseException as error:
            if isinstance(context.model, Guest):
                context.model.failed(error)
            raise
        finally:
            context.stop_clock()
            if lends:
                context.model.__dict__.pop("log", None)

    def _hook(self, model: nn.Module) -> None:
        """Subscribe the model's own `on_<state>` methods, and unsubscribe those of the model before."""
        before = self._hooked
        if isinstance(before, Guest) and before is not model:
            self.off(before.receiver())
        elif before is not None:
            self.off(before)
        self._hooked = model
        if isinstance(model, Guest):
            model.subscribe(self)
        elif hooks_of(model):
            self.on(model)

    def _go_on_if_limit_was_raised(self, state: Any) -> None:
        """Begin again, as `fit` called once more, if the saved fit was ended by a limit that now is higher."""
        driver, saved = self._drivers["fit"], state["checkpoints"]
        ended = driver.path is None and saved is not None and saved["limit"] is not None
        if ended and self.context.limit_reached is None:
            driver.start()

    def _samples_are_counted(self) -> bool:
        intervals: list[object] = [one.every for one in self.board.subscriptions]
        intervals.append(self.checkpoints)
        return any(getattr(getattr(i, "every", None), "unit", None) == "sample" for i in intervals)

    def _refuse_to_do_nothing(self, context: Context) -> None:
        if hasattr(self.loop, "limits"):
            context.limits = self.loop.limits()
        name, counts = context.limit_reached, context.counts
        if name is not None:
            raise NothingToDo(
                f"This fit would do nothing: {name}={getattr(self.loop, name, None)!r} is reached, with {counts.epoch} "
                f"epochs, {counts.step} steps and {counts.batch} batches done. Raise `trainer.loop.{name}` to go on, "
                "or begin anew with `fit(..., restart=True)`."
            )

    def _refuse_endless(self, root: Loop) -> None:
        names = ("max_epochs", "max_steps", "max_batches", "max_time")
        endless = (
            all(hasattr(loop, name) and getattr(loop, name) is None for name in names)
            for _, loop in root.walk()
        )
        if any(endless):
            raise SettingError(
                f"The fit would never end: set one of {', '.join(names)}. For a run that only `stop` ends, say "
                "max_epochs=math.inf."
            )


def _check_loss(loss: object) -> None:
    """Refuse a class of losses: called with a batch it would make a loss, and no number."""
    if isinstance(loss, type):
        raise SettingError(f"loss={loss.__name__} is a class. Make one: {loss.__name__}().")
