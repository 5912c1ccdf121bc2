"""A loop tree that cannot run is refused before it runs, by an error that says the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, field, place
from statemachine_trainer.machine.errors import (
    ImpossibleEvent,
    LoopDefinitionError,
    LoopUsedTwice,
    MalformedTransition,
    MissingLoop,
    NoWayOut,
    ReservedName,
    UncallableState,
    UndeclaredEvents,
    UnhandledEvent,
    UnknownInitialState,
    UnknownState,
    UnreachableState,
)


class Leaf(Loop):
    """Works once and is done."""

    initial = "work"

    def work(self) -> Literal["done"]:
        return "done"


class Pair(Loop):
    """Two states, the base of most mistakes below."""

    initial = "first"
    outcomes: ClassVar[Any] = ("done",)
    transitions: ClassVar[Any] = [["next", "first", "second"]]

    def first(self) -> Literal["next"]:
        return "next"

    def second(self) -> Literal["done"]:
        return "done"


def refuse(root: Loop, error: type[LoopDefinitionError], *said: str) -> None:
    """Building must fail with this very class of error, and the message must say all of this."""
    with pytest.raises(LoopDefinitionError) as caught:
        Driver(root, name="fit")
    assert type(caught.value) is error
    for part in said:
        assert part in str(caught.value), str(caught.value)


def test_a_tree_that_holds_together_runs() -> None:
    driver = Driver(Pair(), name="fit")
    driver.start()
    assert driver.run() == "done"


def test_an_event_that_nobody_handles_is_refused() -> None:
    class Forgetful(Pair):
        outcomes = ()

    refuse(
        Forgetful(), UnhandledEvent, "'fit.second'", "'done'", "outcomes = ('done',)", "Forgetful"
    )


def test_an_event_that_leaves_an_inner_loop_must_be_handled_around_it() -> None:
    class Outer(Loop):
        initial = "inner"
        outcomes = ("over",)
        transitions = [["finished", "inner", "last"]]
        inner: Loop = place(Leaf)

        def last(self) -> Literal["over"]:
            return "over"

    refuse(Outer(), ImpossibleEvent, "'finished'", "'inner'", "none of the states inside", "posted")


def test_an_event_that_only_a_condition_handles_is_not_handled() -> None:
    class Sometimes(Pair):
        transitions = [["next", "first", "second", "ready"]]

        def ready(self) -> bool:
            return True

    refuse(Sometimes(), UnhandledEvent, "'fit.first'", "'next'", "every case", "Sometimes")


def test_outcomes_narrow_what_may_leave_an_inner_loop() -> None:
    class Narrow(Leaf):
        outcomes = ("finished",)

    class Outer(Loop):
        initial = "inner"
        outcomes = ("done",)
        inner: Loop = place(Narrow)

    refuse(Outer(), UnhandledEvent, "'fit.inner.work'", "'done'", "Narrow", "finished")


def test_a_transition_on_an_event_its_source_never_gives_is_refused() -> None:
    class Typo(Pair):
        transitions = [["next", "first", "second"], ["nxt", "first", "second"]]

    refuse(
        Typo(),
        ImpossibleEvent,
        "'nxt'",
        "'first'",
        "'fit' (Typo)",
        "Did you mean 'next'?",
        "`posted`",
    )


def test_a_wildcard_stands_for_the_states_that_can_give_the_event() -> None:
    class Failing(Loop):
        initial = "first"
        outcomes = ("done",)
        transitions = [["next", "first", "second"], ["failed", "*", "repair"]]

        def first(self) -> Literal["next", "failed"]:
            return "failed"

        def second(self) -> Literal["done"]:
            return "done"

        def repair(self) -> Literal["done"]:
            return "done"

    driver = Driver(Failing(), name="fit")
    assert list(driver.machine.events["failed"].transitions) == ["fit.first"]


def test_a_wildcard_for_an_event_that_no_state_gives_is_refused() -> None:
    class Typo(Pair):
        transitions = [*Pair.transitions, ["fialed", "*", "second"]]

    refuse(Typo(), ImpossibleEvent, "'fialed'", "'*'", "Typo")


def test_an_unreachable_state_is_refused() -> None:
    class Island(Pair):
        transitions = [["next", "first", "second"], ["done", "third", "second"]]

        def third(self) -> Literal["done"]:
            return "done"

    refuse(Island(), UnreachableState, "'third'", "'first'", "Island", "Add one, or remove")


def test_a_state_that_only_an_entry_point_leads_to_is_reachable() -> None:
    class Entered(Pair):
        entries = {"again": "third"}
        transitions = [["next", "first", "second"], ["next", "third", "second"]]

        def third(self) -> Literal["next"]:
            return "next"

    assert Driver(Entered(), name="fit").machine.leaves()[-1] == "fit.third"


def test_a_trap_is_refused_even_if_its_event_ends_the_loop_elsewhere() -> None:
    class Trap(Loop):
        initial = "start"
        outcomes = ("done",)
        transitions = [
            ["left", "start", "round"],
            ["right", "start", "last"],
            ["done", "round", "again"],
            ["next", "again", "round"],
        ]

        def start(self) -> Literal["left", "right"]:
            return "left"

        def round(self) -> Literal["done"]:
            return "done"

        def again(self) -> Literal["next"]:
            return "next"

        def last(self) -> Literal["done"]:
            return "done"

    refuse(Trap(), NoWayOut, "cannot be reached", "Trap", "'fit'")


class Endless(Loop):
    initial = "turn"
    transitions = [["turned", "turn", "turn"]]

    def turn(self) -> Literal["turned"]:
        return "turned"


def test_a_loop_that_never_ends_is_refused() -> None:
    refuse(Endless(), NoWayOut, "'turn'", "Endless", "no transition for")


def test_a_loop_that_a_posted_event_leads_out_of_may_be_endless() -> None:
    class Stoppable(Loop):
        initial = "inner"
        outcomes = ("done",)
        transitions = [["stop", "inner", "last"]]
        inner: Loop = place(Endless)

        def last(self) -> Literal["done"]:
            return "done"

    driver = Driver(Stoppable(), name="fit")
    driver.start()
    driver.post("stop")
    assert driver.run() == "done"


def test_an_outcome_that_is_posted_ends_an_endless_machine() -> None:
    class Server(Endless):
        outcomes = ("stop",)

    driver = Driver(Server(), name="fit")
    driver.start()
    driver.post("stop")
    assert driver.run() == "stop"


def test_a_name_that_is_neither_method_nor_loop_is_refused() -> None:
    class Misspelt(Pair):
        transitions = [["next", "first", "secnd"]]

    refuse(Misspelt(), UnknownState, "'secnd'", "'fit' (Misspelt)", "Did you mean 'second'?")


def test_a_name_like_none_of_the_loop_may_be_a_place_that_was_not_filled() -> None:
    class Unfilled(Pair):
        transitions = [["next", "first", "inner_part"]]

    refuse(Unfilled(), UnknownState, "'inner_part'", "Known: ", "Unfilled(inner_part=...)")


def test_an_unknown_initial_state_is_refused() -> None:
    class Misspelt(Pair):
        initial = "frist"

    refuse(Misspelt(), UnknownInitialState, "'frist'", "Misspelt", "Did you mean 'first'?")


def test_a_missing_initial_state_is_refused() -> None:
    class Nowhere(Loop):
        def work(self) -> Literal["done"]:
            return "done"

    refuse(Nowhere(), UnknownInitialState, "'fit'", "Nowhere", "initial = ...")


def test_an_empty_place_says_how_to_fill_it() -> None:
    class Hollow(Loop):
        initial = "inner"
        outcomes = ("done",)
        inner: Loop

    with pytest.raises(MissingLoop, match=r"Hollow\(inner=\.\.\.\)"):
        Hollow().inner  # noqa: B018
    refuse(Hollow(), UnknownInitialState, "'inner'", "Hollow(inner=...)")
    Driver(Hollow(inner=Leaf))


def test_one_loop_in_two_places_is_refused() -> None:
    class Twins(Loop):
        initial = "left"
        outcomes = ("done",)
        transitions = [["done", "left", "right"]]

    leaf = Leaf()
    refuse(
        Twins(left=leaf, right=leaf),
        LoopUsedTwice,
        "Leaf",
        "'fit.left'",
        "'fit.right'",
        "two instances",
    )


def test_a_loop_inside_itself_is_refused() -> None:
    class Shell(Loop):
        initial = "inner"
        inner: Loop = place(Leaf)

    outer = Shell(inner=Shell())
    with pytest.raises(LoopUsedTwice, match="inside the very Shell"):
        outer.inner.replace(inner=outer)
    assert type(outer["inner.inner"]) is Leaf


def test_a_state_without_declared_events_is_refused() -> None:
    class Silent(Pair):
        def second(self):  # type: ignore[no-untyped-def]  # what a newcomer would write
            return "done"

        def third(self):  # type: ignore[no-untyped-def]
            return "done"

        transitions = [["next", "first", "second"], ["done", "second", "third"]]

    refuse(Silent(), UndeclaredEvents, "'fit.third'", 'def third(self) -> Literal["done"]')


def test_an_override_keeps_the_events_of_what_it_overrides() -> None:
    class Shorter(Pair):
        def second(self):  # type: ignore[no-untyped-def]
            return "done"

    driver = Driver(Shorter(), name="fit")
    driver.start()
    assert driver.run() == "done"


def test_events_declared_as_plain_str_are_refused() -> None:
    class Vague(Pair):
        def second(self) -> str:  # type: ignore[override]
            return "done"

    refuse(Vague(), UndeclaredEvents, "'fit.second'", "str", "Literal[")


def test_an_annotation_that_names_nothing_is_refused() -> None:
    class Lost(Pair):
        def second(self) -> Events:  # type: ignore[name-defined]  # noqa: F821
            return "done"

    refuse(Lost(), UndeclaredEvents, "'Events'", "'fit.second'", "run time")


@pytest.mark.parametrize(
    "entry",
    [
        ["next", "first"],
        "next first second",
        {"trigger": "next", "source": "first", "dest": "second", "after": "log"},
        {"trigger": "next", "source": "first"},
        ["next", None, "second"],
        ["next", [], "second"],
        ["next", "first", "*"],
        ["next", "first", "second", 3],
        [("next",), "first", "second"],
    ],
)
def test_a_malformed_transition_is_refused(entry: Any) -> None:
    class Malformed(Pair):
        transitions = [entry]

    refuse(Malformed(), MalformedTransition, "Malformed.transitions", repr(entry))


def test_transitions_as_a_text_are_refused() -> None:
    class Text(Pair):
        transitions = "next first second"

    refuse(Text(), MalformedTransition, "Text.transitions", "list")


@pytest.mark.parametrize("name", ["outcomes", "posted"])
def test_a_forgotten_comma_in_a_tuple_of_events_is_refused(name: str) -> None:
    forgetful = type("Forgetful", (Pair,), {name: "done"})
    refuse(forgetful(), LoopDefinitionError, f"`{name}`", f"{name} = ('done',)")


def test_a_condition_that_is_no_method_is_refused() -> None:
    class Guarded(Pair):
        transitions = [["next", "first", "second", "is_redy"], ["next", "first", "second"]]

        def is_ready(self) -> bool:
            return True

    refuse(Guarded(), UnknownState, "'is_redy'", "'next'", "Did you mean 'is_ready'?")


def test_a_condition_or_state_that_needs_arguments_is_refused() -> None:
    class Guarded(Pair):
        transitions = [["next", "first", "second", lambda event: True], ["next", "first", "second"]]

    class Greedy(Pair):
        def second(self, batch: object) -> Literal["done"]:  # type: ignore[override]
            return "done"

    refuse(Guarded(), UncallableState, "without arguments", "'event'")
    refuse(Greedy(), UncallableState, "'fit.second'", "'batch'", "context")


def test_a_coroutine_or_generator_as_a_state_is_refused() -> None:
    class Async(Pair):
        async def second(self) -> Literal["done"]:  # type: ignore[override]
            return "done"

    class Generating(Pair):
        def second(self) -> Literal["done"]:  # type: ignore[misc]
            yield 1
            return "done"

    refuse(Async(), UncallableState, "'fit.second'", "coroutine")
    refuse(Generating(), UncallableState, "'fit.second'", "generator")


def test_an_entry_point_must_be_a_state() -> None:
    class Entered(Pair):
        entries = {"again": "secnd"}

    refuse(Entered(), UnknownState, "'again'", "'secnd'", "Did you mean 'second'?")


@pytest.mark.parametrize("name", ["find", "state", "_hidden", "context", "add"])
def test_names_that_the_machine_needs_itself_are_refused_as_states(name: str) -> None:
    with pytest.raises(ReservedName, match=name):
        type("Taken", (Loop,), {"initial": name})


@pytest.mark.parametrize("event", ["enter", "exit", "two words"])
def test_names_that_signals_need_are_refused_as_events(event: str) -> None:
    class Taken(Pair):
        transitions = [["next", "first", "second"], [event, "second", "first"]]

    refuse(Taken(), ReservedName, repr(event), "Taken")


@pytest.mark.parametrize("name", ["end", "state", "my run", ""])
def test_a_name_of_the_root_must_be_able_to_head_a_path(name: str) -> None:
    with pytest.raises(ReservedName, match="root"):
        Driver(Pair(), name=name)


def test_a_loop_class_in_the_place_of_a_place_is_refused() -> None:
    with pytest.raises(LoopDefinitionError, match=r"inner: Loop = place\(Leaf\)"):
        type("Outer", (Loop,), {"initial": "inner", "inner": Leaf})
    with pytest.raises(LoopDefinitionError, match="all Outer loops would share"):
        type("Outer", (Loop,), {"initial": "inner", "inner": Leaf()})


def test_a_state_cannot_be_a_field_as_well() -> None:
    with pytest.raises(LoopDefinitionError, match=r"Both\.work"):
        type("Both", (Loop,), {"initial": "work", "work": field(0)})


def test_a_dataclass_is_refused_for_its_settings_would_be_reset() -> None:
    @dataclass
    class Settings(Pair):
        rate: float = 0.1

    refuse(Settings(), LoopDefinitionError, "Settings", "__init__")
