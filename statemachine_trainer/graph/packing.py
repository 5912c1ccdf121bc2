"""Packing: lays out each loop by itself, inner ones first, so that a large tree fills a page and is no long strip.

Graphviz lays out one loop at a time, downwards and to the right; an inner loop is a box in the one around it.
Of each loop some layouts are kept, from narrow ones to wide ones, and at last the one is taken that fills a page best.
So no line of a loop can cross what lies in another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from statemachine_trainer.graph.dot import (
    MARK,
    Arrow,
    Drawing,
    attributes,
    cluster,
    lay_out,
    quoted,
)
from statemachine_trainer.graph.model import END, SEPARATOR, GraphState

MARGIN: Final = 9.0
"""Points between the border of a loop and what is in it."""

PORTRAIT: Final = 0.7
"""How wide a sheet of paper is for its height; notebooks and documents are read downwards, too."""

PANE: Final = 1.1
"""How wide the part of a window that shows a graph is for its height."""

LAYOUTS: Final = 5
"""So many layouts of a loop are kept."""

INCH: Final = 72.0

_CUT = ("lhead", "ltail")  # here loops are nodes, at whose border edges end by themselves

_PAIR = re.compile(r"(-?[\d.]+(?:e[+-]?\d+)?),(-?[\d.]+(?:e[+-]?\d+)?)")

Point = tuple[float, float]
Places = dict[str, dict[str, str]]


@dataclass(slots=True)
class _Placed:
    """A loop that is laid out, its lower left corner at the origin; lengths are in points."""

    wide: float
    high: float
    title: Mapping[str, str]
    nodes: list[tuple[str, Point, dict[str, str]]] = field(default_factory=list)
    arrows: list[tuple[str, str, str | None]] = field(default_factory=list)
    loops: list[tuple[GraphState, Point, _Placed]] = field(default_factory=list)


def places_of(drawing: Drawing, shape: float = PORTRAIT) -> Places:
    """Find a place for everything in a drawing.

    Args:
        drawing: What is to be drawn.
        shape: How wide the page is for its height, which the picture is to fill.

    Raises:
        GraphvizMissing: pygraphviz is not installed.
    """
    return _Packing(drawing).places(shape)


class _Packing:
    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._arrows: dict[str, list[Arrow]] = {}
        for arrow in drawing.arrows():
            mark, _, loop = arrow.source.partition(MARK)
            around = loop if not mark else arrow.source.rpartition(SEPARATOR)[0]
            self._arrows.setdefault(around, []).append(arrow)

    def places(self, shape: float) -> Places:
        """Return where everything lies on a page of this shape."""
        root = self._drawing.graph.root
        # A closed machine is one state, with its end beside it.
        outer = root if root.children else GraphState("", "", "loop", children=(root,))
        whole = min(self._layouts(outer), key=lambda one: max(one.wide, one.high * shape))
        legend = self._size_of_legend()
        places: Places = {}
        _collect(whole, outer, (0.0, legend[1]), places)
        wide, high = max(whole.wide, legend[0]), whole.high + legend[1]
        places["graph"] = {"bb": f"0,0,{wide:.2f},{high:.2f}"}
        if legend[1]:
            places["graph"]["lp"] = _at(wide / 2, legend[1] / 2)
        return places

    def _size_of_legend(self) -> Point:
        label = self._drawing.legend()
        if not label:
            return 0.0, 0.0
        whole = attributes(self._drawing.whole())
        # As JSON Graphviz ends the process at such a label.
        text = lay_out(f"digraph {{ label={label}; graph {whole}; }}", "dot").decode()
        wide, high = (re.search(rf"\b{side}=([\d.]+)", text) for side in ("lwidth", "lheight"))
        assert wide
        assert high
        return float(wide[1]) * INCH + 8, float(high[1]) * INCH + 8

    def _layouts(self, loop: GraphState) -> list[_Placed]:
        """Lay out a loop and all loops inside in several ways, the narrowest first."""
        inside = {child.path: self._layouts(child) for child in loop.children if child.children}
        most = max([1, *map(len, inside.values())])
        found = [
            self._one_way(loop, {path: _share(ways, n, most) for path, ways in inside.items()}, to)
            for n in range(most)
            for to in ("TB", "LR")
        ]
        return _varied(found)

    def _one_way(self, loop: GraphState, inside: Mapping[str, _Placed], direction: str) -> _Placed:
        """Lay out one loop in one direction."""
        drawn = _graphviz("\n".join(self._text(loop, inside, direction)))
        left, low, right, high = (float(one) for one in drawn["bb"].split(","))
        around = MARGIN if loop.path else 0.0
        shift = around - left, around - low
        title: dict[str, str] = {
            name: drawn[name] for name in ("lheight", "lwidth", "lp") if name in drawn
        }
        if "lp" in title:
            title["lp"] = _moved(title["lp"], shift)
        placed = _Placed(right - left + 2 * around, high - low + 2 * around, title)
        for node in drawn["objects"]:
            x, y = (float(one) for one in node["pos"].split(","))
            at = x + shift[0], y + shift[1]
            name = node["name"]
            if name in inside:
                sub = inside[name]
                corner = at[0] - sub.wide / 2, at[1] - sub.high / 2
                child = self._drawing.states[name]
                placed.loops.append((child, corner, sub))
            else:
                size = {side: node[side] for side in ("width", "height")}
                placed.nodes.append((name, at, size))
        for edge in drawn.get("edges", ()):
            label = _moved(edge["lp"], shift) if "lp" in edge else None
            placed.arrows.append((edge["comment"], _moved(edge["pos"], shift), label))
        return placed

    def _text(
        self, loop: GraphState, inside: Mapping[str, _Placed], direction: str
    ) -> Iterator[str]:
        drawing = self._drawing
        yield "digraph {"
        whole = drawing.whole() | {"rankdir": direction, "pad": "0"}
        if loop.path:
            whole |= {"label": drawing.look(loop, 0)["label"], "labelloc": "t", "labeljust": "l"}
        yield f"graph {attributes(whole)};"
        yield from drawing.defaults()
        for child in loop.children:
            if child.path in inside:
                sub = inside[child.path]
                box = {"shape": "box", "label": "", "fixedsize": "true"}
                box |= {"width": f"{sub.wide / INCH:.4f}", "height": f"{sub.high / INCH:.4f}"}
                yield f"{quoted(child.path)} {attributes(box)};"
            else:
                yield drawing.node(child)
        if loop.path:
            yield drawing.marker(loop)
        if loop is drawing.graph.root or not loop.path:
            yield from drawing.final()
        for arrow in self._arrows.get(loop.path, ()):
            ends = f"{quoted(_inside(loop, arrow.source))} -> {quoted(_inside(loop, arrow.target))}"
            look = {name: value for name, value in arrow.look.items() if name not in _CUT}
            if "label" in look:
                look["label"] = f"  {look['label']}  "  # a bit of air around it
            yield f"{ends} {attributes(look | {'comment': arrow.name})};"
        yield "}"


def _inside(loop: GraphState, path: str) -> str:
    """Return the state of a loop that a path lies in; what is no path is a node of its own."""
    before = f"{loop.path}{SEPARATOR}" if loop.path else ""
    if path == END or not path.startswith(before):
        return path
    return before + path.removeprefix(before).partition(SEPARATOR)[0]


def _share(ways: list[_Placed], number: int, most: int) -> _Placed:
    """Return that of some layouts which lies as far from the narrowest as `number` of `most` does."""
    return ways[round(number * (len(ways) - 1) / max(1, most - 1))]


def _varied(found: list[_Placed]) -> list[_Placed]:
    """Keep layouts of different shapes, and none that is wider and higher than another one."""
    kept: list[_Placed] = []
    for one in sorted(found, key=lambda one: (one.wide, one.high)):
        if not kept or one.high < kept[-1].high:
            kept.append(one)
    while len(kept) > LAYOUTS:
        # The one in a row goes whose neighbours are most like each other.
        gone = min(
            range(1, len(kept) - 1),
            key=lambda n: kept[n + 1].wide * kept[n - 1].high / kept[n - 1].wide / kept[n + 1].high,
        )
        del kept[gone]
    return kept


def _collect(placed: _Placed, loop: GraphState, corner: Point, places: Places) -> None:
    """Add where the parts of a loop lie whose lower left corner is given."""
    x, y = corner
    if loop.path:
        title = dict(placed.title)
        if "lp" in title:
            title["lp"] = _moved(title["lp"], corner)
        box = f"{_at(x, y)},{_at(x + placed.wide, y + placed.high)}"
        places[cluster(loop)] = {"bb": box, **title}
    for name, at, size in placed.nodes:
        places[name] = {"pos": _at(x + at[0], y + at[1]), **size}
    for name, curve, label in placed.arrows:
        places[name] = {"pos": _moved(curve, corner)}
        if label is not None:
            places[name]["lp"] = _moved(label, corner)
    for child, at, inner in placed.loops:
        _collect(inner, child, (x + at[0], y + at[1]), places)


def _graphviz(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lay_out(text, "json"))
    return found


def _at(x: float, y: float) -> str:
    return f"{x:.2f},{y:.2f}"


def _moved(points: str, by: Point) -> str:
    """Move all points of a curve as Graphviz writes it: `e,1.5,2 3,4 5,6`."""
    found = _PAIR.sub(lambda pair: _at(float(pair[1]) + by[0], float(pair[2]) + by[1]), points)
    return found
