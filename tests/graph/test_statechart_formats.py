"""Graphs as SCXML and as XState's JSON: valid there, and read back the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import statemachine_trainer.loops as shipped
from statemachine_trainer import Trainer, graph_of
from statemachine_trainer.cli import app
from statemachine_trainer.graph import scxml, xstate
from statemachine_trainer.graph.model import BadOption, GraphData, GraphState
from statemachine_trainer.loops import BatchLoop, EpochLoop, FitLoop, OptimizerLoop
from statemachine_trainer.loops.recipes import KFoldLoop, RecoverLoop, SAMLoop

Form = tuple[Callable[[GraphData], str], Callable[[str], GraphData]]
FORMS: dict[str, Form] = {
    "scxml": (scxml.render, scxml.read),
    "xstate": (xstate.render, xstate.read),
}


class Bad(Exception):
    """Something is wrong with a batch."""


class Leaving(BatchLoop):
    """Leaves out a batch that is bad."""

    errors = [[Bad, "optimizer", "batch_split"]]


class Counting(BatchLoop):
    """Has an edge with two events and two actions."""

    errors = [[[Bad, ValueError], "optimizer", "batch_split", None, None, ["count", print]]]
    counted: int = 0

    def count(self) -> None:
        self.counted += 1


GRAPHS: dict[str, GraphData] = {
    "fit": Trainer(max_epochs=1, progress=False).graph(),
    "errors": graph_of(FitLoop(epoch=EpochLoop(batch=Leaving())), "fit"),
    "actions": graph_of(FitLoop(epoch=EpochLoop(batch=Counting())), "fit"),
    "recovering": graph_of(FitLoop(epoch=EpochLoop(batch=RecoverLoop())), "fit"),
    "sam": graph_of(BatchLoop(optimizer=SAMLoop()), "batch"),
    "kfold": graph_of(KFoldLoop(folds=3, fit=FitLoop(max_epochs=1)), "kfold"),
    "alone": graph_of(OptimizerLoop(), "été"),
    "validation": graph_of(shipped.ValidationLoop(), "validation"),
}


def without_receivers(state: GraphState) -> GraphState:
    children = tuple(map(without_receivers, state.children))
    return replace(state, on_enter=(), on_exit=(), like="", children=children)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GRAPHS)
def test_what_was_written_is_read_back_with_all_states_edges_and_events(
    form: str, name: str
) -> None:
    graph = GRAPHS[name]
    render, read = FORMS[form]
    found = read(render(graph))
    assert found.name == graph.name
    assert found.root == without_receivers(graph.root)
    assert found.final == graph.final
    assert len(found.edges) == len(graph.edges)
    for (
        state
    ) in graph.states():  # the order among edges of one event is that in which they are tried
        mine = [
            sorted(
                (replace(e, receivers=()) for e in one.edges if e.source == state.path),
                key=lambda edge: edge.event,
            )
            for one in (graph, found)
        ]
        assert mine[0] == mine[1]


def test_the_graphs_have_what_is_to_be_written() -> None:
    edges = [edge for graph in GRAPHS.values() for edge in graph.edges]
    assert any(edge.error for edge in edges)
    assert any(edge.posted for edge in edges)
    assert any(edge.guards for edge in edges)


@pytest.mark.parametrize("name", GRAPHS)
def test_scxml_has_unique_ids_and_leads_to_states_that_are_there(name: str) -> None:
    space = "{http://www.w3.org/2005/07/scxml}"
    top = ElementTree.fromstring(scxml.render(GRAPHS[name]).encode())
    assert (top.tag, top.get("version")) == (f"{space}scxml", "1.0")
    ids = [one.attrib["id"] for one in top.iter() if "id" in one.attrib]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[^\W\d][\w.-]*", one) for one in ids)  # an NCName
    assert top.get("initial") in ids
    for state in top.iter(f"{space}state"):
        inside = [one.get("id") for one in state.iter(f"{space}state")][1:]
        assert (state.get("initial") in inside) if inside else state.get("initial") is None
    assert {one.get("target") for one in top.iter(f"{space}transition")} - {None} <= {*ids}


@pytest.mark.parametrize("name", GRAPHS)
def test_xstate_finds_each_target_by_the_path_below_an_id(name: str) -> None:
    machine: dict[str, Any] = json.loads(xstate.render(GRAPHS[name]))
    assert machine["initial"] in machine["states"]

    def check(state: dict[str, Any]) -> None:
        for edge in (edge for edges in state.get("on", {}).values() for edge in edges):
            if "target" in edge:
                first, *path = edge["target"].removeprefix("#").split(".")
                node = next(one for one in machine["states"].values() if one["id"] == first)
                for part in path:
                    node = node["states"][part]
        for inside in state.get("states", {}).values():
            check(inside)
        assert ("states" in state) == ("initial" in state)

    for one in machine["states"].values():
        check(one)


def test_an_error_edge_is_an_event_of_their_kind() -> None:
    graph = GRAPHS["errors"]
    assert 'event="error.execution.Bad"' in scxml.render(graph)
    assert '"error.Bad": [' in xstate.render(graph)


@pytest.mark.parametrize("form", FORMS)
def test_the_command_and_files_write_the_same(form: str, tmp_path: Path) -> None:
    graph = Trainer().graph()
    drawn = {"scxml": graph.to_scxml, "xstate": graph.to_xstate}[form]()
    assert graph.save(tmp_path / f"fit.{form}").read_text(encoding="utf-8") == drawn
    said = CliRunner().invoke(app, ["graph", "--format", form])
    assert said.exit_code == 0, said.output
    assert said.output == drawn


def test_a_difference_is_refused() -> None:
    difference = Trainer().graph().diff(graph_of(BatchLoop(), "fit"))
    with pytest.raises(BadOption, match="no statechart"):
        difference.to_scxml()


@pytest.mark.parametrize("text", ["", "{}", "<a/>", "[]", '{"states": {}}', "<scxml>"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(scxml.NotSCXML):
        scxml.read(text)
    with pytest.raises(xstate.NotXState):
        xstate.read(text)
