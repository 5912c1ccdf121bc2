"""Names of states and events: members of enums, and names that the library has for itself."""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.errors import (
    MalformedTransition,
    ReservedName,
    UndeclaredEvents,
    UnknownSignal,
)
from tests.machine.kit import fit_driver


class Name(enum.StrEnum):
    FIRST = "first"
    SECOND = "second"
    GO = "go"
    ASK = "ask"
    DONE = "done"


class OldName(str, enum.Enum):  # noqa: UP042  (as it was written before StrEnum)
    FIRST = "first"
    SECOND = "second"
    GO = "go"
    ASK = "ask"
    DONE = "done"


class Number(enum.Enum):
    FIRST = "first"
    GO = "go"


def loop_of(names: Any) -> Loop:
    class Named(Loop):
        initial = names.FIRST
        transitions = [
            [names.GO, [names.FIRST], names.SECOND],
            {"trigger": names.ASK, "source": names.SECOND, "dest": names.FIRST},
        ]
        outcomes = [names.DONE]
        posted = (names.ASK,)

        def first(self) -> Literal["go"]:
            return names.GO  # type: ignore[no-any-return]

        def second(self) -> Literal["done"]:
            return names.DONE  # type: ignore[no-any-return]

    return Named()


@pytest.mark.parametrize("names", [Name, OldName])
def test_members_of_an_enum_of_texts_are_names(names: Any) -> None:
    driver = Driver(loop_of(names), name="loop")
    heard: list[str] = []
    driver.board.on(names.SECOND, lambda _s, moment: heard.append(moment.signal))
    driver.start()
    driver.run(until=names.SECOND)
    driver.post(names.ASK)
    assert driver.run() == "done"
    assert heard == ["loop.second:enter"] * 2
    for told in (driver.outcome, *driver.machine.events, *driver.machine.leaves()):
        assert type(told) is str
    driver.start()
    driver.machine.trigger("go")
    assert driver.path == "loop.second"


def test_members_of_another_enum_are_refused_with_a_way_out() -> None:
    class Wrong(Loop):
        initial = "first"
        transitions: ClassVar[Any] = [["go", Number.FIRST, "second"]]
        outcomes = ("done",)

        def first(self) -> Literal["go"]:
            return "go"

        def second(self) -> Literal["done"]:
            return "done"

    wrong = Wrong()
    with pytest.raises(MalformedTransition, match=r"Number\.FIRST.*`enum\.StrEnum`"):
        Driver(wrong)


def test_so_are_those_that_a_state_says_it_answers_with() -> None:
    class Wrong(Loop):
        initial = "first"
        outcomes = ("go",)

        def first(self) -> Literal[Number.GO]:
            return Number.GO

    with pytest.raises(UndeclaredEvents, match=r"Number\.GO.*StrEnum"):
        Driver(Wrong())


def two_states(event: str) -> Loop:
    def work(self: Loop) -> str:
        return event

    def finish(self: Loop) -> Literal["done"]:
        return "done"

    work.__annotations__["return"] = Literal[event]
    body: dict[str, Any] = {"initial": "work", "transitions": [[event, "work", "finish"]]}
    body |= {"outcomes": ("done",), "work": work, "finish": finish}
    kind = type("Two", (Loop,), body)
    made: Loop = kind()
    return made


def test_an_event_may_have_any_name_or_is_refused_by_name() -> None:
    names = [name for name in dir(Chart) if not name.startswith("__")] + ["enter", "exit"]
    refused = set()
    for name in names:
        try:
            driver = Driver(two_states(name))
        except ReservedName:
            refused.add(name)
            continue
        driver.start()
        driver.machine.trigger(name)
        assert driver.path == "loop.finish", name
        driver.start()
        assert driver.run() == "done", name
    assert refused == {"enter", "exit", "state", "to_state"}


def test_the_event_of_a_state_that_leaves_its_loop_is_a_signal_of_the_loop() -> None:
    board = fit_driver().board
    with pytest.raises(
        UnknownSignal, match=r"leaves its loop.*'fit\.epoch\.batch\.optimizer:optimized'"
    ):
        board.on("optimizer_step:optimized", lambda: None)
    board.on("optimizer:optimized", lambda: None)
