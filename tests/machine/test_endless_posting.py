"""Receivers that post events to each other without end are told, with their names and a way out."""

from __future__ import annotations

import threading
from typing import Literal

import pytest

from statemachine_trainer.machine import Driver, Loop
from statemachine_trainer.machine.errors import EndlessPosting

TURNS = 1500
"""More than are taken at one boundary of events that receivers post."""


class Table(Loop):
    """Ping leads to the right and pong to the left, as often as somebody posts them."""

    initial = "left"
    outcomes = ("over",)
    posted = ("ping", "pong", "again")
    transitions = [
        ["ping", "left", "right"],
        ["pong", "right", "left"],
        ["again", "left", None],
        ["done", "left", "right"],
    ]
    worked: int = 0

    def left(self) -> Literal["done"]:
        self.worked += 1
        return "done"

    def right(self) -> Literal["over"]:
        self.worked += 1
        return "over"


def started() -> Driver:
    driver = Driver(Table())
    driver.start()
    return driver


def test_a_receiver_that_posts_its_own_event_is_named() -> None:
    driver = started()
    driver.board.on("left:again", lambda driver: driver.post("again"))
    driver.post("again")
    with pytest.raises(EndlessPosting) as told:
        driver.run()
    assert "1001 times at one boundary" in str(told.value)
    assert "'again', the last one before state 'loop.left'" in str(told.value)
    assert "test_a_receiver_that_posts_its_own_event_is_named.<locals>.<lambda> at" in str(
        told.value
    )
    assert "Post under a condition" in str(told.value)
    assert driver.root.worked == 0  # type: ignore[attr-defined]


def test_receivers_that_post_each_others_events_are_named() -> None:
    driver = started()
    driver.board.on("left:ping", lambda driver: driver.post("pong"))
    driver.board.on("right:pong", lambda driver: driver.post("ping"))
    driver.post("ping")
    with pytest.raises(EndlessPosting, match=r"'pong', 'ping', .*right:pong.*left:ping"):
        driver.run()


def test_a_run_by_single_steps_is_told_too() -> None:
    driver = started()
    driver.board.on("left:again", lambda driver: driver.post("again"))
    driver.post("again")
    with pytest.raises(EndlessPosting):
        for _ in driver.moments():
            pass


def test_after_the_receiver_is_taken_off_the_run_goes_on() -> None:
    driver = started()
    poster = driver.board.on("left:again", lambda driver: driver.post("again"))
    driver.post("again")
    with pytest.raises(EndlessPosting):
        driver.run()
    poster.cancel()
    assert driver.run() == "over"
    assert driver.root.worked == 2  # type: ignore[attr-defined]


def test_a_receiver_that_posts_between_works_of_states_may_go_on_for_ever() -> None:
    class Turning(Loop):
        initial = "turn"
        outcomes = ("over",)
        posted = ("tick",)
        transitions = [["turned", "turn", None], ["tick", "turn", None]]
        turns: int = 0

        def turn(self) -> Literal["turned", "over"]:
            self.turns += 1
            return "over" if self.turns == TURNS else "turned"

    driver = Driver(Turning())
    driver.start()
    driver.board.on("turn:turned", lambda driver: driver.post("tick"))
    assert driver.run() == "over"


def test_another_thread_may_post_as_often_as_it_likes() -> None:
    driver = started()
    posted: list[int] = []

    def post_again() -> None:
        posted.append(len(posted))
        if len(posted) < TURNS:
            thread = threading.Thread(target=driver.post, args=("again",))
            thread.start()
            thread.join()

    driver.board.on("left:again", post_again)
    driver.post("again")
    assert driver.run() == "over"
    assert len(posted) == TURNS


# -- chains in which other states work ---------------------------------------------------------------


class Looking(Loop):
    """Works in turns with a look from outside, which is posted before `work`."""

    initial = "work"
    outcomes = ("over",)
    posted = ("look", "peek")
    transitions = [
        ["worked", "work", "work"],
        ["look", "work", "looking"],
        ["peek", "work", "looking"],
        ["looked", "looking", "work"],
    ]
    works: int = 0
    looks: int = 0

    def work(self) -> Literal["worked", "over"]:
        self.works += 1
        return "over" if self.works == 5 * Looking.most_posted else "worked"

    def looking(self) -> Literal["looked"]:
        self.looks += 1
        return "looked"


def looking() -> Driver:
    driver = Driver(Looking(), name="fit")
    driver.start()
    return driver


def look_again(driver: Driver) -> None:
    driver.post("look")


def test_a_chain_before_a_state_that_never_works_names_event_place_and_receiver() -> None:
    driver = looking()
    driver.board.on("looking:looked", look_again)
    driver.post("look")
    with pytest.raises(EndlessPosting) as told:
        driver.run()
    text = str(told.value)
    assert "taken 101 times in a row before state 'fit.work'" in text
    assert "'look' by look_again (test_endless_posting.py:" in text
    assert driver.root.state_dict() == {"works": 0, "looks": 101}  # the first one came from outside


def test_two_receivers_that_post_each_others_events_are_both_named() -> None:
    driver = looking()
    driver.board.on("work:look", lambda driver: driver.post("peek"))
    driver.board.on("work:peek", lambda driver: driver.post("look"))
    driver.board.on("work:worked", lambda driver: driver.post("look"), once=True)
    with pytest.raises(EndlessPosting, match=r"'look' by .*'peek' by"):
        driver.run()


def test_posting_at_each_work_of_the_state_is_no_chain() -> None:
    driver = looking()
    driver.board.on("work:worked", look_again)
    assert driver.run() == "over"
    assert driver.root.state_dict()["looks"] == 5 * Looking.most_posted - 1


@pytest.mark.parametrize("most", [1, 7])
def test_the_limit_can_be_set(most: int) -> None:
    driver = looking()
    driver.root.most_posted = most  # type: ignore[misc]
    driver.board.on("looking:looked", look_again)
    driver.post("look")
    with pytest.raises(EndlessPosting, match=f"taken {most + 1} times"):
        driver.run()
    assert driver.root.state_dict()["looks"] == most + 1  # the first one came from outside


def test_a_chain_that_ends_below_the_limit_is_let_be_and_counted_anew() -> None:
    driver = looking()
    rounds: list[int] = []

    def look_often(driver: Driver) -> None:
        rounds.append(1)
        if len(rounds) % Looking.most_posted:
            driver.post("look")

    driver.board.on("looking:looked", look_often)
    driver.board.on("work:worked", look_again)
    assert driver.run() == "over"
    assert len(rounds) > 4 * Looking.most_posted


def test_a_state_that_may_rest_may_be_driven_by_posts() -> None:
    class Serving(Loop):
        initial = "wait"
        outcomes = ("over",)
        posted = ("job",)
        transitions = [["job", "wait", "serve"], ["served", "serve", "wait"]]
        served: int = 0

        def wait(self) -> Literal["over"] | None:
            return None if self.served < TURNS else "over"

        def serve(self) -> Literal["served"]:
            self.served += 1
            return "served"

    def next_job(driver: Driver) -> None:
        if driver.root.state_dict()["served"] < TURNS:
            driver.post("job")

    driver = Driver(Serving())
    driver.start()
    driver.board.on("serve:served", next_job)
    driver.post("job")
    assert driver.run() == "over"
    assert driver.root.state_dict()["served"] == TURNS


def test_a_chain_is_told_in_single_steps_and_with_probes() -> None:
    driver = looking()
    driver.board.on("looking:looked", look_again)
    driver.post("look")
    driver.instrument(lambda _path, work: work)
    with pytest.raises(EndlessPosting):
        for _ in driver.moments():
            pass


class Leaving(Loop):
    """Is left before its state `work` has worked, if somebody posts `leave`."""

    initial = "prepare"
    outcomes = ("over", "leave")
    posted = ("leave",)
    transitions = [["ready", "prepare", "work"]]

    def prepare(self) -> Literal["ready"]:
        return "ready"

    def work(self) -> Literal["over", "leave"]:
        return "over"


@pytest.mark.parametrize("again", ["start", "load"])
def test_a_machine_that_begins_anew_counts_anew(again: str) -> None:
    driver = Driver(Leaving())
    driver.board.on("prepare:ready", lambda driver: driver.post("leave"))
    driver.start()
    begun = driver.state_dict()
    for _ in range(Leaving.most_posted + 1):
        assert driver.run() == "leave"
        if again == "start":
            driver.start()
        else:
            driver.load_state_dict(begun)


def test_another_thread_is_not_named_as_the_receiver_that_posts() -> None:
    driver = looking()

    def look_twice(driver: Driver) -> None:
        driver.post("look")
        outside = threading.Thread(target=driver.post, args=("look",))
        outside.start()
        outside.join()

    driver.board.on("looking:looked", look_twice)
    driver.post("look")
    with pytest.raises(EndlessPosting, match=r"'look' by .*look_twice \(test_endless_posting"):
        driver.run()
