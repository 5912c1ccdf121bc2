"""The plain model of a graph: states, edges, receivers. Renderers know nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from statemachine_trainer.machine.errors import (
    StateMachineError,
)
from statemachine_trainer.machine.loop import SEPARATOR

if TYPE_CHECKING:
    pass


class BadOption(StateMachineError):
    """An option of a picture has a value that means nothing."""


class UnknownFormat(StateMachineError):
    """A picture was to be written to a file whose ending tells no format."""


Kind = Literal["state", "loop", "final"]


Receivers = Mapping[str, Sequence[str]]


class UnknownPath(StateMachineError):
    """A state was named, as the running one or by its heat, that the graph does not have."""


@dataclass(frozen=True, slots=True)
class GraphState:
    """A state of the graph: one that works, a loop with states inside, or the final one.

    Attributes:
        path: Path of the state.
        name: Last name of the path.
        kind: "state", "loop" or "final".
        loop: Class of the loop; of a state, class of the loop that it is a method of.
        doc: First line of the docstring.
        transient: Whether the boundary before it cannot be written down.
        resting: Whether it may rest until something comes from outside.
        initial: Path of the state in which a loop begins.
        answers: Events that it may answer with; of a loop, its outcomes.
        leaving: Those of `answers` that leave the loop around it.
        on_enter: Receivers of its enter signal.
        on_exit: Receivers of its exit signal.
        children: States inside a loop, the initial one first. A closed loop shows none.
    """

    path: str
    name: str
    kind: Kind
    loop: str = ""
    doc: str = ""
    transient: bool = False
    resting: bool = False
    initial: str | None = None
    answers: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    on_enter: tuple[str, ...] = ()
    on_exit: tuple[str, ...] = ()
    children: tuple[GraphState, ...] = ()

    def walk(self) -> Iterator[GraphState]:
        """Yield this state and all inside it, outer ones first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, Any]:
        """Return the state as data that JSON can hold."""
        values = _plain(self)
        values["children"] = [child.to_dict() for child in self.children]
        return values


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """A transition, between the states that declare it.

    Attributes:
        event: The event that it is taken on.
        source: Path of the state that it is declared for.
        target: Path of the state that it leads to: a sibling of the source, or, where a loop has an
            entry point for the event, the state inside that is entered; "end" for the final state.
        guards: Its conditions, in words.
        posted: Whether the event only ever comes from outside.
        internal: Whether the state is neither left nor entered.
        receivers: Receivers of its signal.
    """

    event: str
    source: str
    target: str
    guards: tuple[str, ...] = ()
    posted: bool = False
    internal: bool = False
    receivers: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The edge in the notation of UML: `event [guard] / receivers`."""
        text = self.event
        if self.posted:
            text += " (posted)"
        if self.internal:
            text += " (internal)"
        if self.guards:
            text += f" [{' and '.join(self.guards)}]"
        if self.receivers:
            text += f" / {' and '.join(self.receivers)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the edge as data that JSON can hold."""
        return _plain(self)


def _closed(state: GraphState, depth: int) -> GraphState:
    inside = tuple(_closed(child, depth - 1) for child in state.children) if depth > 0 else ()
    return replace(state, children=inside)


def _visible(path: str, shown: set[str]) -> str | None:
    """Return the innermost of the shown states that a path lies in."""
    while path and path not in shown:
        path = path.rpartition(SEPARATOR)[0]
    return path or None


def _plain(one: GraphState | GraphEdge) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in one.__slots__}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
