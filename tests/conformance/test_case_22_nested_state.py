"""Case 22: the state of nested loops, written down and put back.

Departures from Lightning: the fields of each loop stand under its path, and there is no flag for
"restarting": a machine that was put back stands where it stood.
"""

from __future__ import annotations

from typing import Any, Literal

from statemachine_trainer.machine import Driver, Loop, place


class Child(Loop):
    initial = "work"
    outcomes = ("done",)
    a: int = 2

    def work(self) -> Literal["done"]:
        return "done"


class Parent(Loop):
    initial = "child"
    transitions = (["done", "child", "rest"],)
    outcomes = ("over",)
    child: Loop = place(Child)
    a: int = 1

    def rest(self) -> Literal["over"]:
        return "over"


def test_the_fields_of_each_loop_stand_under_its_path() -> None:
    state = Driver(Parent(), name="parent").state_dict()
    fields = {path: loop["fields"] for path, loop in state["loops"].items()}
    assert fields == {"parent": {"a": 1}, "parent.child": {"a": 2}}


def test_a_state_that_was_put_back_is_kept_until_the_loop_is_entered_anew() -> None:
    driver = Driver(Parent(), name="parent")
    driver.start()
    state = driver.state_dict()
    state["loops"]["parent.child"]["fields"]["a"] = 3
    again: Any = Driver(Parent(), name="parent")
    again.load_state_dict(state)
    assert again.root.child.a == 3
    again.run()
    assert again.root.child.a == 3
    again.start()
    assert again.root.child.a == 2
