"""The plan of a loop tree: states, transitions and answers, read once and used by all that follows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field

from statemachine_trainer.machine.declaration import (
    Answers,
    Transition,
    declared_names,
    read_errors,
    read_transitions,
)
from statemachine_trainer.machine.errors import (
    LoopDefinitionError,
    UnknownInitialState,
    UnknownState,
    suggest,
)
from statemachine_trainer.machine.loop import SEPARATOR, Loop, Place

POSTED_EVENTS = ("stop", "validate", "checkpoint", "pause")
"""Events from outside: any loop may have a transition for them."""

END = "end"
"""Name of the final state beside the root loop."""


@dataclass(slots=True)
class LoopPlan:
    """The checked declaration of one loop of the tree.

    Attributes:
        path: Path of the loop, the root's name first.
        loop: The loop itself.
        states: Names of its states, the initial one first.
        transitions: Its transitions, normalized.
        answers: The events that each of its methods may answer with.
        inside: Plans of the loops inside it.
        origins: For each event that may leave the loop, the path of a state that answers with it.
    """

    path: str
    loop: Loop
    states: list[str]
    transitions: list[Transition]
    answers: dict[str, Answers] = field(default_factory=dict)
    inside: dict[str, LoopPlan] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the loop's class."""
        return type(self.loop).__name__

    def given_by(self, state: str) -> dict[str, str]:
        """Return the events that a state of this loop may answer with, each with the path of its origin."""
        if state in self.inside:
            return self.inside[state].origins
        return dict.fromkeys(self.answers[state].events, f"{self.path}{SEPARATOR}{state}")

    def posted_events(self) -> set[str]:
        """Return the events that may reach this loop from outside."""
        return {*POSTED_EVENTS, *self.loop.posted}

    def takes_posted(self, state: str, event: str) -> bool:
        """Return whether a posted event may take the transitions on it from this state.

        An event that the state itself answers with may not be posted, unless the loop lists it in
        `posted`.
        """
        if event in self.loop.posted:
            return True
        return event in POSTED_EVENTS and event not in self.given_by(state)

    def handles(self, state: str, event: str) -> bool:
        """Return whether this event from this state has a transition whatever the conditions say."""
        return any((t.source, t.event, t.guards) == (state, event, ()) for t in self.transitions)

    def walk(self) -> Iterator[LoopPlan]:
        """Yield this plan and the plans of the loops inside, outer ones first."""
        yield self
        for plan in self.inside.values():
            yield from plan.walk()


def states_of(loop: Loop, path: str) -> list[str]:
    """Return the names of a loop's states, the initial one first, each a method or a loop.

    Raises:
        UnknownInitialState: `initial` is missing, or names no state.
        UnknownState: A name in `transitions` is no state.
        LoopDefinitionError: The default of a place is one instance shared by all loops.
        MalformedTransition: An entry of `transitions` has the wrong form.
    """
    cls = type(loop)
    initial = getattr(cls, "initial", None)
    if not isinstance(initial, str):
        first = f'"{initial.__name__}"' if inspect.isfunction(initial) else "..."
        raise UnknownInitialState(
            f"Loop {path!r} ({cls.__name__}) does not say where it begins. Write the name of its "
            f"first state in the class: `initial = {first}`."
        )
    read_transitions(cls, loop.transitions, [])  # checks their form before their names are used
    read_errors(cls, loop.errors, [])
    names = declared_names([*loop.transitions, *loop.errors], initial)
    for name in cls.places():
        factory = inspect.getattr_static(cls, name).factory
        if isinstance(factory, Loop):
            kind = type(factory).__name__
            raise LoopDefinitionError(
                f"{cls.__name__}.{name} of loop {path!r} is `place({kind}())`, one loop for all. "
                f"Give the class, or a function that makes one: `place({kind})`."
            )
    places, inside = cls.places(), loop.loops_inside()
    for name in names:
        if name in places:
            known = name in inside
        else:
            known = callable(getattr(loop, name, None)) and not _is_property(cls, name)
        if not known:
            error = UnknownInitialState if name == initial else UnknownState
            raise error(f"{name!r} in loop {path!r} ({cls.__name__}) {_not_a_state(loop, name)}")
    return names


def _is_property(cls: type[Loop], name: str) -> bool:
    value = inspect.getattr_static(cls, name, None)
    return inspect.isdatadescriptor(value) and not isinstance(value, Place)


def _not_a_state(loop: Loop, name: str) -> str:
    """Explain why a name cannot be a state, and what to do about it."""
    cls = type(loop)
    if _is_property(cls, name):
        return "is a property. A state is called: take `@property` away."
    if (outer := name.partition(SEPARATOR)[0]) != name:
        return (
            f"is a path. A transition leads to a state of its own loop, here {outer!r}; to begin at "
            "another state inside that, give that loop an entry point (`entries`)."
        )
    if name in vars(loop) and hasattr(cls, name):
        kind = type(vars(loop)[name]).__name__
        return (
            f"is a method that an attribute of the loop hides: `self.{name}` was set to a value of "
            f"type {kind}. Give one of them another name."
        )
    if any(
        isinstance(entry, list | tuple) and len(entry) >= 3 and entry[1] == name
        and callable(getattr(cls, str(entry[0]), None))
        for entry in loop.transitions
    ):  # fmt: skip
        return "is no state. The order in a transition is [event, source, dest]."
    value = getattr(cls, name, None)
    odd = value is not None and not isinstance(value, Place)
    found = f" (it is of type {type(value).__name__})" if odd else ""
    if near := suggest(name, _possible_states(loop), cutoff=0.5):
        return f"is neither a method nor a loop{found}. {near}"
    return (
        f"is neither a method nor a loop{found}. {suggest(name, _possible_states(loop))} If it is to be "
        f"a loop, give one: `{cls.__name__}({name}=...)`."
    )


def _possible_states(loop: Loop) -> list[str]:
    """Return the names that an unknown state may stand for: loops, states, and methods of the user."""
    cls = type(loop)
    # An unknown name has become a place of the class, with nothing in it.
    names = declared_names([*loop.transitions, *loop.errors], getattr(cls, "initial", None))
    states = [
        name for name in names if name not in cls.places() and callable(getattr(cls, name, None))
    ]
    return [*loop.loops_inside(), *states, *methods_of(cls, users=True)]


def methods_of(cls: type[Loop], *, users: bool = False) -> list[str]:
    """Return the names of the methods that a class of loops adds to those of `Loop`.

    Args:
        cls: The class.
        users: Leave out those of the loops of this package, whose helpers nobody means.
    """
    ours = __name__.partition(".")[0]
    own = {
        n
        for c in cls.__mro__
        if c not in (Loop, object) and not (users and c.__module__.partition(".")[0] == ours)
        for n in c.__dict__
    }
    return [
        n
        for n in own
        if not n.startswith("_") and inspect.isfunction(inspect.getattr_static(cls, n))
    ]
