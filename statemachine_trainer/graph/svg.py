"""Pictures: SVG with data attributes for states and events and with colours for two themes, and the same as PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree import ElementTree

from statemachine_trainer.graph import dot, labels
from statemachine_trainer.graph.model import GraphData, GraphEdge, GraphState
from statemachine_trainer.graph.packing import PORTRAIT, Places, places_of
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


def render(
    graph: GraphData, style: Style, theme: Theme = "auto", *, shape: float = PORTRAIT
) -> str:
    """Return a graph as an SVG element, for a file or a page.

    Each state and loop is a `<g data-path="fit.epoch">`; each edge a `<g>` with `data-source`,
    `data-event` and `data-target`. Elements have no ids: a page may hold several pictures.

    With the theme "auto" the colours are custom properties of CSS (`--smt-ink` and so on, on
    `.smt-graph`) that `prefers-color-scheme` sets. Programs without CSS draw the light colours.

    Args:
        graph: What to draw.
        style: The heat of states, what changed, and whether there is a legend.
        theme: "auto", "light" or "dark".
        shape: How wide the page is for its height, which the picture is to fill.

    Raises:
        GraphvizMissing: pygraphviz is not installed.
    """
    drawing = dot.Drawing(graph, DARK if theme == "dark" else LIGHT, style)
    root, _ = draw(drawing, shape)
    root.set("class", "smt-graph")
    root.set("role", "img")
    root.set("aria-label", f"State machine {graph.name}")
    # A unit of the picture is a pixel, so that text has the size of text; a wide one shrinks.
    for side in ("width", "height"):
        root.set(side, root.get(side, "").removesuffix("pt"))
    root.set("style", "max-width: 100%; height: auto;")
    if theme == "auto":
        _colour(root)
    ElementTree.register_namespace("", SVG)
    out = io.StringIO()
    ElementTree.ElementTree(root).write(out, encoding="unicode")
    return out.getvalue() + "\n"


def render_png(graph: GraphData, style: Style, theme: Theme, *, pixels: float) -> bytes:
    """Return the same picture as a bitmap.

    Args:
        graph: What to draw.
        style: The heat of states, what changed, and whether there is a legend.
        theme: "light" or "dark".
        pixels: Pixels per inch.

    Raises:
        GraphvizMissing: pygraphviz is not installed.
    """
    drawing = dot.Drawing(graph, DARK if theme == "dark" else LIGHT, style)
    _, places = draw(drawing)
    return dot.lay_out("\n".join(drawing.lines(pixels, places)), "png", "nop2")


def draw(drawing: dot.Drawing, shape: float = PORTRAIT) -> tuple[Element, Places]:
    """Draw a picture, and move labels that lie badly.

    Args:
        drawing: What is to be drawn.
        shape: How wide the page is for its height.

    Returns:
        The picture as SVG, and where everything lies in it.
    """
    places = places_of(drawing, shape)
    text = "\n".join(drawing.lines(places=places))
    root = ElementTree.fromstring(dot.lay_out(text, "svg", "nop2"))
    labels_of = _name(root, drawing.graph)
    before = {name: _spot(label) for name, label in labels_of.items()}
    labels.settle(root)
    for name, label in labels_of.items():
        moved = _spot(label) - before[name]
        if moved and "lp" in places.get(name, {}):
            x, y = (float(one) for one in places[name]["lp"].split(","))
            places[name]["lp"] = f"{x + moved.real:.2f},{y - moved.imag:.2f}"
    return root, places


def _spot(text: Element) -> complex:
    return complex(float(text.get("x", 0)), float(text.get("y", 0)))


def _name(root: Element, graph: GraphData) -> dict[str, Element]:
    """Label each group with what it shows, instead of Graphviz's own ids and titles.

    Returns:
        The first line of the label of each arrow, by the name of the arrow.
    """
    states = {dot.state_id(state.path): state for state in graph.states()}
    edges = {dot.edge_id(number): edge for number, edge in enumerate(graph.edges)}
    drawn: dict[str, Element] = {}
    texts: dict[str, Element] = {}
    for parent in list(root.iter(f"{{{SVG}}}g")):
        for group in list(parent.findall(f"{{{SVG}}}g")):
            own = group.attrib.pop("id", "")
            name = dot.edge_of(own)
            label = group.find(f"{{{SVG}}}text")
            if name in edges and label is not None:
                texts[own] = label
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
    return texts


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
