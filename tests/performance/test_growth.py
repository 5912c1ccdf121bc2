"""What a batch costs does not grow with the run, nor with the loops around; only with who is called.

Counted in Python calls, which are the same on every machine.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, field, place
from tests.counting import calls_in


class Ticking(Loop):
    initial = "tick"
    transitions = (["ticked", "tick", "tock"], ["tocked", "tock", "tick"])
    outcomes = ("ended",)

    count: int = field(0)

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def tick(self) -> Literal["ticked", "ended"]:
        if self.count == self.times:
            return "ended"
        self.count += 1
        return "ticked"

    def tock(self) -> Literal["tocked"]:
        return "tocked"


class Around(Loop):
    initial = "inside"
    transitions = ()
    outcomes = ("ended",)

    inside: Loop = place(Ticking)


def nested(times: int, depth: int) -> Loop:
    loop: Loop = Ticking(times)
    for _ in range(depth):
        loop = Around(inside=loop)
    return loop


def calls_of_a_run(times: int, *, depth: int = 0, receivers: int = 0, name: str = "tock") -> int:
    driver = Driver(nested(times, depth), name="root")
    for _ in range(receivers):
        driver.board.on(name, lambda sender, moment: None)
    driver.start()
    return calls_in(driver.run)


def calls_each_time(times: int = 100, **settings: Any) -> float:
    """Python calls of one turn of the loop, what happens once a run left out."""
    once = calls_of_a_run(1, **settings)
    return (calls_of_a_run(times + 1, **settings) - once) / times


@pytest.mark.parametrize("times", [10, 1_000, 30_000])
def test_a_turn_costs_the_same_however_long_the_run_is(times: int) -> None:
    assert calls_each_time(times) == calls_each_time(100)


@pytest.mark.parametrize("depth", [1, 5, 10])
def test_a_transition_inside_a_loop_costs_the_same_however_deep_the_loop_lies(depth: int) -> None:
    assert calls_each_time(depth=depth) == calls_each_time()


def test_each_receiver_that_is_called_costs_as_much_as_the_one_before() -> None:
    costs = {count: calls_each_time(receivers=count) for count in (1, 2, 10, 100)}
    each = costs[2] - costs[1]
    assert 1 <= each <= 3
    assert costs == {count: costs[1] + each * (count - 1) for count in costs}


def test_receivers_cost_nothing_until_their_signal_fires() -> None:
    assert calls_each_time(receivers=100, name="root:ended") == calls_each_time()
