"""Extracts the loops, states and transitions of a chart as a plain model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from statemachine_trainer.graph.model import GraphEdge, GraphState, Receivers
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.declaration import (
    is_transient,
    read_answers,
    read_errors,
    read_transitions,
)
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.plan import LoopPlan
from statemachine_trainer.machine.signals import ENTER, EXIT, Subscription


def extract(chart: Chart, receivers: Receivers) -> tuple[GraphState, tuple[GraphEdge, ...]]:
    """Return the outermost loop of a chart with all that is inside, and all transitions."""
    heard: dict[str, tuple[str, ...]] = {}
    for name, labels in receivers.items():
        heard[name if ":" in name else f"{name}:{ENTER}"] = tuple(labels)
    root = _loop_state(chart.plan, chart.plan.path, chart.plan.loop.outcomes, heard)
    given = dict(_given(chart.plan))
    errors = {t.event for plan in chart.plan.walk() for t in plan.transitions if t.error}
    owners = {
        f"{plan.path}{SEPARATOR}{state}": plan
        for plan in chart.plan.walk()
        for state in plan.states
    }
    edges = [
        edge
        for state in root.walk()
        for edge in _edges_from(chart, state.path, given, errors, heard)
        if not edge.posted or _may_be_posted(edge, owners)
    ]
    return root, tuple(edges)


def _may_be_posted(edge: GraphEdge, owners: Mapping[str, LoopPlan]) -> bool:
    """Return whether an event that nothing inside gives may come from outside. Else the edge is never taken.

    A loop that was swapped in may not give what the one before gave.
    """
    owner = owners.get(edge.source)
    state = edge.source.rpartition(SEPARATOR)[2]
    return owner is None or owner.takes_posted(state, edge.event)


def receivers_on(board: SignalBoard) -> dict[str, list[str]]:
    """Return labels of the subscriptions by the signals that they listen to, for `Graph.of`."""
    heard: dict[str, list[str]] = {}
    for one in board.subscriptions:
        for signal in one.signals:
            heard.setdefault(signal.name, []).append(_short(one))
    return heard


def _short(subscription: Subscription) -> str:
    """Return the label of a subscription without module and enclosing function."""
    module = getattr(subscription.receiver, "__module__", "")
    return subscription.label().removeprefix(f"{module}.").rpartition("<locals>.")[2]


def events_let_go(loop: Loop, path: str) -> dict[str, None]:
    """Return the events that may leave a loop, in the order of its states."""
    inside = loop.loops_inside()
    transitions = read_transitions(type(loop), loop.transitions, [])
    errors = read_errors(type(loop), loop.errors, [])
    named = (s for t in (*transitions, *errors) for s in (t.source, t.dest) if s)
    states = dict.fromkeys([loop.initial, *named])
    transitions = read_transitions(type(loop), loop.transitions, list(states))
    taken = {(t.source, t.event) for t in transitions if not t.guards}
    let_go: dict[str, None] = {}
    for state in states:
        here = f"{path}{SEPARATOR}{state}"
        if state in inside:
            events = list(events_let_go(inside[state], here))
        else:
            events = list(read_answers(type(loop), state, here).events)
        let_go.update(dict.fromkeys(e for e in events if (state, e) not in taken))
    return let_go


def _loop_state(
    plan: LoopPlan, name: str, leaving: Sequence[str], heard: Mapping[str, tuple[str, ...]]
) -> GraphState:
    children = []
    for state in plan.states:
        lost = _leaving(plan, state)
        if state in plan.inside:
            children.append(_loop_state(plan.inside[state], state, lost, heard))
        else:
            children.append(_leaf_state(plan, state, lost, heard))
    return GraphState(
        plan.path,
        name,
        "loop",
        loop=plan.kind,
        doc=_doc_of_loop(type(plan.loop)),
        initial=f"{plan.path}{SEPARATOR}{plan.states[0]}",
        answers=tuple(plan.origins),
        leaving=tuple(leaving),
        on_enter=heard.get(f"{plan.path}:{ENTER}", ()),
        on_exit=heard.get(f"{plan.path}:{EXIT}", ()),
        children=tuple(children),
    )


def _leaf_state(
    plan: LoopPlan, state: str, leaving: Sequence[str], heard: Mapping[str, tuple[str, ...]]
) -> GraphState:
    path, method = f"{plan.path}{SEPARATOR}{state}", getattr(plan.loop, state)
    return GraphState(
        path,
        state,
        "state",
        loop=plan.kind,
        doc=_first_line(inspect.getdoc(method)),
        transient=is_transient(method),
        resting=plan.answers[state].may_rest,
        answers=plan.answers[state].events,
        leaving=tuple(leaving),
        on_enter=heard.get(f"{path}:{ENTER}", ()),
        on_exit=heard.get(f"{path}:{EXIT}", ()),
    )


def _leaving(plan: LoopPlan, state: str) -> list[str]:
    """Return the events with which a state leaves its loop, always or when guards refuse."""
    taken = {t.event for t in plan.transitions if t.source == state and not t.guards}
    return [event for event in plan.given_by(state) if event not in taken]


def _given(plan: LoopPlan) -> Iterator[tuple[str, set[str]]]:
    """Yield each path of the tree with the events that can come from inside it."""
    yield plan.path, set(plan.origins)
    for state in plan.states:
        if state in plan.inside:
            yield from _given(plan.inside[state])
        else:
            yield f"{plan.path}{SEPARATOR}{state}", set(plan.answers[state].events)


def _edges_from(
    chart: Chart,
    path: str,
    given: Mapping[str, set[str]],
    errors: Set[str],
    heard: Mapping[str, tuple[str, ...]],
) -> Iterator[GraphEdge]:
    for event in chart.events.values():
        for one in event.transitions.get(path, ()):
            yield GraphEdge(
                event.name,
                path,
                path if one.dest is None else one.dest,
                guards=tuple(_in_words(c.func, c.target) for c in one.conditions),
                posted=event.name not in given[path] and event.name not in errors,
                internal=one.dest is None,
                error=event.name in errors,
                receivers=heard.get(f"{path}:{event.name}", ()),
                actions=tuple(action.__name__ for action in getattr(one, "actions", ())),
            )


def _in_words(test: Callable[..., Any] | str, expected: bool) -> str:
    name = test if isinstance(test, str) else getattr(test, "__name__", "guard")
    return name if expected else f"not {name}"


def _doc_of_loop(cls: type) -> str:
    """Return the first line of the docstring of a loop class, unless it is that of the base class."""
    return next(
        (_first_line(c.__doc__) for c in cls.__mro__ if c.__doc__ and c not in Loop.__mro__), ""
    )


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].strip()
