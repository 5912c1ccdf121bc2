"""How many optimizer steps a fit will make, before it has made one."""

from __future__ import annotations

from statemachine_trainer.loops.base import TrainingLoop, training_loops
from statemachine_trainer.loops.context import Context, Limits
from statemachine_trainer.loops.loop_errors import TrainingError
from statemachine_trainer.machine.loop import Loop


class UnknownTotal(TrainingError):
    """The optimizer steps of a fit cannot be counted beforehand."""


def total_steps(root: Loop, context: Context, path: str | None = None) -> int:
    """Return how many optimizer steps a fit makes as a whole, if nothing ends it early.

    With several optimizers these are the steps of each that works on every batch.

    Args:
        root: The tree of loops.
        context: What they share. Its data are made now, if they were still to be.
        path: Of the state that the machine is in; None before the start. Of several fits in the tree
            the one around that state counts.

    Raises:
        UnknownTotal: The settings or the data do not tell; the message says which.
    """
    context.have_data()
    loops = [(where, one) for where, one in training_loops(root, root_name(path))]
    fits = [(where, one) for where, one in loops if one.limits() is not None]
    around = [one for one in fits if path is not None and f"{path}.".startswith(f"{one[0]}.")]
    if not fits:
        raise _unknown("the loop has no limits")
    if not around and len(fits) > 1:
        raise _unknown(
            "there are several fits, and none of them has begun; say the number for each phase"
        )
    where, fit = around[-1] if around else fits[0]
    inside = [one for place, one in loops if f"{place}.".startswith(f"{where}.")]
    limits = fit.own_limits()
    assert limits is not None
    shifted = fit.limits()
    first = 0
    if shifted is not None and shifted.max_epochs is not None and limits.max_epochs is not None:
        first = shifted.max_epochs - limits.max_epochs  # epochs of fits before, within the run
    return _count(limits, inside, context, first)


def root_name(path: str | None) -> str:
    """Return the name of the root in a path of a state."""
    return "fit" if path is None else path.partition(".")[0]


def _count(limits: Limits, loops: list[TrainingLoop], context: Context, first: int) -> int:
    if limits.every_optimizer and limits.max_steps is not None:
        raise _unknown("max_steps counts the steps of all optimizers")
    by_data = limits.max_epochs is not None or limits.max_batches is not None
    if not by_data:
        if limits.max_steps is None:
            raise _unknown("only max_time limits the fit; give max_epochs or max_steps")
        return limits.max_steps
    reads = next((one for one in loops if one.reads_training_data), None)
    batches = None if reads is None else reads.most_batches(context.train)
    if batches is None:
        raise _unknown("the loader does not tell how many batches it has; give max_steps alone")
    stepping = [one for one in loops if one.steps_of_batches(0, 1) is not None]
    by_turns = any(slot.frequency is not None for slot in context.slots)
    if len(stepping) != 1 or by_turns or context.steps.by_hand:
        raise _unknown(
            "a loop of your own, the training step, or optimizers by turns decide on them"
        )
    if any(one.splits_batches for one in loops):
        raise _unknown("batches are split along time (split_steps), and each split makes a step")
    most, left, steps, epoch = limits.max_epochs, limits.max_batches, 0, 0
    while (most is None or epoch < most) and (left is None or left > 0):
        now = batches if left is None else min(left, batches)
        steps += stepping[0].steps_of_batches(first + epoch, now) or 0
        left, epoch = (None if left is None else left - now), epoch + 1
        if limits.max_steps is not None and steps >= limits.max_steps:
            return limits.max_steps
    return steps


def _unknown(why: str) -> UnknownTotal:
    return UnknownTotal(f"The optimizer steps of the whole fit are not known before it: {why}.")
