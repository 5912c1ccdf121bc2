"""An edge may have several events, and actions of its own between the exit and the entry."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest

from statemachine_trainer.graph import Graph
from statemachine_trainer.machine import Driver, Loop, field, place
from statemachine_trainer.machine.errors import LoopDefinitionError, MalformedTransition


class Inner(Loop):
    """Counts in a field that its entry resets."""

    initial = "count"
    transitions = [{"trigger": "again", "source": "count", "dest": "=", "actions": "double"}]
    counted: int = 1

    def count(self) -> Literal["again", "full"]:
        return "again" if self.counted < 5 else "full"

    def double(self) -> None:
        self.counted *= 2


class Outer(Loop):
    """Runs its inner loop twice."""

    initial = "inner"
    transitions = [
        ["full", "inner", "check", None, None, ["note", "add"]],
        [["more", "less"], "check", "inner", None, None, "note"],
        ["pause", "check", None, None, None, "note"],
    ]
    posted = ("pause",)
    outcomes = ("over",)
    inner: Loop = place(Inner)
    rounds: int = 0
    notes: list[str] = field(factory=list)

    def check(self) -> Literal["more", "less", "over"]:
        return ("more", "less", "over")[min(self.rounds, 3) - 1]

    def note(self) -> None:
        self.notes.append("noted")

    def add(self) -> None:
        self.rounds += 1


def begun(loop: Loop, name: str) -> Any:
    driver = Driver(loop, name=name)
    driver.start()
    return driver


def test_actions_are_done_between_the_exits_and_the_entries() -> None:
    driver = begun(Outer(), "outer")
    seen: list[Any] = []

    def hear(_sender: Any, moment: Any) -> None:
        seen.append((moment.signal, driver.root.rounds))

    for signal in ("outer.inner:exit", "outer.check:enter", "outer.inner:full"):
        driver.board.on(signal, hear)
    driver.run()
    assert seen[:3] == [
        ("outer.inner:exit", 0),
        ("outer.check:enter", 1),
        ("outer.inner:full", 1),
    ]
    assert driver.root.rounds == 3


@pytest.mark.parametrize("heard", [False, True])
def test_each_event_of_an_edge_takes_it_and_does_its_actions(heard: bool) -> None:
    driver = begun(Outer(), "outer")
    if heard:
        driver.board.on("outer.check:less", lambda _sender, moment: None)
    driver.run()
    assert driver.root.notes == ["noted"] * 5  # thrice on `full`, once on `more`, once on `less`
    assert driver.root.inner.counted == 8


def test_an_internal_edge_does_its_actions_where_the_machine_stands() -> None:
    driver = begun(Outer(), "outer")
    driver.run(until="outer.check:enter")
    driver.post("pause")
    before = len(driver.root.notes)
    driver.step()
    assert (driver.path, len(driver.root.notes)) == ("outer.check", before + 1)


def test_the_library_does_them_in_the_same_place() -> None:
    driver = begun(Outer(), "outer")
    seen: list[Any] = []
    driver.run(until="outer.inner.count:enter")
    driver.board.on("outer.inner:exit", lambda _s, moment: seen.append(driver.root.rounds))
    driver.board.on("outer.check:enter", lambda _s, moment: seen.append(driver.root.rounds))
    driver.machine.trigger("full")
    assert seen == [0, 1]
    assert driver.path == "outer.check"
    driver.machine.trigger("pause")
    assert driver.root.notes == ["noted"] * 2


class Failing(Outer):
    """Has an action that fails once."""

    failed: bool = False

    def add(self) -> None:
        if not self.failed:
            self.failed = True
            raise RuntimeError("no room")
        super().add()


def test_an_error_in_an_action_names_its_edge_and_the_rest_of_the_edge_is_done_later() -> None:
    driver = begun(Failing(), "outer")
    entered: list[Any] = []
    driver.board.on("outer.check:enter", lambda _sender, moment: entered.append(driver.root.rounds))
    with pytest.raises(RuntimeError, match="no room") as caught:
        driver.run()
    notes = " ".join(caught.value.__notes__)
    assert "the action 'add' of the transition on 'full' from 'inner' to 'check'" in notes
    assert "loop 'outer' (Failing)" in notes
    assert (entered, driver.root.notes) == ([], ["noted"])
    driver.run()
    assert entered == [1, 2, 3]
    assert driver.root.notes == ["noted"] * 5  # the action before it was not done again


class Bad(Exception):
    """Takes an edge."""


class Worse(Exception):
    """Takes the same edge."""


class Recovering(Loop):
    """Fails twice, in two ways."""

    initial = "work"
    outcomes = ("done",)
    transitions: ClassVar[Any] = []
    errors: ClassVar[Any] = [
        {"error": [Bad, Worse], "source": "work", "dest": "work", "actions": "retry"}
    ]
    tries: int = 0

    def work(self) -> Literal["done"]:
        if self.tries < 2:
            raise (Bad, Worse)[self.tries]
        return "done"

    def retry(self) -> None:
        self.tries += 1


def test_an_edge_for_several_errors_may_have_actions_too() -> None:
    driver = begun(Recovering(), "loop")
    driver.run()
    assert driver.root.tries == 2


@pytest.mark.parametrize("stop", range(12))
def test_a_machine_that_is_read_back_at_any_boundary_ends_the_same(stop: int) -> None:
    whole = begun(Outer(), "outer")
    whole.run()
    first = begun(Outer(), "outer")
    for _ in range(stop):
        if first.step() is None:
            break
    second = begun(Outer(), "outer")
    second.load_state_dict(first.state_dict())
    second.run()
    assert second.root.state_dict() == whole.root.state_dict()
    assert second.root.inner.state_dict() == whole.root.inner.state_dict()


def loop_with(**declared: Any) -> Loop:
    def work(self: Any) -> Literal["done", "again"]:
        return "done"

    def sets(self: Any) -> None:
        self.undeclared = 1

    def asks(self: Any, value: int) -> None: ...

    async def waits(self: Any) -> None: ...

    body = {"initial": "work", "work": work, "sets": sets, "asks": asks, "waits": waits}
    made: Loop = type("Mine", (Loop,), {**body, **declared})()
    return made


@pytest.mark.parametrize(
    "entry, match",
    [
        (["again", "work", "=", None, None, "wrok"], "is no method of loop"),
        (["again", "work", "=", None, None, "work"], "is a state"),
        (["again", "work", "=", None, None, "asks"], "called without arguments"),
        (["again", "work", "=", None, None, "waits"], "coroutine"),
        (["again", "work", "=", None, None, "sets"], "undeclared"),
        (["again", "work", "=", None, None, 3], "name of a method or a callable"),
        ([[], "work", "="], "list of events is empty"),
        ([["again", "again"], "work", "="], "twice"),
        ([{"again"}, "work", "="], "as a list"),
        ([["again", "other"], "work", "="], "'other'"),
        ([["again", 3], "work", "="], "must be names"),
        ({"trigger": "again", "source": "work", "dest": "=", "after": "asks"}, "`actions`"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_as_the_machine_is_built(entry: Any, match: str) -> None:
    with pytest.raises(LoopDefinitionError, match=match):
        Driver(loop_with(transitions=[entry]))


@pytest.mark.parametrize(
    "kinds, match",
    [([], "is empty"), ((Bad, Worse), "as a list"), ([Bad, Bad], "twice"), ([3], "class")],
)
def test_so_are_lists_of_errors(kinds: Any, match: str) -> None:
    with pytest.raises(MalformedTransition, match=match):
        Driver(loop_with(transitions=[], errors=[[kinds, "work", "="]]))


def test_pictures_show_events_and_actions() -> None:
    graph = Graph.of(Driver(Outer(), name="outer").machine)
    labels = [edge.label for edge in graph.edges]
    assert "full / note and add" in labels
    assert {"more / note", "less / note"} <= {*labels}
