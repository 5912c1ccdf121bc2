"""Pictures fill a page: a large tree is no strip, and each loop lies where its box is."""

from __future__ import annotations

import re

import pytest

from statemachine_trainer.graph import dot, svg
from statemachine_trainer.graph.graph import Graph, graph_of
from statemachine_trainer.graph.model import GraphData
from statemachine_trainer.graph.packing import places_of
from statemachine_trainer.graph.style import LIGHT, Style
from statemachine_trainer.loops import FitLoop, KFoldLoop
from statemachine_trainer.trainer import Trainer
from tests.graph.test_labels_of_random_trees import random_tree

pytest.importorskip("pygraphviz", reason="the layout is Graphviz's")

TREES: dict[str, GraphData] = {
    "fit": Trainer().graph(),
    "kfold": graph_of(KFoldLoop(folds=5, fit=FitLoop()), "kfold"),
    "random": random_tree(3, states=20),
}


def sides(picture: str) -> tuple[float, float]:
    found = re.search(r'width="([\d.]+)" height="([\d.]+)"', picture)
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("seed", range(3))
def test_sixty_states_fill_a_page_and_are_no_strip(seed: int) -> None:
    wide, high = sides(svg.render(random_tree(seed), Style()))
    assert 0.5 < wide / high < 1.2
    assert max(wide, high) < 5000


@pytest.mark.parametrize("tree", TREES)
def test_a_wide_page_gets_a_wider_picture_than_a_high_one(tree: str) -> None:
    high, wide = (sides(svg.render(TREES[tree], Style(), shape=shape)) for shape in (0.5, 2.0))
    assert wide[0] / wide[1] > high[0] / high[1]


@pytest.mark.parametrize("tree", TREES)
def test_every_state_lies_within_the_box_of_its_loop_and_in_no_other(tree: str) -> None:
    drawing = dot.Drawing(TREES[tree], LIGHT, Style())
    places = places_of(drawing)
    loops = [state for state in TREES[tree].root.walk() if state.children]
    states = [state for state in TREES[tree].root.walk() if not state.children]
    for state in states:
        x, y = (float(one) for one in places[state.path]["pos"].split(","))
        for loop in loops:
            left, low, right, high = (
                float(one) for one in places[dot.cluster(loop)]["bb"].split(",")
            )
            inside = left < x < right and low < y < high
            assert inside == state.path.startswith(f"{loop.path}.")


def test_everything_that_is_drawn_has_a_place() -> None:
    drawing = dot.Drawing(TREES["fit"], LIGHT, Style())
    places = places_of(drawing)
    assert {arrow.name for arrow in drawing.arrows()} <= places.keys()
    assert {state.path for state in TREES["fit"].states() if not state.children} <= places.keys()


def test_a_closed_machine_is_a_state_with_its_end_beside_it() -> None:
    closed: Graph = Trainer().graph().collapse(0)
    picture = closed.to_svg()
    assert 'data-path="fit"' in picture
    assert 'data-path="end"' in picture


def test_a_state_names_the_events_with_which_it_leaves_its_loop() -> None:
    picture = Trainer().graph().to_svg()
    assert "⇥ optimized, flushed" in picture
    assert "⇥ event: leaves the loop around it" in picture
    assert "⇥" not in Trainer().graph().collapse(0).to_svg()
