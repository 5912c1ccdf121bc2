"""HTML: a self-contained page with the picture, and a piece of HTML for other pages."""

from __future__ import annotations

from html import escape

from statemachine_trainer.graph import svg
from statemachine_trainer.graph.model import GraphData
from statemachine_trainer.graph.style import DARK, LIGHT, Style, Theme, css_variables

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

# If a page drops these rules, the picture stays `hidden`: only its loose words would be left.
INLINE = """<style>
.smt-outline {{ display: none; }}
.smt-picture[hidden] {{ display: block !important; }}
{colours}
</style>
<pre class="smt-outline">{outline}</pre>
<div class="smt-picture" hidden>
{picture}
</div>
"""

# How pages of notebooks declare their theme: JupyterLab and its exports, VS Code, Colab.
LIGHT_PAGES = (
    'body[data-jp-theme-light="true"]',
    "body.vscode-light",
    "body.vscode-high-contrast-light",
    'html[theme="light"]',
)
DARK_PAGES = (
    'body[data-jp-theme-light="false"]',
    "body.vscode-dark",
    # VS Code also gives this class to its light high-contrast theme.
    "body.vscode-high-contrast:not(.vscode-high-contrast-light)",
    'html[theme="dark"]',
)


def render(graph: GraphData, style: Style, theme: Theme = "auto", *, outline: str = "") -> str:
    """Return a graph as a page that works offline; an edge stands out under the pointer.

    Args:
        graph: What to draw.
        style: The heat of states, what changed, and whether there is a legend.
        theme: "auto" follows the reader's system.
        outline: The graph as text, for readers who cannot see the picture.

    Raises:
        GraphvizMissing: pygraphviz is not installed.
    """
    page = {"light": [LIGHT], "dark": [DARK], "auto": [LIGHT, DARK]}[theme]
    rules = [f"body {{ background: {p.paper}; color: {p.ink}; }}" for p in page]
    rules[1:] = [f"@media (prefers-color-scheme: dark) {{ {rule} }}" for rule in rules[1:]]
    return PAGE.format(
        title=escape(graph.name),
        colours="\n".join(rules),
        picture=svg.render(graph, style, theme),
        outline=escape(outline or graph.outline()),
    )


def inline(picture: str, outline: str) -> str:
    """Return a picture as a piece of HTML for a notebook that follows the theme of its page.

    If the page declares no theme, the picture follows the reader's system. The rules apply to this
    picture only, and it has no ids, so a page may hold several. If styles are removed, as from
    untrusted notebooks, the text is shown instead.

    Args:
        picture: What `svg.render` returns for the theme "auto".
        outline: The same as text.
    """
    # These rules name the page, too, so they take precedence over those inside the picture.
    coloured = [
        f"{', '.join(f'{page} .smt-graph' for page in pages)} {{ {css_variables(palette)} }}"
        for pages, palette in ((LIGHT_PAGES, LIGHT), (DARK_PAGES, DARK))
    ]
    return INLINE.format(
        colours="\n".join(coloured), picture=picture.rstrip("\n"), outline=escape(outline)
    )
