"""Processes that tests start; nothing of them outlives a test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def in_group(
    command: Sequence[object],
    output: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str],
    preexec_fn: Callable[[], object] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own, which is killed at the end of the block.

    What it prints is in the file `output`.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=preexec_fn,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(true: Callable[[], bool], longest: float = 100.0) -> None:
    """Wait for something that has to come about within so many seconds."""
    end = time.monotonic() + longest
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def state_of(place: Path) -> str:
    """The letter of the state of a process or thread, of its folder in /proc: Z has ended, T is stopped.

    Raises:
        OSError: There is none.
    """
    return (place / "stat").read_text().rpartition(")")[2].split()[0]


def stands_still(pid: int) -> bool:
    """Whether all threads of a process have been stopped."""
    return all(state_of(thread) == "T" for thread in Path(f"/proc/{pid}/task").iterdir())
