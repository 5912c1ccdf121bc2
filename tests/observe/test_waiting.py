"""Which rank the others wait for is told by the black boxes: now, and by its share of the time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from statemachine_trainer.observe.blackbox import Entry, Ring
from statemachine_trainer.observe.waiting import ranks_as_data, waiting_of, who_waits

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ring(
    rank: int, entries: Sequence[tuple[str, float]], host: str = "node", *, alive: bool = True
) -> Ring:
    """The black box of a rank that entered these states at these seconds, read 100 seconds after noon."""
    made = [
        Entry(i, NOON + timedelta(seconds=at), "", s, 0) for i, (s, at) in enumerate(entries, 1)
    ]
    read = NOON + timedelta(seconds=100)
    return Ring(Path(), rank, 3, 1, host, alive, 0, read, None, tuple(made))


def batches(rank: int, forward: float, count: int = 10, whole: float = 3.0) -> Ring:
    """A rank whose forward takes so long, and whose backward ends with that of the slowest."""
    entries = []
    for start in (number * whole for number in range(count)):
        entries += [("fetch", start), ("forward", start + 0.5), ("backward", start + 0.5 + forward)]
    return ring(rank, [*entries, ("fetch", count * whole)])


def test_the_rank_that_the_others_wait_for_has_its_share_of_the_time() -> None:
    waiting = waiting_of([batches(0, 1.0), batches(1, 2.2), batches(2, 1.0)])
    assert waiting is not None
    assert waiting.straggler == 1
    assert waiting.share_of(0) == pytest.approx(1.2 / 3)
    assert waiting.share_of(1) == 0
    assert waiting.share_for(1) == pytest.approx(1.2 / 3)
    assert [*waiting.states] == ["backward"]


def test_ranks_that_are_as_fast_wait_for_nobody() -> None:
    waiting = waiting_of([batches(0, 1.0), batches(1, 1.0)])
    assert waiting is not None
    assert waiting.straggler is None
    assert waiting.share_of(0) == waiting.share_of(1) == 0


def test_a_state_that_ranks_leave_one_by_one_is_none_in_which_they_wait() -> None:
    """The slow rank is late from the beginning, and nothing makes the other wait."""
    ahead = ring(0, [("a", 0), ("b", 1), ("c", 2), ("d", 3)])
    late = ring(1, [("a", 10), ("b", 20), ("c", 30), ("d", 40)])
    waiting = waiting_of([ahead, late])
    assert waiting is not None
    assert waiting.straggler is None


@pytest.mark.parametrize(
    "rings",
    [
        [],
        [batches(0, 1.0)],
        [ring(0, []), ring(1, [])],
        [ring(0, [("a", 0), ("b", 1)]), ring(1, [("c", 0), ("d", 1)])],
        [ring(0, [("a", 0), ("b", 1)], host="one"), ring(1, [("a", 0), ("b", 1)], host="other")],
    ],
)
def test_where_it_cannot_be_told_nothing_is(rings: list[Ring]) -> None:
    assert waiting_of(rings) is None


def test_a_rank_that_has_come_further_waits_for_the_last_since_it_came_there() -> None:
    ahead, last = ring(0, [("a", 0), ("b", 1), ("c", 40)]), ring(1, [("a", 0)])
    also = ring(2, [("a", 0), ("b", 30)])
    first, second = who_waits([ahead, last, also])
    assert (first.rank, first.behind, first.seconds) == (0, (1,), 60)
    assert (second.rank, second.since) == (2, NOON + timedelta(seconds=30))


def test_a_rank_that_was_killed_waits_for_nobody_and_is_waited_for() -> None:
    ahead, last = ring(0, [("a", 0), ("b", 1)]), ring(1, [("a", 0)], alive=False)
    (found,) = who_waits([ahead, last])
    assert (found.rank, found.behind) == (0, (1,))
    dead = ring(0, [("a", 0), ("b", 1)], alive=False)
    assert not who_waits([dead, last])


def test_what_a_rank_did_after_another_was_read_puts_that_one_not_behind() -> None:
    first, later = ring(0, [("a", 0)]), ring(1, [("a", 0), ("b", 100.5), ("c", 101)])
    assert not who_waits([first, later])


def test_ranks_that_have_ended_neither_wait_nor_are_waited_for() -> None:
    ended = ring(0, [("a", 0), ("(ended)", 1)], alive=False)
    assert not who_waits([ended, ring(1, [("a", 0), ("b", 1), ("c", 2)])])


def test_ranks_side_by_side_are_plain_data_and_one_alone_is_none() -> None:
    ahead, last = ring(0, [("a", 0), ("b", 1)]), ring(1, [("a", 0)])
    assert ranks_as_data([ahead]) == []
    first, second = ranks_as_data([ahead, last])
    assert (first["state"], first["waits_for"], first["seconds"]) == ("b", [1], 99)
    assert (second["rank"], second["status"], second["waits_for"]) == (1, "running", [])
