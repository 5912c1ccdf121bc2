"""The base class of the loops of training, with the methods that the trainer calls on every loop."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from statemachine_trainer.data import Feed, limit_batches
from statemachine_trainer.intervals import Counts
from statemachine_trainer.loops.changeable import Changeable
from statemachine_trainer.loops.context import Context, Limits
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.machine.declaration import is_transient
from statemachine_trainer.machine.loop import SEPARATOR, Loop


class TrainingLoop(Loop):
    """A loop that shares a training `Context` with the other loops of its machine.

    The trainer, checkpoints and other loops call the methods below. A loop overrides those that
    concern it; the defaults do nothing. A tree may also hold plain loops of the machine: for these
    `in_training` returns a loop with the defaults.
    """

    context: Context

    def __repr__(self) -> str:
        """Return the settings that are not the defaults, as in `FitLoop(max_epochs=3)`."""
        shown = []
        _, *settings = inspect.signature(type(self).__init__).parameters.values()
        for one in settings:
            text = reprlib.repr(self._setting(one))
            if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and text != repr(one.default):
                shown.append(f"{one.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _setting(self, one: inspect.Parameter) -> Any:
        """Return the value of a setting: under its name, with an underscore, or as it was given.

        A field or a state of the same name is not the setting.
        """
        own = vars(self)
        if one.name in own and one.name not in self._fields:
            return own[one.name]
        if hasattr(self, f"_{one.name}"):
            return getattr(self, f"_{one.name}")
        if one.name in self._given and self.is_place(one.name):
            return self.loops_inside()[one.name]
        shown_by = inspect.getattr_static(type(self), one.name, None)
        given = one.name in self._given and isinstance(shown_by, property)
        return getattr(self, one.name) if given else one.default

    @property
    def changeable(self) -> Mapping[str, Changeable]:
        """Settings that may be changed while a fit runs, and what they may be."""
        return {}

    # -- how long it trains ----------------------------------------------------------------------

    def limits(self) -> Limits | None:
        """Return the limits of a loop that is a fit; None for other loops.

        Read when the fit continues after a pause, and before each of its epochs.

        Raises:
            SettingError: A setting out of its range.
        """
        return None

    def own_limits(self) -> Limits | None:
        """Return the same for a fit that begins at its first step, whatever came before it in the run."""
        return self.limits()

    def steps_of_batches(self, epoch: int, batches: int) -> int | None:
        """Return the optimizer steps that the loop makes of the batches of an epoch; None if it cannot tell."""
        return None

    def never_ends(self) -> bool:
        """Return whether the loop is a fit without any limit."""
        return False

    def count_from(self, counts: Counts) -> None:
        """Count the limits from these counters on, for several fits that share counters."""

    @property
    def counts_samples(self) -> bool:
        """Whether a setting of the loop needs the number of samples, which takes time to count."""
        return False

    @property
    def reads_training_data(self) -> bool:
        """Whether the loop reads the training data, a pass for each epoch."""
        return False

    @property
    def splits_batches(self) -> bool:
        """Whether the loop cuts batches along time."""
        return False

    # -- what it does in a batch -----------------------------------------------------------------

    @property
    def evaluates(self) -> bool:
        """Whether the loop evaluates a model; ranks may do so on different numbers of batches."""
        return False

    @property
    def has_no_work(self) -> bool:
        """Whether the loop has nothing to do by its settings, so that it need not be entered."""
        return False

    def most_batches(self, feed: Feed) -> int | None:
        """Return the largest number of batches that the loop reads from a loader; None if unknown."""
        return feed.length

    @property
    def steps_optimizers(self) -> bool:
        """Whether the loop steps optimizers on a split of a batch."""
        return False

    @property
    def by_hand(self) -> bool:
        """Whether the training step steps the optimizers itself."""
        return False

    def window_size(self) -> int | None:
        """Return the backward passes of one step, if the loop uses gradients at that step only.

        None means that it may use them after each backward pass.
        """
        return None

    def why_alone(self, context: Context) -> str | None:
        """Return why several ranks cannot run the loop, and what to use instead.

        None if several ranks can run it.

        Args:
            context: The context of the fit, which was just assembled.

        Raises:
            UnsupportedWrapper: The wrapper of the model does what the loop would leave out.
        """
        return None

    def why_whole(self) -> str | None:
        """Return why the loop needs the whole parameters at each rank, and what to use instead.

        None if it can train a model that `fully_shard` has cut up.
        """
        return None

    # -- errors, stopping, resuming, replacing -----------------------------------------------------------

    def undo_of(self, state: str) -> Callable[[Exception], None] | None:
        """Return a function that undoes what a state changes before it raises; see `Loop.undo_of`.

        It restores what the loops of training share: generators, metrics, buffers, the gradients of
        an open window, hiddens, counters, the scaler. The data keeps its own position: a batch that
        was fetched and not moved yet is not lost.
        """
        own = super().undo_of(state)
        # An error behind a transient boundary is undone together with the states before that, which
        # have kept the whole context.
        if is_transient(getattr(self, state)) or not isinstance(
            self.__dict__.get("context"), Context
        ):
            return own
        # Imported here, because a run without error edges needs nothing of it.
        from statemachine_trainer.loops.putting_back import Kept

        kept = Kept(self.context)

        def undo(error: Exception) -> None:
            if getattr(self, "holding", False):
                return
            kept.put_back()
            if own is not None:
                own(error)

        return undo

    def abandon(self) -> None:
        """Undo the changes of an unfinished loop that will not be continued."""

    def restore(self) -> None:
        """Make the loaders that the fields of the loop refer to, before a saved state is loaded.

        Called for the loops around the running state, outermost first, after their fields were
        restored.
        """

    def make_optimizers(self, name: str) -> list[OptimizerSlot]:
        """Make the optimizers of one part of the loop, as the saved run did.

        Raises:
            SettingError: The loop makes none.
        """
        raise SettingError(
            f"The checkpoint has optimizers that the part {name!r} of a loop made, and this "
            f"{type(self).__name__} makes none. Build the same loops."
        )

    def schedule(self, slot: OptimizerSlot, name: str) -> None:
        """Give an optimizer the scheduler of one part of the loop, as the saved run did.

        Raises:
            SettingError: The loop makes none.
        """
        raise SettingError(
            f"The checkpoint has a scheduler that the part {name!r} of a loop made, and this "
            f"{type(self).__name__} makes none. Build the same loops."
        )

    def stands_in_for(self) -> Loop | None:
        """Return the loop that this one replaces for the present model, and that returns later."""
        return None

    def parts_with_settings(self) -> Mapping[str, object]:
        """Return objects, by what to call them, whose settings are settings of this loop too; phases are such."""
        return {}

    def steps_aside(self, why: str) -> bool:
        """Return whether another loop may stand in for this one, with a model that needs one of its own.

        Args:
            why: What the model is or does.
        """
        return False

    def more_to_come(self) -> bool | None:
        """Return whether a part that may log its own metrics has not run yet.

        None means that the loop does not know.
        """
        return None


TrainingLoop._called = frozenset(name for name in vars(TrainingLoop) if name[0] != "_") - {
    "context"
}

_NOTHING_TO_TELL = TrainingLoop()


def in_training(loop: Loop | None) -> TrainingLoop:
    """Return a loop of training itself, and for any other loop one with the default methods."""
    return loop if isinstance(loop, TrainingLoop) else _NOTHING_TO_TELL


def training_loops(root: Loop, path: str = "") -> Iterator[tuple[str, TrainingLoop]]:
    """Yield path and loop of each loop of training in a tree, outer ones first."""
    for place, loop in root.walk(path):
        if isinstance(loop, TrainingLoop):
            yield place, loop


def loops_around(root: Loop, path: str | None) -> list[Loop]:
    """Return the loops around a state, outermost first; the root alone if there is no state.

    Args:
        root: The tree.
        path: Path of the state, which begins with the name of the root.
    """
    found = [root]
    for name in (path or "").split(SEPARATOR)[1:-1]:
        found.append(found[-1].loops_inside()[name])
    return found


def take_limits(root: Loop, path: str | None, context: Context) -> None:
    """Read the limits of the innermost fit around a state: they may have changed in a pause."""
    for loop in reversed(loops_around(root, path)):
        limits = in_training(loop).limits()
        if limits is not None:
            context.limits = limits
            return


def abandon_loops(root: Loop) -> None:
    """Make unfinished loops at and below `root` undo their changes."""
    for _, loop in training_loops(root):
        loop.abandon()


# -- Checks of settings ---------------------------------------------------------------------------


def check_limit(limit: float | None, name: str) -> int | None:
    """Check a limit on batches before the number of batches is known; return a number for many.

    Raises:
        BadLimit: It makes no sense for any number of batches.
    """
    return limit_batches(limit, 1_000_000_000, name)
