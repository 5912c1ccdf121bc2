"""Runs of scripts that are replayed: training them, and what is in their folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from typer.testing import CliRunner, Result

from statemachine_trainer.cli import app
from tests.cli.sandbox import clean_imports
from tests.forking import forked
from tests.processes import ROOT

LONGEST = 100.0
"""Seconds after which a training hangs."""


def train(folder: Path, script: str = "train.py") -> None:
    """Run a script in its folder, as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.NamedTemporaryFile("r") as output:
        place = Path(output.name)
        with forked(script, output=place, env=environment, cwd=folder) as process:
            assert process.wait(LONGEST) == 0, output.read()


def replay(run: str, *arguments: str, line: str | None = None) -> Result:
    """Call `smt replay` in this process."""
    return CliRunner().invoke(app, ["replay", run, *arguments], input=line)


@contextmanager
def left_alone(home: Path, watched: str = "runs", but_for: str | None = None) -> Iterator[None]:
    """Work in a folder; within the block nothing may be written into the one that is watched.

    Args:
        home: The folder to work in.
        watched: Which one below it is watched.
        but_for: A name of folders that may be written into.
    """
    before = contents(home / watched, but_for)
    with chdir(home), clean_imports():
        yield
    assert contents(home / watched, but_for) == before


def contents(folder: Path, but_for: str | None = None) -> dict[str, bytes]:
    """What is in a folder, but for the files that SQLite makes as a journal is read."""
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    files = [one for one in files if "sqlite-" not in one.name and but_for not in one.parts]
    return {str(one): one.read_bytes() for one in files}
