"""What can be drawn, and written to a file: graphs, and the difference of two."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from statemachine_trainer.machine.errors import suggest

if TYPE_CHECKING:
    from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.graph.model import BadOption, UnknownFormat
from statemachine_trainer.graph.style import Style, Theme

SUFFIXES = {
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".dot": "dot",
    ".gv": "dot",
    ".svg": "svg",
    ".png": "png",
    ".html": "html",
    ".json": "json",
    ".txt": "text",
}


class HasHeat(Protocol):
    """Knows how hot states are, as a profile does."""

    def heat(self) -> Mapping[str, float]:
        """Return how hot states are, from 0 to 1, by path."""


Heat = Mapping[str, float] | HasHeat


class Drawable:
    """Draws itself: as Mermaid and DOT with nothing else, as SVG, PNG and HTML by pygraphviz.

    All take the same options:

    - `heat`: how hot states are, from 0 to 1, by path, or a profile; a closed loop is as hot as the
      hottest state in it. Paths that the graph does not have are skipped, as long as it has one.
    - `running`: path of the running state, in place of the one that the graph knows.
    - `legend`: whether the picture explains its signs.
    - `theme`: "light", "dark", or "auto", which follows the reader's system where the format can. In
      a notebook a picture follows the notebook.
    """

    __slots__ = ()

    @abstractmethod
    def _drawing(self) -> tuple[Graph, Style]:
        """Return the graph to be drawn, and what is marked on it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can hold."""

    def to_mermaid(self, *, direction: Literal["TB", "LR"] = "TB", outcomes: bool = True) -> str:
        """Return a Mermaid state diagram; see `machine.mermaid.render`.

        Raises:
            BadOption: The direction is neither of these.
        """
        from statemachine_trainer.graph.mermaid import render

        graph, style = self._drawing()
        return render(graph, direction=direction, outcomes=outcomes, style=style)

    def to_dot(
        self,
        *,
        heat: Heat | None = None,
        running: str | None = None,
        legend: bool = True,
        theme: Theme = "light",
    ) -> str:
        """Return the picture in the language of Graphviz, for `dot -Tpdf` and the like.

        Raises:
            BadOption: `heat` or `theme` means nothing.
            UnknownPath: The graph has no state `running`, or none that `heat` names.
        """
        from statemachine_trainer.graph import dot
        from statemachine_trainer.graph.style import DARK, LIGHT

        colours = DARK if _checked(theme) == "dark" else LIGHT
        return dot.render(*self._dressed(heat, running, legend), colours)

    def to_svg(
        self,
        *,
        heat: Heat | None = None,
        running: str | None = None,
        legend: bool = True,
        theme: Theme = "auto",
    ) -> str:
        """Return an SVG element whose groups say what they show; see `machine.drawing.svg.render`.

        Raises:
            GraphvizMissing: pygraphviz is not installed.
            BadOption: `heat` or `theme` means nothing.
            UnknownPath: The graph has no state `running`, or none that `heat` names.
        """
        from statemachine_trainer.graph import svg

        return svg.render(*self._dressed(heat, running, legend), _checked(theme))

    def to_png(
        self,
        *,
        heat: Heat | None = None,
        running: str | None = None,
        legend: bool = True,
        theme: Theme = "light",
        pixels_per_inch: float = 144,
    ) -> bytes:
        """Return a bitmap.

        Raises:
            GraphvizMissing: pygraphviz is not installed.
            BadOption: `heat` or `theme` means nothing.
            UnknownPath: The graph has no state `running`, or none that `heat` names.
        """
        from statemachine_trainer.graph import dot
        from statemachine_trainer.graph.style import DARK, LIGHT

        colours = DARK if _checked(theme) == "dark" else LIGHT
        graph, style = self._dressed(heat, running, legend)
        return dot.lay_out(dot.render(graph, style, colours, pixels=pixels_per_inch), "png")

    def to_html(
        self,
        *,
        heat: Heat | None = None,
        running: str | None = None,
        legend: bool = True,
        theme: Theme = "auto",
    ) -> str:
        """Return a page that holds the picture and its text, and works offline.

        Raises:
            GraphvizMissing: pygraphviz is not installed.
            BadOption: `heat` or `theme` means nothing.
            UnknownPath: The graph has no state `running`, or none that `heat` names.
        """
        from statemachine_trainer.graph import html

        dressed = self._dressed(heat, running, legend)
        return html.render(*dressed, _checked(theme), outline=str(self))

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the picture to a file, in the format that its ending tells.

        Args:
            path: A name that ends in .svg, .png, .html, .dot, .gv, .mmd, .mermaid, .json or .txt.
            **options: Those of `to_svg`, `to_png` and so on; JSON and text have none.

        Returns:
            The path.

        Raises:
            UnknownFormat: The ending is none of these.
            BadOption, UnknownPath: An option means nothing, or not for this graph.
            GraphvizMissing: The format needs pygraphviz, which is not installed.
        """
        path = Path(path)
        form = SUFFIXES.get(path.suffix.lower())
        if form is None:
            raise UnknownFormat(
                f"The ending of {str(path)!r} tells no format of pictures. "
                f"{suggest(path.suffix, SUFFIXES)}"
            )
        drawn: str | bytes
        if form == "text":
            drawn = f"{self}\n"
        elif form == "json":
            drawn = json.dumps(self.to_dict(), indent=2) + "\n"
        else:
            drawn = getattr(self, f"to_{form}")(**options)
        if isinstance(drawn, bytes):
            path.write_bytes(drawn)
        else:
            path.write_text(drawn, encoding="utf-8")
        return path

    def _dressed(self, heat: Heat | None, running: str | None, legend: bool) -> tuple[Graph, Style]:
        graph, style = self._drawing()
        if running is not None:
            graph = graph.at(running)
        return graph, replace(style, heat=_heat_on(graph, heat), legend=legend)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Show a picture in a notebook: by Graphviz, or without it in those that know Mermaid.

        As HTML it is light or dark as the notebook is; a bare SVG would be an image there, which
        knows nothing of the page around it. That is for exports which take images alone.
        """
        from statemachine_trainer.graph import html
        from statemachine_trainer.graph.dot import is_installed

        text = str(self)
        if is_installed():
            picture = self.to_svg()
            return {
                "text/html": html.inline(picture, text),
                "image/svg+xml": picture,
                "text/plain": text,
            }
        mermaid = self.to_mermaid()
        hint = '(For a picture: pip install "statemachine-trainer[graph]")'
        return {
            "text/vnd.mermaid": mermaid,
            "text/markdown": f"```mermaid\n{mermaid}```\n",
            "text/plain": f"{text}\n{hint}",
        }


def _checked(theme: Theme) -> Theme:
    from statemachine_trainer.graph import THEMES

    if theme not in THEMES:
        raise BadOption(f"theme={theme!r} is no theme. {suggest(str(theme), THEMES)}")
    return theme


def _heat_on(graph: Graph, heat: Heat | None) -> Mapping[str, float]:
    """Return what `heat=` means for a graph, which may show only a part of what it names."""
    if heat is None:
        return {}
    found = heat if isinstance(heat, Mapping) else _asked(heat)
    paths = [state.path for state in graph.states()]
    # A closed loop, as a state that has none inside, stands for what is inside it.
    closed = tuple(f"{state.path}." for state in graph.states() if not state.children)
    if found and not any(path in paths or path.startswith(closed) for path in found):
        from statemachine_trainer.graph.model import UnknownPath

        first = next(iter(found))
        raise UnknownPath(
            f"heat= names no state of the graph {graph.name!r}; its first is {first!r}. "
            f"{suggest(str(first), paths)}"
        )
    return found


def _asked(heat: HasHeat) -> Mapping[str, float]:
    ask = getattr(heat, "heat", None)
    found = ask() if callable(ask) else None
    if not isinstance(found, Mapping):
        raise BadOption(
            f"heat={heat!r}: give numbers from 0 to 1 by path, or a profile: trainer.profile()."
        )
    return found
