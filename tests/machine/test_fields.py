"""Fields are the state of a loop: reset by the loop they belong to, and written down."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Final, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, field, place
from statemachine_trainer.machine.errors import LoopDefinitionError, NoValueYet, StateMismatch
from tests.machine.kit import Fit, fit_driver, path_of


class Inner(Loop):
    initial = "work"
    mine: int = 0
    of_middle: int = field(0, scope="middle")
    of_nobody: int = field(0, scope="nobody")
    of_run: int = field(0, scope="run")
    items: list[int] = field(factory=list)

    def work(self) -> Literal["worked"]:
        for name in ("mine", "of_middle", "of_nobody", "of_run"):
            setattr(self, name, getattr(self, name) + 1)
        self.items.append(self.of_run)
        return "worked"


class Middle(Loop):
    initial = "inner"
    transitions = [["worked", "inner", "more"], ["again", "more", "inner"]]
    rounds: int = 0
    inner: Loop = place(Inner)

    def more(self) -> Literal["again", "enough"]:
        self.rounds += 1
        return "again" if self.rounds < 2 else "enough"


class Outer(Loop):
    initial = "middle"
    outcomes = ("over",)
    transitions = [["enough", "middle", "check"], ["once_more", "check", "middle"]]
    turns: int = 0
    middle: Loop = place(Middle)

    def check(self) -> Literal["once_more", "over"]:
        self.turns += 1
        return "once_more" if self.turns < 2 else "over"


def test_each_field_is_reset_by_the_loop_of_its_scope() -> None:
    driver = Driver(Outer(), name="outer")
    driver.start()
    driver.run()
    inner: Any = driver.root["inner"]
    assert (inner.mine, inner.of_middle, inner.of_nobody, inner.of_run) == (1, 2, 4, 4)
    assert inner.items == [4]


def test_a_new_start_resets_every_field() -> None:
    driver = Driver(Outer(), name="outer")
    driver.start()
    driver.run()
    driver.start()
    assert driver.root["inner"].of_run == 0  # type: ignore[attr-defined]


def test_fields_have_their_values_before_any_run_even_without_super_init() -> None:
    class Careless(Inner):
        def __init__(self) -> None:
            pass

    loop = Careless()
    assert (loop.mine, loop.items) == (0, [])


def test_each_loop_gets_its_own_value_from_a_factory() -> None:
    first, second = Inner(), Inner()
    first.items.append(1)
    assert second.items == []


@pytest.mark.parametrize("value", [[], {}, set(), bytearray(), deque()])
def test_a_mutable_default_is_refused(value: object) -> None:
    kind = type(value).__name__
    with pytest.raises(LoopDefinitionError, match=rf"Shared\.items.*field\(factory={kind}\)"):
        type("Shared", (Loop,), {"__annotations__": {"items": list}, "items": value})


def test_a_default_and_a_factory_at_once_are_refused() -> None:
    with pytest.raises(LoopDefinitionError, match="not both"):
        field(1, factory=int)
    with pytest.raises(LoopDefinitionError, match="without arguments"):
        field(factory=[])  # type: ignore[arg-type]


def test_a_field_without_a_value_says_so() -> None:
    class Bare(Loop):
        count: int = field(scope="run")
        other: int

    loop = Bare()
    for name in ("count", "other"):
        with pytest.raises(NoValueYet, match=rf"'{name}' of Bare.*Set `self\.{name}`.*a default"):
            getattr(loop, name)
        assert not hasattr(loop, name)
    assert loop.state_dict() == {}
    loop.other = 3
    assert (loop.other, loop.state_dict()) == (3, {"other": 3})
    loop.reset_fields()
    with pytest.raises(NoValueYet):
        loop.other  # noqa: B018


def test_a_field_without_a_value_that_a_state_reads_is_told_with_the_path_of_the_state() -> None:
    class Hasty(Inner):
        later: int

        def work(self) -> Literal["worked"]:
            self.mine = self.later
            return "worked"

    driver = Driver(Outer(middle=Middle(inner=Hasty)), name="outer")
    driver.start()
    with pytest.raises(NoValueYet, match="'later' of Hasty") as raised:
        driver.run()
    assert "outer.middle.inner.work" in "".join(raised.value.__notes__)


def test_a_field_without_a_default_may_be_declared_again_with_one() -> None:
    class Base(Loop):
        count: int

    class Derived(Base):
        count = 5

    class Annotated(Base):
        count: int

    assert Derived().count == 5
    assert Annotated().state_dict() == {}
    with pytest.raises(NoValueYet, match="of Annotated"):
        Annotated().count  # noqa: B018


def test_fields_are_inherited_and_may_get_another_default() -> None:
    class Base(Loop):
        count: int = field(1, scope="run")
        names: list[str] = field(factory=list)

    class Derived(Base):
        count = 5
        more: int = 2

    loop = Derived()
    assert loop.state_dict() == {"count": 5, "names": [], "more": 2}
    loop.count = 9
    loop.reset_fields()
    assert loop.count == 5
    assert Derived._fields["count"].scope == "run"
    assert Base().count == 1


def test_fields_of_a_mixin_count() -> None:
    class Mixin:
        extra: int = 3

    class Mixed(Mixin, Inner):
        pass

    loop = Mixed()
    loop.extra = 4
    assert loop.state_dict()["extra"] == 4
    assert list(loop.state_dict())[-1] == "extra" or "extra" in loop.state_dict()


def test_constants_private_names_and_settings_are_no_fields() -> None:
    class Plain(Loop):
        LIMIT: Final = 3
        table: ClassVar[dict[str, int]] = {}
        _cache: int = 0

        def __init__(self) -> None:
            super().__init__()
            self.setting = 1

    assert Plain().state_dict() == {}


def test_a_property_or_method_in_the_place_of_a_field_is_refused() -> None:
    with pytest.raises(LoopDefinitionError, match=r"Odd\.mine is a field and a property"):
        type("Odd", (Inner,), {"mine": property(lambda self: 1)})
    with pytest.raises(LoopDefinitionError, match=r"Odd\.mine is a field and a function"):
        type("Odd", (Inner,), {"mine": lambda self: 1})


def test_slots_cannot_hide_a_field() -> None:
    with pytest.raises(LoopDefinitionError, match=r"Slotted\.hidden"):
        type("Slotted", (Loop,), {"__slots__": ("hidden",), "__annotations__": {"hidden": int}})


def test_state_goes_to_another_driver_and_back() -> None:
    driver = Driver(Outer(), name="outer")
    driver.start()
    for _ in range(5):
        driver.step()
    state = driver.state_dict()
    other = Driver(Outer(), name="outer")
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert path_of(other) == path_of(driver)


def test_a_state_that_was_taken_does_not_change_with_the_run() -> None:
    driver = Driver(Outer(), name="outer")
    driver.start()
    driver.step()
    state = driver.state_dict()
    items = state["loops"]["outer.middle.inner"]["fields"]["items"]
    driver.root["inner"].items.append(99)  # type: ignore[attr-defined]
    assert items == [1]
    other = Driver(Outer(), name="outer")
    other.load_state_dict(state)
    other.root["inner"].items.append(99)  # type: ignore[attr-defined]
    assert items == [1]


def test_a_state_of_another_tree_is_refused_with_what_differs() -> None:
    driver = Driver(Outer(), name="fit")
    driver.start()
    driver.step()
    state, fit = driver.state_dict(), fit_driver()
    before = fit.state_dict()
    with pytest.raises(StateMismatch) as caught:
        fit.load_state_dict(state)
    for part in (
        "'fit.middle' is only in the saved",
        "'fit.epoch' is only in this tree",
        "'fit.middle.more'",
    ):
        assert part in str(caught.value)
    assert "was a Outer and is a Fit" in str(caught.value)
    assert fit.state_dict() == before


def test_fields_that_differ_are_named() -> None:
    driver = Driver(Outer(), name="outer")
    driver.start()
    state = driver.state_dict()
    fields = state["loops"]["outer.middle"]["fields"]
    fields["laps"] = fields.pop("rounds")
    with pytest.raises(
        StateMismatch, match=r"'laps' of loop 'outer.middle' is unknown.*'rounds'.*not in"
    ):
        driver.load_state_dict(state)


def test_the_state_of_an_ended_machine_is_ended() -> None:
    driver = fit_driver()
    driver.run()
    other = Driver(Fit(), name="fit")
    other.load_state_dict(driver.state_dict())
    assert (other.outcome, other.path, other.machine.state) == ("fit_done", None, "end")


def test_the_state_is_plain_data() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str | bytes)

    driver = Driver(Outer(), name="outer")
    driver.start()
    driver.board.on("check", lambda: None, every=2)
    driver.run()
    assert plain(driver.state_dict())


def test_a_field_that_is_not_saved_is_in_no_snapshot_and_begins_anew_when_one_is_loaded() -> None:
    class Keeps(Loop):
        initial = "work"
        outcomes = ("done",)
        found: list[int] = field(factory=list, saved=False, scope="run")
        count: int = 0

        def work(self) -> Literal["done"]:
            self.found.append(1)
            self.count += 1
            return "done"

    driver = Driver(Keeps(), name="keeps")
    driver.start()
    driver.run()
    state = driver.state_dict()
    assert state["loops"]["keeps"]["fields"] == {"count": 1}
    driver.load_state_dict(state)
    assert (driver.root.count, driver.root.found) == (1, [])  # type: ignore[attr-defined]


def test_whether_a_field_is_saved_is_true_or_false() -> None:
    with pytest.raises(LoopDefinitionError, match="saved='no'"):
        field(0, saved="no")  # type: ignore[arg-type]
