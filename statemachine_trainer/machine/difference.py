"""The difference of two graphs: what a swap changed, as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from statemachine_trainer.machine.drawing.style import SIGNS, Change, EdgeKey, Style, edge_keys
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.graph import Graph, GraphEdge, GraphState
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.picture import Drawable

K = TypeVar("K")

# What a person would call a change of a state. Where events leave follows from what is inside.
COMPARED_IN_STATES = ("kind", "transient", "resting", "initial", "answers", "on_enter", "on_exit")
COMPARED_IN_EDGES = ("guards", "posted", "internal", "receivers")


class NoGraph(StateMachineError, TypeError):
    """A graph was to be compared with something that is none."""


@dataclass(frozen=True, slots=True)
class GraphDiff(Drawable):
    """What was added, removed and changed between two graphs.

    It draws itself like a graph: added is green and thick with "+" before the name, removed red and
    dotted with "-", changed amber and dashed with "~". `str(diff)` tells it line by line, and it is
    false if nothing changed.

    Attributes:
        before: The one graph.
        after: The other.
        union: All states and transitions of both, removed ones behind those that stayed.
        states: What became of states and loops, by path, in the order of the tree.
        edges: What became of transitions.
    """

    before: Graph
    after: Graph
    union: Graph
    states: Mapping[str, Change]
    edges: Mapping[EdgeKey, Change]

    @classmethod
    def of(cls, before: Graph, after: Graph) -> GraphDiff:
        """Compare two graphs; the root of the first takes the name of that of the second.

        Raises:
            NoGraph: One of them is something else.
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
        """Return the difference as data that JSON can hold."""
        edges = [
            {"source": source, "event": event, "target": target, "change": change}
            for (source, event, target, _), change in self.edges.items()
        ]
        return {"states": dict(self.states), "edges": edges}

    def __bool__(self) -> bool:
        return bool(self.states or self.edges)

    def __str__(self) -> str:
        return "\n".join(self._lines()) or "Nothing changed."

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

    def _drawing(self) -> tuple[Graph, Style]:
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
    """Return the new state with what was removed inside it put behind what stayed before it."""
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
        # It was a loop: drawn as one, to hold what it held.
        return replace(new, kind="loop", loop=old.loop, children=tuple(children))
    return replace(new, children=tuple(children))


def _renamed(graph: Graph, path: str, name: str) -> Graph:
    """Return the graph as if its outermost loop were called otherwise."""
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
