"""Graphs of loops: a plain model, and its renderers (Mermaid, DOT, and by Graphviz SVG, PNG and HTML)."""

from statemachine_trainer.graph.dot import GraphvizMissing
from statemachine_trainer.graph.graph import Graph, graph_of
from statemachine_trainer.graph.model import GraphEdge, GraphState
from statemachine_trainer.graph.style import SIGNS, THEMES, Change, EdgeKey, Style, Theme, edge_keys

__all__ = [
    "SIGNS",
    "THEMES",
    "Change",
    "EdgeKey",
    "Graph",
    "GraphEdge",
    "GraphState",
    "GraphvizMissing",
    "Style",
    "Theme",
    "edge_keys",
    "graph_of",
]
