"""The graph says what the chart does: its states, transitions and outcomes, and where it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import pytest

from statemachine_trainer.graph.graph import Graph, graph_of
from statemachine_trainer.graph.model import BadOption, GraphEdge, UnknownPath
from statemachine_trainer.machine import Chart, Loop, place, transient
from statemachine_trainer.machine.errors import ImpossibleEvent, UnhandledEvent, UnknownLoop


class Step(Loop):
    """One optimizer step.

    More is said further down.
    """

    initial = "forward"
    transitions = [["forwarded", "forward", "backward"], ["again", "backward", "="]]
    entries = {"redo": "backward"}

    def forward(self) -> Literal["forwarded"]:
        """Compute the loss."""
        return "forwarded"

    @transient
    def backward(self) -> Literal["again", "stepped", "diverged"]:
        return "stepped"


class Epoch(Loop):
    initial = "fetch"
    posted = ["tick"]
    transitions = [
        ["fetched", "fetch", "step", "has_work", ["is_late"]],
        ["fetched", "fetch", "close", None, "has_work"],
        ["exhausted", "fetch", "close"],
        ["stop", "fetch", "close"],
        ["tick", "fetch", None],
        ["stepped", "step", "fetch"],
        ["redo", "fetch", "step"],
    ]
    step: Loop = place(Step)

    def has_work(self) -> bool:
        return True

    def is_late(self) -> bool:
        return False

    def fetch(self) -> Literal["fetched", "exhausted", "redo"] | None:
        return "exhausted"

    def close(self) -> Literal["epoch_done"]:
        return "epoch_done"


class Fit(Loop):
    initial = "epoch"
    outcomes = ("fit_done", "diverged", "fetched")
    transitions = [["epoch_done", "epoch", "close"]]
    epoch: Loop = place(Epoch)

    def close(self) -> Literal["fit_done"]:
        return "fit_done"


def fit_graph(current: str | None = None) -> Graph:
    return Graph.of(Chart(Fit(), "fit"), current=current)


def edges(graph: Graph, source: str) -> list[GraphEdge]:
    return [edge for edge in graph.edges if edge.source == source]


def test_states_are_those_of_the_tree_outer_ones_first_and_the_final_one_last() -> None:
    assert [(s.path, s.name, s.kind, s.loop) for s in fit_graph().states()] == [
        ("fit", "fit", "loop", "Fit"),
        ("fit.epoch", "epoch", "loop", "Epoch"),
        ("fit.epoch.fetch", "fetch", "state", "Epoch"),
        ("fit.epoch.step", "step", "loop", "Step"),
        ("fit.epoch.step.forward", "forward", "state", "Step"),
        ("fit.epoch.step.backward", "backward", "state", "Step"),
        ("fit.epoch.close", "close", "state", "Epoch"),
        ("fit.close", "close", "state", "Fit"),
        ("end", "end", "final", ""),
    ]


def test_a_state_says_what_it_is() -> None:
    states = {state.path: state for state in fit_graph().states()}
    step, backward = states["fit.epoch.step"], states["fit.epoch.step.backward"]
    assert step.doc == "One optimizer step."
    assert step.initial == "fit.epoch.step.forward"
    assert states["fit.epoch.step.forward"].doc == "Compute the loss."
    assert (backward.transient, backward.doc) == (True, "")
    assert states["fit.epoch.fetch"].resting
    assert [s.path for s in states.values() if s.resting or s.transient] == [
        "fit.epoch.fetch",
        "fit.epoch.step.backward",
    ]


def test_a_loop_without_a_docstring_does_not_borrow_that_of_the_base_class() -> None:
    assert fit_graph().root.doc == ""


def test_every_transition_is_an_edge_between_the_states_that_declare_it() -> None:
    fetch, close, step = "fit.epoch.fetch", "fit.epoch.close", "fit.epoch.step"
    assert set(edges(fit_graph(), fetch)) == {
        GraphEdge("fetched", fetch, step, guards=("has_work", "not is_late")),
        GraphEdge("fetched", fetch, close, guards=("not has_work",)),
        GraphEdge("exhausted", fetch, close),
        GraphEdge("stop", fetch, close, posted=True),
        GraphEdge("tick", fetch, fetch, posted=True, internal=True),
        GraphEdge("redo", fetch, "fit.epoch.step.backward"),
    }
    assert edges(fit_graph(), step) == [GraphEdge("stepped", step, fetch)]


def test_the_outcomes_of_the_root_lead_to_the_final_state() -> None:
    events = ("fit_done", "diverged", "fetched")
    assert set(edges(fit_graph(), "fit")) == {GraphEdge(event, "fit", "end") for event in events}


def test_an_event_that_bubbles_leaves_each_loop_up_to_the_one_that_takes_it() -> None:
    leaving = {s.path: s.leaving for s in fit_graph().states() if s.leaving}
    assert leaving == {
        "fit": ("fit_done", "diverged", "fetched"),
        "fit.epoch": ("fetched", "diverged"),
        "fit.epoch.fetch": ("fetched",),  # Where the guards of all its edges refuse.
        "fit.epoch.step": ("diverged",),
        "fit.epoch.step.backward": ("stepped", "diverged"),
        "fit.epoch.close": ("epoch_done",),
        "fit.close": ("fit_done",),
    }


def test_receivers_stand_where_their_signal_fires() -> None:
    heard = {
        "fit.close": ["report"],
        "fit.epoch:enter": ["seed"],
        "fit.epoch:exit": ["save", "log"],
        "fit.epoch.step:stepped": ["count"],
        "other.epoch:exit": ["of another chart"],
    }
    graph = Graph.of(Chart(Fit(), "fit"), receivers=heard)
    states = {state.path: state for state in graph.states()}
    assert states["fit.close"].on_enter == ("report",)
    assert (states["fit.epoch"].on_enter, states["fit.epoch"].on_exit) == (
        ("seed",),
        ("save", "log"),
    )
    assert edges(graph, "fit.epoch.step")[0].label == "stepped / count"


def test_the_running_state_must_be_one_of_the_graph() -> None:
    assert fit_graph("fit.epoch.fetch").current == "fit.epoch.fetch"
    assert fit_graph("end").current == "end"
    with pytest.raises(UnknownPath, match=r"no state 'fit\.epoch\.fetsch'.*'fit\.epoch\.fetch'"):
        fit_graph("fit.epoch.fetsch")


def test_a_collapsed_graph_closes_the_loops_that_lie_deep() -> None:
    graph = fit_graph("fit.epoch.step.forward").collapse(2)
    assert [state.path for state in graph.root.walk()] == [
        "fit",
        "fit.epoch",
        "fit.epoch.fetch",
        "fit.epoch.step",
        "fit.epoch.close",
        "fit.close",
    ]
    assert graph.current == "fit.epoch.step"
    redo = [edge for edge in graph.edges if edge.event == "redo"]
    assert redo == [GraphEdge("redo", "fit.epoch.fetch", "fit.epoch.step")]
    assert not edges(graph, "fit.epoch.step.forward")
    assert fit_graph().collapse(9) == fit_graph()


def test_an_opened_loop_is_a_graph_whose_outcomes_end_it() -> None:
    graph = fit_graph("fit.epoch.close").open("step")
    assert [state.name for state in graph.states()] == ["step", "forward", "backward", "end"]
    assert {(edge.event, edge.target) for edge in edges(graph, "fit.epoch.step")} == {
        ("stepped", "end"),
        ("diverged", "end"),
    }
    assert graph.current is None
    assert fit_graph().open("fit") == fit_graph()


def test_what_is_no_loop_cannot_be_opened() -> None:
    with pytest.raises(UnknownLoop, match=r"no loop called 'fetch'"):
        fit_graph().open("fetch")


def test_a_loop_in_no_machine_is_drawn_with_all_that_it_lets_go_as_its_end() -> None:
    epoch = Epoch()
    graph = graph_of(epoch, "epoch")
    ends = [edge.event for edge in graph.edges if edge.target == "end"]
    assert ends == ["fetched", "diverged", "epoch_done"]
    assert not epoch.outcomes
    assert epoch.step._parent is epoch


def test_a_loop_that_lists_its_outcomes_is_drawn_with_these() -> None:
    graph = graph_of(Fit())
    assert {edge.event for edge in edges(graph, "loop")} == set(Fit.outcomes)


def test_a_loop_that_does_not_hold_together_is_not_drawn() -> None:
    class Narrow(Epoch):
        outcomes = ("epoch_done",)

    class Outer(Loop):
        initial = "inner"
        inner: Loop = place(Narrow)

    class Astray(Epoch):
        transitions = [*Epoch.transitions, ["forwarded", "fetch", "close"]]

    with pytest.raises(UnhandledEvent, match=r"'fetched'|'diverged'"):
        graph_of(Narrow())
    with pytest.raises(UnhandledEvent, match=r"'fetched'|'diverged'"):
        graph_of(Outer())
    with pytest.raises(ImpossibleEvent, match="'forwarded'"):
        graph_of(Astray())


def test_a_graph_as_data_survives_json() -> None:
    data = fit_graph("fit.close").to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["root"]["children"][0]["children"][1]["loop"] == "Step"


def test_the_outline_reads_like_the_tree() -> None:
    assert str(fit_graph("fit.epoch.fetch").open("epoch")).splitlines() == [
        "epoch (Epoch): fetched -> end; diverged -> end; epoch_done -> end",
        "  fetch [running] [rests]: fetched [has_work and not is_late] -> step; "
        "fetched [not has_work] -> close; exhausted -> close; stop (posted) -> close; "
        "tick (posted) (internal) -> fetch; redo -> step.backward; leaves on fetched",
        "  step (Step): stepped -> fetch; leaves on diverged",
        "    forward: forwarded -> backward",
        "    backward [transient]: again -> backward; leaves on stepped, diverged",
        "  close: leaves on epoch_done",
    ]


def test_a_graph_is_saved_as_data_too(tmp_path: Path) -> None:
    graph = graph_of(Fit(), "fit")
    path = graph.save(tmp_path / "graph.json")
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(graph.to_dict()))


def test_a_graph_says_in_a_line_what_it_is() -> None:
    graph = fit_graph("fit.close")
    assert re.fullmatch(r"<Graph 'fit': \d+ edges, in 'fit.close'>", repr(graph))
    assert repr(graph.diff(graph)) == "<GraphDiff: 0 states and 0 transitions changed>"
    assert len(repr(graph.root)) < 600


def test_an_option_that_no_picture_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadOption, match=r"no option 'themes'.*Did you mean 'theme'"):
        fit_graph().to_dot(themes="dark")  # type: ignore[call-arg]
