"""Moves labels of edges that Graphviz has put on a line, a border or another label, along their own edge."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree.ElementTree import Element

_SVG = "{http://www.w3.org/2000/svg}"
_BORDER = -1
"""Owner of the points of borders; those of edges have the number of the edge."""

_CELL = 16.0
_APART = 2.0
"""Distance of two points of a line, at the most: less than a label is high."""

_GAP = 3.0
"""Room between a label and its own line."""

_CLEAR = 2.0
"""Room between a label and the lines of others."""

_NEAR = 14.0
"""Within this distance a label is taken for that of a line."""

Point = tuple[float, float]


@dataclass(slots=True)
class Box:
    """A rectangle, by its middle and the half of its sides."""

    x: float
    y: float
    wide: float
    high: float

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        across = abs(self.x - other.x) < self.wide + other.wide
        return across and abs(self.y - other.y) < self.high + other.high

    def distance(self, point: Point) -> float:
        """Return how far a point lies outside; 0 inside."""
        dx = max(0.0, abs(point[0] - self.x) - self.wide)
        dy = max(0.0, abs(point[1] - self.y) - self.high)
        return math.hypot(dx, dy)


@dataclass(slots=True)
class Label:
    """A label of an edge: its lines of text, its box, and the line that it belongs to."""

    texts: list[Element]
    box: Box
    edge: int
    line: list[Point]


@dataclass(slots=True)
class _Plane:
    """All that labels must not lie on."""

    cells: dict[tuple[int, int], list[tuple[float, float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    boxes: list[Box] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def add(self, points: Iterable[Point], owner: int) -> None:
        """Add the points of a line."""
        for x, y in points:
            self.cells[int(x // _CELL), int(y // _CELL)].append((x, y, owner))

    def around(self, box: Box, margin: float) -> Iterator[tuple[float, float, int]]:
        """Yield the points in a box and so far around it, each with its owner."""
        left, right = box.x - box.wide - margin, box.x + box.wide + margin
        low, high = box.y - box.high - margin, box.y + box.high + margin
        for i in range(int(left // _CELL), int(right // _CELL) + 1):
            for j in range(int(low // _CELL), int(high // _CELL) + 1):
                for x, y, owner in self.cells.get((i, j), ()):
                    if left < x < right and low < y < high:
                        yield x, y, owner

    def cost(self, label: Label, box: Box, most: float = math.inf) -> float:
        """Return how badly a label would lie there: 0 where it lies well; roughly, from `most` on."""
        close = {owner for _, _, owner in self.around(box, _CLEAR)} - {label.edge}
        on = {owner for _, _, owner in self.around(box, 0.5)} if close else set()
        cost = 8.0 * len(on - {label.edge}) + 2.0 * len(close)
        cost += 4.0 * any(owner == label.edge for _, _, owner in self.around(box, 0.5))
        if cost >= most:
            return cost
        cost += 20.0 * sum(box.meets(one) for one in self.boxes)
        cost += 20.0 * sum(box.meets(one.box) for one in self.labels if one is not label)
        if cost >= most:
            return cost
        own, other = math.inf, math.inf
        for x, y, owner in self.around(box, _NEAR):
            if owner == label.edge:
                own = min(own, box.distance((x, y)))
            elif owner != _BORDER:
                other = min(other, box.distance((x, y)))
        if own > _NEAR:
            cost += 6.0
        elif other < own:
            cost += 3.0
        return cost


def settle(root: Element) -> None:
    """Move the labels of a picture that lie badly, if there is a better place along their edge.

    Args:
        root: A picture whose edges are groups with `data-event`, and whose states have `data-path`.
    """
    plane = _plane_of(root)
    for _ in range(2):  # a label that moved may leave room for another
        for label in plane.labels:
            here = plane.cost(label, label.box)
            if here:
                _move(plane, label, here)


def _move(plane: _Plane, label: Label, here: float) -> None:
    best, where = here, label.box
    for far, box in sorted(_candidates(label), key=lambda one: one[0]):
        penalty = far / 200  # nearer is better, and any place that is free is good enough
        if penalty >= best:
            break
        cost = plane.cost(label, box, best - penalty) + penalty
        if cost < best:
            best, where = cost, box
    dx, dy = where.x - label.box.x, where.y - label.box.y
    label.box = where
    for text in label.texts:
        text.set("x", f"{float(text.get('x', 0)) + dx:.2f}")
        text.set("y", f"{float(text.get('y', 0)) + dy:.2f}")


def _candidates(label: Label) -> Iterator[tuple[float, Box]]:
    """Yield boxes beside the line of a label, each with how far it is from where the label lies."""
    box = label.box
    across, down = box.wide + _GAP, box.high + _GAP
    sides = [(i * across, j * down) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    for x, y in label.line[::3]:
        for dx, dy in sides:
            far = math.hypot(x + dx - box.x, y + dy - box.y)
            yield far, Box(x + dx, y + dy, box.wide, box.high)


# -- Reading the picture --------------------------------------------------------------------------


def _plane_of(root: Element) -> _Plane:
    plane = _Plane()
    edges = 0
    for group in root.iter(f"{_SVG}g"):
        if group.get("data-path") is not None:
            _add_state(plane, group)
        elif group.get("data-event") is not None:
            _add_edge(plane, group, edges)
            edges += 1
        elif "initial" in (group.get("class") or ""):
            for path in group.findall(f"{_SVG}path"):
                plane.add(points_of(path.get("d", "")), _BORDER)
    return plane


def _add_state(plane: _Plane, group: Element) -> None:
    for path in group.findall(f"{_SVG}path"):
        border = list(points_of(path.get("d", "")))
        plane.add(border, _BORDER)
        if "cluster" not in (group.get("class") or "") and border:
            xs, ys = [x for x, _ in border], [y for _, y in border]
            wide, high = (max(xs) - min(xs)) / 2, (max(ys) - min(ys)) / 2
            plane.boxes.append(Box(min(xs) + wide, min(ys) + high, wide, high))
    if "cluster" in (group.get("class") or ""):
        plane.boxes += [box_of([text]) for text in group.findall(f"{_SVG}text")]


def _add_edge(plane: _Plane, group: Element, number: int) -> None:
    line: list[Point] = []
    texts: list[Element] = []

    def close() -> None:
        if texts:
            plane.labels.append(Label([*texts], box_of(texts), number, line))
            texts.clear()

    for one in group:
        if one.tag == f"{_SVG}path":
            close()
            line = list(points_of(one.get("d", "")))
            plane.add(line, number)
        elif one.tag == f"{_SVG}text":
            texts.append(one)
    close()


def box_of(texts: Sequence[Element]) -> Box:
    """Return the box of lines of text; the width of letters is that of DejaVu Sans, a wide font."""
    size = float(texts[0].get("font-size", 10))
    wide = max(len((text.text or "").strip()) for text in texts) * 0.6 * size / 2
    ys = [float(text.get("y", 0)) for text in texts]
    top, bottom = min(ys) - 0.8 * size, max(ys) + 0.25 * size
    x = float(texts[0].get("x", 0))
    if texts[0].get("text-anchor") == "start":
        x += wide
    return Box(x, (top + bottom) / 2, wide, (bottom - top) / 2)


def points_of(path: str) -> Iterator[Point]:
    """Yield points along a path of `M`, `L`, `C` and `Z`, close to each other."""
    at: Point = (0.0, 0.0)
    start = at
    for command, numbers in re.findall(r"([MLCZ])([^MLCZ]*)", path.upper()):
        values = [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?(?:E-?\d+)?", numbers)]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if command == "M":
            at = start = pairs[0]
            pairs = pairs[1:]
            command = "L"
        if command == "Z":
            pairs, command = [start], "L"
        steps = (
            [pairs[i : i + 3] for i in range(0, len(pairs), 3)]
            if command == "C"
            else [[p] for p in pairs]
        )
        for control in steps:
            yield from _along(at, control)
            at = control[-1]
    yield at


def _along(start: Point, control: Sequence[Point]) -> Iterator[Point]:
    corners = [start, *control]
    length = sum(math.dist(a, b) for a, b in pairwise(corners))
    count = max(1, math.ceil(length / _APART))
    if len(control) == 1:
        (x0, y0), (x1, y1) = corners
        for step in range(count):
            t = step / count
            yield x0 + t * (x1 - x0), y0 + t * (y1 - y0)
        return
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    for step in range(count):
        t = step / count
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        yield a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3
