"""HTML: a page that holds the picture and needs nothing else, and a picture for a page of others."""

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

# Without the rules, what is `hidden` stays so: the loose words of a picture whose elements are gone.
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

# How pages of notebooks say which colours they have, whatever the system has: JupyterLab and what is
# exported from it, VS Code, Colab.
LIGHT_PAGES = (
    'body[data-jp-theme-light="true"]',
    "body.vscode-light",
    "body.vscode-high-contrast-light",
    'html[theme="light"]',
)
DARK_PAGES = (
    'body[data-jp-theme-light="false"]',
    "body.vscode-dark",
    # VS Code gives the light one of its two high contrasts this class too.
    "body.vscode-high-contrast:not(.vscode-high-contrast-light)",
    'html[theme="dark"]',
)


def render(graph: GraphData, style: Style, theme: Theme = "auto", *, outline: str = "") -> str:
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
        outline=escape(outline or graph.outline()),
    )


def inline(picture: str, outline: str) -> str:
    """Return an automatic picture as a piece of HTML for a notebook: light or dark as its page is.

    Where the page does not say which it is, the picture follows the reader's system. Its rules are
    for it alone, and it has no ids: a page may hold several. Where styles are taken out, as of
    notebooks that are not trusted, the text stands in its place.

    Args:
        picture: What `svg.render` returns for the theme "auto".
        outline: The same as text.
    """
    # These name the page as well, and so win over the rules inside the picture, which do not.
    coloured = [
        f"{', '.join(f'{page} .smt-graph' for page in pages)} {{ {css_variables(palette)} }}"
        for pages, palette in ((LIGHT_PAGES, LIGHT), (DARK_PAGES, DARK))
    ]
    return INLINE.format(
        colours="\n".join(coloured), picture=picture.rstrip("\n"), outline=escape(outline)
    )
