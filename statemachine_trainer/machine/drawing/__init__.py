"""Pictures of graphs: DOT, laid out by Graphviz to SVG, PNG and HTML."""

from statemachine_trainer.machine.drawing.layout import GraphvizMissing
from statemachine_trainer.machine.drawing.palette import THEMES, Theme
from statemachine_trainer.machine.drawing.style import SIGNS, Change, EdgeKey, Style, edge_keys

__all__ = ["SIGNS", "THEMES", "Change", "EdgeKey", "GraphvizMissing", "Style", "Theme", "edge_keys"]
