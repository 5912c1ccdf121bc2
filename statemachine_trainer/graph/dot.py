"""DOT: renders a graph in the language of Graphviz, with loops as clusters."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Literal

from statemachine_trainer.graph.model import (
    END,
    SEPARATOR,
    GraphData,
    GraphEdge,
    GraphState,
    StateMachineError,
)
from statemachine_trainer.graph.style import (
    HEAT,
    ON_RUNNING,
    RUNNING,
    SIGNS,
    Change,
    Palette,
    Style,
    edge_keys,
)

FONT = "Helvetica,Arial,DejaVu Sans,sans-serif"
# Also distinct without colours: by the style of the line, and by the sign before the label.
CHANGED_LINES: Mapping[Change, dict[str, str]] = {
    "added": {"style": "bold", "penwidth": "2.6"},
    "removed": {"style": "dotted", "penwidth": "2"},
    "changed": {"style": "dashed", "penwidth": "2.2"},
}
# Even the hottest state is not fully opaque, so that its name stays legible.
HOTTEST = 0.75

Attributes = Mapping[str, str]


def render(graph: GraphData, style: Style, palette: Palette, *, pixels: float | None = None) -> str:
    """Return a graph in the DOT language.

    Args:
        graph: What to draw.
        style: The heat of states, what changed, and whether there is a legend.
        palette: Its colours.
        pixels: Pixels per inch of a bitmap.
    """
    return "\n".join([*_Drawing(graph, palette, style).lines(pixels), ""])


def state_id(path: str) -> str:
    """Return the id of a state in the picture."""
    return f"state {path}"


def edge_id(number: int) -> str:
    """Return the id of an edge in the picture."""
    return f"edge {number}"


class _Drawing:
    def __init__(self, graph: GraphData, palette: Palette, style: Style) -> None:
        self.graph, self.palette, self.style = graph, palette, style
        self.states = {state.path: state for state in graph.states()}
        self.changes = [style.edges.get(key) for key in edge_keys(graph.edges)]

    def lines(self, pixels: float | None) -> Iterator[str]:
        ink = self.palette.ink
        yield f"digraph {_quoted(self.graph.name)} {{"
        whole = {
            "compound": "true",
            "newrank": "true",
            "bgcolor": self.palette.paper,
            "fontname": FONT,
            "fontcolor": ink,
            "fontsize": "12",
            "ranksep": "0.32",
            "nodesep": "0.3",
            "pad": "0.15",
        }
        if pixels is not None:
            whole["dpi"] = f"{pixels:g}"
        if self.style.legend and (legend := self._legend()):
            whole |= {"labelloc": "b", "labeljust": "c"}
            yield f"  label={legend};"
        yield f"  graph {_attributes(whole)};"
        state = {"shape": "box", "style": "rounded,filled", "margin": "0.13,0.05", "height": "0.34"}
        text = {"fontname": FONT, "fontcolor": ink}
        yield f"  node {_attributes(state | text | {'fontsize': '12'})};"
        yield f"  edge {_attributes(text | {'fontsize': '10', 'arrowsize': '0.7'})};"
        yield from _indented(self._state(self.graph.root, 0))
        if not self.graph.root.children:
            yield from _indented(self._final())
        for number, edge in enumerate(self.graph.edges):
            yield from _indented(self._edge(number, edge))
        yield "}"

    def _state(self, state: GraphState, depth: int) -> Iterator[str]:
        if not state.children:
            yield f"{_quoted(state.path)} {_attributes(self._look(state, depth))};"
            return
        yield f"subgraph {_quoted(_cluster(state))} {{"
        look = self._look(state, depth) | {"margin": "9", "labelloc": "t", "labeljust": "l"}
        yield f"  graph {_attributes(look)};"
        marker = {"shape": "circle", "style": "filled", "width": "0.11", "height": "0.11"}
        marker |= {"label": "", "fixedsize": "true", "class": "initial"}
        marker |= {"fillcolor": self.palette.line, "color": self.palette.line}
        yield f"  {_quoted(_marker(state))} {_attributes(marker)};"
        if state.initial in self.states:
            line = {"class": "initial", "color": self.palette.line, "weight": "8"}
            to = self.states[state.initial]
            line |= {"lhead": _cluster(to)} if to.children else {}
            yield f"  {_quoted(_marker(state))} -> {_quoted(_way_in(to))} {_attributes(line)};"
        for child in state.children:
            yield from _indented(self._state(child, depth + 1))
        if state is self.graph.root:
            yield from _indented(self._final())
        yield "}"

    def _look(self, state: GraphState, depth: int) -> dict[str, str]:
        """Return fill, border and label of a state or loop."""
        palette, change = self.palette, self.style.states.get(state.path)
        inside = palette.loop_inside if depth % 2 else palette.loop
        look = {
            "id": state_id(state.path),
            "class": " ".join(self._classes(state, change)),
            "label": self._title(state, change),
            "fillcolor": palette.state if state.kind == "state" else inside,
            "color": palette.border,
            "fontcolor": palette.ink,
            "style": "rounded,filled",
            "penwidth": "1",
        }
        if state.transient:
            look |= {"style": "rounded,filled,dashed", "color": palette.line, "penwidth": "1.2"}
        if state.resting:
            look |= {"color": palette.ink, "penwidth": "2.6"}
        if not state.children and (heat := self._heat(state)) is not None:
            look["fillcolor"] = f"{HEAT}{round(255 * HOTTEST * heat):02x}"
        if change is not None:
            colour = getattr(palette, change)
            line = CHANGED_LINES[change]
            look |= {"color": colour, "fontcolor": colour, "penwidth": line["penwidth"]}
            look["style"] = f"rounded,filled,{line['style']}"
        if state.path == self.graph.current:
            look |= {"fillcolor": RUNNING, "fontcolor": ON_RUNNING}
        return look

    def _heat(self, state: GraphState) -> float | None:
        """Return how hot a state is; a closed loop is as hot as the hottest state in it."""
        inside = f"{state.path}{SEPARATOR}"
        heats = [
            h for path, h in self.style.heat.items() if f"{path}{SEPARATOR}".startswith(inside)
        ]
        return min(1.0, max([0.0, *heats])) if heats else None

    def _classes(self, state: GraphState, change: Change | None) -> Iterator[str]:
        yield state.kind
        marks = {
            "closed": state.kind == "loop" and not state.children,
            "transient": state.transient,
            "resting": state.resting,
            "running": state.path == self.graph.current,
        }
        yield from (name for name, applies in marks.items() if applies)
        if change is not None:
            yield change

    def _title(self, state: GraphState, change: Change | None) -> str:
        title = f"{SIGNS[change] if change else ''}{state.name}"
        if state.kind == "loop":
            title += f"  ({state.loop})" if state.children else f" ({state.loop}) …"
            title += f" as {state.like}" if state.like else ""
        heard = {"enter": state.on_enter, "exit": state.on_exit}
        lines = [title, *(f"{kind} / {', '.join(who)}" for kind, who in heard.items() if who)]
        if len(lines) == 1:
            return _text(title)
        return "".join(f"{_text(line)}\\l" for line in lines)

    def _final(self) -> Iterator[str]:
        if not any(edge.target == END for edge in self.graph.edges):
            return
        running = self.graph.current == END
        look = {
            "id": state_id(END),
            "class": "final running" if running else "final",
            "shape": "doublecircle",
            "label": "",
            "style": "filled",
            "width": "0.14",
            "height": "0.14",
            "fixedsize": "true",
            "fillcolor": RUNNING if running else self.palette.line,
            "color": self.palette.line,
        }
        yield f"{_quoted(END)} {_attributes(look)};"

    def _edge(self, number: int, edge: GraphEdge) -> Iterator[str]:
        source, target = self.states[edge.source], self.states[edge.target]
        look = self._line(edge, self.changes[number]) | {"id": edge_id(number)}
        if edge.target == END and source.children:
            # The end of the machine lies in its outermost loop, whose states lead there.
            for child in self._ending(source, edge.event):
                yield self._arrow(child, _way_out(child, edge.event), target, look)
        elif self._is_return(source, target):
            yield self._arrow(source, _way_in(source), target, look)
        else:
            yield self._arrow(source, _way_out(source, edge.event), target, look)

    def _arrow(self, source: GraphState, tail: str, target: GraphState, look: Attributes) -> str:
        cut: dict[str, str] = {}
        # Graphviz cuts an edge at the border of a loop, but not where one end lies within the other.
        if not f"{target.path}{SEPARATOR}".startswith(f"{source.path}{SEPARATOR}"):
            cut |= {"ltail": _cluster(source)} if source.children else {}
            cut |= {"lhead": _cluster(target)} if target.children else {}
        return f"{_quoted(tail)} -> {_quoted(_way_in(target))} {_attributes({**look, **cut})};"

    def _ending(self, root: GraphState, event: str) -> list[GraphState]:
        ending = [child for child in root.children if event in child.leaving]
        return ending or [root.children[-1]]

    def _is_return(self, source: GraphState, target: GraphState) -> bool:
        """Return whether an edge leads from a loop back to a state before it.

        Such an edge begins at the top of the loop. From a state deep inside, it would be long, and
        Graphviz puts the label of a clipped edge where the hidden part would be.
        """
        order = list(self.states)
        beside = source.path.rpartition(SEPARATOR)[0] == target.path.rpartition(SEPARATOR)[0]
        earlier = order.index(target.path) < order.index(source.path)
        return bool(source.children) and beside and earlier

    def _line(self, edge: GraphEdge, change: Change | None) -> dict[str, str]:
        palette = self.palette
        own = palette.posted if edge.posted else palette.error if edge.error else None
        look = {
            "class": "edge",
            "label": f" {_text(_label(edge, change))} " + self._room(),
            "color": own or palette.line,
            "fontcolor": own or palette.ink,
        }
        if edge.posted:
            # A hollow head, too: the line of a change is dashed as well.
            look |= {"style": "dashed", "arrowhead": "onormal", "class": "edge posted"}
        if edge.error:
            look |= {
                "style": "dotted",
                "penwidth": "2",
                "arrowhead": "vee",
                "minlen": "2",
                "class": "edge error",
            }
        if edge.internal:
            look["arrowhead"] = "odot"
        if change is not None:
            look |= CHANGED_LINES[change]
            look |= {"color": getattr(palette, change), "fontcolor": getattr(palette, change)}
            look["class"] += f" {change}"
        return look

    def _room(self) -> str:
        return f"\\n{_text(self.style.room)}" if self.style.room else ""

    def _legend(self) -> str:
        cells = list(self._signs())
        if not cells:
            return ""
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        return f'<<table border="0" cellspacing="6" cellpadding="1"><tr>{columns}</tr></table>>'

    def _signs(self) -> Iterator[str]:
        """Yield the signs that the picture uses, each with its meaning."""
        p = self.palette
        leaves = [state for state in self.graph.root.walk() if not state.children]
        if any(s.transient for s in leaves):
            yield _swatch(
                "dashed border: no checkpoint before it", "rounded,dashed", p.line, p.state
            )
        if any(s.resting for s in leaves):
            yield _swatch("thick border: may rest", "rounded", p.ink, p.state, border=2)
        if self.graph.current is not None:
            yield _swatch("running", "rounded", p.border, RUNNING)
        if any(edge.posted for edge in self.graph.edges):
            yield f'<font color="{p.posted}" point-size="10">- - -▷ posted from outside</font>'
        if any(edge.error for edge in self.graph.edges):
            yield f'<font color="{p.error}" point-size="10">· · ·&gt; taken by an exception</font>'
        if self.style.heat:
            yield _swatch("share of the time", "rounded", p.border, f"{HEAT}bf")
        used = {*self.style.states.values(), *self.changes}
        for change, sign in SIGNS.items():
            if change in used:
                text = f"{sign}{change}"
                yield f'<font color="{getattr(p, change)}" point-size="10"><b>{text}</b></font>'


def _swatch(text: str, style: str, colour: str, fill: str, *, border: int = 1) -> str:
    box = (
        f'<table border="{border}" cellborder="0" style="{style}" color="{colour}" '
        f'bgcolor="{fill}" cellpadding="0"><tr><td fixedsize="true" width="16" height="8"></td>'
        "</tr></table>"
    )
    return (
        '<table border="0" cellspacing="0" cellpadding="2"><tr>'
        f'<td>{box}</td><td><font point-size="10">{escape(text)}</font></td></tr></table>'
    )


def _label(edge: GraphEdge, change: Change | None) -> str:
    text = f"{SIGNS[change] if change else ''}{edge.event}"
    if edge.guards:
        text += f" [{' and '.join(edge.guards)}]"
    if edge.receivers:
        text += f" / {', '.join(edge.receivers)}"
    return text


def _cluster(loop: GraphState) -> str:
    # Graphviz draws a box around subgraphs whose name begins so.
    return f"cluster {loop.path}"


def _marker(loop: GraphState) -> str:
    return f"initial {loop.path}"


def _way_in(state: GraphState) -> str:
    """Return the node that an edge to a state leads to; the edge is clipped at the border of a loop."""
    return _marker(state) if state.children else state.path


def _way_out(state: GraphState, event: str) -> str:
    """Return the node at which an edge begins: for a loop, the last state that gives the event."""
    if not state.children:
        return state.path
    giving = [child for child in state.children if event in child.leaving]
    return _way_out((giving or list(state.children))[-1], event)


def _text(text: str) -> str:
    """Escape a label for Graphviz; `_attributes` quotes it."""
    return " ".join(text.split()).replace("&", "&amp;").replace("\\", "\\\\")


def _attributes(values: Attributes) -> str:
    return "[" + ", ".join(f"{name}={_quoted(value)}" for name, value in values.items()) + "]"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


# -- Running Graphviz -----------------------------------------------------------------------------


# Graphviz runs inside this process and is not thread-safe.
_ONE_AT_A_TIME = threading.Lock()


class GraphvizMissing(StateMachineError, ImportError):
    """A picture was asked for, and pygraphviz is not installed."""


def is_installed() -> bool:
    """Return whether pictures can be laid out."""
    return importlib.util.find_spec("pygraphviz") is not None


def lay_out(dot: str, form: Literal["svg", "png"]) -> bytes:
    """Lay out and draw a graph given in the DOT language.

    Raises:
        GraphvizMissing: pygraphviz is not installed.
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
