"""Assembles a run: makes the context that its loops share from a model and data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from statemachine_trainer.data import EmptyLoader, Feed, Prefetch, as_loaders
from statemachine_trainer.data.ordered import in_order
from statemachine_trainer.loops.base import TrainingLoop, training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.fresh_start import begin_fit, replace_data
from statemachine_trainer.loops.guest import steps_of
from statemachine_trainer.loops.loop_errors import (
    ModelError,
    NothingToDo,
    OptimizerError,
    SettingError,
)
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.loops.mistakes import (
    look_for_mistakes,
    warn_of_misspelt_settings,
    warn_of_shuffled_predictions,
)
from statemachine_trainer.loops.optimizer import OptimizerLoop, SplittingLoop
from statemachine_trainer.loops.plain import PlainParts
from statemachine_trainer.loops.steps import Steps
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel import Precision, resolve_device, to_device
from statemachine_trainer.parallel.gradient_sync import sync_of
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.parallel.wrappers import see_through

if TYPE_CHECKING:
    from statemachine_trainer.loops.agreement import Agreement

_STAGES: Final = {"validation_step": "validate", "test_step": "test", "predict_step": "predict"}


class Equipment:
    """The settings that all runs of one trainer share: device, precision, seed, prefetching.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: "32", "bf16" or "fp16".
        seed: Seeds the samples of data sets with workers.
        seed_samples: See `Feed`.
        prefetch: Read the training data one batch ahead; see `Prefetch`.
        in_order: Read the data of training and validation in order, so that each epoch begins with the same batches.

    Raises:
        SettingError: `prefetch` is a number.
    """

    def __init__(
        self,
        device: str | torch.device,
        precision: str | int,
        seed: int | None,
        seed_samples: bool | None,
        *,
        prefetch: bool = False,
        in_order: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        self.precision_name = precision
        self.seed = seed
        self.seed_samples = seed_samples
        if not isinstance(prefetch, bool):
            raise SettingError(
                f"prefetch={prefetch!r}: say True to read one batch ahead. To have more of them read "
                "beforehand give the loader workers and a prefetch_factor."
            )
        self.prefetch = prefetch
        self.in_order = in_order
        Precision(precision, self.device)
        self.newest: Context | None = None  # of the fit that was begun last
        self.agreement: Agreement | None = None  # of the ranks of a fit, if there are several

    def context(
        self, model: nn.Module, trainer: Any, parts: PlainParts, *, moved: bool = True
    ) -> Context:
        """Make the context of a run, and move the model to the device.

        A model is taken out of its wrappers. A model of several ranks stays on its device. `moved` is
        False where nothing will run: the model stays where it is.
        """
        whole = model
        if isinstance(model, nn.Module) and "_modules" not in vars(model):
            raise ModelError(
                f"{type(model).__name__}.__init__ does not call that of torch.nn.Module. Begin it with "
                "super().__init__()."
            )
        model, wrapped = see_through(model)
        sync = sync_of(model) if wrapped is None else wrapped
        device = sync.device or self.device
        context = Context(model, None, trainer, self)  # type: ignore[arg-type]
        context.steps = steps_of(model, context, parts, sync, whole)
        context.train_metrics, context.validation_metrics = (
            Metrics(model, lambda name: context.steps.metric_named(name)) for _ in range(2)
        )
        _check_has_numbers(model)
        if not moved:
            return context
        model.to(device)
        context.device = device
        context.precision = Precision(self.precision_name, device)
        if device.type != "cpu":
            context.transfer = self._transfer(model, device)
        return context

    def feeds(self, source: Any, name: str, epoch: int | None = None) -> list[tuple[str, Feed]]:
        """Make the feeds of one loader or of several; those of an epoch where functions take it."""
        loaders = as_loaders(source, name, epoch)
        if self.in_order and name == "validation":
            loaders = [(called, in_order(one, called, strict=False)) for called, one in loaders]
        return [(called, self.feed(loader, called)) for called, loader in loaders]

    def feed(self, loader: Any, name: str) -> Feed:
        """Make a feed; refuse a loader that is known to be empty."""
        return self._checked(Feed(loader, **self._settings(name)))

    def training_feed(self, loader: Any, context: Context) -> Feed:
        """Make the feed of the training data, which may read ahead."""
        settings = self._settings("train")
        if self.in_order:
            loader = in_order(loader, "train", strict=True)
        if not self.prefetch:
            return self._checked(Feed(loader, **settings))
        move = context.transfer
        if isinstance(move, partial) and move.func is to_device:
            move = None
        return self._checked(Prefetch(loader, device=context.device, move=move, **settings))

    def _settings(self, name: str) -> dict[str, Any]:
        return {"seed": self.seed or 0, "seed_samples": self.seed_samples, "name": name}

    def _checked(self, feed: Feed) -> Feed:
        if feed.length == 0:
            name = feed.name
            raise EmptyLoader(
                f"The loader {name!r} has no batch. Is its data set empty, or smaller than a batch "
                "with drop_last=True?"
            )
        return feed

    def _transfer(self, model: nn.Module, device: torch.device) -> Any:
        own = getattr(model, "transfer_batch", None)
        move = to_device if own is None else own
        return partial(move, device=device)


def _check_has_numbers(model: nn.Module) -> None:
    """Refuse a model that was made on the device "meta", before torch warns or fails where it is moved.

    Raises:
        ModelError: It has parameters or buffers without numbers.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"{name!r} of the {type(model).__name__} is on the device 'meta', which holds no numbers. Give them "
                "to it first: model.to_empty(device='cpu'), then initialise or load the weights."
            )


def assemble_fit(
    equipment: Equipment,
    root: Loop,
    trainer: Any,
    model: nn.Module,
    train: Any,
    validation: Any,
    parts: PlainParts,
    epoch: int = 0,
) -> Context:
    """Make the context of a fit.

    `epoch` is that whose data are made, from 0.

    Raises:
        ModelError: A step is missing, or there is no training data.
        OptimizerError: There is no valid optimizer, or it is that of another model.
        SettingError: Settings of automatic optimization with a model that optimizes by hand.
        RanksDiffer: The ranks were given different things.
    """
    context = equipment.newest = equipment.context(model, trainer, parts)
    if any(loop.steps_optimizers or loop.by_hand for _, loop in training_loops(root)):
        context.steps.get("training_step")  # guests check this when they call it
    train, validation = context.steps.arrive("fit", train, validation)
    context.data_to_come = partial(replace_data, context, train, validation, epoch)
    begin_fit(context)
    context.manual = _settle_optimization(root, context)
    if not context.slots and not context.manual:
        raise OptimizerError(
            f"{type(model).__name__}.configure_optimizers returned no optimizer. Return one, or "
            "set `automatic_optimization = False` and train by hand in training_step."
        )
    look_for_mistakes(context, validation)
    warn_of_misspelt_settings(root)
    if any(loop.counts_samples for _, loop in training_loops(root)):
        context.count_samples()
    context.have_data()
    _agree(equipment, trainer, context)
    return context


def _agree(equipment: Equipment, trainer: Any, context: Context) -> None:
    """Let the ranks agree on what each of them does from now on, if there are several."""
    ranks = Ranks.here()
    agreement = None
    if ranks is not None:
        from statemachine_trainer.loops.agreement import agree  # most runs have one process

        agreement = agree(ranks, trainer, context)
    if equipment.agreement is not None:
        equipment.agreement.leave()
    equipment.agreement = agreement


def go_on(
    context: Context,
    train: Any,
    validation: Any,
    parts: PlainParts,
) -> None:
    """Continue a fit that has ended, with the data that was given.

    Raises:
        SettingError: Another optimizer was given. It would discard the state of the one in use.
    """
    had = context.steps.given
    for name in ("optimizer", "scheduler", "metrics"):
        one = getattr(parts, name)
        if one is not None and one is not getattr(had, name):
            raise SettingError(
                f"This fit goes on with the {name} that it has, so another `{name}=` would not be "
                "used. Leave it out, or begin anew with `fit(..., restart=True)`."
            )
    replace_data(context, *context.steps.data_again(train, validation))
    if parts.loss is not None and parts.loss is not had.loss:
        steps = context.steps
        context.steps = steps_of(
            context.model, context, replace(had, loss=parts.loss), steps.sync, steps.whole
        )


def assemble_evaluation(
    equipment: Equipment, trainer: Any, model: nn.Module, data: Any, step: str, parts: PlainParts
) -> Context:
    """Make the context of `validate`, `test` or `predict`."""
    context = equipment.context(model, trainer, parts)
    context.steps.get(step)
    (data,) = context.steps.arrive(_STAGES[step], data)
    if data is None:
        raise NothingToDo(f"{_STAGES[step]} needs data: {_STAGES[step]}(model, loader).")
    context.validation = equipment.feeds(data, step.removesuffix("_step"), trainer.epoch)
    if step == "predict_step":
        warn_of_shuffled_predictions(context)
    context.log_table = context.validation_metrics  # receivers may log before the first batch
    return context


def _settle_optimization(root: Loop, context: Context) -> bool:
    """Replace each `OptimizerLoop` with the loop that the model needs.

    A module that optimizes by hand needs a `ManualLoop`. A guest brings its own loop.

    Returns:
        Whether the training step does its own optimization.

    Raises:
        SettingError: Settings of automatic optimization with a model that optimizes by hand.
    """
    steps = context.steps
    for path, loop in list(training_loops(root)):
        before = loop.stands_in_for()
        if before is not None:
            root.stand_in(path, before)
    loops = list(training_loops(root))
    if not steps.foreign and any(loop.by_hand for _, loop in loops):
        return True
    for path, loop in loops:
        if isinstance(loop, SplittingLoop) and steps.by_hand:
            _refuse_settings(loop, context.model)
        # A loop of another class was put there on purpose.
        if type(loop) is OptimizerLoop or _steps_aside(loop, steps):
            assert isinstance(loop, OptimizerLoop)
            other = steps.optimizer_loop(loop)
            if steps.by_hand and not steps.foreign:
                _refuse_settings(loop, context.model)
                other = ManualLoop(instead_of=loop)
            if other is not loop:
                root.stand_in(path, other)
    return steps.by_hand


def _steps_aside(loop: TrainingLoop, steps: Steps) -> bool:
    name = type(steps.model).__name__
    if steps.foreign:
        return loop.steps_aside(f"{name} is of another library, whose hooks are called in between")
    return steps.by_hand and loop.steps_aside(f"{name} optimizes by hand")


def _refuse_settings(loop: OptimizerLoop, model: nn.Module) -> None:
    plain = OptimizerLoop()
    for name in ("accumulate", "clip_norm", "clip_value", "nonfinite_loss", "on_oom"):
        if getattr(loop, name) != getattr(plain, name):
            raise SettingError(
                f"{type(model).__name__} optimizes by hand (automatic_optimization = False), and "
                f"{name}={getattr(loop, name)!r} is for automatic optimization. Do it in "
                "training_step."
            )
