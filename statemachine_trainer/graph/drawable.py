"""The base of what can be drawn and written to a file: graphs, and the difference of two."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

from statemachine_trainer.graph import dot
from statemachine_trainer.graph.folding import fold
from statemachine_trainer.graph.model import BadOption, GraphData, UnknownFormat, UnknownPath
from statemachine_trainer.graph.style import DARK, LIGHT, THEMES, Palette, Style, Theme
from statemachine_trainer.machine.errors import suggest, suggest_path

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
    ".scxml": "scxml",
    ".xstate": "xstate",
}


class HasHeat(Protocol):
    """Knows how hot states are, as a profile does."""

    def heat(self) -> Mapping[str, float]:
        """Return how hot states are, from 0 to 1, by path."""


Heat = Mapping[str, float] | HasHeat


class Look(TypedDict, total=False):
    """The options that all pictures have.

    Attributes:
        heat: How hot states are, from 0 to 1, by path, or a profile. A closed loop is as hot as the
            hottest state in it. Unknown paths are skipped if at least one is known.
        running: Path of the state to show as the running one, instead of the graph's own.
        legend: Whether the picture explains its signs; True by default.
        fold: Whether of several loops of the same shape the first alone is open, and the others say which it is;
            True by default. Mermaid shows all of them, as a difference does.
        theme: "light", "dark", or "auto", which follows the reader's system where the format can.
    """

    heat: Heat | None
    running: str | None
    legend: bool
    fold: bool
    theme: Theme


class Drawable:
    """Draws itself. Mermaid and DOT need no other package; SVG, PNG and HTML need pygraphviz.

    Pictures take the options of `Look`. In a notebook a picture follows the notebook's theme.

    Raises:
        BadOption: An unknown option, or an invalid value.
        UnknownPath: The graph has no state `running`, or none of the paths in `heat`.
        GraphvizMissing: For SVG, PNG and HTML: pygraphviz is not installed.
    """

    __slots__ = ()

    @abstractmethod
    def _drawing(self) -> tuple[GraphData, Style]:
        """Return the graph to be drawn, and what is marked on it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible data."""

    def to_mermaid(self, *, direction: Literal["TB", "LR"] = "TB", outcomes: bool = True) -> str:
        """Return a Mermaid state diagram; see `graph.mermaid.render`.

        Raises:
            BadOption: The direction is neither of these.
        """
        from statemachine_trainer.graph import mermaid

        graph, style = self._drawing()
        return mermaid.render(graph, direction=direction, outcomes=outcomes, style=style)

    def to_dot(self, **look: Unpack[Look]) -> str:
        """Return the picture in the DOT language, for `dot -Tpdf` and the like; in light colours."""
        graph, style, theme = self._dressed("light", look)
        return dot.render(graph, style, _palette(theme))

    def to_svg(self, **look: Unpack[Look]) -> str:
        """Return an SVG element with one labelled group for each state and edge; see `graph.svg.render`."""
        # Renderers are loaded by what draws: most runs draw nothing.
        from statemachine_trainer.graph import svg

        return svg.render(*self._dressed("auto", look))

    def to_png(self, *, pixels_per_inch: float = 144, **look: Unpack[Look]) -> bytes:
        """Return a PNG; light by default."""
        from statemachine_trainer.graph import svg

        graph, style, theme = self._dressed("light", look)
        return svg.render_png(graph, style, theme, pixels=pixels_per_inch)

    def to_html(self, **look: Unpack[Look]) -> str:
        """Return a page with the picture and its text that works offline."""
        from statemachine_trainer.graph import html

        return html.render(*self._dressed("auto", look), outline=str(self))

    def to_scxml(self) -> str:
        """Return the statechart as SCXML, for editors and interpreters of it; see `graph.scxml.render`.

        Raises:
            BadOption: It is the difference of two graphs.
        """
        from statemachine_trainer.graph import scxml

        return scxml.render(self._statechart())

    def to_xstate(self) -> str:
        """Return the statechart as the JSON of an XState machine; see `graph.xstate.render`.

        Raises:
            BadOption: It is the difference of two graphs.
        """
        from statemachine_trainer.graph import xstate

        return xstate.render(self._statechart())

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the picture to a file, in the format of its ending.

        Args:
            path: A name that ends in .svg, .png, .html, .dot, .gv, .mmd, .mermaid, .json, .txt, .scxml or .xstate.
            **options: Those of `Look` and of `to_png` or `to_mermaid`; what is no picture has none.

        Returns:
            The path.

        Raises:
            UnknownFormat: The ending is not one of these.
            BadOption, UnknownPath, GraphvizMissing: As for the method that draws this format.
        """
        path = Path(path)
        form = SUFFIXES.get(path.suffix.lower())
        if form is None:
            raise UnknownFormat(
                f"The ending of {str(path)!r} tells no format of pictures. "
                f"Endings: {', '.join(SUFFIXES)}. {suggest(path.suffix, SUFFIXES, cutoff=0.5)}".rstrip()
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

    def _statechart(self) -> GraphData:
        graph, style = self._drawing()
        if style.states or style.edges:
            raise BadOption(
                "A difference is no statechart: write each of the two graphs to a file of its own."
            )
        return graph

    def _dressed(self, theme: Theme, look: Look) -> tuple[GraphData, Style, Theme]:
        """Apply the options; return the graph to draw, what to mark on it, and the theme."""
        for name in look:
            if name not in Look.__annotations__:
                raise BadOption(
                    f"A picture has no option {name!r}. {suggest(name, Look.__annotations__)}"
                )
        for name in ("legend", "fold"):
            if not isinstance(look.get(name, True), bool):
                raise BadOption(f"{name}={look.get(name)!r}: say True or False.")
        graph, style = self._drawing()
        running, legend = look.get("running"), look.get("legend", True)
        if running is not None:
            graph = graph.at(running)
        if look.get("fold", True) and not style.states and not style.edges:
            graph = fold(graph)
        chosen = look.get("theme", theme)
        if chosen not in THEMES:
            raise BadOption(f"theme={chosen!r} is no theme. {suggest(str(chosen), THEMES)}")
        return graph, replace(style, heat=_heat_on(graph, look.get("heat")), legend=legend), chosen

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Show a picture in a notebook: by Graphviz, or as Mermaid where Graphviz is missing.

        As HTML it follows the theme of the notebook. The bare SVG is for exports that take images only.
        """
        text = str(self)
        if dot.is_installed():
            from statemachine_trainer.graph import html

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


def _palette(theme: Theme) -> Palette:
    return DARK if theme == "dark" else LIGHT


def _heat_on(graph: GraphData, heat: Heat | None) -> Mapping[str, float]:
    """Return the heat of the states that a graph shows."""
    if heat is None:
        return {}
    found = heat if isinstance(heat, Mapping) else _asked(heat)
    paths = [state.path for state in graph.states()]
    # A closed loop, as a state that has none inside, stands for what is inside it.
    closed = tuple(f"{state.path}." for state in graph.states() if not state.children)
    if found and not any(path in paths or path.startswith(closed) for path in found):
        first = next(iter(found))
        raise UnknownPath(
            f"heat= names no state of the graph {graph.name!r}; its first is {first!r}. "
            f"{suggest_path(str(first), paths)}"
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
