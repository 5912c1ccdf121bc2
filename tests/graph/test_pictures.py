"""The pictures in docs/ show the loops as they are: held by the texts beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from statemachine_trainer.graph import Graph
from statemachine_trainer.loops import FitLoop, KFoldLoop, SAMLoop
from statemachine_trainer.trainer import Trainer

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
REMEDY = "draw the pictures again: python tools/draw_pictures.py"


def swapped() -> Graph:
    trainer = Trainer()
    trainer.loop.replace(optimizer=SAMLoop(rho=0.05))
    return trainer.graph()


def kfold() -> Graph:
    return Trainer(KFoldLoop(folds=5, fit=FitLoop(max_epochs=3))).graph().collapse(2)


def shown(name: str) -> tuple[set[str], set[tuple[str, ...]]]:
    """Paths and edges of a picture."""
    svg = (PICTURES / name).read_text(encoding="utf-8")
    edges = re.findall(r'data-source="([^"]*)" data-event="([^"]*)" data-target="([^"]*)"', svg)
    return set(re.findall(r'data-path="([^"]*)"', svg)), set(edges)


def test_the_texts_are_those_of_the_loops_as_they_are() -> None:
    mermaid = (PICTURES / "graph.mmd").read_text(encoding="utf-8")
    assert mermaid == Trainer().graph().to_mermaid(), REMEDY
    difference = (PICTURES / "swap.txt").read_text(encoding="utf-8")
    assert difference == f"{Trainer().graph().diff(swapped())}\n", REMEDY


@pytest.mark.parametrize("name, graph", [("graph.svg", Trainer().graph()), ("kfold.svg", kfold())])
def test_the_pictures_show_every_state_and_edge_of_them(name: str, graph: Graph) -> None:
    paths, edges = shown(name)
    assert paths == {state.path for state in graph.states()}, REMEDY
    assert edges == {(edge.source, edge.event, edge.target) for edge in graph.edges}, REMEDY
