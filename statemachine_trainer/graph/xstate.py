"""A graph as the configuration of an XState machine, in JSON, for its editor and visualizer; and back.

The form is that of XState 5 (`createMachine`). What it has no word for stands in `meta`. The work of a state is not
in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from statemachine_trainer.graph.model import GraphData, GraphEdge, GraphState, StateMachineError

_KEPT: Final = ("kind", "loop", "transient", "resting", "initial", "answers", "leaving")


class NotXState(StateMachineError):
    """A text that is not the configuration of a machine that was written here."""


def render(graph: GraphData) -> str:
    """Return the graph as JSON that `createMachine` takes.

    A loop is a state with states, an exception that takes an edge the event `error.TYPE`, a condition the name of
    a guard, and an action that of an action. Targets are paths below the id of the root. Receivers are left out.
    """
    machine = {
        "id": f"{graph.name}-machine",
        "initial": graph.root.name,
        "states": {
            graph.root.name: {"id": graph.root.path, **_state(graph.root, graph)},
            graph.final.name: {"id": graph.final.path, "type": "final"},
        },
    }
    return json.dumps(machine, indent=2) + "\n"


def read(text: str) -> GraphData:
    """Return the graph that `render` has written: states and edges, without receivers.

    Raises:
        NotXState: It is something else.
    """
    try:
        states = json.loads(text)["states"]
        ((name, root),) = [(n, one) for n, one in states.items() if one.get("type") != "final"]
        return GraphData(name, _read_state(name, name, root), tuple(_read_edges(name, root)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotXState(f"That is no XState machine of a training loop: {error!r}.") from error


def _state(state: GraphState, graph: GraphData) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if state.doc:
        found["description"] = state.doc
    if state.transient:
        found["tags"] = ["transient"]
    found["meta"] = {name: getattr(state, name) for name in _KEPT if getattr(state, name)}
    edges: dict[str, list[dict[str, Any]]] = {}
    for edge in graph.edges:
        if edge.source == state.path:
            event = f"error.{edge.event}" if edge.error else edge.event
            edges.setdefault(event, []).append(_edge(edge))
    if edges:
        found["on"] = edges
    if state.children:
        found["initial"] = (state.initial or state.children[0].path).rpartition(".")[2]
        found["states"] = {child.name: _state(child, graph) for child in state.children}
    return found


def _edge(edge: GraphEdge) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not edge.internal:  # a transition without a target leaves no state
        found["target"] = f"#{edge.target}"
        if edge.target == edge.source or edge.target.startswith(f"{edge.source}."):
            found["reenter"] = True
    if edge.guards:
        found["guard"] = " and ".join(edge.guards)
    if edge.actions:
        found["actions"] = [*edge.actions]
    flags = {name: True for name in ("posted", "error") if getattr(edge, name)}
    guards = {"guards": [*edge.guards]} if edge.guards else {}
    inside = {"target": edge.target} if edge.internal else {}
    meta = {**flags, **guards, **inside}
    return {**found, "meta": meta} if meta else found


def _read_state(name: str, path: str, said: Mapping[str, Any]) -> GraphState:
    kept: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in said["meta"].items()
        if key in _KEPT
    }
    inside = said.get("states", {}).items()
    children = tuple(_read_state(child, f"{path}.{child}", one) for child, one in inside)
    return GraphState(path, name, doc=said.get("description", ""), children=children, **kept)


def _read_edges(path: str, said: Mapping[str, Any]) -> Iterator[GraphEdge]:
    for event, edges in said.get("on", {}).items():
        for one in edges:
            meta = one.get("meta", {})
            error = meta.get("error", False)
            yield GraphEdge(
                event.removeprefix("error.") if error else event,
                path,
                meta["target"] if "target" in meta else one["target"].removeprefix("#"),
                tuple(meta.get("guards", ())),
                posted=meta.get("posted", False),
                internal="target" in meta,
                error=error,
                actions=tuple(one.get("actions", ())),
            )
    for name, inside in said.get("states", {}).items():
        yield from _read_edges(f"{path}.{name}", inside)
