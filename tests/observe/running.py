"""Starting the training of `recorded.py` as a process; nothing of it outlives a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 60.0
"""Seconds after which a process hangs."""


@contextmanager
def training(
    folder: Path, what: str = "go", step: int = 12, epochs: int = 3, rank: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Train in a process of its own, killed at the end of the block if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if rank is not None:
        environment |= {"RANK": f"{rank}", "WORLD_SIZE": "2"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"output-{rank}.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.observe.recorded", folder, what, f"{step}", f"{epochs}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def train(folder: Path, what: str = "go", **given: int) -> int:
    """Train to the end, whatever it is; return the exit code."""
    with training(folder, what, **given) as process:
        return process.wait(LONGEST)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)
