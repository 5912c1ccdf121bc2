"""DOT tells Graphviz all that the graph has, and survives any names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from statemachine_trainer.graph import Graph, graph_of
from statemachine_trainer.graph.model import BadOption, UnknownPath
from statemachine_trainer.machine import Chart, Loop
from tests.machine.kit import Fit
from tests.machine.random_loops import NAME, trees


def fit_graph() -> Graph:
    return Graph.of(Chart(Fit(), "fit"))


def nodes(dot: str) -> list[str]:
    return re.findall(r'id="state ([^"]*)"', dot)


def line_of(dot: str, path: str) -> str:
    return next(line for line in dot.splitlines() if f'id="state {path}"' in line)


def test_every_state_is_a_node_or_a_cluster_once() -> None:
    graph = fit_graph()
    dot = graph.to_dot()
    assert sorted(nodes(dot)) == sorted(state.path for state in graph.states())
    loops = [state.path for state in graph.root.walk() if state.children]
    assert re.findall(r'subgraph "cluster ([^"]*)"', dot) == loops


@given(trees)
@settings(max_examples=15, deadline=None)
def test_every_edge_of_any_tree_is_there(root: type[Loop]) -> None:
    graph = Graph.of(Chart(root(), NAME))
    dot = graph.to_dot(fold=False)
    assert set(re.findall(r'id="edge (\d+)"', dot)) == {str(i) for i in range(len(graph.edges))}
    assert sorted(set(nodes(dot)) | {"end"}) == sorted(s.path for s in graph.states())


def test_a_transition_between_loops_is_cut_at_their_borders() -> None:
    (line,) = [one for one in fit_graph().to_dot().splitlines() if '"edge 0"' in one]
    edge = fit_graph().edges[0]
    assert edge.source == "fit"
    assert '-> "end"' in line
    assert re.search(r'ltail="cluster fit\.', fit_graph().to_dot())
    assert re.search(r'lhead="cluster fit\.', fit_graph().to_dot())


def test_the_running_state_and_heat_have_a_fill() -> None:
    path = next(state.path for state in fit_graph().root.walk() if not state.children)
    plain = line_of(fit_graph().to_dot(), path)
    running = line_of(fit_graph().to_dot(running=path), path)
    hot = line_of(fit_graph().to_dot(heat={path: 1.0, "no such state": 1.0}), path)
    cool = line_of(fit_graph().to_dot(heat={path: 0.1}), path)
    assert len({plain, running, hot, cool}) == 4
    assert 'class="state running"' in running
    with pytest.raises(UnknownPath, match="'nowhere'"):
        fit_graph().to_dot(running="nowhere")


def test_a_closed_loop_is_as_hot_as_the_hottest_state_inside() -> None:
    graph = fit_graph()
    leaf = max((s.path for s in graph.root.walk()), key=lambda path: path.count("."))
    closed = graph.collapse(1)
    around = ".".join(leaf.split(".")[:2])
    by_leaf = line_of(closed.to_dot(heat={leaf: 0.5}), around)
    assert by_leaf == line_of(closed.to_dot(heat={around: 0.5}), around)
    assert by_leaf != line_of(closed.to_dot(), around)


def test_light_and_dark_differ_in_colours_only() -> None:
    light, dark = fit_graph().to_dot(), fit_graph().to_dot(theme="dark")
    assert light != dark
    without = [re.sub("#[0-9a-f]{6}", "", text) for text in (light, dark)]
    assert without[0] == without[1]


def test_the_legend_explains_what_is_there_and_can_be_left_out() -> None:
    graph = fit_graph()
    assert "<table" in graph.at(graph.root.children[0].path).to_dot()
    assert "<table" not in graph.at(graph.root.children[0].path).to_dot(legend=False)


def test_subscribers_are_named_at_their_state_and_event() -> None:
    heard = {"fit.epoch:enter": ["seed"], "fit.epoch:exit": ["save"]}
    dot = Graph.of(Chart(Fit(), "fit"), receivers=heard).to_dot()
    assert r"enter / seed\lexit / save\l" in dot


def test_labels_that_graphviz_would_read_are_escaped() -> None:
    graph = graph_of(Fit(), "fit")
    edge = replace(graph.edges[0], guards=('<b> & "x" \\N',))
    dot = replace(graph, edges=(edge, *graph.edges[1:])).to_dot()
    assert r"[<b> &amp; \"x\" \\N]" in dot


def test_options_that_mean_nothing_are_refused() -> None:
    theme: Any = "dak"
    with pytest.raises(BadOption, match="Did you mean 'dark'"):
        fit_graph().to_dot(theme=theme)
    direction: Any = "XX"
    with pytest.raises(BadOption, match="'TB'"):
        fit_graph().to_mermaid(direction=direction)
    heat: Any = 3
    with pytest.raises(BadOption, match="heat=3"):
        fit_graph().to_dot(heat=heat)
    with pytest.raises(UnknownPath, match="heat= names no state"):
        fit_graph().to_dot(heat={"fit.nowhere": 1.0})
    depths: list[Any] = ["batch", -1, True]
    for depth in depths:
        with pytest.raises(BadOption, match="collapse"):
            fit_graph().collapse(depth)
