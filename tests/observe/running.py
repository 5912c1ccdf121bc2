"""Starting the training of `recorded.py` as a process; nothing of it outlives a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.forking import Forked, forked
from tests.processes import ROOT
from tests.processes import wait_until as wait_until

LONGEST = 100.0
"""Seconds after which a process hangs."""


@contextmanager
def training(
    folder: Path, what: str = "go", step: int = 12, epochs: int = 3, rank: int | None = None
) -> Iterator[Forked]:
    """Train in a process of its own, killed at the end of the block if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if rank is not None:
        environment |= {"RANK": f"{rank}", "WORLD_SIZE": "2"}
    folder.mkdir(parents=True, exist_ok=True)
    command = ("-m", "tests.observe.recorded", folder, what, step, epochs)
    output = folder / f"output-{rank}.txt"
    with forked(*command, output=output, env=environment) as process:
        yield process


def train(folder: Path, what: str = "go", **given: int) -> int:
    """Train to the end, whatever it is; return the exit code."""
    with training(folder, what, **given) as process:
        return process.wait(LONGEST)
