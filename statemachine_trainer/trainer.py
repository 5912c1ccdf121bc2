"""The trainer: the main class for users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Never, TypeVar, overload

import torch
from torch import nn

from statemachine_trainer.audit.hyperparameters import Hyperparameters, settings_of_equipment
from statemachine_trainer.audit.report import Audit
from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.finding import NoCheckpoint
from statemachine_trainer.control.ownership import Ownership
from statemachine_trainer.debugging import Breakpoint, Memory, Rewound, Where
from statemachine_trainer.debugging.breakpoints import Breakpoints
from statemachine_trainer.debugging.rewinding import Debugger
from statemachine_trainer.graph.extraction import receivers_on
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.intervals import epoch_in_words
from statemachine_trainer.loops.assembly import Equipment
from statemachine_trainer.loops.bare_calls import run_backward
from statemachine_trainer.loops.changeable import Setting
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.default_tree import (
    known_settings,
    loops_of_trainer,
    refuse_unnamed,
)
from statemachine_trainer.loops.foreign_names import check_arguments
from statemachine_trainer.loops.loop_errors import SettingError, UnknownArgument
from statemachine_trainer.loops.plain import Loss, MakeOptimizer, PlainParts
from statemachine_trainer.machine.board import NOT_GIVEN, SignalBoard
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.driver import Driver, Until
from statemachine_trainer.machine.keywords import with_checked_methods
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.machine.signals import Moment, Subscription
from statemachine_trainer.observe.profile import Profile
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import RunFolder
from statemachine_trainer.observe.trace import Trace
from statemachine_trainer.running.arguments import (
    Given,
    callbacks_given,
    check_seed,
    checkpoints_given,
    fresh_given,
    progress_given,
    recorder_given,
)
from statemachine_trainer.running.attributes import check_attribute, refuse_attribute
from statemachine_trainer.running.control_panel import SET
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.evaluations import Evaluations
from statemachine_trainer.running.fit_state import FitState, Fresh
from statemachine_trainer.running.quick_checks import QuickChecks
from statemachine_trainer.running.replaying import as_replayed
from statemachine_trainer.running.served import ServedPage
from statemachine_trainer.running.session import Session
from statemachine_trainer.running.subscribing import subscribe
from statemachine_trainer.running.surroundings import Surroundings
from statemachine_trainer.running.switches import Deterministic, MatmulPrecision, Switches
from statemachine_trainer.running.weights import Checkpoint

F = TypeVar("F", bound=Callable[..., Any])

_FIT = (
    "model", "train", "validation", "loss", "optimizer", "scheduler", "metrics", "restart", "resume",
    "fresh", "restore_best", "until",
)  # fmt: skip
_EVALUATION = ("model", "data", "checkpoint", "loss", "metrics")


@with_checked_methods(UnknownArgument, without=("backward",))
class Trainer:
    """Trains a model with a loop that is a state machine.

    You can look at the loop (`graph`), subscribe to it (`on`) and change it (`loop.replace`). You
    can run it to its end (`fit`), to a given point (`run(until=...)`) or one transition at a time
    (`step`, `moments`).

    Example:
        >>> trainer = Trainer(max_epochs=3, clip_norm=1.0)
        >>> @trainer.on("epoch_end")
        ... def report(trainer, moment):
        ...     print(trainer.epoch, trainer.metrics)

    Args:
        loop: The loop of `fit`. By default the default tree, built with the settings.
        *unnamed: Not accepted: settings are given by name, model and data to `fit`.
        callbacks: A list of objects with `on_<state>` methods.
        checkpoints: When and where to write checkpoints. A folder means `Checkpoints(folder)`; None
            or False means no checkpoints.
        run: The folder of the run, which holds its black box and its journal, or a `RunFolder` with
            settings. By default the folder of the checkpoints; False for none.
        fingerprints: How often digests of weights, gradients, generators and batch are kept in that folder,
            such as `every(100, "step")`, so that `smt diff` can tell where two runs part. None for never.
        device: Where to train: "auto" (an accelerator if there is one), "cpu", "cuda:1", ...
        precision: "32", "bf16" (autocast) or "fp16" (autocast and gradient scaling).
        seed: Seeds python, numpy and torch at the beginning of each new fit; None does not seed.
        seed_samples: Seed each sample of the data from (seed, epoch, index), so that the number of
            workers does not matter. None does so only if there are workers.
        prefetch: Read the training data one batch ahead, and move that batch to the device while the
            step runs; see `Prefetch` for the effect on random numbers.
        progress: Show a progress bar and the table of metrics in a terminal or a notebook; or your
            own `Progress`.
        hparams: What else the run is set to, for its record and for trackers: a dict, a dataclass or an
            `argparse.Namespace`. What the trainer, the model, the optimizers and the loader are set to is
            recorded anyway; see `hyperparameters`.
        fast_dev_run: Look for mistakes: one epoch of one batch, or of so many; see `QuickChecks`.
        overfit_batches: Train on the same few batches in each epoch: an int, or a float for a fraction.
        deterministic: Deterministic algorithms alone while the trainer runs; "warn" only warns of others.
        benchmark: Let cuDNN choose its algorithms by their time while the trainer runs.
        detect_anomaly: Have a backward pass that yields NaN name the operation of the forward pass. Slow.
        matmul_precision: "highest", "high" or "medium", for products of 32-bit matrices while the trainer runs.
        **settings: Settings of the default tree, such as `max_epochs`, `accumulate`,
            `validate_every`. Each is passed to the loop that it controls.

    Raises:
        SettingError: A setting is unknown or out of its range.
        BadReceiver: A callback has no `on_<state>` methods, or is a class instead of an object.
    """

    more_settings: ClassVar = known_settings()
    """The settings of the default tree, which it takes besides its own."""

    def __init__(
        self,
        loop: Loop | None = None,
        *unnamed: Never,
        callbacks: Iterable[object] | None = (),
        checkpoints: Checkpoints | str | Path | Literal[False] | None = None,
        run: RunFolder | str | Path | bool | None = None,
        fingerprints: object = None,
        device: str | torch.device = "auto",
        precision: str | int = "32",
        seed: int | None = None,
        seed_samples: bool | None = None,
        prefetch: bool = False,
        progress: bool | Progress = True,
        hparams: object = None,
        fast_dev_run: bool | int = False,
        overfit_batches: int | float = 0,
        deterministic: Deterministic = None,
        benchmark: bool | None = None,
        detect_anomaly: bool = False,
        matmul_precision: MatmulPrecision | None = None,
        **settings: Any,
    ) -> None:
        if unnamed:
            refuse_unnamed(loop, unnamed)
        loops = loops_of_trainer(loop, settings, Trainer)
        check_seed(seed, seed_samples)
        quick = self._quick = QuickChecks(fast_dev_run, overfit_batches)
        switches = Switches(
            deterministic=deterministic,
            benchmark=benchmark,
            detect_anomaly=detect_anomaly,
            matmul_precision=matmul_precision,
        )
        callbacks, checkpoints, run, progress = as_replayed(
            self, callbacks, checkpoints, run, progress
        )
        shown = progress_given(progress)
        equipment = Equipment(
            device, precision, seed, seed_samples, prefetch=prefetch, in_order=quick.overfits
        )
        self.board = SignalBoard()
        self._drivers = drivers = Drivers(loops, self, self.board)
        given = quick.callbacks(callbacks_given(callbacks))
        for callback in given:
            self.on(callback)
        self.checkpoints = quick.unless_dev_run(checkpoints_given(checkpoints), None)
        if self.checkpoints is not None:
            self.checkpoints.attach(self, drivers.fit)
        settings = {**settings, **settings_of_equipment(equipment, device), **switches.given}
        self._hyperparameters = Hyperparameters(hparams, settings)
        run = quick.unless_dev_run(run, False)
        recorder = self._recorder = recorder_given(
            run, self.checkpoints, drivers, settings, fingerprints
        )
        if recorder is not None:
            recorder.hyperparameters = lambda: self._hyperparameters.sections(
                context_of(drivers.fit)
            )
        owner = self._owner_of_folder()
        self._state = FitState(self, drivers.fit, given, self._hyperparameters)
        if recorder is not None:
            recorder.told = self._state.told
            self._state.panel.note = recorder.settings_changed
        around = self._surroundings = Surroundings(self, drivers, recorder, shown, owner, switches)
        self._session = Session(
            self, drivers, equipment, self._state, recorder, shown, quick, around
        )
        self._evaluations = Evaluations(self, drivers, equipment, quick, around)
        self._debugger = Debugger(drivers.fit, self.state_dict, self.load_state_dict)
        self._debugger.recorder = recorder
        self._profile: Profile | None = None

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to set a setting of a loop here, where nobody would look at it."""
        if name == "loop":
            raise SettingError(
                "trainer.loop = ...: a trainer keeps its loop. Give it when you make the trainer, "
                "`Trainer(loop)`, or replace what is inside: `trainer.loop.replace(epoch=...)`."
            )
        if "_profile" in self.__dict__ and name not in self.__dict__:  # it is made, and this is new
            check_attribute(name, type(self))
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # for a type checker every name would be there

        def __getattr__(self, name: str) -> Never:
            """Say what a name that a trainer does not have is called here."""
            refuse_attribute(self, name)

    def _owner_of_folder(self) -> Ownership | None:
        """Make the lock on the folder of the run, if there is one, for all that write there."""
        folder = self.run_folder if self.checkpoints is None else self.checkpoints.store.root
        if folder is None:
            return None
        fit = self._drivers.fit
        owner = Ownership(folder, at_rest=lambda: not fit.running)
        if self.checkpoints is not None:
            self.checkpoints.belong_to(owner)
        if self._recorder is not None:
            self._recorder.owner = owner
        return owner

    def __repr__(self) -> str:
        driver, checkpoints = self.driver, self.checkpoints
        context = context_of(driver)
        loop = type(driver.root).__name__
        where = (
            "not started" if context is None else driver.path or f"ended with {driver.outcome!r}"
        )
        counts = (
            ""
            if context is None
            else f", {epoch_in_words(driver.path, self.epoch)}, step {self.steps}"
        )
        folder = "" if checkpoints is None else f", checkpoints in {str(checkpoints.store.root)!r}"
        return f"<Trainer of {driver.name!r} ({loop}): {where}{counts}{folder}>"

    # -- running ---------------------------------------------------------------------------------

    def fit(
        self,
        model: nn.Module | None = None,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: Any = None,
        metrics: Any = None,
        restart: bool = False,
        resume: str | Path | None = None,
        fresh: Fresh | Iterable[Fresh] = (),
        restore_best: bool = False,
        until: Until = None,
        **unknown: Never,
    ) -> Mapping[str, float]:
        """Train a model, to the end or up to `until`.

        Called again with the same model, it continues: from a pause, or, if the fit had ended, with
        its counters, optimizers and position in the data.

        Args:
            model: A module with `training_step(batch, batch_idx)` and `configure_optimizers()`, or any
                module with `loss` and `optimizer`.
            train: A `DataLoader`, a list or iterable of batches, a data set, or a function that makes
                one, for an epoch if it has a parameter `epoch`; or a dict of several, which are read
                `Together`. A plain data set is read in order, with one sample a batch. For more use
                `DataLoader(data, batch_size=32, shuffle=True)`.
            validation: The same, or a list or dict of several.
            loss: For a plain model: called as `loss(model(inputs), targets)`.
            optimizer: An optimizer, or a callable that makes one from the parameters (or anything
                that `configure_optimizers` may return).
            scheduler: A learning rate scheduler, a function that makes one from the optimizer (and
                from `total_steps`, if it has such a parameter; it is then stepped by steps), or a
                dict with one of these as "scheduler", and "interval" ("epoch" or "step"),
                "frequency", "monitor".
            metrics: For a plain model: a metric of outputs and targets, or a dict of several by name, as
                torchmetrics or functions. They are logged as "acc", "val_acc" and "test_acc".
            restart: Start a new fit instead of continuing.
            resume: Continue from a checkpoint: "auto" (the newest of this trainer's checkpoints;
                the first start if there is none yet), a folder of checkpoints, or one checkpoint; or an
                address of either, such as "s3://bucket/runs/mine", whose checkpoints are brought to the
                folder of this trainer. A fit that a limit or early stopping had ended goes on if the
                limit was raised, or the patience.
            fresh: What the script gives instead of the checkpoint: "optimizer" (what it has learned, and
                its settings), "schedulers" (with the learning rates that they set), "callbacks". Weights,
                counters and the place in the data are the checkpoint's.
            restore_best: When the fit has ended, put the weights of its best checkpoint into the model:
                best by the rule of `Checkpoints(..., retention=Retention(best=Best("val_loss")))`. What
                the fit ended with stays in its newest checkpoint; a fit that goes on does so from there.
            until: Pause there; see `run`.
            **unknown: Not accepted. For an argument of another trainer, the error gives our name for it.

        Returns:
            The metrics known at the end.

        Raises:
            NothingToDo: The limits were reached by an earlier fit.
            SettingError: `resume` names no place, `loss` is a class, or nothing says what is best.
            NoBestCheckpoint: The best weights are to be restored, and were not kept.
            UnknownArgument: Unknown argument.
            NoCheckpoint: `resume` names a place without a checkpoint.
            FolderInUse: Another process is running in the folder of the run.
            EarlierRun: The folder of the checkpoints holds another run.
            SnapshotMismatch, StateMismatch, DataChanged: The checkpoint is of another model, loop tree or
                data.
            Interrupted: A signal of the operating system stopped the run, with a checkpoint.

        Warns:
            SettingsChanged: The checkpoint was written with other settings; it lists each with both values,
                and says which one holds.
        """
        check_arguments("fit", unknown, _FIT)
        given = Given(
            model,
            train,
            validation,
            PlainParts(loss, optimizer, scheduler, metrics),
            restart,
            resume,
            fresh_given(fresh, resume),
            restore_best,
        )
        return self._session.fit(given, until)

    def resume(
        self,
        run: str | Path,
        model: nn.Module,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: Any = None,
        metrics: Any = None,
        until: Until = None,
        **unknown: Never,
    ) -> Mapping[str, float]:
        """Continue a run from its newest intact checkpoint, or from a given checkpoint.

        The same as `fit(..., resume=run)`. A script that should work for the first start and for
        every restart uses `fit(..., resume="auto")`; `smt resume RUN` starts it again.

        Args:
            run: The folder of the run, or of one of its checkpoints.
            model: As for `fit`.
            train: The training data of the run.
            validation: Its validation data.
            loss: For a plain model.
            optimizer: For a model that configures none.
            scheduler: For that optimizer.
            metrics: For a plain model.
            until: Pause there; see `run`.
            **unknown: Not accepted.

        Raises:
            NoCheckpoint: The run has no checkpoint.
        """
        check_arguments("resume", unknown, ("run", *_FIT[:7], "until"))
        return self.fit(
            model,
            train,
            validation,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            metrics=metrics,
            resume=run,
            until=until,
        )

    def start(
        self,
        model: nn.Module | None = None,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: Any = None,
        metrics: Any = None,
        restart: bool = False,
        resume: str | Path | None = None,
        fresh: Fresh | Iterable[Fresh] = (),
        **unknown: Never,
    ) -> None:
        """Prepare a fit, up to the boundary before its first state, for `run`, `step` or `moments`.

        Takes the arguments of `fit`. If a fit of the same model is paused, nothing changes.
        """
        check_arguments("start", unknown, _FIT[:-2])
        given = Given(
            model,
            train,
            validation,
            PlainParts(loss, optimizer, scheduler, metrics),
            restart,
            resume,
            fresh_given(fresh, resume),
        )
        self._session.start(given)

    def validate(
        self,
        model: nn.Module | None = None,
        data: Any = None,
        *,
        loss: Loss | None = None,
        metrics: Any = None,
        checkpoint: Checkpoint | None = None,
        **unknown: Never,
    ) -> dict[str, float]:
        """Evaluate a model with its `validation_step`; return the metrics.

        Like `test` and `predict` it may be called while a fit is paused, or by a receiver. It does
        not change the fit, its random number generators or its metric objects.

        Args:
            model: The model; that of what ran last unless given.
            data: A loader, or a list or dict of several.
            loss: For a plain model.
            metrics: For a plain model, as for `fit`.
            checkpoint: Evaluate with the weights of a checkpoint; afterwards the model has its own again.
                "best" (by the one rule of this trainer's retention), `Best("val_loss")`, "newest", or
                the folder of a run or of a checkpoint.
            **unknown: Not accepted. For an argument of another trainer, the error gives our name for it.

        Raises:
            NoBestCheckpoint: The best weights were not kept.
            NotACheckpoint: The folder holds no checkpoint.
        """
        check_arguments("validate", unknown, _EVALUATION)
        return self._evaluations.measure(
            "validate",
            "validation_step",
            model,
            data,
            PlainParts(loss, metrics=metrics),
            checkpoint,
        )

    def test(
        self,
        model: nn.Module | None = None,
        data: Any = None,
        *,
        loss: Loss | None = None,
        metrics: Any = None,
        checkpoint: Checkpoint | None = None,
        **unknown: Never,
    ) -> dict[str, float]:
        """Evaluate a model with its `test_step`; return the metrics. Arguments are those of `validate`."""
        check_arguments("test", unknown, _EVALUATION)
        return self._evaluations.measure(
            "test", "test_step", model, data, PlainParts(loss, metrics=metrics), checkpoint
        )

    def predict(
        self,
        model: nn.Module | None = None,
        data: Any = None,
        *,
        checkpoint: Checkpoint | None = None,
        to: str | Path | None = None,
        **unknown: Never,
    ) -> Any:
        """Return the predictions for each batch, from `predict_step` or the model itself.

        Arguments are those of `validate`. With `to`, a folder, predictions are written there and not kept in memory.

        Returns:
            A list of predictions by batch, on the CPU; with several loaders a list of such lists. With `to` it is
            `Predictions`, which reads them as they are asked for.
        """
        check_arguments("predict", unknown, (*_EVALUATION[:3], "to"))
        return self._evaluations.predict(model, data, checkpoint, to)

    def run(self, until: Until = None) -> str | None:
        """Continue what was started, to the end or up to `until`.

        Args:
            until: A name, as `on` takes it, or a condition of `(trainer, moment)`.

        Returns:
            The outcome of the loop, or None if it paused, or waits for something from outside.
        """
        return self._session.run(until)

    def step(self) -> Moment | None:
        """Make one transition and return it."""
        return self._session.step()

    def moments(self, *args: Any, until: Until = None, **kwargs: Any) -> Iterator[Moment]:
        """Iterate over the transitions of a fit; it is stopped between two items.

        Args:
            *args: As for `fit`. Without any, what was started continues.
            until: As for `run`; the item that meets it is the last.
            **kwargs: As for `fit`.
        """
        if args or kwargs or self.path is None:
            self.start(*args, **kwargs)
        yield from self._session.moments(until)

    def pause(self) -> None:
        """Make `run` and `fit` return at the next boundary.

        May be called from receivers, other threads and signal handlers. After the end it does nothing.

        Raises:
            NotStarted: Nothing was started yet. A start would drop the request.
        """
        self._drivers.pause()

    def post(self, event: str, **values: object) -> None:
        """Post an event to the running loop, such as "stop", "validate" or "end_epoch".

        May be called from receivers and other threads. After the end nothing takes it.

        Args:
            event: The event; "set" to change settings of the fit at its next boundary.
            **values: The settings, as in `post("set", lr=1e-4, max_epochs=20)`; see `changeable`.

        Raises:
            UnknownEvent: No loop takes it.
            NotStarted: Nothing was started yet. A start would drop the event.
            SettingError: There is no such setting, or it cannot have this value.

        Warns:
            NeverTaken: The fit has ended. To post "stop" then is no mistake.
        """
        if event == SET:
            self._state.panel.post(values)
        elif values:
            raise SettingError(f"{event!r} carries nothing; post('set', ...) changes settings.")
        else:
            self._drivers.post(event)

    def changeable(self) -> dict[str, Setting]:
        """Return the settings that `post("set", ...)` may change now: what each may be, and what it is."""
        return self._state.panel.settings()

    def stop(self) -> None:
        """Post "stop": end the epoch with its validation, then the fit, once `min_epochs` and `min_steps` are done."""
        self.post("stop")

    # -- debugging -------------------------------------------------------------------------------

    def breakpoint(
        self, name: str | None = None, *, when: Callable[..., Any] | None = None, once: bool = False
    ) -> Breakpoint:
        """Make `run` and `fit` return when a state is entered, a transition made, or a condition holds.

        They return at the boundary, before the work of the state. `stopped_at` is the breakpoint,
        and `run` continues from there.

        Args:
            name: A name, as `on` takes it: "backward", "epoch_end:exit", "fetch:exhausted". By
                default every state.
            when: A condition of `(trainer, moment)`, or of fewer arguments, such as `lambda
                trainer: trainer.loss > 10`.
            once: Remove it when it is met.

        Raises:
            BadBreakpoint: Neither was given, or the fit has no such place.
            UnknownSignal: Nothing has this name.
        """
        return self._debugger.breakpoints.add(name, when=when, once=once)

    @property
    def breakpoints(self) -> Breakpoints:
        """The breakpoints of the fit, in the order in which they were set; `remove` removes one."""
        return self._debugger.breakpoints

    @property
    def stopped_at(self) -> Breakpoint | None:
        """The breakpoint at which the fit is stopped."""
        return self._debugger.breakpoints.stopped_at

    def where(self) -> Where:
        """Return the position of the machine and what may happen next. Reading the loss waits for the device."""
        return Where.of(self.driver, context_of(self.driver), self.stopped_at)

    def remember(self, *, last: int = 20, at: str = "*") -> Memory:
        """Keep the last boundaries of the fit in memory from now on, for `rewind`.

        Each is a whole copy of the state, as a checkpoint is.

        Args:
            last: How many to keep.
            at: The states at whose entry to keep one, such as "batch_start". By default all.
        """
        return self._debugger.remember(last=last, at=at)

    def rewind(self, transitions: int = 1) -> Rewound:
        """Go back to an earlier boundary of the fit: weights, counters, data and random numbers.

        Running on from there gives the same bits. The journal drops later measurements, because
        they will be repeated. Checkpoints stay, and so does whatever callbacks without a state have
        done.

        Args:
            transitions: How many to go back. Where no boundary was kept there, it goes back to the nearest
                earlier one, and says so.

        Raises:
            NothingRemembered: `remember` was not called, or no boundary so far back was kept.
        """
        driver = self._drivers.fit
        driver.check_at_rest("rewind")
        with self._surroundings.in_charge(driver):
            rewound = self._debugger.rewind(transitions)
        self._drivers.active = driver
        return rewound

    # -- listening -------------------------------------------------------------------------------

    @overload
    def on(self, name: str, /, **options: Any) -> Callable[[F], F]: ...
    @overload
    def on(self, name: str, receiver: Callable[..., Any], /, **options: Any) -> Subscription: ...
    @overload
    def on(self, name: object, /, **options: Any) -> list[Subscription]: ...
    def on(self, name: Any, receiver: Any = NOT_GIVEN, /, **options: Any) -> Any:
        """Subscribe to signals: `@trainer.on("epoch_end")`, `on(name, function)` or `on(callback)`.

        See `SignalBoard.on` for names, patterns and options. Here `every=` also takes intervals
        over the counters of the run: `every(50, "step")`, "10min", 0.25 (of an epoch). A plain int
        counts how often the signal fires.
        """
        return subscribe(self.board, name, receiver, **options)

    def off(self, receiver: Any) -> None:
        """Cancel all subscriptions of a function or of an object."""
        self.board.off(receiver)

    def describe(self) -> str:
        """Return a listing of every signal that has receivers, each with its receivers in call order."""
        return self.board.describe()

    # -- looking ---------------------------------------------------------------------------------

    @property
    def loop(self) -> Any:
        """The loop of `fit`; replace parts of it with `trainer.loop.replace(...)`."""
        return self._drivers.fit.root

    @property
    def machine(self) -> Chart:
        """The `transitions` machine of what ran last, or of `fit`."""
        return self.driver.machine

    @property
    def driver(self) -> Driver:
        """The driver of what ran last, or of `fit`."""
        return self._drivers.active

    @property
    def path(self) -> str | None:
        """Path of the state about to run."""
        return self.driver.path

    @property
    def context(self) -> Context:
        """The state that loops share: batch, loss, counters, optimizers.

        Raises:
            NotStarted: Nothing was run yet.
        """
        # Receivers ask in every batch: the usual answer costs them one call.
        context = self._drivers.active.context
        return context if isinstance(context, Context) else self._drivers.context

    @property
    def model(self) -> nn.Module:
        """The model of what ran last."""
        return self.context.model

    @property
    def epoch(self) -> int:
        """Epochs done in this fit; within an epoch, its number from 0. Before the first fit it is 0."""
        if self._drivers.active.context is None:
            return 0  # a function that makes loaders may ask while a fit starts
        return self._drivers.counting.counts.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps done in this fit."""
        return self._drivers.counting.counts.step

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole fit, by its limits and data, if nothing ends it early.

        Known as soon as the fit is begun: `configure_optimizers` may ask for it as a parameter, as in
        `def configure_optimizers(self, total_steps)`.

        Raises:
            NotStarted: No fit was begun.
            UnknownTotal: The settings or the data do not tell, such as a loader without a length.
        """
        return self._session.total_steps()

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric. Reading them waits for the device."""
        return self.context.read_metrics()

    @property
    def loss(self) -> float:
        """The loss in flight; NaN between batches. Reading it waits for the device."""
        loss = self.context.loss
        return float("nan") if loss is None else float(loss.detach())

    @property
    def hyperparameters(self) -> dict[str, bool | int | float | str | None]:
        """What the run is set to, by name: `hparams`, then model, trainer, optimizers and data.

        Of the model it is `model.hparams`, if there are such, else the arguments of its constructor that it keeps
        under their names. A name that two of these places have means the first; the other is `optimizer/lr`.
        """
        return self._hyperparameters.of(context_of(self._drivers.fit))

    def profile(self, *, annotate: bool = False, synchronize: bool = False) -> Profile:
        """Measure the time of each state from now on; see `Profile`.

        Called again, it returns the running profile until that is stopped.

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
        """Record all transitions from now on to a file for ui.perfetto.dev; see `Trace`."""
        return Trace(path, [*self._drivers.values()], self.board, lambda: self.metrics)

    def graph(self, name: str = "fit", *, subscribers: bool = False) -> Graph:
        """Return the graph of a loop: "fit", "validate", "test" or "predict".

        The running state is highlighted. With `subscribers` the graph names the receivers of each
        state and event.

        Raises:
            UnknownLoop: There is no loop of this name.
        """
        driver = self._drivers.named(name)
        receivers = receivers_on(self.board) if subscribers else None
        return Graph.of(driver.machine, current=driver.path, receivers=receivers)

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run; None if nothing of it is kept."""
        return None if self._recorder is None else self._recorder.folder.path

    def serve(self, *, port: int = 0, open_browser: bool = False) -> ServedPage:
        """Serve a live page of the fit, on this machine only; see `statemachine_trainer.page.serve`."""
        from statemachine_trainer.page import serve

        return serve(self, port=port, open_browser=open_browser)

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass of a loss, scaled if the precision needs it; for manual optimization."""
        scaler = self.context.precision.scaler
        run_backward(loss if scaler is None else scaler.scale(loss))

    # -- writing down ----------------------------------------------------------------------------

    def audit(
        self,
        model: nn.Module | None = None,
        train: Any = None,
        validation: Any = None,
        *,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: Any = None,
        metrics: Any = None,
        **unknown: Never,
    ) -> Audit:
        """List which of the objects that a fit uses its checkpoints can hold, and which they cannot.

        The list has the random number generators of the model, the data, callbacks, receivers and
        loops, and objects that cannot be saved: iterators, open files, queues, locks. Print it.

        Nothing is started, and the folder of the run is not looked at: it works before, after and
        between fits. `configure_optimizers` is called, and so are functions that make loaders, an
        optimizer or a scheduler. Generators that they draw from are put back.

        Args:
            model: As for `fit`. Without a model, the fit that was started is audited.
            train: The training data.
            validation: The validation data.
            loss: For a plain model.
            optimizer: For a model that configures none.
            scheduler: For that optimizer.
            metrics: For a plain model.
            **unknown: Not accepted.

        Raises:
            NotStarted: No model was given and there is no fit.
            ModelError: There is no training data.
        """
        check_arguments("audit", unknown, _FIT[:7])
        parts = PlainParts(loss, optimizer, scheduler, metrics)
        return self._session.audit(Given(model, train, validation, parts, False, None, ()))

    def checkpoint(self) -> None:
        """Write a checkpoint at the next boundary that is not transient.

        If the fit is stopped at such a boundary, it is written now.

        Raises:
            NoCheckpoint: The trainer has no `checkpoints`.
        """
        if self.checkpoints is None:
            if self._quick.dev_batches:
                return  # a dev run writes none
            raise NoCheckpoint(
                "This trainer writes no checkpoints: Trainer(checkpoints='runs/name')."
            )
        self._session.checkpoint(self.checkpoints)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the fit at this boundary, as a plain tree.

        Tensors are those of the run, not copies.
        """
        return self._session.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Restore a state from `state_dict`, in a fit that was started with the same model and data.

        No signal fires. Random number generators are restored last. The fit takes over the tensors
        of the tree, so a tree can be loaded only once.

        Raises:
            SnapshotMismatch, StateMismatch, DataChanged: It is the state of a different fit.
        """
        self._session.load_state_dict(state)

    def stateful_callbacks(self) -> list[Any]:
        """Return the callbacks that have a state: given ones first, then in the order of subscription."""
        return self._state.stateful_callbacks()
