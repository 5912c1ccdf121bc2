"""SVG: the drawing of Graphviz, with data attributes for states and events, and colours for two themes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree import ElementTree

from statemachine_trainer.graph import dot, labels
from statemachine_trainer.graph.dot import lay_out
from statemachine_trainer.graph.model import GraphData, GraphEdge, GraphState
from statemachine_trainer.graph.style import (
    DARK,
    LIGHT,
    Style,
    Theme,
    css_variables,
    names_by_colour,
)

SVG = "http://www.w3.org/2000/svg"
Element = ElementTree.Element


def render(graph: GraphData, style: Style, theme: Theme = "auto") -> str:
    """Return a graph as an SVG element, for a file or a page.

    Each state and loop is a `<g data-path="fit.epoch">`; each edge a `<g>` with `data-source`,
    `data-event` and `data-target`. Elements have no ids: a page may hold several pictures.

    With the theme "auto" the colours are custom properties of CSS (`--smt-ink` and so on, on
    `.smt-graph`) that `prefers-color-scheme` sets. Programs without CSS draw the light colours.

    Args:
        graph: What to draw.
        style: The heat of states, what changed, and whether there is a legend.
        theme: "auto", "light" or "dark".

    Raises:
        GraphvizMissing: pygraphviz is not installed.
    """
    text = dot.render(graph, style, DARK if theme == "dark" else LIGHT)
    root = ElementTree.fromstring(lay_out(text, "svg"))
    root.set("class", "smt-graph")
    root.set("role", "img")
    root.set("aria-label", f"State machine {graph.name}")
    # A unit of the picture is a pixel, so that text has the size of text; a wide one shrinks.
    for side in ("width", "height"):
        root.set(side, root.get(side, "").removesuffix("pt"))
    root.set("style", "max-width: 100%; height: auto;")
    _name(root, graph)
    labels.settle(root)
    if theme == "auto":
        _colour(root)
    ElementTree.register_namespace("", SVG)
    out = io.StringIO()
    ElementTree.ElementTree(root).write(out, encoding="unicode")
    return out.getvalue() + "\n"


def _name(root: Element, graph: GraphData) -> None:
    """Label each group with what it shows, instead of Graphviz's own ids and titles."""
    states = {dot.state_id(state.path): state for state in graph.states()}
    edges = {dot.edge_id(number): edge for number, edge in enumerate(graph.edges)}
    drawn: dict[str, Element] = {}
    for parent in list(root.iter(f"{{{SVG}}}g")):
        for group in list(parent.findall(f"{{{SVG}}}g")):
            name = group.attrib.pop("id", "")
            if name in drawn:
                # A transition from several states, drawn as several arrows, is one group.
                drawn[name].extend(one for one in group if one.tag != f"{{{SVG}}}title")
                parent.remove(group)
            elif name in states:
                drawn[name] = _titled(group, _about_state(states[name]))
                group.set("data-path", states[name].path)
            elif name in edges:
                drawn[name] = _titled(group, f"{edges[name].label} → {edges[name].target}")
                _name_edge(group, edges[name])
            else:
                _titled(group, "")
        parent.attrib.pop("id", None)
    for title in root.findall(f"{{{SVG}}}g/{{{SVG}}}title"):
        title.text = graph.name


def _name_edge(group: Element, edge: GraphEdge) -> None:
    group.set("data-source", edge.source)
    group.set("data-event", edge.event)
    group.set("data-target", edge.target)


def _about_state(state: GraphState) -> str:
    loop = f" ({state.loop})" if state.kind == "loop" else ""
    return "\n".join(filter(None, [f"{state.path}{loop}", state.doc]))


def _titled(group: Element, text: str) -> Element:
    """Replace the tooltip of a group; an empty text removes it."""
    for title in group.findall(f"{{{SVG}}}title"):
        if text:
            title.text = text
        else:
            group.remove(title)
    return group


def _colour(root: Element) -> None:
    """Move each colour that differs between light and dark into CSS."""
    used = set()
    names = names_by_colour()
    for one in root.iter():
        classes = one.get("class", "").split()
        for attribute in ("fill", "stroke"):
            name = names.get(one.get(attribute, ""))
            if name is not None:
                used.add((attribute, name))
                classes.append(f"smt-{attribute}-{name}")
        if classes:
            one.set("class", " ".join(classes))
    style = Element(f"{{{SVG}}}style")
    style.text = "\n".join(["", *_rules(used), ""])
    root.insert(0, style)


def _rules(used: set[tuple[str, str]]) -> Iterator[str]:
    yield f".smt-graph {{ {css_variables(LIGHT)} }}"
    yield f"@media (prefers-color-scheme: dark) {{ .smt-graph {{ {css_variables(DARK)} }} }}"
    for attribute, name in sorted(used):
        yield f".smt-graph .smt-{attribute}-{name} {{ {attribute}: var(--smt-{name}); }}"
