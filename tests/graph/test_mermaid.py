"""The Mermaid text shows every state and every transition of a chart once, where it belongs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.graph.graph import Graph, graph_of
from statemachine_trainer.graph.model import GraphEdge
from statemachine_trainer.machine import Chart, Loop, place, transient


class Step(Loop):
    initial = "forward"
    transitions = [["forwarded", "forward", "backward"]]
    entries = {"redo": "backward"}

    def forward(self) -> Literal["forwarded"]:
        return "forwarded"

    @transient
    def backward(self) -> Literal["stepped"]:
        return "stepped"


class Epoch(Loop):
    initial = "fetch"
    outcomes = ("epoch_done",)
    transitions = [
        ["fetched", "fetch", "step", "has_work"],
        ["fetched", "fetch", "close"],
        ["exhausted", "fetch", "close"],
        ["stop", "fetch", "close"],
        ["stepped", "step", "fetch"],
        ["redo", "fetch", "step"],
    ]
    step: Loop = place(Step)

    def has_work(self) -> bool:
        return True

    def fetch(self) -> Literal["fetched", "exhausted", "redo"] | None:
        return "exhausted"

    def close(self) -> Literal["epoch_done"]:
        return "epoch_done"


GOLDEN = """\
stateDiagram-v2
  [*] --> epoch
  epoch --> [*] : epoch_done
  state "epoch (Epoch)" as epoch {
    [*] --> epoch_fetch
    epoch_fetch --> epoch_step : fetched [has_work]
    epoch_fetch --> epoch_close : fetched, exhausted, stop (posted)
    epoch_fetch --> epoch_step_backward : redo
    epoch_step --> epoch_fetch : stepped
    epoch_close --> [*] : epoch_done
    state "fetch" as epoch_fetch
    state "step (Step)" as epoch_step {
      [*] --> epoch_step_forward
      epoch_step_forward --> epoch_step_backward : forwarded
      epoch_step_backward --> [*] : stepped
      state "forward" as epoch_step_forward
      state "backward" as epoch_step_backward
    }
    state "close" as epoch_close
  }
  classDef transient stroke-dasharray:5 5
  classDef resting stroke-width:4px
  classDef running fill:#f5b041,stroke:#b9770e,color:#000
  class epoch_step_backward transient
  class epoch_fetch resting
  class epoch_fetch running
"""


def test_a_small_tree_in_full() -> None:
    graph = Graph.of(Chart(Epoch(), "epoch"), current="epoch.fetch")
    assert graph.to_mermaid() == GOLDEN


def test_a_diagram_without_outcomes_has_only_the_transitions() -> None:
    text = graph_of(Epoch(), "epoch").to_mermaid(outcomes=False)
    assert text.count("[*] :") == 1
    assert "epoch --> [*] : epoch_done" in text


def test_a_diagram_may_run_from_left_to_right_at_every_depth() -> None:
    assert graph_of(Epoch()).to_mermaid(direction="LR").count("direction LR\n") == 3


def test_a_closed_loop_is_drawn_as_one_state_and_lit_for_what_runs_inside() -> None:
    graph = Graph.of(Chart(Epoch(), "epoch"), current="epoch.step.backward").collapse(1)
    text = graph.to_mermaid()
    assert 'state "step (Step)" as epoch_step\n' in text
    assert "class epoch_step running\n" in text
    assert "epoch_fetch --> epoch_step : fetched [has_work], redo\n" in text


def test_receivers_are_shown_with_what_they_listen_to() -> None:
    heard = {
        "epoch.fetch": ["log", "beep"],
        "epoch.fetch:exit": ["save"],
        "epoch.step:enter": ["seed"],
        "epoch.step:stepped": ["count"],
    }
    text = Graph.of(Chart(Epoch(), "epoch"), receivers=heard).to_mermaid()
    assert 'state "fetch<br/>entry / log, beep<br/>exit / save" as epoch_fetch\n' in text
    assert 'state "step (Step), entry / seed" as epoch_step {\n' in text
    assert "epoch_step --> epoch_fetch : stepped / count\n" in text


def test_what_would_break_a_label_is_written_as_an_entity() -> None:
    heard = {"epoch.fetch": ['<lambda>: "a";\n#b {c}']}
    text = Graph.of(Chart(Epoch(), "epoch"), receivers=heard).to_mermaid()
    label = "#60;lambda#62;#58; #34;a#34;#59; #35;b #123;c#125;"
    assert f'state "fetch<br/>entry / {label}" as epoch_fetch\n' in text


def test_what_would_be_emphasis_in_markdown_is_kept_as_it_is() -> None:
    heard = {"epoch.fetch": ["A.__call__", "two_words"], "epoch.step": ["B.__call__"]}
    text = Graph.of(Chart(Epoch(), "epoch"), receivers=heard).to_mermaid()
    assert "entry / A.#92;_#92;_call#92;_#92;_, two_words" in text
    assert 'state "step (Step), entry / B.__call__" as epoch_step {' in text


def test_an_edge_from_a_loop_to_its_own_entry_point_is_drawn_at_its_border() -> None:
    class Again(Epoch):
        transitions = [*Epoch.transitions, ["redo", "step", "="]]
        posted = ["redo"]

    text = graph_of(Again(), "epoch").to_mermaid()
    assert "epoch_step --> epoch_step : redo (posted) (to backward)\n" in text


@pytest.mark.parametrize("name", ["State", "note", "classDef", "default"])
def test_a_root_named_like_a_word_of_mermaid_gets_another_id(name: str) -> None:
    text = graph_of(Step(), name).to_mermaid()
    assert f'state "{name} (Step)" as {name}_ {{' in text


def test_ids_are_ascii() -> None:
    assert 'state "été (Step)" as ue9tue9 {' in graph_of(Step(), "été").to_mermaid()


class Inner(Loop):
    initial = "start"

    def start(self) -> Literal["inner_done"]:
        return "inner_done"


class Clash(Loop):
    """Names whose paths look alike with underscores, or like Mermaid's own ids."""

    initial = "start"
    transitions = [
        ["go", "start", "a"],
        ["inner_done", "a", "a_start"],
        ["go", "a_start", "end"],
    ]
    a: Loop = place(Inner)

    def start(self) -> Literal["go"]:
        return "go"

    def a_start(self) -> Literal["go"]:
        return "go"

    def end(self) -> Literal["done"]:
        return "done"


@pytest.mark.parametrize("name", ["clash", "root"])
def test_ids_are_unique_and_none_is_one_that_mermaid_gives_itself(name: str) -> None:
    drawn = read(graph_of(Clash(), name).to_mermaid())
    ids = list(drawn.states)
    composites = {inside[-1] for inside in drawn.states.values() if inside} | {"root"}
    assert len(ids) == len(set(ids)) == 6
    assert not set(ids) & {f"{one}_{end}" for one in composites for end in ("start", "end")}


@dataclass
class Drawn:
    """What a diagram says: states with the composites around them, arrows with where they stand."""

    states: dict[str, tuple[str, ...]] = field(default_factory=dict)
    arrows: list[tuple[str, str, str, tuple[str, ...]]] = field(default_factory=list)
    initial: dict[tuple[str, ...], str] = field(default_factory=dict)


def read(text: str) -> Drawn:
    """Read a diagram back, refusing every line that is not of a known form."""
    drawn = Drawn()
    around: tuple[str, ...] = ()
    header, *lines = text.splitlines()
    assert header == "stateDiagram-v2"
    for line in map(str.strip, lines):
        if found := re.fullmatch(r'state "([^"]+)" as (\w+)( \{)?', line):
            assert found[2] not in drawn.states
            drawn.states[found[2]] = around
            around = (*around, found[2]) if found[3] else around
        elif line == "}":
            around = around[:-1]
        elif found := re.fullmatch(r"\[\*\] --> (\w+)", line):
            assert around not in drawn.initial
            drawn.initial[around] = found[1]
        elif found := re.fullmatch(r"(\w+) --> (\w+|\[\*\]) : ([^:;#]+)", line):
            drawn.arrows += [(found[1], found[2], one, around) for one in found[3].split(", ")]
        else:
            assert re.fullmatch(r"(classDef \w+ \S.*|class [\w,]+ \w+)", line), line
            assert not around
    assert not around
    return drawn


@st.composite
def loops(draw: st.DrawFn, depth: int = 3) -> Loop:
    """Draw a loop tree: chains of states with edges back, bubbling, posted and guarded ones."""
    size = draw(st.integers(1, 3))
    names = [f"s{i}" for i in range(size)]
    number = draw(st.integers(0, 10**9))
    members: dict[str, Any] = {"initial": "s0", "maybe": lambda self: True}
    transitions: list[list[Any]] = []
    inside: dict[str, Loop] = {}
    for i, name in enumerate(names):
        following = names[i + 1] if i + 1 < size else None
        if depth and draw(st.booleans()):
            inside[name] = draw(loops(depth - 1))
            events = [f"done{number_of(inside[name])}"]
        else:
            events = [f"go{i}" if following else f"done{number}"]
            if draw(st.booleans()):
                events.append("abort")
            members[name] = state(events)
        if following:
            transitions.append([events[0], name, following])
        elif name in inside:
            leave = f"leave{depth}"
            transitions.append([events[0], name, leave])
            members[leave] = state([f"done{number}"])
        if draw(st.booleans()):
            transitions.append(["stop", name, draw(st.sampled_from(names))])
        if draw(st.booleans()):
            test = draw(st.sampled_from([None, "maybe"]))
            transitions.append(["tick", name, draw(st.sampled_from([*names, "=", None])), test])
    members |= {"transitions": transitions, "posted": ["tick"], "number": number}
    if draw(st.booleans()):
        members["entries"] = {"stop": draw(st.sampled_from(names))}
    made: Loop = type("Drawn", (Loop,), members)(**inside)
    return made


def state(events: list[str]) -> Any:
    def work(self: Loop) -> str:
        return events[0]

    work.__annotations__ = {"return": Literal[tuple(events)]}
    return work


def number_of(loop: Loop) -> int:
    return int(vars(type(loop))["number"])


@given(loops())
def test_every_state_and_every_transition_of_the_chart_is_drawn_once_in_its_place(
    loop: Loop,
) -> None:
    graph = graph_of(loop, "tree")
    drawn = read(graph.to_mermaid(outcomes=False))
    ids = {s.path: i for s, i in zip(graph.root.walk(), drawn.states, strict=True)}
    for path, around in zip(ids, drawn.states.values(), strict=True):
        names = path.split(".")[:-1]
        assert around == tuple(ids[".".join(names[: n + 1])] for n in range(len(names)))
    assert Counter(arrow[:3] for arrow in drawn.arrows) == Counter(
        as_drawn(edge, ids) for edge in graph.edges
    )
    for source, target, _, around in drawn.arrows:
        # Inside every composite that holds both ends, and in no other.
        assert around == common(drawn.states[source], drawn.states.get(target, ()))
    assert drawn.initial == {(): "tree"} | {
        (*drawn.states[ids[s.path]], ids[s.path]): ids[s.initial]
        for s in graph.root.walk()
        if s.initial
    }


@given(loops())
def test_the_edges_are_those_of_the_transitions_machine(loop: Loop) -> None:
    graph = graph_of(loop, "tree")
    loop_again: Any = loop
    loop_again.outcomes = [edge.event for edge in graph.edges if edge.target == "end"]
    chart = Chart(loop, "tree")
    table = Counter(
        (event.name, one.source, one.source if one.dest is None else one.dest)
        for event in chart.events.values()
        for found in event.transitions.values()
        for one in found
    )
    assert Counter((e.event, e.source, e.target) for e in graph.edges) == table
    leaves = [s.path for s in graph.root.walk() if s.kind == "state"]
    assert sorted(leaves) == sorted(chart.leaves())


def as_drawn(edge: GraphEdge, ids: dict[str, str]) -> tuple[str, str, str]:
    """Return source, target and label of an edge in the diagram."""
    inside = edge.target.removeprefix(f"{edge.source}.")
    if inside != edge.target:
        return ids[edge.source], ids[edge.source], f"{edge.label} (to {inside})"
    return ids[edge.source], ids.get(edge.target, "[*]"), edge.label


def common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return one[:shared]
