"""HTML: a page that holds the picture and needs nothing else."""

from __future__ import annotations

from html import escape

from statemachine_trainer.machine.drawing import svg
from statemachine_trainer.machine.drawing.palette import DARK, LIGHT, Theme
from statemachine_trainer.machine.drawing.style import Style
from statemachine_trainer.machine.graph import Graph

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{colours}
body {{ margin: 1.5rem; font-family: Helvetica, Arial, sans-serif; }}
h1 {{ font-size: 1.2rem; }}
.smt-graph g[data-path]:hover > path {{ stroke-width: 3; }}
.smt-graph g[data-source]:hover > path {{ stroke-width: 3; }}
.smt-graph g[data-source]:hover > text {{ font-weight: bold; }}
pre {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{picture}
<details><summary>As text</summary><pre>{outline}</pre></details>
</body>
</html>
"""


def render(graph: Graph, style: Style, theme: Theme = "auto", *, outline: str = "") -> str:
    """Return a graph as a page that works offline; an edge stands out under the pointer.

    Args:
        graph: What to draw.
        style: The heat of states, what became of them, and whether there is a legend.
        theme: "auto" follows the reader's system.
        outline: The same as text, for those who cannot see the picture.

    Raises:
        GraphvizMissing: There is no pygraphviz.
    """
    page = {"light": [LIGHT], "dark": [DARK], "auto": [LIGHT, DARK]}[theme]
    rules = [f"body {{ background: {p.paper}; color: {p.ink}; }}" for p in page]
    rules[1:] = [f"@media (prefers-color-scheme: dark) {{ {rule} }}" for rule in rules[1:]]
    return PAGE.format(
        title=escape(graph.name),
        colours="\n".join(rules),
        picture=svg.render(graph, style, theme),
        outline=escape(outline or str(graph)),
    )
