"""Draws a loop once: others of the same shape are closed, and say which one they are like."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

from statemachine_trainer.graph.model import END, SEPARATOR, GraphData, GraphEdge, GraphState

G = TypeVar("G", bound=GraphData)


def fold(graph: G, opened: Collection[str] = ()) -> G:
    """Return a graph in which of several loops of the same shape the first alone is open.

    Loops have the same shape if their classes, their states, the edges inside and the receivers are the same.
    A loop in which the running state lies stays open.

    Args:
        graph: The graph.
        opened: Paths of loops that stay open, with all that is in them.
    """
    inside: dict[str, list[GraphEdge]] = {}
    for edge in graph.edges:
        around = edge.source
        while around := around.rpartition(SEPARATOR)[0]:
            inside.setdefault(around, []).append(edge)
    heads: dict[Hashable, GraphState] = {}
    asked_for = tuple(f"{path}{SEPARATOR}" for path in opened)

    def folded(state: GraphState) -> GraphState:
        if not state.children:
            return state
        head = heads.setdefault((state.loop, _shape(state, inside)), state)
        within = f"{state.path}{SEPARATOR}"
        stays = f"{graph.current}{SEPARATOR}".startswith(within) or within.startswith(asked_for)
        if head is not state and len(state.children) > 1 and not stays:
            return replace(state, children=(), like=_name(head, state))
        return replace(state, children=tuple(folded(child) for child in state.children))

    root = folded(graph.root)
    shown = {state.path for state in root.walk()} | {END}
    edges = tuple(
        replace(edge, target=_visible(edge.target, shown))
        for edge in graph.edges
        if edge.source in shown
    )
    return replace(graph, root=root, edges=edges)


def _shape(state: GraphState, inside: Mapping[str, list[GraphEdge]]) -> Hashable:
    """Return what is equal for loops that look alike inside; paths are those from the loop on."""
    within = f"{state.path}{SEPARATOR}"
    states = tuple(
        replace(
            one,
            path=one.path.removeprefix(within),
            initial=one.initial and one.initial.removeprefix(within),
            leaving=(),  # that is a question of the loops around
            children=(),
        )
        for child in state.children
        for one in child.walk()
    )
    edges = tuple(
        replace(e, source=e.source.removeprefix(within), target=e.target.removeprefix(within))
        for e in inside.get(state.path, ())
        if e.target.startswith(within)
    )
    return states, edges


def _name(head: GraphState, state: GraphState) -> str:
    """Return the name of a loop, with its path where it does not lie beside the other one."""
    around = [one.path.rpartition(SEPARATOR)[0] for one in (head, state)]
    return head.name if around[0] == around[1] else head.path


def _visible(path: str, shown: Collection[str]) -> str:
    while path not in shown and SEPARATOR in path:
        path = path.rpartition(SEPARATOR)[0]
    return path
