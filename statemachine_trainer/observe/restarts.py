"""What led to a restart by `torchrun`: which rank the attempt before has lost, and where.

The black boxes of that attempt tell it, as long as nobody has begun new ones. Reading needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from statemachine_trainer.observe.blackbox import Ring

RESTART: Final = "restart"
"""The kind of the entry in the journal."""

_BECAUSE_OF_ANOTHER: Final = "RankLost"
"""The error of a rank that has lost another one."""


def order_of_leaving(ring: Ring) -> tuple[int, int]:
    """Sort the ranks of a run that broke: the one that the others have lost comes first.

    One that was killed comes before one that failed, and last come those that left because of another. Of
    several that were killed, the one that had come least far was the first.
    """
    newest = ring.entries(1)
    if not newest:
        return 1, 0  # nothing had run yet
    number = newest[0].number
    if ring.status in ("killed", "unknown", "running"):
        return 0, number
    if ring.status == "failed":
        return (2 if newest[0].event == _BECAUSE_OF_ANOTHER else 1), number
    return 3, number


def what_was_lost(rings: Sequence[Ring], attempt: int) -> dict[str, Any] | None:
    """Return what led to this attempt, as data that JSON can hold.

    Args:
        rings: The black boxes in the folder of the run, of the attempts before.
        attempt: That of this process, from 1.

    Returns:
        The attempt ("attempt"), and as far as it is known the rank that was lost ("rank"), what became of it
        ("how", with the kind of the error: "error"), the state it was in ("state") and since when ("since").
        None if no restart has led here: this process has begun the run, or the run was at its end.
    """
    if any(ring.pid == os.getpid() for ring in rings):
        return None
    found: dict[str, Any] = {"attempt": attempt}
    before = [ring for ring in rings if ring.attempt == attempt - 1]
    if before and all(ring.status in ("ended", "resting") for ring in before):
        return None
    first = min(before, key=order_of_leaving, default=None)
    silent = sorted({*range((rings[0].ranks or 0) if rings else 0)} - {one.rank for one in before})
    if first is None or (silent and order_of_leaving(first)[0] > 1):
        # It was gone before it began its black box.
        return {**found, **({"rank": silent[0]} if before and len(silent) == 1 else {})}
    failed = first.status == "failed"
    return {
        **found,
        "rank": first.rank,
        "how": first.status if failed or first.status == "stopped" else "killed",
        **({"error": first.entries(1)[0].event} if failed else {}),
        **({} if first.state is None else {"state": first.state}),
        **({} if first.since is None else {"since": first.since.isoformat()}),
    }


def restart_in_words(facts: Mapping[str, Any]) -> str:
    """Return a restart, as an entry of the journal tells it, as a sentence without its full stop."""
    rank, checkpoint = facts.get("rank"), facts.get("checkpoint")
    how, state, error = (facts.get(name) for name in ("how", "state", "error"))
    if rank is None:
        lost = "what was lost is not known"
    elif how is None:
        lost = f"rank {rank} was lost before its fit began"
    else:
        was = f"failed with {error}" if error is not None else f"was {how}"
        lost = f"rank {rank} {was}{'' if state is None else f' in {state}'}"
    onward = "began anew" if checkpoint is None else f"went on from {checkpoint}"
    return f"attempt {facts.get('attempt')}: {lost}; {onward}"
