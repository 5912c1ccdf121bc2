"""A graph as SCXML, the W3C's format of statecharts, for editors and interpreters of it; and back.

W3C, "State Chart XML (SCXML): State Machine Notation for Control Abstraction", 2015. What SCXML has no word
for stands in attributes of a namespace of our own, which others pass over. The work of a state is not in it.
"""

from __future__ import annotations

from typing import Any, Final
from xml.etree import ElementTree

from statemachine_trainer.graph.model import GraphData, GraphEdge, GraphState, StateMachineError

_SCXML: Final = "http://www.w3.org/2005/07/scxml"
_OURS: Final = "urn:statemachine-trainer"
_ERROR: Final = "error.execution."
_BETWEEN: Final = "; "


class NotSCXML(StateMachineError):
    """A text that is not SCXML, or none that was written here."""


def render(graph: GraphData) -> str:
    """Return the graph as SCXML.

    A loop is a compound state, an exception that takes an edge the event `error.execution.TYPE`, a condition the
    name of a function, and an action of an edge a script that calls one. Paths of states are their ids. Receivers
    are left out.
    """
    ElementTree.register_namespace("", _SCXML)
    ElementTree.register_namespace("smt", _OURS)
    top = ElementTree.Element(
        _tag("scxml"), version="1.0", name=graph.name, datamodel="ecmascript", initial=graph.name
    )
    _add(top, graph.root, graph)
    ElementTree.SubElement(top, _tag("final"), id=graph.final.path)
    ElementTree.indent(top)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(top, "unicode")}\n'


def read(text: str) -> GraphData:
    """Return the graph that `render` has written: states and edges, without receivers.

    Raises:
        NotSCXML: It is something else.
    """
    try:
        top = ElementTree.fromstring(text.encode())
        roots = top.findall(_tag("state"))
        if len(roots) != 1:
            raise ValueError(
                f"it has {len(roots)} states at the top, and not one. Give what graph.to_scxml() returns"
            )
        (root,) = roots
        edges = tuple(edge for one in root.iter(_tag("state")) for edge in _edges(one))
        return GraphData(top.attrib["name"], _state(root), edges)
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise NotSCXML(f"That is no SCXML of a training loop: {error}.") from error


def _add(parent: ElementTree.Element, state: GraphState, graph: GraphData) -> None:
    one = ElementTree.SubElement(parent, _tag("state"), id=state.path)
    if state.initial is not None and state.children:
        one.set("initial", state.initial)
    for name in ("kind", "loop", "doc"):
        if getattr(state, name):
            one.set(_our(name), getattr(state, name))
    if state.initial is not None:
        one.set(_our("initial"), state.initial)
    for name in ("transient", "resting"):
        if getattr(state, name):
            one.set(_our(name), "true")
    for name in ("answers", "leaving"):
        if getattr(state, name):
            one.set(_our(name), " ".join(getattr(state, name)))
    for edge in graph.edges:
        if edge.source == state.path:
            _add_edge(one, edge)
    for child in state.children:
        _add(one, child, graph)


def _add_edge(state: ElementTree.Element, edge: GraphEdge) -> None:
    event = f"{_ERROR}{edge.event}" if edge.error else edge.event
    one = ElementTree.SubElement(state, _tag("transition"), event=event)
    if edge.internal:  # a transition without a target leaves no state
        one.set(_our("target"), edge.target)
    else:
        one.set("target", edge.target)
    names = [guard.removeprefix("not ") for guard in edge.guards]
    if edge.guards and all(name.isidentifier() for name in names):
        negated = [guard.startswith("not ") for guard in edge.guards]
        pairs = zip(negated, names, strict=True)
        one.set("cond", " && ".join(f"!{name}()" if no else f"{name}()" for no, name in pairs))
    if edge.guards:
        one.set(_our("guards"), _BETWEEN.join(edge.guards))
    if edge.posted:
        one.set(_our("posted"), "true")
    if edge.actions:
        one.set(_our("actions"), _BETWEEN.join(edge.actions))
        named = [f"{name}();" for name in edge.actions if name.isidentifier()]
        if named:
            ElementTree.SubElement(one, _tag("script")).text = " ".join(named)


def _state(one: ElementTree.Element) -> GraphState:
    found: dict[str, Any] = {name: one.get(_our(name), "") for name in ("kind", "loop", "doc")}
    found |= {name: one.get(_our(name)) == "true" for name in ("transient", "resting")}
    found |= {name: tuple(one.get(_our(name), "").split()) for name in ("answers", "leaving")}
    path = one.attrib["id"]
    return GraphState(
        path,
        path.rpartition(".")[2],
        initial=one.get(_our("initial")),
        children=tuple(_state(child) for child in one.findall(_tag("state"))),
        **found,
    )


def _edges(state: ElementTree.Element) -> list[GraphEdge]:
    found = []
    for one in state.findall(_tag("transition")):
        event, target, guards = one.attrib["event"], one.get("target"), one.get(_our("guards"))
        actions = one.get(_our("actions"))
        found.append(
            GraphEdge(
                event.removeprefix(_ERROR),
                state.attrib["id"],
                one.attrib[_our("target")] if target is None else target,
                () if guards is None else tuple(guards.split(_BETWEEN)),
                posted=one.get(_our("posted")) == "true",
                internal=target is None,
                error=event.startswith(_ERROR),
                actions=() if actions is None else tuple(actions.split(_BETWEEN)),
            )
        )
    return found


def _tag(name: str) -> str:
    return f"{{{_SCXML}}}{name}"


def _our(name: str) -> str:
    return f"{{{_OURS}}}{name}"
