"""Starting the training of these tests as a process, and as a cheap fork of this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "crash" / "training.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
ENVIRONMENT.pop("SMT_RESUME", None)


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
    """Run Python with these arguments."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def digest(path: Path) -> dict[str, Any]:
    """Read what a training wrote at its end."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
