"""The plain model of a graph: states, edges, receivers. Renderers know nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from statemachine_trainer.machine.errors import StateMachineError as StateMachineError
from statemachine_trainer.machine.errors import suggest_path
from statemachine_trainer.machine.loop import SEPARATOR as SEPARATOR
from statemachine_trainer.machine.plan import END as END

Kind = Literal["state", "loop", "final"]
Receivers = Mapping[str, Sequence[str]]


class BadOption(StateMachineError):
    """An option of a picture has an invalid value."""


class UnknownFormat(StateMachineError):
    """The ending of a file name belongs to no format of pictures."""


class UnknownPath(StateMachineError):
    """The graph has no state of this path."""


@dataclass(frozen=True, slots=True)
class GraphState:
    """A state of the graph: one that works, a loop with states inside, or the final one.

    Attributes:
        path: Path of the state.
        name: Last name of the path.
        kind: "state", "loop" or "final".
        loop: Class of the loop; of a state, class of the loop that it is a method of.
        doc: First line of the docstring.
        transient: Whether no snapshot can be taken at the boundary before it.
        resting: Whether it may rest until something comes from outside.
        initial: Path of the state in which a loop begins.
        answers: Events that it may answer with; of a loop, its outcomes.
        leaving: Those of `answers` that leave the loop around it.
        on_enter: Receivers of its enter signal.
        on_exit: Receivers of its exit signal.
        children: States inside a loop, the initial one first. A closed loop shows none.
        like: Of a loop that is closed because another one looks the same inside: the name of that one.
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
    children: tuple[GraphState, ...] = field(default=(), repr=False)
    like: str = ""

    def walk(self) -> Iterator[GraphState]:
        """Yield this state and all inside it, outer ones first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, Any]:
        """Return the state as data that JSON can hold."""
        values = _plain(self)
        del values["like"]  # a way of drawing
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
        guards: Its conditions, as text.
        posted: Whether the event only ever comes from outside.
        internal: Whether the state is neither left nor entered.
        error: Whether an exception takes it; `event` is the name of its type.
        receivers: Receivers of its signal.
        actions: What is done on the way, as text.
    """

    event: str
    source: str
    target: str
    guards: tuple[str, ...] = ()
    posted: bool = False
    internal: bool = False
    error: bool = False
    receivers: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The label of the edge in UML notation: `event [guard] / actions and receivers`."""
        text = self.event
        if self.posted:
            text += " (posted)"
        if self.error:
            text += " (error)"
        if self.internal:
            text += " (internal)"
        if self.guards:
            text += f" [{' and '.join(self.guards)}]"
        if self.actions or self.receivers:
            text += f" / {' and '.join((*self.actions, *self.receivers))}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the edge as data that JSON can hold."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class GraphData:
    """A graph as plain data: all that a renderer needs.

    Attributes:
        name: Name of the root.
        root: The outermost loop, with all states inside.
        edges: All transitions, in the order of the tree; the root's outcomes lead to `final`.
        current: Path of the running state.
        final: The state beside the root in which the machine ends.
    """

    name: str
    root: GraphState
    edges: tuple[GraphEdge, ...]
    current: str | None = None
    final: GraphState = field(default_factory=lambda: GraphState(END, END, "final"))

    def states(self) -> Iterator[GraphState]:
        """Yield every state that the graph shows, the root first and the final one last."""
        yield from self.root.walk()
        yield self.final

    def at(self, path: str | None) -> Self:
        """Return the graph with another running state; with None, there is none.

        Raises:
            UnknownPath: The graph has no such state.
        """
        paths = [state.path for state in self.states()]
        if path is not None and path not in paths:
            raise UnknownPath(
                f"The machine {self.name!r} has no state {path!r} to show as the running one. "
                f"{suggest_path(path, paths)}"
            )
        return replace(self, current=path)

    def outline(self) -> str:
        """Return the graph as text, a line for each state."""
        return "\n".join(self._outline(self.root, 0))

    def _outline(self, state: GraphState, depth: int) -> Iterator[str]:
        text = f"{'  ' * depth}{state.name}"
        if state.kind == "loop":
            text += f" ({state.loop})"
        marks = {
            "running": state.path == self.current,
            "transient": state.transient,
            "rests": state.resting,
        }
        text += "".join(f" [{mark}]" for mark, applies in marks.items() if applies)
        around = state.path.rpartition(SEPARATOR)[0] + SEPARATOR
        steps = [
            f"{e.label} -> {e.target.removeprefix(around)}"
            for e in self.edges
            if e.source == state.path
        ]
        if state is not self.root and state.leaving:
            steps.append(f"leaves on {', '.join(state.leaving)}")
        heard = {"entry": state.on_enter, "exit": state.on_exit}
        steps += [f"{kind} / {', '.join(labels)}" for kind, labels in heard.items() if labels]
        yield f"{text}: {'; '.join(steps)}" if steps else text
        for child in state.children:
            yield from self._outline(child, depth + 1)


def _plain(one: GraphState | GraphEdge) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in one.__slots__}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
