"""An entry point only says where a loop begins: the loop is left and entered all the same."""

from __future__ import annotations

from typing import Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, field, place


class Send(Loop):
    initial = "open_"
    transitions = [["opened", "open_", "push"]]
    entries = {"again": "push"}

    pushes: int = 0
    ever: int = field(0, scope="run")

    def open_(self) -> Literal["opened"]:
        return "opened"

    def push(self) -> Literal["again", "ok"]:
        self.pushes += 1
        self.ever += 1
        self.context.append(self.pushes)
        return "again" if self.ever < 3 else "ok"


class Attempt(Loop):
    initial = "connect"
    transitions = [["up", "connect", "send"]]
    tries: int = 0

    send: Loop = place(Send)

    def connect(self) -> Literal["up"]:
        self.tries += 1
        return "up"


class DeepAttempt(Attempt):
    entries = {"again": "send"}


class Job(Loop):
    initial = "attempt"
    transitions = [["again", "attempt", "="]]
    outcomes = ("ok",)
    attempt: Loop = place(Attempt)


class DeepJob(Job):
    attempt: Loop = place(DeepAttempt)


def signals_of(root: Loop, *, by_library: bool = False) -> tuple[list[str], list[int]]:
    counted: list[int] = []
    driver = Driver(root, name="job", context=counted)
    heard: list[str] = []
    driver.board.on("*:*", lambda _s, moment: heard.append(moment.signal))
    driver.start()
    if not by_library:
        driver.run()
        return heard, counted
    while driver.outcome is None:
        path = str(driver.path)
        state = path.rpartition(".")[2]
        work = driver.program.nodes[path].work
        driver.machine.trigger(work())
        assert state
    return heard, counted


@pytest.mark.parametrize("by_library", [False, True], ids=["program", "library"])
def test_a_loop_is_left_and_entered_at_its_entry_point(by_library: bool) -> None:
    heard, counted = signals_of(DeepJob(), by_library=by_library)
    assert counted == [1, 1, 1]  # a field of the loop begins anew at each entry
    again = [
        "job.attempt.send.push:exit",
        "job.attempt.send:exit",
        "job.attempt:exit",
        "job.attempt:enter",
        "job.attempt.send:enter",
        "job.attempt.send.push:enter",
        "job.attempt:again",
    ]
    first = heard.index("job.attempt.send.push:exit")
    assert heard[first : first + 7] == again
    assert heard[first + 7 : first + 14] == again


def test_without_an_entry_point_it_begins_at_its_initial_state() -> None:
    heard, counted = signals_of(Job())
    assert heard.count("job.attempt.connect:enter") == 3
    assert counted == [1, 1, 1]


def test_the_graph_still_shows_where_it_begins() -> None:
    edges = Driver(DeepJob(), name="job").machine.events["again"].transitions["job.attempt"]
    assert [edge.dest for edge in edges] == ["job.attempt.send.push"]
