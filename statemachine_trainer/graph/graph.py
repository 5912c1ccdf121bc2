"""The graph of a chart: plain data, extracted once, from which every kind of picture is made."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from statemachine_trainer.graph.drawable import Drawable
from statemachine_trainer.graph.extraction import events_let_go, extract
from statemachine_trainer.graph.model import (
    END,
    SEPARATOR,
    BadOption,
    GraphData,
    GraphEdge,
    GraphState,
    Receivers,
)
from statemachine_trainer.graph.style import SIGNS, Change, EdgeKey, Style, edge_keys
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.errors import (
    StateMachineError,
    UnhandledEvent,
    UnknownLoop,
    suggest_path,
)
from statemachine_trainer.machine.keywords import refuses_unknown
from statemachine_trainer.machine.loop import Loop


@dataclass(frozen=True, slots=True)
class Graph(GraphData, Drawable):
    """The states and transitions of a machine, and its running state.

    It can be drawn, see `Drawable`. A notebook shows the picture, and `str(graph)` is an outline.
    """

    @classmethod
    def of(
        cls, chart: Chart, *, current: str | None = None, receivers: Receivers | None = None
    ) -> Graph:
        """Extract the graph of a chart.

        Args:
            chart: The machine.
            current: Path of the running state, to be highlighted.
            receivers: Labels of receivers by the full name of their signal (`"fit.epoch:exit"`; a
                bare path means the enter signal). Names that the chart does not have are skipped:
                a board may serve several charts.

        Raises:
            UnknownPath: The chart has no state `current`.
        """
        root, edges = extract(chart, receivers or {})
        graph = cls(root.name, root, edges)
        return graph if current is None else graph.at(current)

    def collapse(self, depth: int) -> Graph:
        """Return the graph with loops deeper than `depth` closed; at 0 the root itself is.

        Raises:
            BadOption: The depth is not a whole number from 0.
        """
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise BadOption(
                f"collapse({depth!r}): give the depth from which on loops are closed, a whole number "
                "from 0; open(path) shows one loop alone."
            )
        return self._showing(_closed(self.root, depth), self.edges)

    def close(self, *paths: str) -> Graph:
        """Return the graph with these loops closed: nothing of what is inside is shown.

        Args:
            *paths: Paths of loops; what is no loop, or lies in a closed one, is passed over.
        """
        closed = frozenset(paths)
        return self._showing(_without(self.root, closed), self.edges) if closed else self

    def open(self, path: str) -> Graph:
        """Return the graph of one loop alone; its outcomes lead to the final state.

        Args:
            path: Path of the loop, or the end of one that only one loop has.

        Raises:
            UnknownLoop: No loop has this path, or several have.
        """
        loops = {s.path: s for s in self.root.walk() if s.kind == "loop"}
        found = [p for p in loops if p == path] or [p for p in loops if p.endswith(f".{path}")]
        if len(found) != 1:
            which = f"{len(found)} loops" if found else "no loop"
            known = suggest_path(str(path), loops)
            raise UnknownLoop(f"The graph of {self.name!r} has {which} called {path!r}. {known}")
        if found[0] == self.root.path:
            return self
        root = replace(loops[found[0]], leaving=loops[found[0]].answers)
        inside = [e for e in self.edges if e.source != root.path]
        ends = [GraphEdge(event, root.path, END) for event in root.answers]
        return self._showing(root, [*ends, *inside])

    def diff(self, after: Graph) -> GraphDiff:
        """Return the changes that turn this graph into the other one.

        The outermost loops may have different names.
        """
        return GraphDiff.of(self, after)

    def to_dict(self) -> dict[str, Any]:
        """Return the graph as JSON-compatible data."""
        return {
            "name": self.name,
            "current": self.current,
            "root": self.root.to_dict(),
            "final": self.final.to_dict(),
            "edges": [edge.to_dict() for edge in self.edges],
        }

    def __str__(self) -> str:
        return self.outline()

    def __repr__(self) -> str:
        standing = "" if self.current is None else f", in {self.current!r}"
        return f"<Graph {self.name!r}: {len(self.edges)} edges{standing}>"

    def _drawing(self) -> tuple[GraphData, Style]:
        return self, Style()

    def _showing(self, root: GraphState, edges: Sequence[GraphEdge]) -> Graph:
        """Return a graph of `root` alone: edges end at visible states, and hidden edges are left out."""
        shown = {s.path for s in root.walk()} | {END}
        kept = [
            replace(edge, target=target)
            for edge in edges
            if edge.source in shown and (target := _visible(edge.target, shown)) is not None
        ]
        current = None if self.current is None else _visible(self.current, shown)
        return Graph(root.name, root, tuple(kept), current, self.final)


@refuses_unknown
def graph_of(loop: Loop, name: str = "loop") -> Graph:
    """Return the graph of a loop that is not in a machine.

    If the loop does not list its `outcomes`, each event that leaves it leads to the final state.

    Raises:
        LoopDefinitionError: The loop tree is invalid.
    """
    try:
        chart = Chart(loop, name)
    except UnhandledEvent:
        if loop.outcomes:
            raise
        # A copy: drawing must not change the `outcomes` of the loop itself.
        root: Any = copy.copy(loop)
        root.outcomes = tuple(events_let_go(loop, name))
        chart = Chart(root, name)
    return Graph.of(chart)


def _closed(state: GraphState, depth: int) -> GraphState:
    inside = tuple(_closed(child, depth - 1) for child in state.children) if depth > 0 else ()
    return replace(state, children=inside)


def _without(state: GraphState, closed: frozenset[str]) -> GraphState:
    if state.path in closed:
        return replace(state, children=())
    return replace(state, children=tuple(_without(child, closed) for child in state.children))


def _visible(path: str, shown: set[str]) -> str | None:
    """Return the innermost visible state around a path."""
    while path and path not in shown:
        path = path.rpartition(SEPARATOR)[0]
    return path or None


# -- What is different between two graphs ---------------------------------------------------------


K = TypeVar("K")

# What a person would call a change of a state. `leaving` follows from what is inside.
COMPARED_IN_STATES = ("kind", "transient", "resting", "initial", "answers", "on_enter", "on_exit")
COMPARED_IN_EDGES = ("guards", "posted", "internal", "error", "receivers", "actions")


class NoGraph(StateMachineError, TypeError):
    """A graph was compared with something that is not a graph."""


@dataclass(frozen=True, slots=True)
class GraphDiff(Drawable):
    """What was added, removed and changed between two graphs.

    It is drawn like a graph. Added parts are green and thick with "+" before the name, removed
    parts red and dotted with "-", changed parts amber and dashed with "~". `str(diff)` lists the
    changes line by line. A diff without changes is false.

    Attributes:
        before: The one graph.
        after: The other.
        union: All states and transitions of both, removed ones after those that stayed.
        states: The changed states and loops, by path, in the order of the tree.
        edges: The changed transitions.
    """

    before: Graph
    after: Graph
    union: Graph
    states: Mapping[str, Change]
    edges: Mapping[EdgeKey, Change]

    @classmethod
    def of(cls, before: Graph, after: Graph) -> GraphDiff:
        """Compare two graphs, as if their roots had the same name.

        Raises:
            NoGraph: One of them is not a graph.
        """
        for one in (before, after):
            if not isinstance(one, Graph):
                raise NoGraph(
                    f"A graph is compared with another graph, and this is a {type(one).__name__}. Give "
                    "trainer.graph(), or graph_of(loop)."
                )
        if before.root.path != after.root.path:
            before = _renamed(before, after.root.path, after.name)
        old = {state.path: state for state in before.states()}
        new = {state.path: state for state in after.states()}
        old_edges = dict(zip(edge_keys(before.edges), before.edges, strict=True))
        new_edges = dict(zip(edge_keys(after.edges), after.edges, strict=True))
        removed = [edge for key, edge in old_edges.items() if key not in new_edges]
        union = replace(
            after,
            root=_merged(before.root, after.root),
            edges=(*after.edges, *removed),
        )
        states = {s.path: _state_change(old.get(s.path), new.get(s.path)) for s in union.states()}
        edges = {
            key: _change(old_edges.get(key), new_edges.get(key), COMPARED_IN_EDGES)
            for key in edge_keys(union.edges)
        }
        return cls(before, after, union, _only_changes(states), _only_changes(edges))

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON-compatible data."""
        edges = [
            {"source": source, "event": event, "target": target, "change": change}
            for (source, event, target, _), change in self.edges.items()
        ]
        return {"states": dict(self.states), "edges": edges}

    def __bool__(self) -> bool:
        return bool(self.states or self.edges)

    def __str__(self) -> str:
        return "\n".join(self._lines()) or (
            "No state and no transition changed. Settings are no part of a graph, and are not compared."
        )

    def _lines(self) -> Iterator[str]:
        old = {state.path: state for state in self.before.states()}
        for state in self.union.states():
            change = self.states.get(state.path)
            if change is not None:
                text = f"{SIGNS[change]}{state.path}"
                if state.kind == "loop" and change != "changed":
                    text += f" ({state.loop})"
                if change == "changed":
                    text += f": {'; '.join(_state_differences(old[state.path], state))}"
                yield text
        before = dict(zip(edge_keys(self.before.edges), self.before.edges, strict=True))
        for key, edge in zip(edge_keys(self.union.edges), self.union.edges, strict=True):
            change = self.edges.get(key)
            if change is not None:
                was = f" (was {before[key].label})" if change == "changed" else ""
                yield f"{SIGNS[change]}{edge.source}: {edge.label} -> {edge.target}{was}"

    def __repr__(self) -> str:
        return f"<GraphDiff: {len(self.states)} states and {len(self.edges)} transitions changed>"

    def _drawing(self) -> tuple[GraphData, Style]:
        return self.union, Style(states=self.states, edges=self.edges)


def _change(old: Any, new: Any, compared: tuple[str, ...]) -> Change | None:
    if old is None:
        return "added"
    if new is None:
        return "removed"
    same = all(getattr(old, name) == getattr(new, name) for name in compared)
    return None if same else "changed"


def _state_change(old: GraphState | None, new: GraphState | None) -> Change | None:
    return _change(old, new, _compared(new))


def _compared(state: GraphState | None) -> tuple[str, ...]:
    # The class around a state is told once, at the loop.
    is_loop = state is not None and state.kind == "loop"
    return (*COMPARED_IN_STATES, "loop") if is_loop else COMPARED_IN_STATES


def _only_changes(found: Mapping[K, Change | None]) -> dict[K, Change]:
    return {key: change for key, change in found.items() if change is not None}


def _state_differences(old: GraphState, new: GraphState) -> Iterator[str]:
    for name in _compared(new):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            yield f"{name.replace('_', ' ')} {_said(was)} -> {_said(now)}"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) if isinstance(value, tuple) else str(value or "")) or "none"


def _merged(old: GraphState, new: GraphState) -> GraphState:
    """Return the new state with its removed children added, each after the child that preceded it."""
    old_inside = {child.path: child for child in old.children}
    new_inside = {child.path: child for child in new.children}
    children: list[GraphState] = [
        _merged(old_inside[path], child) if path in old_inside else child
        for path, child in new_inside.items()
    ]
    behind: str | None = None
    for path, child in old_inside.items():
        if path not in new_inside:
            at = next((i + 1 for i, c in enumerate(children) if c.path == behind), 0)
            children.insert(at, child)
        behind = path
    if children and new.kind == "state":
        # It was a loop, and is drawn as one, to hold its removed children.
        return replace(new, kind="loop", loop=old.loop, children=tuple(children))
    return replace(new, children=tuple(children))


def _renamed(graph: Graph, path: str, name: str) -> Graph:
    """Return the graph with another name for its outermost loop."""
    old = graph.root.path

    def moved(one: str) -> str:
        return path + one[len(old) :] if f"{one}{SEPARATOR}".startswith(old + SEPARATOR) else one

    def state(one: GraphState) -> GraphState:
        initial = None if one.initial is None else moved(one.initial)
        inside = tuple(state(child) for child in one.children)
        return replace(one, path=moved(one.path), initial=initial, children=inside)

    def edge(one: GraphEdge) -> GraphEdge:
        return replace(one, source=moved(one.source), target=moved(one.target))

    root = replace(state(graph.root), name=name)
    current = None if graph.current is None else moved(graph.current)
    return Graph(name, root, tuple(edge(one) for one in graph.edges), current, graph.final)
