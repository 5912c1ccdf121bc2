"""What a state reads of its loop lies at a known place, where CPython need not search for it each time.

CPython 3.11 learns such places while code runs. It does not learn them for an object whose dict shares
its keys with those of other objects of the class.
"""

from __future__ import annotations

import dis
import sys
from typing import Literal

import pytest

from statemachine_trainer.machine import Driver, Loop

SEARCHES = {"LOAD_ATTR", "LOAD_ATTR_ADAPTIVE", "STORE_ATTR", "STORE_ATTR_ADAPTIVE"}
"""Instructions that have learned no place."""


class Counting(Loop):
    initial = "count"
    transitions = (["again", "count", "count"],)
    outcomes = ("done",)

    number: int = 0

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def count(self) -> Literal["again", "done"]:
        self.number += 1
        return "again" if self.number < self.most else "done"


@pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11),
    reason="other versions learn places in other ways",
)
@pytest.mark.skipif(sys.gettrace() is not None, reason="traced code may learn nothing")
def test_fields_and_settings_of_a_loop_are_read_from_their_place() -> None:
    driver = Driver(Counting(most=1000))
    driver.start()
    driver.run()
    read = {
        (one.argrepr, one.opname)
        for one in dis.get_instructions(Counting.count, adaptive=True)
        if one.opname.startswith(("LOAD_ATTR", "STORE_ATTR"))
    }
    assert {name for name, _ in read} == {"number", "most"}
    assert not [pair for pair in read if pair[1] in SEARCHES]
