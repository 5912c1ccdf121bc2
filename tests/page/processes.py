"""Processes that train until they are told to stop; nothing of them outlives a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from statemachine_trainer.control.requests import endpoints_in
from statemachine_trainer.observe.run import NoRun, Run
from tests.forking import Forked, forked
from tests.page.runs import until
from tests.processes import ROOT, in_group

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

TRAINING = """
import sys
from tests.page.processes import train
train(sys.argv[1], int(sys.argv[2]))
"""


def train(folder: str, workers: int) -> None:
    """Train until told to stop, its data read by so many processes."""
    from torch.utils.data import DataLoader

    from statemachine_trainer import Checkpoints
    from tests.page.runs import Run

    alone = "RANK" not in os.environ
    checkpoints = Checkpoints(folder, every=10**9) if alone else None  # only those asked for
    run = Run(checkpoints, folder=Path(folder))
    if workers:
        samples: Any = [(x, y) for xs, ys in run.data for x, y in zip(xs, ys, strict=True)]
        run.data = DataLoader(samples, batch_size=4, num_workers=workers, persistent_workers=True)
    run.begin()
    run.thread.join()


@contextmanager
def process(*arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python in a process group of its own, which is killed at the end of the block."""
    with in_group(
        [sys.executable, *arguments],
        log,
        env={**ENVIRONMENT, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    ) as one:
        yield one


@contextmanager
def training(
    folder: Path, *, workers: int = 0, rank: int | None = None, ranks: int = 1
) -> Iterator[Forked]:
    """Train in another process; the block begins when some steps are done and the run listens."""
    ranked = {} if rank is None else {"RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
    log = folder.with_name(f"{folder.name}-{rank or 0}.log")
    environment = {**ENVIRONMENT, **ranked}
    with forked("-c", TRAINING, folder, workers, output=log, env=environment) as one:

        def listens() -> bool:
            assert one.poll() is None, log.read_text()
            return any(end.rank == (rank or 0) for end in endpoints_in(folder))

        try:
            until(lambda: listens() and steps_in(folder) > 3, "a step")
            yield one
        finally:
            for left in endpoints_in(folder):  # by one that is killed
                Path(left.address).unlink(missing_ok=True)


def steps_in(folder: Path) -> int:
    """Steps that the run in a folder has done; none while it has not begun."""
    try:
        return (Run(folder).progress() or (0, 0))[1]
    except NoRun:
        return 0
