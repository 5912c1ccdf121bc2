"""What is said of receivers that post events to each other without end."""

from __future__ import annotations

from collections.abc import Sequence

from statemachine_trainer.machine.errors import EndlessPosting
from statemachine_trainer.machine.program import Edge
from statemachine_trainer.machine.signals import Subscription

_SHOWN = 5


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
