"""The law that everything rests on: the compiled program does what the `transitions` machine does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from statemachine_trainer.machine import Chart, Driver, Loop, Moment, SignalBoard
from statemachine_trainer.machine.errors import UnexpectedEvent
from statemachine_trainer.machine.plan import END
from statemachine_trainer.machine.program import wire
from tests.machine.random_loops import EVENTS, NAME, POSTED, trees


class ScriptEnded(Exception):
    """The script has no answer left."""


@dataclass
class ScriptedContext:
    """Answers from a script, one entry per state that works, and events posted on the way."""

    answers: Sequence[int]
    told: Sequence[int]
    posts: dict[int, Sequence[str]]
    post: Callable[[str], None] = lambda _event: None
    clock: int = 0

    def answer(self, loop: Any, events: Sequence[str]) -> str:
        if self.clock == len(self.answers):
            raise ScriptEnded
        for event in self.posts.get(self.clock, ()):
            self.post(event)
        self.clock += 1
        return events[self.answers[self.clock - 1] % len(events)]

    def tell(self, loop: Any, guard: int) -> object:
        return self.told[(3 * self.clock + guard) % len(self.told)]


@dataclass
class Trace:
    """All that can be seen of a run."""

    signals: list[Moment] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    posted: list[str] = field(default_factory=list)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    end: str = ""


contexts = st.builds(
    ScriptedContext,
    st.lists(st.integers(0, 5), min_size=10, max_size=40),
    st.lists(st.sampled_from([0, 1, "", "yes"]), min_size=1, max_size=7),
    st.dictionaries(
        st.integers(0, 12), st.lists(st.sampled_from(POSTED), min_size=1, max_size=3), max_size=5
    ),
)


def fresh(context: ScriptedContext) -> ScriptedContext:
    return ScriptedContext(context.answers, context.told, context.posts)


def run_by_the_library(root: Loop, context: ScriptedContext) -> Trace:
    """Run with the triggers of the `transitions` machine alone."""
    trace, board = Trace(), SignalBoard()
    ended: list[str] = []
    chart = Chart(root, NAME)
    signals = board.attach(chart)
    wire(chart, signals, None, ended.append)
    board.on("*:*", lambda _sender, moment: trace.signals.append(moment))
    loops = dict(root.walk(NAME))
    for loop in loops.values():
        loop.context = context

    def post(event: str) -> None:
        if event in chart.events and event not in trace.posted:
            trace.posted.append(event)

    def take_posted() -> bool:
        for event in trace.posted:
            if event in chart.get_triggers(chart.state) and chart.trigger(event):
                trace.posted.remove(event)
                return True
        return False

    context.post = post
    try:
        while chart.state != END:
            trace.leaves.append(chart.state)
            if take_posted():
                continue
            owner, _, name = chart.state.rpartition(".")
            event = getattr(loops[owner], name)()
            if event not in chart.get_triggers(chart.state) or not chart.trigger(event):
                trace.end = "unexpected"
                break
        else:
            trace.end = ended[0]
    except ScriptEnded:
        trace.end = "script"
    trace.fields = {path: loop.state_dict() for path, loop in loops.items()}
    return trace


def run_by_the_program(root: Loop, context: ScriptedContext, how: str, *, heard: bool) -> Trace:
    """Run with the driver: whole, by steps, or as an iteration; listened to or not."""
    trace = Trace()
    driver = Driver(root, name=NAME, context=context)

    def post(event: str) -> None:
        if event in driver.machine.events:
            driver.post(event)

    context.post = post
    driver.start()
    if heard:
        driver.board.on("*:*", lambda _sender, moment: trace.signals.append(moment))
    try:
        if how == "run":
            driver.run()
        elif how == "moments":
            trace.leaves = [str(driver.path), *(m.target for m in driver.moments())]
        else:
            while driver.path is not None:
                trace.leaves.append(driver.path)
                driver.step()
        trace.end = str(driver.outcome)
    except ScriptEnded:
        trace.end = "script"
    except UnexpectedEvent:
        trace.end = "unexpected"
    trace.posted = driver.posted
    trace.fields = {path: loop.state_dict() for path, loop in root.walk(NAME)}
    trace.leaves = trace.leaves if how == "step" else []
    return trace


@pytest.mark.timeout(600)  # a failing example takes long to shrink
@settings(max_examples=100)
@given(tree=trees, context=contexts)
def test_the_program_takes_the_path_and_fires_the_signals_of_the_library_heard_or_not(
    tree: type[Loop], context: ScriptedContext
) -> None:
    expected = run_by_the_library(tree(), fresh(context))
    note(f"{expected}")
    for how in ("run", "moments", "step"):
        found = run_by_the_program(tree(), fresh(context), how, heard=True)
        if how != "step":
            found.leaves = expected.leaves
        assert found == expected, how
    unheard = run_by_the_program(tree(), fresh(context), "run", heard=False)
    assert (unheard.end, unheard.posted, unheard.fields) == (
        expected.end,
        expected.posted,
        expected.fields,
    )


@given(tree=trees, context=contexts, events=st.lists(st.sampled_from(EVENTS + POSTED), max_size=30))
def test_triggers_of_the_driven_machine_fire_what_the_driver_would_have_fired(
    tree: type[Loop], context: ScriptedContext, events: list[str]
) -> None:
    bare, driven, moments = SignalBoard(), Driver(tree(), name=NAME, context=fresh(context)), []
    root = tree()
    chart = Chart(root, NAME)
    wire(chart, bare.attach(chart), None, lambda _event: None)
    for _, loop in root.walk():
        loop.context = fresh(context)
    expected: list[Moment] = []
    bare.on("*:*", lambda _sender, moment: expected.append(moment))
    driven.start()
    driven.board.on("*:*", lambda _sender, moment: moments.append(moment))
    for event in events:
        if chart.state == END:
            assert driven.outcome is not None
            break
        if event in chart.get_triggers(chart.state):
            assert driven.machine.trigger(event) == chart.trigger(event)
            assert driven.machine.state == chart.state
            assert driven.path == (None if chart.state == END else chart.state)
    assert moments == expected


class AllSeen(Exception):
    """Ends the search."""


@pytest.mark.timeout(600)  # on a busy machine
def test_the_random_trees_are_rich() -> None:
    """Guard the generator: what the law is about must occur in what it is tried on."""
    seen: set[str] = set()
    wanted = {"posted", "internal", "to itself", "entry point", "script", "ended", "deferred"}
    wanted |= {f"bubbling over {n}" for n in range(4)} | {f"depth {n}" for n in range(1, 5)}

    @settings(
        max_examples=300,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(tree=trees, context=contexts)
    def look(tree: type[Loop], context: ScriptedContext) -> None:
        root = tree()
        chart = Chart(root, NAME)
        trace = run_by_the_library(root, fresh(context))
        transitions = {m for m in trace.signals if m.kind not in ("enter", "exit")}
        dests = {
            (t.source, t.dest, e.name)
            for e in chart.events.values()
            for found in e.transitions.values()
            for t in found
        }
        for moment in transitions:
            above = str(moment.source).count(".") - moment.path.count(".")
            seen.add(f"bubbling over {above}")
            if moment.kind in POSTED:
                seen.add("posted")
            if (moment.path, None, moment.kind) in dests:
                seen.add("internal")
            if (moment.path, moment.path, moment.kind) in dests:
                seen.add("to itself")
        if any(str(dest).count(".") > source.count(".") for source, dest, _ in dests):
            seen.add("entry point")
        seen.add(f"depth {max(leaf.count('.') for leaf in chart.leaves())}")
        seen.add(trace.end if trace.end in ("script", "unexpected") else "ended")
        seen.add("deferred" if trace.posted else "nothing deferred")
        if wanted <= seen:
            raise AllSeen

    with suppress(AllSeen):
        look()
    assert wanted <= seen, wanted - seen
