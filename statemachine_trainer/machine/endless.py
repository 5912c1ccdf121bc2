"""Finds receivers that post events to each other without end, and says which they are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from statemachine_trainer.machine.edges import Edge, Node
from statemachine_trainer.machine.errors import EndlessPosting
from statemachine_trainer.machine.signals import Subscription

_SHOWN: Final = 5
_HERE: Final = f"{Path(__file__).parent}"
_TRAINER: Final = (f"{Path(_HERE).with_name('trainer.py')}", f"{Path(_HERE).with_name('running')}")


class Chain:
    """Events of receivers that were taken before one state, one after another, while other states worked.

    The chain ends when the state works. To see that, it stands in for the work of the state until then,
    so that other work costs nothing more.

    Args:
        node: The state.
        chains: All chains; this one takes itself out.

    Attributes:
        edges: Edges that were taken, in their order.
        posters: Who posted each event last.
    """

    def __init__(self, node: Node, chains: dict[Node, Chain]) -> None:
        self.edges: list[Edge] = []
        self.posters: dict[str, str] = {}
        self._node, self._chains, self._work = node, chains, node.work
        self._stand_in = self._ended_by_work
        node.work = self._stand_in

    @property
    def is_broken(self) -> bool:
        """Whether the state was given other work meanwhile, as for a probe: it may have worked since."""
        return self._node.work is not self._stand_in

    def add(self, edge: Edge, most: int) -> None:
        """Add an edge that is taken now.

        Raises:
            EndlessPosting: There are more than `most`.
        """
        self.edges.append(edge)
        if len(self.edges) <= most:
            return
        edges = [*dict.fromkeys(self.edges)]
        self.end()
        events = [f"{one.moment.event}" for one in edges]
        posters = [
            f"{event!r} by {self.posters[event]}" for event in events if event in self.posters
        ]
        by = f" Posted last: {_listed(posters)}." if posters else ""
        raise EndlessPosting(
            f"Events that receivers posted were taken {most + 1} times in a row before state {self._node.path!r}, "
            f"which has not worked in between: {_listed([repr(one) for one in events])}. Each time a receiver posts "
            f"the next one.{by} Post under a condition that ends. If so many are meant, raise `most_posted` of the "
            "loop that has the transition."
        )

    def _ended_by_work(self) -> object:
        self.end()
        return self._work()

    def end(self) -> None:
        """Count no further, and give the state its own work back."""
        if not self.is_broken:
            self._node.work = self._work
        self._chains.pop(self._node, None)


def poster() -> str:
    """Return the function that posts an event now: the innermost one that is not part of the machine."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_HERE, *_TRAINER)):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})"


def endless(taken: Sequence[Edge]) -> EndlessPosting:
    """Return the error for posted events that were taken one after the other, and no state worked.

    Args:
        taken: Their edges, in the order in which they were taken.
    """
    edges = [*dict.fromkeys(taken)]
    events = _listed([f"{one.moment.event!r}" for one in edges])
    last = edges[-1].moment
    heard = [
        f"{one.label()} at {emission.moment.signal!r}"
        for edge in edges
        for emission in edge.emissions()
        for one in emission.signal.receivers_for(None)
        if isinstance(one, Subscription)
    ]
    receivers = f" Receivers on the way: {_listed(heard)}." if heard else ""
    return EndlessPosting(
        f"Posted events were taken {len(taken)} times at one boundary, and no state has worked in between: "
        f"{events}, the last one before state {last.target!r}. Each time a receiver posts the next one."
        f"{receivers} Post under a condition that a state makes false, or do in the receiver what the next event "
        "is for."
    )


def _listed(texts: Sequence[str]) -> str:
    found = [*dict.fromkeys(texts)]
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
