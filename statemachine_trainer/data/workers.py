"""What a worker of a loader does before it reads its first sample.

Two things that torch leaves open. A warning of the system (SIGTERM, Ctrl-C) that goes to the whole
group of processes ends its workers at once, and with them the batch that the run needs to reach its
boundary and write its checkpoint. And a worker whose run is killed while the worker starts takes
whoever adopts it for its run, and waits for ever.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any, Protocol

from torch.utils.data import DataLoader, get_worker_info

from statemachine_trainer.data.seeding import SeededFetch

GRACE = 5.0
"""Seconds that a worker goes on reading after SIGTERM. Its run, if it lives, ends it before that."""


class HasWorkers(Protocol):
    """What has workers to be ended."""

    def shutdown(self) -> None:
        """End them."""


_alive: weakref.WeakSet[HasWorkers] = weakref.WeakSet()


def end_at_exit(owner: HasWorkers) -> None:
    """Let the workers be told to end when the process does.

    Otherwise `multiprocessing` sends them SIGTERM, which they heed with a delay.
    """
    _alive.add(owner)


@atexit.register
def _end_all() -> None:
    for owner in [*_alive]:
        owner.shutdown()


class WorkerStart:
    """The `worker_init_fn` of our loaders; calls the user's own, and gets the reading ready.

    Args:
        loader: The user's loader. ``get_worker_info().dataset`` is its data set, whatever stands in
            for that in the worker.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset = loader.dataset
        self.worker_init_fn: Callable[[int], None] | None = loader.worker_init_fn
        context: BaseContext | Any = loader.multiprocessing_context or multiprocessing
        self.forked = context.get_start_method() == "fork"

    def __call__(self, worker_id: int) -> None:
        """Ready the process. Called by torch, in the worker."""
        if self.forked:
            _end_if_orphaned()
        _outlive_warnings()
        info = get_worker_info()
        assert info is not None
        read_by = info.dataset
        object.__setattr__(info, "dataset", self.dataset)  # the class is frozen
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
        if isinstance(read_by, SeededFetch):
            read_by.get_ready()


def _end_if_orphaned() -> None:
    run = multiprocessing.parent_process()
    if run is not None and os.getppid() != run.pid:
        os._exit(1)


def _outlive_warnings() -> None:
    """Leave it to the run to end this worker; after SIGTERM only for a while, in case it cannot."""
    for name in ("SIGINT", "SIGUSR1"):
        if number := getattr(signal, name, None):  # Windows has no SIGUSR1
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)
    timer = threading.Timer(GRACE, os._exit, [128 + signum])
    timer.daemon = True
    timer.start()
