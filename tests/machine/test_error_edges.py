"""Error edges: which one an exception takes, what is verified, drawn, resumed; and the signal `error`."""

from __future__ import annotations

import threading
from typing import Any, ClassVar, Literal

import pytest

from statemachine_trainer.graph import Graph
from statemachine_trainer.machine import Driver, Loop, place
from statemachine_trainer.machine.errors import (
    LoopDefinitionError,
    MalformedTransition,
    NotUndone,
    NoWayOut,
    OftenFailed,
    ReservedName,
    StrayStopIteration,
    TooManyErrors,
    UnexpectedEvent,
    UnknownState,
    UnreachableState,
)
from statemachine_trainer.machine.signals import ErrorMoment


class Raising(Loop):
    """Raises, at each work, the next of the errors that the context lists."""

    initial = "work"
    transitions = [["worked", "work", "close"], ["mended", "mend", "work"]]
    errors: ClassVar[Any] = [[ValueError, "work", "mend"]]
    count: int = 0

    def work(self) -> Literal["worked"]:
        self.count += 1
        self.context["path"].append("work")
        if self.context["errors"]:
            raise self.context["errors"].pop(0)
        return "worked"

    def mend(self) -> Literal["mended"]:
        self.context["path"].append("mend")
        return "mended"

    def close(self) -> Literal["closed"]:
        return "closed"


class Around(Loop):
    initial = "inner"
    transitions = [["closed", "inner", "close"], ["rescued", "rescue", "inner"]]
    errors: ClassVar[Any] = [[LookupError, "inner", "rescue"], [Exception, "inner", "close"]]
    outcomes = ("over",)
    inner: Loop = place(Raising)

    def rescue(self) -> Literal["rescued"]:
        self.context["path"].append("rescue")
        return "rescued"

    def close(self) -> Literal["over"]:
        self.context["path"].append("close")
        return "over"


def driver_of(*errors: Exception, loop: Loop | None = None) -> Driver:
    context = {"errors": list(errors), "path": []}
    driver = Driver(Around() if loop is None else loop, name="fit", context=context)
    driver.start()
    return driver


def path_after(*errors: Exception, loop: Loop | None = None) -> list[str]:
    driver = driver_of(*errors, loop=loop)
    driver.run()
    found: list[str] = driver.context["path"]
    return found


# -- which edge -----------------------------------------------------------------------------------


def test_an_exception_takes_the_edge_of_the_innermost_loop_that_has_one_for_its_type() -> None:
    assert path_after(ValueError()) == ["work", "mend", "work", "close"]
    assert path_after(KeyError("k")) == ["work", "rescue", "work", "close"]
    assert path_after(ValueError(), IndexError()) == [
        *("work", "mend", "work", "rescue", "work", "close"),
    ]


def test_in_one_loop_the_most_specific_type_decides_whatever_the_order() -> None:
    assert path_after(ZeroDivisionError()) == ["work", "close"]

    class Reversed(Around):
        errors = Around.errors[::-1]

    assert path_after(KeyError(), loop=Reversed()) == ["work", "rescue", "work", "close"]


def test_a_general_type_further_in_comes_before_a_specific_one_further_out() -> None:
    class Everything(Raising):
        errors = [[Exception, "work", "mend"]]

    path = path_after(KeyError(), loop=Around(inner=Everything()))
    assert path == ["work", "mend", "work", "close"]


def test_where_a_condition_refuses_the_next_edge_is_asked() -> None:
    class Once(Raising):
        errors = [[ValueError, "work", "mend", "is_first"]]

        def is_first(self) -> bool:
            found: list[str] = self.context["path"]
            return found.count("work") < 2

    loop = Around(inner=Once())
    assert path_after(ValueError(), ValueError(), loop=loop) == ["work", "mend", "work", "close"]


def test_without_a_dest_the_state_that_raised_works_again_and_nothing_is_entered() -> None:
    class Again(Raising):
        errors = [{"error": ConnectionError, "source": "work", "dest": None}]
        transitions = [["worked", "work", "close"]]
        mend = None  # type: ignore[assignment]

    driver = driver_of(ConnectionResetError(), loop=Around(inner=Again()))
    heard: list[str] = []
    driver.board.on("fit.inner.work:*", lambda _s, moment: heard.append(moment.kind))
    driver.run()
    assert driver.context["path"] == ["work", "work", "close"]
    assert heard == ["ConnectionError", "exit", "worked"]


def test_a_star_stands_for_every_state_but_the_one_that_recovers() -> None:
    class Star(Raising):
        errors = [[ValueError, "*", "mend"]]

        def mend(self) -> Literal["mended"]:
            self.context["path"].append("mend")
            raise ValueError("mending failed")

    assert path_after(ValueError(), loop=Around(inner=Star())) == ["work", "mend", "close"]


def test_a_group_of_exceptions_takes_an_edge_for_groups_and_its_members_take_none() -> None:
    group = ExceptionGroup("two", [ValueError(), KeyError()])
    assert path_after(group) == ["work", "close"]


def test_what_ends_programs_takes_no_edge() -> None:
    driver = driver_of()
    driver.context["errors"].append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert driver.path == "fit.inner.work"
    assert driver.run() == "over"


def test_a_stop_iteration_takes_no_edge() -> None:
    with pytest.raises(StrayStopIteration):
        driver_of(StopIteration()).run()


def test_the_error_of_a_receiver_is_not_an_error_of_the_state() -> None:
    for name in ("work:exit", "work:worked", "close"):
        driver = driver_of()
        raising = [ValueError("of a receiver")]

        def receiver(raising: list[ValueError] = raising) -> None:
            if raising:
                raise raising.pop()

        driver.board.on(f"fit.inner.{name}", receiver)
        with pytest.raises(ValueError, match="of a receiver"):
            driver.run()
        assert driver.failure is None
        assert driver.run() == "over"


def test_the_error_of_a_condition_or_of_a_wrong_answer_is_not_one_of_the_state() -> None:
    class Wrong(Raising):
        def work(self) -> Literal["worked"]:
            answer: Any = self.context["answer"]
            return answer  # type: ignore[no-any-return]

    driver = driver_of(loop=Around(inner=Wrong()))
    driver.context["answer"] = "nonsense"
    with pytest.raises(UnexpectedEvent, match="nonsense"):
        driver.run()
    assert driver.failure is None

    class Asking(Raising):
        transitions = [["worked", "work", "close", "is_sure"], ["worked", "work", "close"],
                       ["mended", "mend", "work"]]  # fmt: skip

        def is_sure(self) -> bool:
            raise ValueError("of a condition")

    driver = driver_of(loop=Around(inner=Asking()))
    with pytest.raises(ValueError, match="of a condition"):
        driver.run()
    assert driver.failure is None


def test_stepping_takes_error_edges_like_running() -> None:
    driver = driver_of(ValueError())
    moment = driver.step()
    assert moment is not None
    assert (moment.event, moment.target) == ("ValueError", "fit.inner.mend")
    driver = driver_of(ValueError(), KeyError())
    events = [moment.event for moment in driver.moments()]
    assert events == ["ValueError", "mended", "LookupError", "rescued", "worked", "closed", "over"]


def test_an_edge_for_errors_fires_its_signals_and_says_what_was_raised() -> None:
    driver = driver_of(KeyError("lost"))
    heard: list[str] = []
    driver.board.on("*:*", lambda _s, moment: heard.append(moment.signal))
    driver.run(until="rescue")
    assert heard[-4:] == [
        *("fit.inner.work:exit", "fit.inner:exit", "fit.rescue:enter", "fit.inner:LookupError"),
    ]
    failure = driver.failure
    assert failure is not None
    assert (failure.path, failure.error, failure.times) == ("fit.inner.work", "LookupError", 1)
    assert failure.text == "KeyError: 'lost'"


def test_an_edge_for_errors_may_lead_to_an_entry_point() -> None:
    class Entered(Raising):
        entries = {"OSError": "mend"}

    class Outer(Around):
        errors = [[OSError, "inner", "inner"]]
        transitions = [["closed", "inner", "close"]]
        rescue = None  # type: ignore[assignment]

    path = path_after(FileNotFoundError(), loop=Outer(inner=Entered()))
    assert path == ["work", "mend", "work", "close"]


def test_a_posted_stop_waits_for_its_boundary_while_an_error_is_mended() -> None:
    class Stoppable(Around):
        transitions = [*Around.transitions, ["stop", "rescue", "close"]]

    driver = driver_of(KeyError(), loop=Stoppable())
    driver.post("stop")
    assert driver.run() == "over"
    assert driver.context["path"] == ["work", "close"]


def test_an_error_loses_its_frames_before_the_next_state_works() -> None:
    import weakref

    class Big:
        pass

    held: list[weakref.ref[Big]] = []

    class Holding(Raising):
        def work(self) -> Literal["worked"]:
            big = Big()
            if not held:
                held.append(weakref.ref(big))
                raise ValueError("out of memory, say")
            return "worked"

        def mend(self) -> Literal["mended"]:
            self.context["path"].append(held[0]())
            return "mended"

    driver = driver_of(loop=Around(inner=Holding()))
    driver.run()
    assert driver.context["path"] == [None, "close"]


def test_a_machine_in_another_thread_takes_its_own_edges() -> None:
    driver = driver_of(ValueError())
    thread = threading.Thread(target=driver.run)
    thread.start()
    thread.join()
    assert driver.outcome == "over"


def test_a_swap_in_a_receiver_of_the_edge_holds_at_once() -> None:
    class Other(Raising):
        errors = [[ValueError, "work", "close"]]
        transitions = [["worked", "work", "close"]]
        mend = None  # type: ignore[assignment]

    driver = driver_of(KeyError(), ValueError())
    driver.board.on("rescue", lambda: driver.root.replace(inner=Other()), once=True)
    driver.run()
    assert driver.context["path"] == ["work", "rescue", "work", "close"]


# -- again and again ------------------------------------------------------------------------------


def test_a_state_that_raises_for_ever_surfaces_in_the_end() -> None:
    driver = driver_of(*[ValueError(f"number {n}") for n in range(300)])
    with pytest.raises(TooManyErrors, match=r"'fit.inner.work' raised 100 times.*number 100"):
        driver.run()
    assert driver.context["path"].count("mend") == 100


def test_states_that_fail_in_turns_surface_in_the_end() -> None:
    class InTurns(Raising):
        errors: ClassVar[Any] = [[ValueError, "work", "mend"], [KeyError, "mend", "work"]]

        def mend(self) -> Literal["mended"]:
            raise KeyError("mend")

    errors = [ValueError(f"number {n}") for n in range(300)]
    with pytest.raises(TooManyErrors, match=r"'fit.inner.work' raised 100 times"):
        driver_of(*errors, loop=Around(inner=InTurns())).run()


def test_a_state_that_has_worked_is_counted_anew() -> None:
    class Twice(Raising):
        most_errors = 1
        transitions = [["worked", "work", "work", "is_early"], *Raising.transitions]

        def is_early(self) -> bool:
            return self.count < 4

        def work(self) -> Literal["worked"]:
            self.count += 1
            self.context["path"].append("work")
            if len(self.context["path"]) % 3 == 0:
                raise ValueError("now and then")
            return "worked"

    path = path_after(loop=Around(inner=Twice()))
    assert path.count("mend") == 2


class Anew(Loop):
    """Works well at every second time; whenever it raises, it begins at its first state again."""

    initial = "begin"
    transitions = [["begun", "begin", "work"], ["worked", "work", "work"]]
    errors: ClassVar[Any] = [[ValueError, "work", "begin"]]

    def begin(self) -> Literal["begun"]:
        return "begun"

    def work(self) -> Literal["worked", "closed"]:
        errors = self.context["errors"]
        if not errors:
            return "closed"
        error = errors.pop(0)
        if len(errors) % 2:
            raise error
        return "worked"


def test_an_edge_that_leads_far_back_again_and_again_is_told_once() -> None:
    errors = [ValueError(f"number {number}") for number in range(300)]
    with pytest.warns(OftenFailed, match=r"'fit.inner.work'.*ValueError 101 times") as caught:
        driver_of(*errors, loop=Around(inner=Anew())).run()
    assert len(caught) == 1


def test_the_fields_that_the_state_had_set_are_put_back() -> None:
    driver = driver_of(ValueError(), KeyError())
    driver.run(until="mend")
    assert driver.root["inner"].count == 0  # type: ignore[attr-defined]
    driver.run()
    assert driver.root["inner"].count == 1  # type: ignore[attr-defined]


def test_if_putting_back_fails_no_edge_is_taken() -> None:
    class Lasting(Raising):
        def undo_of(self, state: str) -> Any:
            def undo(error: Exception) -> None:
                raise RuntimeError("cannot")

            return undo

    with pytest.raises(
        NotUndone, match=r"'fit.inner.work' raised ValueError.*RuntimeError: cannot"
    ):
        driver_of(ValueError(), loop=Around(inner=Lasting())).run()


# -- resuming --------------------------------------------------------------------------------------


def test_stopped_after_any_transition_the_run_goes_on_the_same_in_another_machine() -> None:
    errors = [ValueError("a"), KeyError("b"), ValueError("c"), IndexError("d")]
    whole = path_after(*errors)
    for stop in range(1, 12):
        first = driver_of(*errors)
        for _ in range(stop):
            if first.path is not None:
                first.step()
        second = Driver(Around(), name="fit", context=first.context)
        second.load_state_dict(first.state_dict())
        assert (second.failure, second.path) == (first.failure, first.path)
        if second.path is not None:
            second.run()
        assert second.context["path"] == whole


def test_errors_in_a_row_are_counted_on_in_another_machine() -> None:
    first = driver_of(*[ValueError()] * 150)
    for _ in range(120):  # an error, then `mended`
        first.step()
    second = Driver(Around(), name="fit", context=first.context)
    second.load_state_dict(first.state_dict())
    with pytest.raises(TooManyErrors, match="100 times"):
        second.run()
    assert second.context["path"].count("mend") == 100


def test_a_state_without_errors_holds_nothing_of_them() -> None:
    driver = driver_of()
    driver.run()
    assert {"failure", "failures"}.isdisjoint(driver.state_dict())


# -- verification ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "errors, error, words",
    [
        ([ValueError, "work", "mend"], MalformedTransition, "must be a list"),
        ("ValueError", MalformedTransition, "must be a list"),
        ([["ValueError", "work", "mend"]], MalformedTransition, "without quotes"),
        ([[ValueError("now"), "work", "mend"]], MalformedTransition, "type of an exception"),
        ([[int, "work", "mend"]], MalformedTransition, "type of an exception"),
        ([[KeyboardInterrupt, "work", "mend"]], MalformedTransition, "'stop'"),
        ([[BaseException, "work", "mend"]], MalformedTransition, "ends programs"),
        ([[StopIteration, "work", "mend"]], MalformedTransition, "never steers"),
        ([[ValueError, "work"]], MalformedTransition, r"\[type, source, dest\]"),
        ([{"trigger": ValueError, "source": "work", "dest": "mend"}], MalformedTransition, "error"),
        ([[ValueError, "work", "mned"]], UnknownState, "mned"),
        ([[ValueError, "wrok", "mend"]], UnknownState, "wrok"),
        ([[ValueError, "work", "mend", "no_such"]], UnknownState, "no_such"),
        ([], UnreachableState, "mend"),
        (
            [[ValueError, "work", "mend"], [ValueError, "work", "close"]],
            MalformedTransition,
            "never taken",
        ),
    ],
)
def test_a_wrong_edge_is_refused_before_anything_runs(
    errors: Any, error: type[Exception], words: str
) -> None:
    loop = type("Wrong", (Raising,), {"errors": errors, "__doc__": "Wrong."})
    with pytest.raises(error, match=words):
        Driver(Around(inner=loop()), name="fit", context={})


def test_a_loop_that_only_an_error_ends_is_refused() -> None:
    class Endless(Loop):
        initial = "work"
        transitions = [["again", "work", "work"]]
        errors = [[EOFError, "work", "close"]]

        def work(self) -> Literal["again"]:
            raise EOFError

        def close(self) -> Literal["closed"]:
            return "closed"

    with pytest.raises(NoWayOut, match="'work'"):
        Driver(Around(inner=Endless()), name="fit", context={})


def test_a_limit_that_is_none_is_refused() -> None:
    for most in (0, -1, True, "many"):
        loop = type("Wrong", (Raising,), {"most_errors": most, "__doc__": "Wrong."})
        with pytest.raises(LoopDefinitionError, match="most_errors"):
            Driver(Around(inner=loop()), name="fit", context={})


def test_two_types_of_one_name_and_an_event_called_like_a_type_are_refused() -> None:
    other = type("ValueError", (Exception,), {})

    class Two(Around):
        errors = [*Around.errors, [other, "inner", "rescue"]]

    with pytest.raises(ReservedName, match=r"builtins\.ValueError"):
        Driver(Two(), name="fit", context={})

    class Named(Around):
        posted = ("LookupError",)

    with pytest.raises(ReservedName, match="'LookupError'"):
        Driver(Named(), name="fit", context={})


def test_a_list_called_error_is_taken_for_a_mistake() -> None:
    class Misspelt(Raising):
        error = [[KeyError, "work", "close"]]

    with pytest.raises(LoopDefinitionError, match="Did you mean `errors`"):
        Driver(Around(inner=Misspelt()), name="fit", context={})


# -- pictures -------------------------------------------------------------------------------------


def test_pictures_show_an_edge_for_errors_in_a_style_of_its_own() -> None:
    graph = Graph.of(Driver(Around(), name="fit", context={}).machine)
    edges = {(e.event, e.source, e.target): e for e in graph.edges if e.error}
    assert set(edges) == {
        ("ValueError", "fit.inner.work", "fit.inner.mend"),
        ("LookupError", "fit.inner", "fit.rescue"),
        ("Exception", "fit.inner", "fit.close"),
    }
    assert not any(edge.posted for edge in edges.values())
    assert "fit_inner_work --> fit_inner_mend : ValueError (error)" in graph.to_mermaid()
    assert "ValueError (error) -> mend" in str(graph)
    drawn = graph.to_dot()
    assert drawn.count('class="edge error"') == 3
    assert "taken by an exception" in drawn


# -- the signal `error` ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["error", "fit:error", "*:error"])
def test_an_error_that_surfaces_is_told_first(name: str) -> None:
    driver = driver_of(OSError("mine"), loop=Bare())
    told: list[Any] = []
    driver.board.on(name, lambda _s, moment: told.append(moment))
    with pytest.raises(OSError, match="mine"):
        driver.run()
    assert isinstance(told[0], ErrorMoment)
    assert (told[0].path, told[0].kind, str(told[0].error)) == ("fit.work", "error", "mine")
    assert len(told) == 1


class Bare(Raising):
    """Raises, and has no edge for it."""

    errors = ()
    transitions = [["worked", "work", "close"]]
    outcomes = ("closed",)
    mend = None  # type: ignore[assignment]


def test_what_a_receiver_of_the_error_raises_is_noted_and_the_first_error_surfaces() -> None:
    driver = driver_of(ValueError("the first"), loop=Bare())
    told: list[str] = []

    def breaking() -> None:
        raise OSError("the second")

    driver.board.on("error", breaking)
    driver.board.on("error", lambda: told.append("called all the same"))
    with pytest.raises(ValueError, match="the first") as caught:
        driver.run()
    assert any("the second" in note for note in caught.value.__notes__)
    assert told == ["called all the same"]
    assert driver.run() == "closed"


def test_an_error_that_takes_an_edge_is_not_told_as_one_that_surfaces() -> None:
    driver = driver_of(ValueError())
    told: list[Any] = []
    driver.board.on("error", told.append)
    driver.run()
    assert told == []


def test_an_object_with_a_method_for_errors_is_subscribed() -> None:
    class Alarm:
        def __init__(self) -> None:
            self.told: list[str] = []

        def on_error(self, _sender: object, moment: ErrorMoment) -> None:
            self.told.append(type(moment.error).__name__)

    alarm = Alarm()
    driver = driver_of(StopIteration())
    driver.board.on(alarm)
    with pytest.raises(StrayStopIteration):
        driver.run()
    assert alarm.told == ["StrayStopIteration"]


def test_a_state_called_error_keeps_its_name() -> None:
    class Named(Raising):
        errors = [[ValueError, "work", "error"]]
        transitions = [["worked", "work", "close"], ["mended", "error", "work"]]
        mend = None  # type: ignore[assignment]

        def error(self) -> Literal["mended"]:
            return "mended"

    driver = driver_of(ValueError(), loop=Around(inner=Named()))
    heard: list[str] = []
    driver.board.on("error", lambda _s, moment: heard.append(moment.signal))
    driver.run()
    assert heard == ["fit.inner.error:enter"]
