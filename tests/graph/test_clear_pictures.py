"""A picture can be read: how many lines run through boxes that are not theirs, and what labels hide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from statemachine_trainer import loops as shipped
from statemachine_trainer.graph import dot, svg
from statemachine_trainer.graph.graph import Graph, graph_of
from statemachine_trainer.graph.style import LIGHT, Style
from statemachine_trainer.loops import FitLoop, KFoldLoop, Phase, PhasesLoop

pytest.importorskip("pygraphviz", reason="the layout is Graphviz's")

Point = tuple[float, float]
Box = tuple[float, float, float, float]

# A line that only touches a border does not hide anything.
BORDER = 1.5
# Graphviz says where a label is, and how wide, but not how high: that of its font.
LABEL_HEIGHT = 10.0


def laid_out(graph: Graph) -> dict[str, Any]:
    drawing = dot.Drawing(graph, LIGHT, Style(legend=False))
    text = "\n".join(drawing.lines(places=svg.draw(drawing)[1]))
    drawn: dict[str, Any] = json.loads(dot.lay_out(text, "json", "nop2"))
    return drawn


def boxes(drawn: dict[str, Any]) -> dict[int, Box]:
    """The boxes of the states that work, by Graphviz's number."""
    found = {}
    for one in drawn["objects"]:
        if "pos" in one and one["shape"] == "box":
            x, y = (float(part) for part in one["pos"].split(","))
            wide, high = float(one["width"]) * 36 - BORDER, float(one["height"]) * 36 - BORDER
            found[one["_gvid"]] = (x - wide, y - high, x + wide, y + high)
    return found


def loops(drawn: dict[str, Any]) -> Iterator[tuple[set[int], Box]]:
    """The boxes of loops, each with the states and loops' beginnings inside."""
    for one in drawn["objects"]:
        if one["name"].startswith("cluster ") and "bb" in one:
            left, low, right, high = (float(part) for part in one["bb"].split(","))
            box = left + BORDER, low + BORDER, right - BORDER, high - BORDER
            yield set(one.get("nodes", ())), box


def points(edge: dict[str, Any]) -> Iterator[Point]:
    """Points along the curve, close to each other."""
    for stroke in edge.get("_draw_", ()):
        if stroke["op"] != "b":
            continue
        knots = stroke["points"]
        for start in range(0, len(knots) - 3, 3):
            a, b, c, d = knots[start : start + 4]
            for step in range(41):
                t = step / 40
                weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
                along = list(zip(weights, (a, b, c, d), strict=True))
                yield sum(w * p[0] for w, p in along), sum(w * p[1] for w, p in along)


def passes(edge: dict[str, Any], box: Box) -> bool:
    left, low, right, high = box
    return any(left < x < right and low < y < high for x, y in points(edge))


def labels(drawn: dict[str, Any]) -> Iterator[Box]:
    for edge in drawn.get("edges", ()):
        for text in edge.get("_ldraw_", ()):
            if text["op"] == "T":
                (x, y), half = text["pt"], text["width"] / 2
                shift = {"l": half, "c": 0.0, "r": -half}[text["align"]]
                middle = x + shift
                yield middle - half, y - 2, middle + half, y - 2 + LABEL_HEIGHT


def meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def counts(graph: Graph) -> tuple[int, int, int, int]:
    """Lines through foreign states and foreign loops, labels on labels, labels on states."""
    drawn = laid_out(graph)
    states, texts = boxes(drawn), list(labels(drawn))
    through = sum(
        passes(edge, box)
        for edge in drawn.get("edges", ())
        for number, box in states.items()
        if number not in (edge["tail"], edge["head"])
    )
    through_loops = sum(
        passes(edge, box)
        for edge in drawn.get("edges", ())
        for inside, box in loops(drawn)
        if not inside & {edge["tail"], edge["head"]}
    )
    on_labels = sum(meet(a, b) for a, b in combinations(texts, 2))
    on_boxes = sum(meet(text, box) for text in texts for box in states.values())
    return through, through_loops, on_labels, on_boxes


def struck_through(graph: Graph) -> int:
    """How many labels another edge's line runs through."""
    drawn = laid_out(graph)
    edges = drawn.get("edges", ())
    return sum(
        passes(other, text)
        for edge in edges
        for text in labels({"edges": [edge]})
        for other in edges
        if other is not edge
    )


TREES = {
    name: graph_of(getattr(shipped, name)(), "loop")
    for name in (
        "ActiveLearningLoop",
        "BatchLoop",
        "ClosureLoop",
        "EnsembleLoop",
        "EpochLoop",
        "FitLoop",
        "ManualLoop",
        "OptimizerLoop",
        "PoolLoop",
        "PredictionLoop",
        "RecoverLoop",
        "SAMLoop",
        "SanityLoop",
        "SplittingLoop",
        "TestLoop",
        "ValidationLoop",
        "YieldingLoop",
    )
}
TREES["KFoldLoop"] = graph_of(KFoldLoop(folds=5, fit=FitLoop(max_epochs=3)), "kfold")
TREES["PhasesLoop"] = graph_of(PhasesLoop(Phase("one", FitLoop()), Phase("two", FitLoop())), "all")
# The figures reached; a tree that is not named has none.
STRUCK_THROUGH = {"SplittingLoop": 1}


@pytest.mark.parametrize("tree", TREES)
def test_no_line_runs_through_a_box_that_is_not_its_own_and_no_label_lies_on_another(
    tree: str,
) -> None:
    assert counts(TREES[tree]) == (0, 0, 0, 0)


@pytest.mark.parametrize("tree", TREES)
def test_labels_are_struck_through_in_few_trees_and_once_at_most(tree: str) -> None:
    assert struck_through(TREES[tree]) <= STRUCK_THROUGH.get(tree, 0)


def test_a_line_through_a_box_is_found() -> None:
    line = {"_draw_": [{"op": "b", "points": [[0, 0], [10, 0], [20, 0], [30, 0]]}]}
    assert passes(line, (10, -5, 20, 5))
    assert not passes(line, (10, 5, 20, 9))
