"""Names the rank that the others have lost.

All that a rank sees of it is a connection that was closed, or an answer that did not come in time.
Which one it is, and where it stands, is told by the black boxes and by the processes of this machine.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch.distributed as dist

from statemachine_trainer.control.processes import is_alive
from statemachine_trainer.observe.blackbox import Ring, read_blackbox
from statemachine_trainer.observe.restarts import order_of_leaving
from statemachine_trainer.observe.ring import BadRing
from statemachine_trainer.parallel.parallel_errors import RankLost
from statemachine_trainer.parallel.ranks import Ranks

_log = logging.getLogger(__name__)

_OF_RANKS: Final = re.compile(
    "gloo|nccl|c10d|process ?group|pair closure|connection (closed|reset) by peer", re.IGNORECASE
)
_LATE: Final = re.compile("timed out|timeout", re.IGNORECASE)
_CLOSED: Final = re.compile(
    "closed by peer|reset by peer|broken pipe|pair closure|no longer connected|remote process exited",
    re.IGNORECASE,
)
_PATIENCE: Final = 5.0
"""Seconds in which a process that has closed its connections is gone."""


@contextmanager
def naming_lost_ranks(folder: Path | None) -> Iterator[None]:
    """Within the block, an error of the process group says which rank was lost.

    Args:
        folder: The folder of the run, in which the ranks write their black boxes; None if there is none.

    Raises:
        RankLost: Another rank has closed its connections, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        ranks = Ranks.known()
        if ranks is None or not (how := sort_of_loss(error)):
            raise
        lost = _lost(ranks, folder, how, error)
        # torchrun ends the ranks that are left by a signal, and then nobody would see the error.
        _log.error("%s", lost)
        raise lost from error


def sort_of_loss(error: RuntimeError) -> str | None:
    """Return "closed" or "late" for an error of the process group; None for any other."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not _OF_RANKS.search(text):
        return None
    if _LATE.search(text):
        return "late"
    return "closed" if _CLOSED.search(text) else None


def _lost(ranks: Ranks, folder: Path | None, how: str, error: RuntimeError) -> RankLost:
    closed = how == "closed"
    found = _who_left(ranks, _seen(ranks, folder), closed=closed)
    end = time.monotonic() + (_PATIENCE if closed else 0.0)
    while found is None and time.monotonic() < end:
        time.sleep(0.02)
        found = _who_left(ranks, _seen(ranks, folder), closed=closed)
    seen = _seen(ranks, folder)
    rank = _behind(ranks, seen) if found is None and not closed else found
    ring = None if rank is None else seen.get(rank)
    mine = seen.get(ranks.rank)
    said = str(error).strip().partition("\n")[0][:200]
    did = "did not answer in time"
    if found is not None:
        did = "is gone" if _is_gone(ranks, seen, found) else "has left the run"
    elif closed:
        did = "has closed its connections"
    text = (
        f"{_who(ranks, rank)} {did}.",
        _where(ring),
        "" if mine is None else f"Rank {ranks.rank} waited for it in {mine.state!r}.",
        f"({said})",
        _advice(folder, gone=found is not None or closed),
    )
    state, since = (None, None) if ring is None else (ring.state, ring.since)
    return RankLost(" ".join(filter(None, text)), rank, state, since)


def _seen(ranks: Ranks, folder: Path | None) -> dict[int, Ring]:
    """Return the black boxes of the processes of this run, by rank."""
    if folder is None:
        return {}
    with suppress(BadRing, OSError):
        pids = [one["pid"] for one in ranks.processes]
        rings = read_blackbox(folder)
        return {
            one.rank: one for one in rings if one.rank < ranks.size and one.pid == pids[one.rank]
        }
    return {}


def _who_left(ranks: Ranks, seen: Mapping[int, Ring], *, closed: bool) -> int | None:
    """Return the rank that left first; None if all are there.

    A process that still ends has left, too, if it has closed its connections.
    """

    def has_left(rank: int) -> bool:
        ring = seen.get(rank)
        over = closed and ring is not None and ring.status in ("failed", "stopped", "ended")
        return over or _is_gone(ranks, seen, rank)

    def order(rank: int) -> tuple[int, int]:
        ring = seen.get(rank)
        return (1, 0) if ring is None else order_of_leaving(ring)

    others = (rank for rank in range(ranks.size) if rank != ranks.rank)
    return min(filter(has_left, others), key=order, default=None)


def _is_gone(ranks: Ranks, seen: Mapping[int, Ring], rank: int) -> bool:
    """Return whether the process of a rank is gone, as far as it can be seen from here."""
    ring = seen.get(rank)
    # A black box tells a process that is dead and not collected yet from one that lives.
    alive = is_alive(ranks.processes[rank]) if ring is None or ring.alive is None else ring.alive
    return alive is False


def _behind(ranks: Ranks, seen: Mapping[int, Ring]) -> int | None:
    """Return the rank that has made the fewest transitions; None if there is no such single one."""
    made = {rank: ring.entries(1)[0].number for rank, ring in seen.items() if len(ring)}
    if len(made) < ranks.size:
        return None
    least = [rank for rank, number in made.items() if number == min(made.values())]
    return least[0] if len(least) == 1 and least[0] != ranks.rank else None


def _who(ranks: Ranks, rank: int | None) -> str:
    if rank is None:
        return "Another rank of this run"
    process = ranks.processes[rank]
    return f"Rank {rank} (process {process['pid']} on {process['host']})"


def _where(ring: Ring | None) -> str:
    if ring is None or ring.state is None or ring.since is None:
        return ""
    within = "" if ring.receiver is None else f", in the receiver {ring.receiver.name}"
    return f"It was last seen in {ring.state!r}{within}, since {ring.since:%H:%M:%S} UTC."


def _advice(folder: Path | None, *, gone: bool) -> str:
    look = "" if folder is None else f" `smt blackbox {folder}` shows all ranks side by side."
    if gone:
        return (
            "What it printed says why. Start all ranks again: with checkpoints and resume='auto' the "
            f"run goes on from the newest.{look}"
        )
    return (
        "If it was only slow, give ranks more time: init_process_group(timeout=...). Else some code "
        f"acts at one rank alone, or its data has ended earlier.{look}"
    )
