"""The graph of a chart: plain data, extracted once, from which every kind of picture is made."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.errors import (
    StateMachineError,
    UnhandledEvent,
    UnknownLoop,
    suggest,
)
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.picture import BadOption, Drawable
from statemachine_trainer.machine.verify import END

if TYPE_CHECKING:
    from statemachine_trainer.machine.difference import GraphDiff
    from statemachine_trainer.machine.drawing import Style

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


@dataclass(frozen=True, slots=True)
class Graph(Drawable):
    """The states and transitions of a machine, and where it stands.

    It draws itself, see `machine.picture.Drawable`; a notebook shows the picture. `str(graph)` is an
    outline.

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

    @classmethod
    def of(
        cls, chart: Chart, *, current: str | None = None, receivers: Receivers | None = None
    ) -> Graph:
        """Extract the graph of a chart.

        Args:
            chart: The machine.
            current: Path of the running state, to be lit.
            receivers: Labels of receivers by the full name of their signal (`"fit.epoch:exit"`; a
                bare path means the enter signal). Names that the chart does not have are skipped:
                a board may serve several charts.

        Raises:
            UnknownPath: The chart has no state `current`.
        """
        from statemachine_trainer.machine.extraction import extract

        root, edges = extract(chart, receivers or {})
        graph = cls(root.name, root, edges)
        return graph if current is None else graph.at(current)

    def at(self, path: str | None) -> Graph:
        """Return the graph with another running state; with None, there is none.

        Raises:
            UnknownPath: The graph has no such state.
        """
        paths = [state.path for state in self.states()]
        if path is not None and path not in paths:
            raise UnknownPath(
                f"The machine {self.name!r} has no state {path!r} to show as the running one. "
                f"{suggest(path, paths)}"
            )
        return replace(self, current=path)

    def states(self) -> Iterator[GraphState]:
        """Yield every state that the graph shows, the root first and the final one last."""
        yield from self.root.walk()
        yield self.final

    def collapse(self, depth: int) -> Graph:
        """Return the graph with loops deeper than `depth` closed; at 0 the root itself is.

        Raises:
            BadOption: The depth is no whole number from 0.
        """
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise BadOption(
                f"collapse({depth!r}): give the depth from which on loops are closed, a whole number "
                "from 0; open(path) shows one loop alone."
            )
        return self._showing(_closed(self.root, depth), self.edges)

    def open(self, path: str) -> Graph:
        """Return the graph of one loop alone; its outcomes lead to the final state.

        Args:
            path: Path of the loop, or the end of one that only one loop has.

        Raises:
            UnknownLoop: No loop is called so, or several are.
        """
        loops = {s.path: s for s in self.root.walk() if s.kind == "loop"}
        found = [p for p in loops if p == path] or [p for p in loops if p.endswith(f".{path}")]
        if len(found) != 1:
            which = f"{len(found)} loops" if found else "no loop"
            known = suggest(str(path), loops)
            raise UnknownLoop(f"The graph of {self.name!r} has {which} called {path!r}. {known}")
        if found[0] == self.root.path:
            return self
        root = replace(loops[found[0]], leaving=loops[found[0]].answers)
        inside = [e for e in self.edges if e.source != root.path]
        ends = [GraphEdge(event, root.path, END) for event in root.answers]
        return self._showing(root, [*ends, *inside])

    def diff(self, after: Graph) -> GraphDiff:
        """Return what has to be done to this graph to make it the other one.

        The outermost loops may have different names.
        """
        from statemachine_trainer.machine.difference import GraphDiff

        return GraphDiff.of(self, after)

    def to_dict(self) -> dict[str, Any]:
        """Return the graph as data that JSON can hold."""
        return {
            "name": self.name,
            "current": self.current,
            "root": self.root.to_dict(),
            "final": self.final.to_dict(),
            "edges": [edge.to_dict() for edge in self.edges],
        }

    def __str__(self) -> str:
        return "\n".join(self._outline(self.root, 0))

    def _drawing(self) -> tuple[Graph, Style]:
        from statemachine_trainer.machine.drawing import Style

        return self, Style()

    def _showing(self, root: GraphState, edges: Sequence[GraphEdge]) -> Graph:
        """Return a graph of `root` alone: edges end at what is shown, and hidden ones are gone."""
        shown = {s.path for s in root.walk()} | {END}
        kept = [
            replace(edge, target=target)
            for edge in edges
            if edge.source in shown and (target := _visible(edge.target, shown)) is not None
        ]
        current = None if self.current is None else _visible(self.current, shown)
        return Graph(root.name, root, tuple(kept), current, self.final)

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


def graph_of(loop: Loop, name: str = "loop") -> Graph:
    """Return the graph of a loop that is in no machine.

    A loop that does not list its `outcomes` may let any event go: each that it does let go leads to
    the final state.

    Raises:
        LoopDefinitionError: The loop tree does not hold together.
    """
    from statemachine_trainer.machine.extraction import events_let_go

    try:
        chart = Chart(loop, name)
    except UnhandledEvent:
        if loop.outcomes:
            raise
        # A copy: the loop itself must not have outcomes for having been drawn.
        root: Any = copy.copy(loop)
        root.outcomes = tuple(events_let_go(loop, name))
        chart = Chart(root, name)
    return Graph.of(chart)


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
