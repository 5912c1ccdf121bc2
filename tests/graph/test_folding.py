"""Of several loops of the same shape one is drawn, and the others say which."""

from __future__ import annotations

import re

import pytest

from statemachine_trainer.graph import Graph
from statemachine_trainer.graph.folding import fold
from statemachine_trainer.graph.graph import graph_of
from statemachine_trainer.graph.model import BadOption
from statemachine_trainer.loops import FitLoop, Phase, PhasesLoop, SAMLoop
from statemachine_trainer.trainer import Trainer


def phases(*names: str) -> Graph:
    return graph_of(PhasesLoop(*(Phase(name, FitLoop()) for name in names)), "all")


def closed(graph: Graph) -> dict[str, str]:
    """The loops that are closed, each with the one that it looks like."""
    return {s.path: s.like for s in graph.root.walk() if s.kind == "loop" and not s.children}


def test_the_first_of_loops_of_one_shape_is_open() -> None:
    found = fold(phases("one", "two", "three"))
    assert closed(found) == {"all.two": "one", "all.three": "one"}
    assert fold(found) == found


def test_no_edge_leads_to_what_is_not_shown() -> None:
    found = fold(phases("one", "two"))
    shown = {state.path for state in found.states()}
    assert all({edge.source, edge.target} <= shown for edge in found.edges)
    beside = [edge for edge in phases("one", "two").edges if edge.source.count(".") < 2]
    assert [edge for edge in found.edges if edge.source.count(".") < 2] == beside


def test_a_loop_that_differs_inside_is_drawn() -> None:
    other = FitLoop()
    other.replace(optimizer=SAMLoop())
    graph = graph_of(PhasesLoop(Phase("one", FitLoop()), Phase("two", other)), "all")
    inside_two = closed(fold(graph))
    assert "all.two" not in inside_two
    assert inside_two["all.two.sanity"] == "all.one.sanity"  # with its path: it lies elsewhere


def test_the_default_loop_has_nothing_to_fold() -> None:
    graph = Trainer().graph()
    assert fold(graph) == graph


def test_a_loop_that_runs_and_one_that_is_asked_for_stay_open() -> None:
    graph = phases("one", "two", "three")
    running = closed(fold(graph.at("all.two.epoch.fetch")))
    assert running["all.three"] == "one"
    assert not {"all.two", "all.two.epoch"} & running.keys()
    assert closed(fold(graph, ["all.three"])) == {"all.two": "one"}  # with all that is in it


def test_a_loop_with_other_receivers_is_drawn() -> None:
    trainer = Trainer(PhasesLoop(Phase("one", FitLoop()), Phase("two", FitLoop())))
    trainer.on("*.two.epoch.epoch_end", print)
    assert "fit.two" not in closed(fold(trainer.graph(subscribers=True)))


def test_pictures_are_folded_unless_told_otherwise() -> None:
    graph = phases("one", "two")
    assert "two (FitLoop) … as one" in graph.to_dot()
    assert "two (FitLoop) … as one" not in graph.to_dot(fold=False)
    assert "all.two.epoch.fetch" not in graph.to_dot()
    assert "as one" not in graph.to_mermaid()
    assert "as one" not in graph.diff(graph.collapse(1)).to_dot()


@pytest.mark.parametrize("name", ["fold", "legend"])
def test_what_is_neither_true_nor_false_is_refused(name: str) -> None:
    with pytest.raises(BadOption, match=f"{name}='no': say True or False"):
        phases("one").to_dot(**{name: "no"})  # type: ignore[arg-type]


def test_three_phases_hardly_take_more_room_than_one() -> None:
    pytest.importorskip("pygraphviz", reason="the layout is Graphviz's")

    def area(graph: Graph) -> float:
        found = re.search(r'width="([\d.]+)" height="([\d.]+)"', graph.to_svg())
        assert found is not None
        return float(found[1]) * float(found[2])

    assert area(phases("one", "two", "three")) < 1.5 * area(phases("one"))
