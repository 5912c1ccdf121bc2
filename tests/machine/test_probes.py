"""Probes: something put around the work of every state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import Loop, place


class Inner(Loop):
    initial = "work"
    transitions = [["worked", "work", "rest"]]

    def work(self) -> Literal["worked"]:
        return "worked"

    def rest(self) -> Literal["done"]:
        return "done"


class Other(Loop):
    initial = "play"
    transitions = []

    def play(self) -> Literal["done"]:
        return "done"


class Outer(Loop):
    outcomes = ("ended",)
    initial = "inner"
    transitions = [["done", "inner", "finish"]]
    inner: Loop = place(Inner)

    def finish(self) -> Literal["ended"]:
        return "ended"


def noting(
    into: list[str], mark: str = ""
) -> Callable[[str, Callable[[], object]], Callable[[], object]]:
    def probe(path: str, work: Callable[[], object]) -> Callable[[], object]:
        def noted() -> object:
            into.append(f"{mark}{path}")
            return work()

        return noted

    return probe


def run(driver: Driver) -> None:
    driver.start()
    driver.run()


def test_a_probe_sees_every_call_of_every_state_until_it_is_removed() -> None:
    driver, seen = Driver(Outer()), list[str]()
    remove = driver.instrument(noting(seen))
    run(driver)
    assert seen == ["loop.inner.work", "loop.inner.rest", "loop.finish"]
    remove()
    run(driver)
    remove()  # a second time does nothing
    assert len(seen) == 3


def test_the_last_probe_is_the_outermost() -> None:
    driver, seen = Driver(Outer()), list[str]()
    driver.instrument(noting(seen, "first "))
    driver.instrument(noting(seen, "second "))
    driver.start()
    driver.step()
    assert seen == ["second loop.inner.work", "first loop.inner.work"]


def test_a_probe_is_put_around_loops_that_are_swapped_in_later() -> None:
    driver, seen = Driver(Outer()), list[str]()
    driver.instrument(noting(seen))
    driver.root.replace(inner=Other())
    run(driver)
    assert seen == ["loop.inner.play", "loop.finish"]
