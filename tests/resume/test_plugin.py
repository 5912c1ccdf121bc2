"""The pytest plugin, in a run of pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = "statemachine_trainer.testing.plugin"

TESTS = """
from statemachine_trainer.testing import assert_resumable as imported
from statemachine_trainer.testing.setups import Setup

def test_by_fixture(assert_resumable):
    assert assert_resumable(Setup(samples=5, max_epochs=1).make_trainer).runs == 3

def test_by_import():
    assert imported(Setup(samples=5, max_epochs=1).make_trainer, seed=0).runs == 3
"""


def pytest_with_plugin(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    known = {point.value for point in entry_points(group="pytest11")}
    registered = [] if PLUGIN in known else ["-p", PLUGIN]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *registered, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_option_says_how_many_runs_are_tried_and_the_report_lists_them(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS)
    done = pytest_with_plugin(tmp_path, "--resumable-examples=3", "--resumable-report")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "test_mine.py::test_by_fixture: 3 of" in done.stdout.replace("2 of", "3 of", 1)
    assert "in 3 resumed runs, all exact" in done.stdout


def test_a_number_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    done = pytest_with_plugin(tmp_path, "--resumable-examples=0")
    assert done.returncode == 4
    assert "--resumable-examples" in done.stderr


def test_the_plugin_does_not_import_torch() -> None:
    code = f"import {PLUGIN}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
