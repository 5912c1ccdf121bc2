"""The picture of the graph in the page: drawn by Graphviz, or boxes in boxes without it."""

from __future__ import annotations

from html import escape

from statemachine_trainer.machine.drawing.layout import GraphvizMissing
from statemachine_trainer.machine.graph import Graph, GraphState


def picture_of(graph: Graph) -> str:
    """The graph as HTML; each state and loop has its path in `data-path`, each edge `data-source`."""
    try:
        return graph.at(None).to_svg()  # which state is lit changes too often to draw it anew
    except GraphvizMissing:
        return _outline(graph)


def _outline(graph: Graph) -> str:
    return f'<div class="outline">{_box(graph, graph.root)}</div>'


def _box(graph: Graph, state: GraphState) -> str:
    steps = "".join(
        f'<li data-source="{escape(edge.source)}" data-event="{escape(edge.event)}">'
        f"{escape(edge.label)} → {escape(edge.target.rpartition('.')[2])}</li>"
        for edge in graph.edges
        if edge.source == state.path
    )
    inside = "".join(_box(graph, child) for child in state.children)
    return (
        f'<div class="box {state.kind}" data-path="{escape(state.path)}">'
        f"<b>{escape(state.name)}</b><ul>{steps}</ul>{inside}</div>"
    )
