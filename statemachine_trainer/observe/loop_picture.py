"""The loop of a running fit, folded below its bars in a notebook, with the running state lit."""

from __future__ import annotations

from statemachine_trainer.graph import html, svg
from statemachine_trainer.graph.dot import is_installed
from statemachine_trainer.graph.folding import fold
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.graph.style import ON_RUNNING, RUNNING, Style
from statemachine_trainer.machine import Chart
from statemachine_trainer.machine.loop import SEPARATOR


def folded_picture(chart: Chart, name: str) -> str:
    """Return HTML that shows the picture of a loop when it is unfolded; empty without pygraphviz.

    Args:
        chart: The machine.
        name: Names the picture within the page.
    """
    if not is_installed():
        return ""
    graph = fold(Graph.of(chart))
    picture = html.inline(svg.render(graph, Style()), graph.outline())
    return f'<details class="smt-of-{name}"><summary>the loop</summary>{picture}</details>'


def light(path: str | None, name: str) -> str:
    """Return a rule of style that lights a state, and the closed loop that it may lie in.

    Args:
        path: Path of the state; None lights none.
        name: The name of the picture.
    """
    if path is None:
        return ""
    parts = path.split(SEPARATOR)
    paths = [SEPARATOR.join(parts[:n]) for n in range(1, len(parts) + 1)]
    lit = [f'.smt-of-{name} [data-path="{one}"].node' for one in paths]
    fills = ", ".join(f"{one} > path" for one in lit)
    texts = ", ".join(f"{one} > text" for one in lit)
    return f"<style>{fills} {{ fill: {RUNNING}; }} {texts} {{ fill: {ON_RUNNING}; }}</style>"
