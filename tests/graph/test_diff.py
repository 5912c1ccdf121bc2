"""The difference of two graphs names all that a swap changed, and nothing else."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings

from statemachine_trainer.graph import Graph, graph_of
from statemachine_trainer.machine import Chart, Loop, place, transient
from statemachine_trainer.machine.errors import StateMachineError
from tests.machine.random_loops import NAME, trees


class Step(Loop):
    initial = "forward"
    transitions = [["forwarded", "forward", "backward"], ["counted", "backward", "count"]]

    def forward(self) -> Literal["forwarded"]:
        return "forwarded"

    @transient
    def backward(self) -> Literal["counted"]:
        return "counted"

    def count(self) -> Literal["stepped"]:
        return "stepped"


class OtherStep(Loop):
    initial = "forward"
    transitions = [["forwarded", "forward", "climb"], ["climbed", "climb", "backward"]]

    def forward(self) -> Literal["forwarded"]:
        return "forwarded"

    def climb(self) -> Literal["climbed"]:
        return "climbed"

    def backward(self) -> Literal["stepped"]:
        return "stepped"


class Fit(Loop):
    initial = "step"
    outcomes = ("done",)
    transitions = [["stepped", "step", "close", "is_over"], ["stepped", "step", "="]]
    step: Loop = place(Step)

    def is_over(self) -> bool:
        return True

    def close(self) -> Literal["done"]:
        return "done"


class UnguardedFit(Fit):
    transitions = [["stepped", "step", "close"]]


def graph(root: Loop, **heard: list[str]) -> Graph:
    return Graph.of(
        Chart(root, "fit"), receivers={k.replace("_", "."): v for k, v in heard.items()}
    )


def swapped() -> Loop:
    fit = Fit()
    fit.step = OtherStep()
    return fit


def test_a_graph_does_not_differ_from_itself() -> None:
    diff = graph(Fit()).diff(graph(Fit()))
    assert not diff
    assert str(diff).startswith(
        "No state and no transition changed. Settings are no part of a graph"
    )
    assert diff.union == graph(Fit())


def test_a_swap_adds_removes_and_changes() -> None:
    diff = graph(Fit()).diff(graph(swapped()))
    assert diff
    assert diff.states == {
        "fit.step": "changed",
        "fit.step.climb": "added",
        "fit.step.backward": "changed",
        "fit.step.count": "removed",
    }
    assert {key[:3]: change for key, change in diff.edges.items()} == {
        ("fit.step.forward", "forwarded", "fit.step.climb"): "added",
        ("fit.step.climb", "climbed", "fit.step.backward"): "added",
        ("fit.step.forward", "forwarded", "fit.step.backward"): "removed",
        ("fit.step.backward", "counted", "fit.step.count"): "removed",
    }


def test_it_is_told_line_by_line() -> None:
    assert str(graph(Fit()).diff(graph(swapped()))).splitlines() == [
        "~ fit.step: loop Step -> OtherStep",
        "+ fit.step.climb",
        "~ fit.step.backward: transient yes -> no; answers counted -> stepped",
        "- fit.step.count",
        "+ fit.step.forward: forwarded -> fit.step.climb",
        "+ fit.step.climb: climbed -> fit.step.backward",
        "- fit.step.forward: forwarded -> fit.step.backward",
        "- fit.step.backward: counted -> fit.step.count",
    ]


def test_the_way_back_swaps_added_and_removed() -> None:
    there, back = graph(Fit()).diff(graph(swapped())), graph(swapped()).diff(graph(Fit()))
    other = {"added": "removed", "removed": "added", "changed": "changed"}
    assert back.states == {path: other[change] for path, change in there.states.items()}
    assert back.edges == {key: other[change] for key, change in there.edges.items()}


def test_a_guard_that_is_gone_changes_its_edge() -> None:
    diff = graph(Fit()).diff(graph(UnguardedFit()))
    assert [line for line in str(diff).splitlines() if "stepped" in line] == [
        "~ fit.step: stepped -> fit.close (was stepped [is_over])",
        "- fit.step: stepped -> fit.step",
    ]


def test_subscribers_are_compared() -> None:
    diff = graph(Fit(), fit_close=["report"]).diff(graph(Fit(), fit_close=["report", "save"]))
    assert str(diff) == "~ fit.close: on enter report -> report, save"


def test_roots_of_different_names_are_compared_all_the_same() -> None:
    diff = graph_of(Step(), "one").diff(graph_of(OtherStep(), "another"))
    assert diff.states["another"] == "changed"
    assert "another.forward" not in diff.states


def test_a_loop_in_place_of_a_state_and_the_other_way_round_can_be_drawn() -> None:
    class Flat(Fit):
        def step(self) -> Literal["stepped"]:  # type: ignore[override]
            return "stepped"

    there = graph(Fit()).diff(graph(Flat()))
    back = graph(Flat()).diff(graph(Fit()))
    assert there.states["fit.step"] == back.states["fit.step"] == "changed"
    for diff in (there, back):
        assert "fit.step.forward" in diff.to_dot()
        assert "step" in diff.to_mermaid()


def test_what_changed_is_marked_without_colours_too() -> None:
    diff = graph(Fit()).diff(graph(swapped()))
    assert '"- count' in diff.to_dot()
    assert 'label=" + climbed "' in diff.to_dot()
    mermaid = diff.to_mermaid()
    assert "+ climb" in mermaid
    assert "classDef removed" in mermaid


def test_as_data_it_lists_the_changes() -> None:
    data = graph(Fit()).diff(graph(swapped())).to_dict()
    assert data["states"]["fit.step.climb"] == "added"
    assert {
        "source": "fit.step.climb",
        "event": "climbed",
        "target": "fit.step.backward",
        "change": "added",
    } in data["edges"]


@given(trees, trees)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_two_trees_can_be_compared_and_all_of_both_is_drawn(
    one: type[Loop], two: type[Loop]
) -> None:
    before, after = Graph.of(Chart(one(), NAME)), Graph.of(Chart(two(), NAME))
    diff = before.diff(after)
    paths = {state.path for state in diff.union.states()}
    assert paths == {s.path for g in (before, after) for s in g.states()}
    assert {p for p, c in diff.states.items() if c == "removed"} == paths - {
        s.path for s in after.states()
    }
    assert diff.to_dot()
    assert diff.to_mermaid()
    assert str(diff)


@pytest.mark.parametrize("other", [3, None, Fit()], ids=["number", "nothing", "loop"])
def test_what_is_no_graph_is_refused(other: object) -> None:
    with pytest.raises(StateMachineError, match=f"this is a {type(other).__name__}"):
        graph(Fit()).diff(other)  # type: ignore[arg-type]


def test_the_picture_has_a_legend_of_the_changes() -> None:
    pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz")
    svg = graph(Fit()).diff(graph(swapped())).to_svg()
    assert all(word in svg for word in ("+ added", "- removed", "~ changed"))
    assert "smt-stroke-added" in svg
