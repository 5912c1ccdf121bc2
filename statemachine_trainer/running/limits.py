"""Refuses fits that would never end, or that are over before they begin."""

from __future__ import annotations

from typing import Final

from statemachine_trainer.loops.base import in_training, training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import NothingToDo, SettingError
from statemachine_trainer.machine.loop import Loop

_LIMITS: Final = ("max_epochs", "max_steps", "max_batches", "max_time")


def refuse_endless(root: Loop) -> None:
    """Refuse a fit that would never end.

    Raises:
        SettingError: A loop of the tree has limits, but none is set.
    """
    if any(loop.never_ends() for _, loop in training_loops(root)):
        raise SettingError(
            f"The fit would never end: set one of {', '.join(_LIMITS)}. For a run that only `stop` ends, say "
            "max_epochs=math.inf."
        )


def refuse_to_do_nothing(root: Loop, context: Context) -> None:
    """Refuse a fit whose limits are already reached.

    Args:
        root: The loop of the fit. Its limits, if any, are set in the context.
        context: The context of the fit, with its counters.

    Raises:
        NothingToDo: A limit is already reached.
    """
    limits = in_training(root).limits()
    if limits is not None:
        context.limits = limits
    name, counts = context.limit_reached, context.counts
    if name is not None:
        raise NothingToDo(
            f"This fit would do nothing: {name}={getattr(root, name, None)!r} is reached, with {counts.epoch} "
            f"epochs, {counts.step} steps and {counts.batch} batches done. Raise `trainer.loop.{name}` to go on, "
            "or begin anew with `fit(..., restart=True)`."
        )


def refuse_device_without_numbers(context: Context, *, checkpoints: bool) -> None:
    """Refuse to write checkpoints of a fit whose tensors have no numbers, before torch warns where they are loaded.

    Raises:
        SettingError: The device is "meta".
    """
    if checkpoints and context.device.type == "meta":
        raise SettingError(
            "Trainer(device='meta', checkpoints=...): tensors on 'meta' have shapes and no numbers, so there is "
            "nothing to write. Choose another device, or leave checkpoints out."
        )
