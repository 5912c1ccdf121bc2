"""Warnings of likely mistakes that raise no error, found before a fit or at its end."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterable
from typing import Final

from torch import nn
from torch.utils.data import RandomSampler

from statemachine_trainer.intervals import Every
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.foreign_names import UNCALLED
from statemachine_trainer.loops.loop_errors import LikelyMistake, OptimizerError
from statemachine_trainer.loops.metrics.table import Metrics, UnknownMetric
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.machine.errors import level_of_caller, suggest
from statemachine_trainer.machine.keywords import settings_of
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.snapshot.kinds import is_users


class ForeignParameters(LikelyMistake):
    """An optimizer updates parameters that do not belong to the model."""


class FrozenParameters(LikelyMistake):
    """An optimizer updates nothing but frozen parameters."""


class SchedulerNotReturned(LikelyMistake):
    """A learning rate scheduler was made for an optimizer, but not returned."""


class NeverCalled(LikelyMistake):
    """A model has a method with the name of a hook that is not called here."""


class NothingLearned(LikelyMistake):
    """No optimizer stepped in a whole epoch."""


class NeverValidated(LikelyMistake):
    """A fit had validation data and ended without a validation."""


class NeverTaken(LikelyMistake):
    """An event was posted too late to be taken: after the last epoch, or after the end."""


class ShuffledPredictions(LikelyMistake):
    """Predictions are made on shuffled data."""


class MisspeltSetting(LikelyMistake):
    """A loop was given an attribute whose name is nearly that of a setting."""


class SharedName(LikelyMistake):
    """Training and validation log under one name, so one hides the other."""


_NEAR: Final = 0.85
"""How near (0 to 1) the name of an attribute is to that of a setting."""

_WAYS: Final = {
    **UNCALLED,
    "val_dataloader": "fit(model, train, validation=model.val_dataloader())",
}
"""What to use instead of methods that are not called."""


def look_for_mistakes(context: Context, validation: object = None) -> None:
    """Check a newly assembled fit.

    Models of other libraries are not checked.

    Args:
        context: The context of the run.
        validation: The validation data as it was given.

    Raises:
        OptimizerError: An optimizer updates no parameter of the model.

    Warns:
        ForeignParameters, FrozenParameters, SchedulerNotReturned, NeverCalled: See these.
    """
    model = context.model
    if context.steps.foreign:
        return
    own = {id(one) for one in model.parameters()}
    # If only some are frozen, they may be meant to thaw later in the fit.
    if context.slots and all(_is_frozen(slot) for slot in context.slots):
        _warn_of_frozen(context.slots[0])
    for slot in context.slots:
        _check_parameters(slot, own, model)
        if not context.manual and not slot.schedulers and _has_scheduler(slot):
            kind = type(slot.optimizer).__name__
            _warn(
                f"A learning rate scheduler was made for the {kind} and not returned with it, so it "
                "is not stepped here, and is in no checkpoint. Return both: return [optimizer], "
                "[scheduler].",
                SchedulerNotReturned,
            )
    uncalled = [name for name in UNCALLED if callable(getattr(type(model), name, None))]
    if validation is None and callable(getattr(type(model), "val_dataloader", None)):
        uncalled.append("val_dataloader")
    if uncalled:
        ways = "; ".join(f"{name}: {_WAYS[name]}" for name in uncalled)
        _warn(
            f"{type(model).__name__} has methods with names of Lightning's that are not called here. "
            f"What does their work: {ways}. See docs/migration.md.",
            NeverCalled,
        )


def warn_of_misspelt_settings(root: Loop) -> None:
    """Warn of attributes of loops that nobody reads.

    They are nearly settings, `loop.max_epoch = 3`, or loops without a place: `loop.epch = MyLoop()`.
    """
    for path, loop in root.walk("fit"):
        kind = type(loop)
        known = sorted(settings_of(kind))
        if is_users(kind.__module__):
            continue  # what it reads is known to its author alone
        for name in vars(loop):
            if name in known or name.startswith("_") or hasattr(kind, name):
                continue
            if isinstance(getattr(loop, name), Loop):
                _warn(
                    f"The {kind.__name__} at {path!r} has a loop as its attribute {name!r}, which is no place of it: "
                    f"it never runs. {suggest(name, kind.places())}",
                    MisspeltSetting,
                )
                continue
            near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
            if near and name not in _attributes_of_new(kind):
                _warn(
                    f"The {kind.__name__} at {path!r} has an attribute {name!r}, which it does not read. Did you mean "
                    f"{near[0]!r}?",
                    MisspeltSetting,
                )


def _attributes_of_new(kind: type[Loop]) -> Collection[str]:
    """Return the attributes that a loop of a class has when it is made."""
    try:
        return vars(kind()).keys()
    except Exception:  # it needs arguments
        return vars(kind).keys()


def warn_of_nothing_learned(context: Context, root: Loop) -> None:
    """Warn at the end of an epoch if no optimizer has stepped yet.

    With a gradient scaler that is not a mistake: it skips steps until it has found its scale.

    Args:
        context: The context of the run.
        root: The loop of the fit.
    """
    batches, scaler = context.counts.batch_in_epoch, context.precision.scaler
    stepped = any(slot.steps for slot in context.slots)
    if stepped or not batches or not context.slots or scaler is not None:
        return
    name, stranger = type(context.model).__name__, _stranger_that_steps(root)
    if stranger is not None:
        loop = type(stranger).__name__
        reason = f"{loop}, which is the loop for each batch, did not step one"
        way = (
            f"{loop} has to call the training step and step an optimizer. The methods of CustomLoop do both; see "
            "docs/loops.md. If it does, the step may have returned None"
        )
    elif context.manual:
        reason = f"{name}.training_step optimizes by hand, and called step() of no optimizer"
        way = "Name the parameter `optimizers` in its signature and step them"
    else:
        reason = (
            f"{name}.training_step returned None each time, which leaves a batch out, or each loss "
            "was left out because it is not finite"
        )
        way = (
            "Does it forget `return loss`? If it steps by itself say automatic_optimization = False"
        )
    _warn(
        f"No optimizer has stepped in the {batches} batches of epoch {context.counts.epoch}: "
        f"{reason}. {way}.",
        NothingLearned,
    )


def _stranger_that_steps(root: Loop) -> Loop | None:
    """Return the innermost loop of a user, if no loop of this package steps the optimizers."""
    loops = [loop for _, loop in root.walk()]
    if any(
        getattr(one, "steps_optimizers", False) or getattr(one, "by_hand", False) for one in loops
    ):
        return None
    return next((one for one in reversed(loops) if is_users(type(one).__module__)), None)


def warn_of_no_validation(context: Context, epoch: Loop) -> None:
    """Warn at the end of a fit if its validation data were never used.

    Args:
        context: The context of the run.
        epoch: The loop that decides when to validate, for the message.
    """
    if not context.validation or context.validated_at is not None or not context.counts.batch:
        return
    every, epochs = getattr(epoch, "validate_every", None), getattr(epoch, "validate_epochs", 1)
    when = every.describe() if isinstance(every, Every) else f"where {type(epoch).__name__} says"
    if epochs != 1:
        when += f", in every epoch number {epochs} only"
    _warn(
        f"The fit has ended after {context.counts.batch} batches in {context.counts.epoch} epochs "
        f"without a validation, though it was given data for one. It validates {when}. Make "
        "validate_every or validate_epochs smaller, or leave the validation data out.",
        NeverValidated,
    )


def warn_of_posted_too_late(context: Context) -> None:
    """Warn at the end of a fit if a validation was posted after its last epoch."""
    if context.trainer is None or "validate" not in context.trainer.driver.posted:
        return
    _warn(
        "'validate' was posted after the last epoch had been validated, and the fit has ended: it was "
        "not taken. Post it before the epoch ends, or call trainer.validate(model, data).",
        NeverTaken,
    )


def warn_of_shuffled_predictions(context: Context) -> None:
    """Warn of predictions on data of a loader that shuffles.

    Warns:
        ShuffledPredictions: A loader shuffles.
    """
    for name, feed in context.validation:
        if isinstance(getattr(feed.loader, "sampler", None), RandomSampler):
            _warn(
                f"The loader {name!r} shuffles, so the predictions are not in the order of the data, and "
                "nothing tells which belongs to what. Give predict a loader without shuffle=True.",
                ShuffledPredictions,
            )


def warn_of_shared_names(context: Context, validated: Iterable[str]) -> None:
    """Warn of metrics that are logged in training and in validation.

    Args:
        context: The context of the run.
        validated: Names that a validation has just logged.
    """
    name = next((one for one in validated if _is_seen(context.train_metrics, one)), None)
    if name is not None:
        _warn(
            f"{name!r} is logged in training and in validation, and callbacks, checkpoints and "
            "`trainer.metrics` see that of training. Log it under two names, such as "
            f"'val_{name}' in the validation step.",
            SharedName,
        )


def _check_parameters(slot: OptimizerSlot, own: Collection[int], model: nn.Module) -> None:
    parameters, kind = slot.parameters, type(slot.optimizer).__name__
    foreign = sum(id(one) not in own for one in parameters)
    if not foreign:
        return
    whose = f"{foreign} of the {len(parameters)} parameters that the {kind} updates are"
    if foreign == len(parameters) and any(one.requires_grad for one in model.parameters()):
        raise OptimizerError(
            f"None of the {foreign} parameters that the {kind} updates is one of the "
            f"{type(model).__name__}, which would learn nothing. Was it made for another model or a "
            "copy, or before a layer was replaced, or are layers in a plain list (use nn.ModuleList)?"
        )
    _warn(
        f"{whose} none of the {type(model).__name__}'s, so that no checkpoint holds them. Was a "
        "layer replaced after the optimizer was made? Make what is to be trained an attribute of "
        "the model.",
        ForeignParameters,
    )


def _is_seen(table: Metrics, name: str) -> bool:
    """Return whether a table shows a metric of this name, without computing it."""
    try:
        return table.shown(name).on_epoch
    except UnknownMetric:
        return False


def _is_frozen(slot: OptimizerSlot) -> bool:
    parameters = slot.parameters
    return bool(parameters) and not any(one.requires_grad for one in parameters)


def _warn_of_frozen(slot: OptimizerSlot) -> None:
    kind, count = type(slot.optimizer).__name__, len(slot.parameters)
    _warn(
        f"All of the {count} parameters that the {kind} updates are frozen (requires_grad is "
        "False), so that it changes nothing. Give it those that are to be trained: [p for p in "
        "model.parameters() if p.requires_grad].",
        FrozenParameters,
    )


def _has_scheduler(slot: OptimizerSlot) -> bool:
    """Return whether a scheduler of torch was made for the optimizer: it wraps the method `step`.

    Settings that it writes into the groups may also come from a loaded state.
    """
    return hasattr(slot.optimizer.step, "_wrapped_by_lr_sched")


def _warn(text: str, kind: type[LikelyMistake]) -> None:
    warnings.warn(text, kind, stacklevel=level_of_caller())
