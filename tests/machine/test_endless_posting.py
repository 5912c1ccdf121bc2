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
