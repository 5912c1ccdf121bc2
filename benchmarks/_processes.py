"""Measuring in new processes, one after the other, each with one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def measure(script: str, processes: int, arguments: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """Run a benchmark with `--here`, which prints JSON: how it was pinned, then what it found.

    Args:
        script: The benchmark, `__file__`.
        processes: How often.
        arguments: Of the command line, for each process.

    Returns:
        How they were pinned, and the lines of all.
    """
    command = [sys.executable, str(Path(script)), "--here", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    how, found = "", list[dict[str, Any]]()
    for _ in range(processes):
        output = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        first, *lines = map(json.loads, output.splitlines())
        how = first["how"]
        found += lines
    return how, found
