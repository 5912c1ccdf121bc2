"""Runs of scripts that are replayed: training them, and what is in their folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from statemachine_trainer.cli import app

ROOT = Path(__file__).resolve().parents[2]


def train(folder: Path, script: str = "train.py") -> None:
    """Run a script in its folder, as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def replay(run: str, *arguments: str, line: str | None = None) -> Result:
    """Call `smt replay` in this process."""
    return CliRunner().invoke(app, ["replay", run, *arguments], input=line)


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the files that SQLite makes as a journal is read."""
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    return {str(one): one.read_bytes() for one in files if "sqlite-" not in one.name}
