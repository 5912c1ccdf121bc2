"""Which rank of a run the others wait for: now, and by its share of the time that the black boxes keep.

Reading needs no torch. Times of several machines are not compared, because their clocks differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, NamedTuple

from statemachine_trainer.observe.blackbox import Entry, Ring, find_parting

_MEETS: Final = 0.8
"""A state is one in which ranks wait for each other if this share of its visits end after all have begun."""

_CLOSER: Final = 0.5
"""And if the ranks then leave it this much closer to each other than they came."""

_VISITS: Final = 5
"""Visits from which on a state is known well enough."""

_OVER: Final = ("ended", "stopped", "failed", "paused", "resting")


class Waits(NamedTuple):
    """A rank that has come further than another one, and waits for it as far as it is seen.

    Attributes:
        rank: The rank.
        behind: Those that have come least far.
        since: Since when it is where it is.
        seconds: How long that was ago when the black boxes were read.
    """

    rank: int
    behind: tuple[int, ...]
    since: datetime
    seconds: float


@dataclass(frozen=True)
class Waiting:
    """How long the ranks have waited for each other, over the transitions that all black boxes keep.

    Attributes:
        seconds: The time that is looked at.
        waited: Seconds that a rank has waited for another, by both.
        states: Seconds that ranks have waited in a state, by its path.
    """

    seconds: float
    waited: dict[tuple[int, int], float] = field(default_factory=dict)
    states: dict[str, float] = field(default_factory=dict)

    def share_of(self, rank: int) -> float:
        """Return the share of the time in which a rank has waited for others."""
        return self._share(sum(one for (who, _), one in self.waited.items() if who == rank))

    def share_for(self, rank: int) -> float:
        """Return the share of the time in which others have waited for a rank, the mean over them."""
        waited = [one for (_, whom), one in self.waited.items() if whom == rank]
        others = len({who for who, _ in self.waited} - {rank})
        return self._share(sum(waited) / others) if others else 0.0

    @property
    def straggler(self) -> int | None:
        """The rank that the others have waited for longest; None if nobody has waited."""
        ranks = sorted({whom for _, whom in self.waited})
        most = max(ranks, key=self.share_for, default=None)
        return most if most is not None and self.share_for(most) else None

    def _share(self, seconds: float) -> float:
        return seconds / self.seconds if self.seconds else 0.0


def newest_together(rings: Sequence[Ring]) -> dict[int, Entry]:
    """Return the newest entry of each rank, by rank, as of the moment at which the first one was read.

    Black boxes are read one after the other. A rank that was read later has gone on in between, which does not mean
    that the others are behind.
    """
    moment = min((ring.read for ring in rings), default=None)
    found = {}
    for ring in rings:
        before = (one for one in reversed(ring.entries()) if moment and one.time <= moment)
        newest = next(before, None)
        if newest is not None:
            found[ring.rank] = newest
    return found


def who_waits(rings: Sequence[Ring]) -> list[Waits]:
    """Return the ranks that have come further than others which are still on their way.

    A rank that is merely a moment ahead is told too: since when says how much that means.
    """
    newest = newest_together(rings)
    under_way = [ring for ring in rings if ring.rank in newest and ring.status not in _OVER]
    least = min((newest[ring.rank].number for ring in under_way), default=0)
    behind = tuple(ring.rank for ring in under_way if newest[ring.rank].number == least)
    return [
        Waits(
            ring.rank,
            behind,
            newest[ring.rank].time,
            max(0.0, (ring.read - newest[ring.rank].time).total_seconds()),
        )
        for ring in under_way
        if newest[ring.rank].number > least and ring.status in ("running", "unknown")
    ]


def waiting_of(rings: Sequence[Ring]) -> Waiting | None:
    """Return how long the ranks of a run have waited for each other.

    A rank waits in a state that none leaves before the last rank has come to it, such as the backward
    pass in which gradients are averaged: from its own coming to that of the last one. States that ranks
    leave one by one are none of these, whatever they take.

    Returns:
        None where it cannot be told: one rank, several machines, or nothing that all of them have done.
    """
    if len(rings) < 2 or len({ring.host for ring in rings}) > 1:
        return None
    by_number = [{one.number: one for one in ring.entries()} for ring in rings]
    common = sorted(set.intersection(*map(set, by_number)))
    parting = find_parting(rings)
    if parting is not None:
        common = [number for number in common if number < parting.number]
    visits: defaultdict[str, list[tuple[list[float], list[float]]]] = defaultdict(list)
    for number, following in pairwise(common):
        entries = [found[number] for found in by_number]
        if following == number + 1 and not entries[0].state.startswith("("):
            came = [_seconds(one) for one in entries]
            left = [_seconds(found[following]) for found in by_number]
            visits[entries[0].state].append((came, left))
    if not visits:
        return None
    first, last = (min(_seconds(found[common[place]]) for found in by_number) for place in (0, -1))
    ranks = [ring.rank for ring in rings]
    waited = {(who, whom): 0.0 for who in ranks for whom in ranks if who != whom}
    states: defaultdict[str, float] = defaultdict(float)
    for state, found in visits.items():
        for came, _ in found if _is_meeting(found) else ():
            late = max(came)
            whom = ranks[came.index(late)]
            for who, at in zip(ranks, came, strict=True):
                if at < late:
                    waited[who, whom] += late - at
                    states[state] += late - at
    return Waiting(max(0.0, last - first), waited, dict(states))


def ranks_as_data(rings: Sequence[Ring]) -> list[dict[str, Any]]:
    """Return what each rank does, and for whom it waits, as data that JSON can hold; nothing for one rank."""
    if len(rings) < 2:
        return []
    waits, waiting = {one.rank: one for one in who_waits(rings)}, waiting_of(rings)
    return [
        {
            "rank": ring.rank,
            "status": ring.status,
            "state": ring.state,
            "receiver": None if ring.receiver is None else ring.receiver.name,
            "seconds": None if ring.seconds is None else max(0.0, ring.seconds),
            "waits_for": [*waits[ring.rank].behind] if ring.rank in waits else [],
            "waited": None if waiting is None else waiting.share_of(ring.rank),
            "waited_for": None if waiting is None else waiting.share_for(ring.rank),
        }
        for ring in rings
    ]


def _seconds(entry: Entry) -> float:
    return entry.time.timestamp()


def _is_meeting(visits: Sequence[tuple[Sequence[float], Sequence[float]]]) -> bool:
    """Whether ranks wait for each other in a state: they come apart, and leave together."""
    together = sum(min(left) >= max(came) for came, left in visits)
    came_apart = sum(max(came) - min(came) for came, _ in visits)
    left_apart = sum(max(left) - min(left) for _, left in visits)
    return (
        came_apart > 0 and together >= _MEETS * len(visits) and left_apart <= _CLOSER * came_apart
    )
