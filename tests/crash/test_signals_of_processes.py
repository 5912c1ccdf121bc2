"""Whole processes that are told to stop, and started again: exit codes, and `smt resume`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.processes import ENVIRONMENT, SCRIPT, digest, run
from tests.processes import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of Unix")

OPTIONS = ("--epochs", "1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("bare")
    done = run(SCRIPT, folder / "run", folder / "digest.json", "--bare", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return digest(folder / "digest.json")


@pytest.mark.parametrize(
    "name, code",
    [
        ("SIGTERM", 143),
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
        pytest.param("SIGUSR1", 138, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_process_with_a_checkpoint_and_its_exit_code(
    tmp_path: Path, undisturbed: dict[str, object], name: str, code: int
) -> None:
    command = (SCRIPT, "run", "digest.json", *OPTIONS, "--resume", "", "--signal", f"{name}@4")
    stopped = run(*command, cwd=tmp_path)
    assert stopped.returncode == code
    assert f"Stopped by {name}. The run goes on from run/0" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "digest.json").exists()
    last = json.loads((tmp_path / "run" / "run.json").read_text())["history"][-1]
    assert (last["event"], last["signal"]) == ("stopped", code - 128)

    # From another folder; the script itself says nothing of resuming.
    resumed = run("-m", "statemachine_trainer", "resume", tmp_path / "run")
    assert (resumed.returncode, resumed.stdout) == (0, ""), resumed.stderr
    assert digest(tmp_path / "digest.json") == undisturbed


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGINT", marks=pytest.mark.slow),
        pytest.param("SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_workers_outlive_a_signal_to_the_whole_group_until_the_checkpoint_is_written(
    tmp_path: Path, name: str
) -> None:
    """A terminal tells the whole group, and so do schedulers."""
    options = (*OPTIONS, "--workers", "2")
    whole = run(SCRIPT, "whole", "whole.json", "--bare", *options, cwd=tmp_path)
    assert whole.returncode == 0
    command = (SCRIPT, "run", "digest.json", *options)
    stopped = run(*command, "--signal", f"{name}@4", "--group", cwd=tmp_path)
    assert stopped.returncode == 128 + getattr(signal, name)
    assert stopped.stderr.count(f"Stopped by {name}. The run goes on from run/0") == 1
    assert stopped.stderr.count("Stopping at the next boundary") == (name == "SIGINT")
    assert run(*command, cwd=tmp_path).returncode == 0
    assert digest(tmp_path / "digest.json") == digest(tmp_path / "whole.json")


@pytest.mark.slow
def test_the_process_of_smt_resume_is_the_script_itself(tmp_path: Path) -> None:
    command = (SCRIPT, "run", "digest.json", "--epochs", "1000", "--resume", "", "--slow", "0.01")
    stopped = run(*command, "--signal", "SIGTERM@2", cwd=tmp_path)
    assert stopped.returncode == 143
    process = subprocess.Popen(
        [sys.executable, "-m", "statemachine_trainer", "resume", str(tmp_path / "run")],
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    record = tmp_path / "run" / "run.json"
    while '"resumed"' not in record.read_text():
        assert process.poll() is None
    newest = len([*(tmp_path / "run").glob("0*")])
    while len([*(tmp_path / "run").glob("0*")]) == newest:  # it is training
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert process.stderr is not None
    with process.stderr:
        assert "Stopped by SIGTERM" in process.stderr.read()
