"""The errors of the machine, one class for each kind of mistake.

Every message says what is wrong, where (the path of the loop or state), and what to do about it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Final

_BETWEEN: Final = frozenset({__name__.partition(".")[0], "torch", "contextlib"})
"""Packages whose code stands between a line of the user and a warning."""


class StateMachineError(Exception):
    """Base of every error this package raises on purpose."""


class LoopDefinitionError(StateMachineError):
    """A loop tree that cannot run. Raised when the machine is built, never during a run."""


class MalformedTransition(LoopDefinitionError):
    """An entry of `transitions` (or of `entries`) that is not of the expected form."""


class UnknownState(LoopDefinitionError):
    """A name in `transitions` that is neither a method of the loop nor a loop inside it."""


class UnknownInitialState(LoopDefinitionError):
    """`initial` is missing or names no state of the loop."""


class UndeclaredEvents(LoopDefinitionError):
    """A state method whose return annotation does not list the events it may answer with."""


class UncallableState(LoopDefinitionError):
    """A state method or a condition that cannot be called without arguments."""


class UnhandledEvent(LoopDefinitionError):
    """An event that a state may answer with and for which no loop around it has a transition."""


class ImpossibleEvent(LoopDefinitionError):
    """A transition on an event that its source can never give."""


class UnreachableState(LoopDefinitionError):
    """A state that no path from the initial state leads to."""


class NoWayOut(LoopDefinitionError):
    """A state from which the end of its loop cannot be reached."""


class LoopUsedTwice(LoopDefinitionError):
    """One loop instance is in two places of a tree, or in two machines."""


class MissingLoop(LoopDefinitionError):
    """A place for a loop that was not filled and has no default."""


class ReservedName(LoopDefinitionError):
    """A name that is reserved for the machine, or that cannot be part of a path."""


class PlaceNotNamed(LoopDefinitionError, TypeError):
    """A loop was given by position, so its place is unknown."""


class NoValueYet(StateMachineError, AttributeError):
    """A field without a default was read before it was set."""


class UnknownLoop(StateMachineError):
    """A path or name that matches no loop of the tree, or more than one."""


class LoopInUse(StateMachineError):
    """A loop cannot be replaced while one of its own states is running."""


class CannotBuild(StateMachineError):
    """A loop class given to `replace` needs settings that the replaced loop does not have."""


class UnexpectedEvent(StateMachineError):
    """A state answered at run time with something that has no transition."""


class TooManyErrors(StateMachineError):
    """A state raised again and again, and each time an error edge led back to it."""


class OftenFailed(UserWarning):
    """Very many errors of a state have taken the same edge, so that the run may never end."""


class EndlessPosting(StateMachineError):
    """Receivers post events to each other again and again, so that a state never comes to its work."""


class NotUndone(StateMachineError):
    """A state raised, and what it had changed could not be put back. No error edge is taken then."""


class StrayStopIteration(StateMachineError):
    """User code let a `StopIteration` escape. It does not end a loop here."""


class AlreadyRunning(StateMachineError):
    """The machine was asked to run or to step from inside one of its own states or receivers."""


class NotStarted(StateMachineError):
    """The machine has no state to run: it was not started, or it has ended."""


class UnknownEvent(StateMachineError):
    """An event was posted that no loop of the tree ever takes."""


class UnknownSetting(StateMachineError, TypeError):
    """A keyword that a class does not take: a misspelt setting, or one of another class."""


class SubscriptionError(StateMachineError):
    """Base of the errors of `on`."""


class UnknownSignal(SubscriptionError):
    """No state, loop or transition has this name."""


class AmbiguousSignal(SubscriptionError):
    """A short name that several states have."""


class BadReceiver(SubscriptionError):
    """A receiver that cannot be called with `(trainer, moment)`, or an invalid option."""


class StateMismatch(StateMachineError):
    """A saved state does not fit this loop tree; the message lists the differences."""


def suggest(name: str, known: Iterable[str], *, cutoff: float | None = None) -> str:
    """Return the end of an error message that offers the names nearest to `name`.

    Args:
        name: The name that was not found.
        known: Those that there are.
        cutoff: Offer only names so near (0 to 1), and nothing if there is none.
    """
    names = sorted(set(known))
    given = str(getattr(name, "__name__", name))  # people also give a function, such as `max`
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5 if cutoff is None else cutoff)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    if cutoff is not None:
        return ""
    if len(names) > 40:
        return f"There are {len(names)} names; the first are {', '.join(names[:40])}."
    return f"Known: {', '.join(names)}." if names else "There are none."


def suggest_path(name: str, paths: Iterable[str]) -> str:
    """Return what `suggest` does, for paths: a name without dots is compared with their ends."""
    ends = {path.rpartition(".")[2]: path for path in sorted(paths, reverse=True)}
    near = difflib.get_close_matches(name, ends, n=3, cutoff=0.5) if "." not in name else []
    return (
        suggest(name, paths)
        if not near
        else f"Did you mean {' or '.join(repr(ends[n]) for n in near)}?"
    )


# -- The line of user code that a warning names ---------------------------------------------------


def level_of_caller() -> int:
    """Return the `stacklevel` with which a warning of the caller points at the line of the user.

    That is the innermost frame which is neither of this package nor of what calls it in between:
    torch, and the context managers of the standard library.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    return level
