"""Of the labels of large random trees few lie on lines or borders, and none on another label."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest

from statemachine_trainer.graph import svg
from statemachine_trainer.graph.labels import Box, box_of, points_of
from statemachine_trainer.graph.model import END, GraphData, GraphEdge, GraphState
from statemachine_trainer.graph.style import Style

pytest.importorskip("pygraphviz", reason="the layout is Graphviz's")

WORDS = ("fetch", "forward", "optimizer_step", "checkpoint_written", "drain", "label_new_samples")
Numbers = npt.NDArray[np.float64]
PATH, TEXT = "{http://www.w3.org/2000/svg}path", "{http://www.w3.org/2000/svg}text"


def random_tree(seed: int, states: int = 60) -> GraphData:
    """A graph of so many states that work, in loops five deep, with long names and edges of all kinds."""
    chance = random.Random(seed)
    edges: list[GraphEdge] = []
    left = states

    def loop(path: str, depth: int) -> GraphState:
        nonlocal left
        inside = []
        for number in range(chance.randint(2, 5)):
            name = f"{chance.choice(WORDS)}_{number}"
            here = f"{path}.{name}"
            if depth < 5 and left > 0 and (chance.random() < 0.55 or depth < 2):
                inside.append(loop(here, depth + 1))
            else:
                left -= 1
                inside.append(GraphState(here, name, "state", loop="Loop"))
        for one, after in zip(inside, [*inside[1:], inside[0]], strict=True):
            edges.append(GraphEdge(chance.choice(WORDS), one.path, after.path))
            if chance.random() < 0.4:
                to, is_posted = chance.choice(inside).path, chance.random() < 0.4
                edges.append(
                    GraphEdge(f"to_{chance.choice(WORDS)}", one.path, to, posted=is_posted)
                )
            if chance.random() < 0.1:
                to = chance.choice(inside).path
                edges.append(GraphEdge("OutOfMemoryError", one.path, to, error=True))
        name, children = path.rpartition(".")[2], tuple(inside)
        return GraphState(
            path, name, "loop", loop="Loop", initial=inside[0].path, children=children
        )

    root = loop("run", 0)
    return GraphData("run", root, (*edges, GraphEdge("done", "run", END)))


def wrong(graph: GraphData) -> Iterator[str]:
    """What is wrong with the labels of a picture, once for each."""
    root = ElementTree.fromstring(svg.render(graph, Style(legend=False)))
    groups = [one for one in root.iter() if one.get("data-event") is not None]
    states = [one for one in root.iter() if one.get("data-path") is not None]
    lines = [(n, *point) for n, one in enumerate(groups) for point in points_in(one)]
    owners, across, down = np.array(lines).T
    borders = np.array([point for one in states for point in points_in(one)]).T
    labels = [(n, box_of([text])) for n, one in enumerate(groups) for text in one.iter(TEXT)]
    for number, box in labels:
        if (inside(box, across, down) & (owners != number)).any():
            yield "on a line"
        if inside(box, *borders).any():
            yield "on a border"
    for (_, one), (_, other) in combinations(labels, 2):
        if one.meets(other):
            yield "on a label"


def points_in(group: ElementTree.Element) -> Iterator[tuple[float, float]]:
    for path in group.findall(PATH):
        yield from points_of(path.get("d", ""))


def inside(box: Box, across: Numbers, down: Numbers) -> npt.NDArray[np.bool_]:
    return (abs(across - box.x) < box.wide) & (abs(down - box.y) < box.high)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_few_labels_of_200_random_trees_of_60_states_lie_badly() -> None:
    graphs = [random_tree(seed) for seed in range(200)]
    labels = sum(len(graph.edges) for graph in graphs)
    found = Counter(what for graph in graphs for what in wrong(graph))
    assert {what: count / labels for what, count in found.items() if count > 0.006 * labels} == {}
    assert found["on a label"] <= 0.002 * labels


def test_a_small_random_tree_has_no_label_on_another() -> None:
    found = Counter(wrong(random_tree(0, states=12)))
    assert found["on a label"] == 0
