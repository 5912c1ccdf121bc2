"""Starting the training of these tests as a process, and as a cheap fork of this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.forking import forked
from tests.processes import ROOT

SCRIPT = ROOT / "tests" / "crash" / "training.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
ENVIRONMENT.pop("SMT_RESUME", None)
LONGEST = 900.0
"""Seconds after which a process hangs."""
LAST_WORKER = 30.0
"""Seconds after its run within which a worker has ended."""


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is such a thing: a process that is killed loses no page of it."""
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, in a session of its own, and see that nothing of it is left.

    It writes to files, not pipes: a process that was left over would hold those open for ever.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        try:
            with forked(*command, output=out, errors=errors, env=ENVIRONMENT, cwd=cwd) as process:
                code = process.wait(LONGEST)
                assert has_ended(process.pid), f"{command} left processes behind"
        finally:
            written, complaints = out.read_text(), errors.read_text()
            sys.stderr.write(complaints)
    return subprocess.CompletedProcess([*map(str, command)], code, written, complaints)


def has_ended(group: int) -> bool:
    """Wait for the last process of a group: workers look for their run every few seconds."""
    end = time.monotonic() + LAST_WORKER
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def digest(path: Path) -> dict[str, Any]:
    """Read what a training wrote at its end."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
