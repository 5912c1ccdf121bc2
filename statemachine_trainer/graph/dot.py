"""DOT: renders a graph in the language of Graphviz, with loops as clusters."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Literal, NamedTuple

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
    "changed": {"penwidth": "1.8"},  # and the style that it has
}
# Even the hottest state is not fully opaque, so that its name stays legible.
HOTTEST = 0.75

LEAVES = "⇥"
"""Before the events with which a state leaves the loop around it."""

_FROM = " from "
MARK = "initial "
"""Before the path of a loop: the name of the mark at which it begins."""

Attributes = Mapping[str, str]
Places = Mapping[str, Attributes]


def render(graph: GraphData, style: Style, palette: Palette) -> str:
    """Return a graph in the DOT language.

    Args:
        graph: What to draw.
        style: The heat of states, what changed, and whether there is a legend.
        palette: Its colours.
    """
    return "\n".join([*Drawing(graph, palette, style).lines(), ""])


def state_id(path: str) -> str:
    """Return the id of a state in the picture."""
    return f"state {path}"


def edge_id(number: int, start: str = "") -> str:
    """Return the id of an edge in the picture; of its further arrows, with the path that they start from."""
    return f"edge {number}{_FROM}{start}" if start else f"edge {number}"


def edge_of(name: str) -> str:
    """Return the id of the edge that an arrow of this id is part of."""
    return name.partition(_FROM)[0]


class Arrow(NamedTuple):
    """An arrow of the picture.

    Attributes:
        name: Its id. A transition that several states give is drawn as several arrows.
        source: Path of the state that it comes from, or the mark at which a loop begins.
        target: Path of the state that it leads to.
        tail: The node that it begins at: of a loop, one inside.
        head: The node that it leads to: of a loop, one inside.
        look: Its attributes.
    """

    name: str
    source: str
    target: str
    tail: str
    head: str
    look: Attributes


class Drawing:
    """A graph in the language of Graphviz.

    Args:
        graph: What to draw.
        palette: Its colours.
        style: The heat of states, what changed, and whether there is a legend.
    """

    def __init__(self, graph: GraphData, palette: Palette, style: Style) -> None:
        self.graph, self.palette, self.style = graph, palette, style
        self.states = {state.path: state for state in graph.states()}
        self.changes = [style.edges.get(key) for key in edge_keys(graph.edges)]
        self._places: Places = {}

    def lines(self, pixels: float | None = None, places: Places | None = None) -> Iterator[str]:
        """Yield the text.

        Args:
            pixels: Pixels per inch of a bitmap.
            places: Where everything lies, if that is known: attributes by the name of a node, a cluster or an
                arrow, and of the "graph".
        """
        self._places = places or {}
        yield f"digraph {quoted(self.graph.name)} {{"
        whole = {**self.whole(), **self._places.get("graph", {})}
        if pixels is not None:
            whole["dpi"] = f"{pixels:g}"
        if legend := self.legend():
            whole |= {"labelloc": "b", "labeljust": "c"}
            yield f"  label={legend};"
        yield f"  graph {attributes(whole)};"
        yield from _indented(self.defaults())
        yield from _indented(self._state(self.graph.root, 0))
        if not self.graph.root.children:
            yield from _indented(self.final())
        for one in self.arrows():
            yield f"  {quoted(one.tail)} -> {quoted(one.head)} {self._placed(one.name, one.look)};"
        yield "}"

    def whole(self) -> dict[str, str]:
        """Return the attributes of the picture as a whole."""
        return {
            "compound": "true",
            "newrank": "true",
            "bgcolor": self.palette.paper,
            "fontname": FONT,
            "fontcolor": self.palette.ink,
            "fontsize": "12",
            "ranksep": "0.32",
            "nodesep": "0.3",
            "pad": "0.15",
        }

    def defaults(self) -> Iterator[str]:
        """Yield the attributes that states and edges have if they have no others."""
        state = {"shape": "box", "style": "rounded,filled", "margin": "0.13,0.05", "height": "0.34"}
        text = {"fontname": FONT, "fontcolor": self.palette.ink}
        yield f"node {attributes(state | text | {'fontsize': '12'})};"
        yield f"edge {attributes(text | {'fontsize': '10', 'arrowsize': '0.7'})};"

    def node(self, state: GraphState, depth: int = 0) -> str:
        """Return the line of a state that has no states inside."""
        return f"{quoted(state.path)} {self._placed(state.path, self.look(state, depth))};"

    def marker(self, loop: GraphState) -> str:
        """Return the line of the mark at which a loop begins."""
        look = {"shape": "circle", "style": "filled", "width": "0.11", "height": "0.11"}
        look |= {"label": "", "fixedsize": "true", "class": "initial"}
        look |= {"fillcolor": self.palette.line, "color": self.palette.line}
        return f"{quoted(_marker(loop))} {self._placed(_marker(loop), look)};"

    def _placed(self, name: str, look: Attributes) -> str:
        return attributes({**look, **self._places.get(name, {})})

    def _state(self, state: GraphState, depth: int) -> Iterator[str]:
        if not state.children:
            yield self.node(state, depth)
            return
        yield f"subgraph {quoted(cluster(state))} {{"
        look = self.look(state, depth) | {"margin": "9", "labelloc": "t", "labeljust": "l"}
        yield f"  graph {self._placed(cluster(state), look)};"
        yield f"  {self.marker(state)}"
        for child in state.children:
            yield from _indented(self._state(child, depth + 1))
        if state is self.graph.root:
            yield from _indented(self.final())
        yield "}"

    def look(self, state: GraphState, depth: int) -> dict[str, str]:
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
            if "style" in line:
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
        if self._leaves(state):
            lines.append(f"{LEAVES} {', '.join(state.leaving)}")
        if len(lines) == 1:
            return _text(title)
        return "".join(f"{_text(line)}\\l" for line in lines)

    def _leaves(self, state: GraphState) -> bool:
        """Return whether a state leaves a loop; from the outermost loop lines lead to the end instead."""
        around = state.path.rpartition(SEPARATOR)[0]
        return (
            bool(state.leaving)
            and state.path.startswith(f"{self.graph.root.path}{SEPARATOR}")
            and around != self.graph.root.path
        )

    def final(self) -> Iterator[str]:
        """Yield the line of the final state, if anything leads there."""
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
        yield f"{quoted(END)} {self._placed(END, look)};"

    def arrows(self) -> Iterator[Arrow]:
        """Yield the arrows of all edges, and from the mark of each loop to the state it begins in."""
        for state in self.graph.root.walk():
            if state.children and state.initial in self.states:
                line = {"class": "initial", "color": self.palette.line, "weight": "8"}
                to = self.states[state.initial]
                line |= {"lhead": cluster(to)} if to.children else {}
                mark = _marker(state)
                yield Arrow(f"from {mark}", mark, to.path, mark, _way_in(to), line)
        for number, edge in enumerate(self.graph.edges):
            yield from self._edge(number, edge)

    def _edge(self, number: int, edge: GraphEdge) -> Iterator[Arrow]:
        name = edge_id(number)
        source, target = self.states[edge.source], self.states[edge.target]
        look = self._line(edge, self.changes[number])
        if edge.target == END and source.children:
            # The end of the machine lies in its outermost loop, whose states lead there.
            for n, child in enumerate(self._ending(source, edge.event)):
                name = edge_id(number, child.path if n else "")
                yield self._arrow(name, child, _way_out(child, edge.event), target, look)
        elif self._is_return(source, target):
            yield self._arrow(name, source, _way_in(source), target, look)
        else:
            yield self._arrow(name, source, _way_out(source, edge.event), target, look)

    def _arrow(
        self, name: str, source: GraphState, tail: str, target: GraphState, look: Attributes
    ) -> Arrow:
        cut: dict[str, str] = {}
        # Graphviz cuts an edge at the border of a loop, but not where one end lies within the other.
        if not f"{target.path}{SEPARATOR}".startswith(f"{source.path}{SEPARATOR}"):
            cut |= {"ltail": cluster(source)} if source.children else {}
            cut |= {"lhead": cluster(target)} if target.children else {}
        look = {**look, "id": name, **cut}
        return Arrow(name, source.path, target.path, tail, _way_in(target), look)

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

    def legend(self) -> str:
        """Return the label that explains the signs of the picture; empty if there is none."""
        cells = list(self._signs()) if self.style.legend else []
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
        if any(map(self._leaves, leaves)):
            yield f'<font point-size="10">{LEAVES} event: leaves the loop around it</font>'
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
    if edge.actions or edge.receivers:
        text += f" / {', '.join((*edge.actions, *edge.receivers))}"
    return text


def cluster(loop: GraphState) -> str:
    """Return the name of the box of a loop."""
    # Graphviz draws a box around subgraphs whose name begins so.
    return f"cluster {loop.path}"


def _marker(loop: GraphState) -> str:
    return f"{MARK}{loop.path}"


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


def attributes(values: Attributes) -> str:
    """Return attributes as they are written behind a node or an edge."""
    return "[" + ", ".join(f"{name}={quoted(value)}" for name, value in values.items()) + "]"


def quoted(text: str) -> str:
    """Return a name between quotation marks."""
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


def lay_out(
    dot: str, form: Literal["svg", "png", "json", "dot"], prog: Literal["dot", "nop2"] = "dot"
) -> bytes:
    """Lay out and draw a graph given in the DOT language.

    Args:
        dot: The graph.
        form: What to return.
        prog: "nop2" where the text says where everything lies.

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
        drawn: bytes = picture.draw(format=form, prog=prog)
        picture.close()
    return drawn
