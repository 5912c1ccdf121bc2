"""Probes around the calls of subscriptions: each receiver and condition is seen, until they go."""

from __future__ import annotations

from typing import Any

from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.signals import Call, Moment, Part, Subscription
from tests.machine.test_probes import Outer, run


class Seen:
    """A probe that notes what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Part]] = []

    def __call__(self, subscription: Subscription, part: Part, call: Call) -> Call:
        def noted(sender: Any, moment: Moment) -> Any:
            self.calls.append((subscription.name, part))
            return call(sender, moment)

        return noted


def test_receivers_and_conditions_are_seen_until_the_probe_is_removed() -> None:
    driver, seen, heard = Driver(Outer()), Seen(), list[str]()
    driver.board.on("work", lambda: heard.append("work"))
    remove = driver.board.instrument(seen)
    driver.board.on("rest", lambda: heard.append("rest"), when=lambda: False)  # a later one, too
    driver.board.watch("finish", lambda: heard.append("finish"))
    run(driver)
    assert seen.calls == [("work", "receiver"), ("rest", "condition"), ("finish", "receiver")]
    assert heard == ["work", "finish"]
    remove()
    remove()  # a second time does nothing
    run(driver)
    assert len(seen.calls) == 3
    assert heard == ["work", "finish"] * 2


def test_firings_that_every_leaves_out_are_not_seen() -> None:
    driver, seen = Driver(Outer()), Seen()
    driver.board.on("*", lambda: None, every=2)
    driver.board.instrument(seen)
    run(driver)
    signals = driver.board.resolve("*")
    assert 0 < len(seen.calls) < len(signals)


def test_one_for_once_that_was_called_listens_again_in_a_state_from_before() -> None:
    driver, heard = Driver(Outer()), list[str]()
    driver.board.on("work", lambda: heard.append("work"), once=True)
    before = driver.board.state_dict()
    run(driver)
    run(driver)
    assert heard == ["work"]
    after = driver.board.state_dict()
    driver.board.load_state_dict(before)
    run(driver)
    assert heard == ["work"] * 2
    driver.board.load_state_dict(after)
    run(driver)
    assert heard == ["work"] * 2


def test_a_machine_that_is_set_going_counts_it() -> None:
    driver = Driver(Outer())
    driver.start()
    begun = driver.entries
    driver.step()
    assert driver.entries == begun + 1
    driver.run()
    assert driver.entries == begun + 2
