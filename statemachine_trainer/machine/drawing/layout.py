"""Graphviz, as the wheel of pygraphviz brings it along."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any, Literal

from statemachine_trainer.machine.errors import StateMachineError

# Graphviz works inside this process, and is not made for several threads.
_ONE_AT_A_TIME = threading.Lock()


class GraphvizMissing(StateMachineError, ImportError):
    """A picture was asked for, and pygraphviz is not installed."""


def is_installed() -> bool:
    """Tell whether pictures can be laid out."""
    return importlib.util.find_spec("pygraphviz") is not None


def lay_out(dot: str, form: Literal["svg", "png"]) -> bytes:
    """Draw a graph in the DOT language, layer by layer.

    Raises:
        GraphvizMissing: There is no pygraphviz.
    """
    try:
        import pygraphviz
    except ImportError as error:
        raise GraphvizMissing(
            "Drawing a graph as SVG, PNG or HTML needs pygraphviz, which brings Graphviz along: "
            'pip install "statemachine-trainer[graph]". Mermaid, DOT and text need nothing.'
        ) from error
    with _ONE_AT_A_TIME:
        picture: Any = pygraphviz.AGraph(string=dot)
        drawn: bytes = picture.draw(format=form, prog="dot")
        picture.close()
    return drawn
