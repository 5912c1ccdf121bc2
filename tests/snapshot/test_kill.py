"""Real processes, really killed while they write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.crash.processes import run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def kill(root: Path, kills: int, mode: str) -> dict[str, int]:
    root.mkdir()
    done = run(Path(__file__).with_name("kill_loop.py"), root, kills, mode, 0)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    assert counts["kills"] == kills
    assert counts["steps"] > 0
    return counts


@pytest.mark.parametrize("mode", ["foreground", "background"])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path: Path, mode: str) -> None:
    counts = kill(tmp_path / "run", 12, mode)
    assert counts["cut_short"] > 0  # some kills did land in the middle of a save


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["foreground", "background"])
def test_a_hundred_processes_killed_while_saving_leave_a_whole_checkpoint(
    tmp_path: Path, mode: str
) -> None:
    counts = kill(tmp_path / "run", 100, mode)
    assert counts["cut_short"] > 10
