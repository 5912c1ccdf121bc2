"""The law of resuming: stop at any boundary, go on in another machine, and nothing differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine_trainer.machine import Driver, Loop, Moment
from tests.machine.random_loops import NAME, POSTED, trees


@dataclass
class ByFields:
    """Answers that follow from the declared fields of a loop, and from nothing else."""

    numbers: Sequence[int]

    def answer(self, loop: Any, events: Sequence[str]) -> str:
        number = self.numbers[loop.count_0 % len(self.numbers)]
        return str(events[number % len(events)])

    def tell(self, loop: Any, guard: int) -> bool:
        return bool((self.numbers[loop.count_0 % len(self.numbers)] >> guard) & 1)


def machine(tree: type[Loop], numbers: Sequence[int]) -> tuple[Driver, list[Moment]]:
    driver, heard = Driver(tree(), name=NAME, context=ByFields(numbers)), []
    driver.board.on("*", lambda _sender, moment: heard.append(moment), every=3)
    return driver, heard


def go_on(driver: Driver, steps: int) -> list[Moment]:
    made: list[Moment] = []
    while len(made) < steps and driver.path is not None:
        moment = driver.step()
        assert moment is not None
        made.append(moment)
    return made


@settings(max_examples=60)
@given(
    tree=trees,
    numbers=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    stops=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    posted=st.lists(st.sampled_from(POSTED), unique=True),
)
def test_a_machine_that_goes_on_elsewhere_goes_on_the_same(
    tree: type[Loop], numbers: list[int], stops: list[int], posted: list[str]
) -> None:
    def begin() -> tuple[Driver, list[Moment]]:
        driver, heard = machine(tree, numbers)
        driver.start()
        for event in posted:
            if event in driver.program.postable:
                driver.post(event)
        return driver, heard

    whole, expected = begin()
    transitions = go_on(whole, 60)

    driver, heard = begin()
    made: list[Moment] = []
    for stop in stops:
        made += go_on(driver, stop)
        state = driver.state_dict()
        driver, later = machine(tree, numbers)
        driver.load_state_dict(state)
        assert driver.state_dict() == state
        later.extend(heard)
        heard = later
    made += go_on(driver, 60 - len(made))
    assert made == transitions
    assert heard == expected
    assert driver.state_dict() == whole.state_dict()
