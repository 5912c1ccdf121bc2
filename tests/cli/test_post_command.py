"""`smt post`: asking a run of another process at a prompt."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from statemachine_trainer.cli import app
from tests.cli.sandbox import smt_that_tells_imports
from tests.page.processes import training
from tests.page.runs import Run
from tests.processes import ROOT

LONGEST = 100
"""Seconds within which a request has been heeded; longer is a hang."""

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


def smt(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A fit in a thread of this process: it listens as any other does."""
    one = Run(tmp_path / "run")
    one.begin()
    yield one
    one.end()


@pytest.fixture
def folder(run: Run) -> Path:
    assert run.trainer.run_folder is not None
    return run.trainer.run_folder


def answer(*arguments: object) -> str:
    """What became of a request; on a busy machine that may take its time."""
    patience = () if "--wait" in arguments else ("--wait", LONGEST)
    done = smt("post", *arguments, *patience)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def refusal(*arguments: object) -> str:
    done = smt("post", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr.strip()


def test_it_tells_what_became_of_each_request(run: Run, folder: Path) -> None:
    assert answer(folder, "pause").startswith("The run is held before fit.")
    before = run.batch
    for _ in range(3):
        assert answer(folder, "step").startswith("The run is held before fit.")
    assert answer(folder, "validate", "--wait", 0).endswith(
        "The run is held: it goes on with 'continue'. It has not happened yet."
    )
    assert answer(folder, "continue") == "The run goes on."
    assert answer(folder, "checkpoint").startswith("The checkpoint 0")
    assert answer(folder, "end_epoch").startswith("'end_epoch' was taken")
    assert run.batch > before
    assert answer(folder, "stop").startswith(("'stop' was taken", "The run has ended"))


def test_it_tells_which_state_a_posted_event_led_to(folder: Path) -> None:
    assert answer(folder, "validate") == (
        "'validate' was taken: it led to fit.epoch.validation.validation_start."
    )


def test_without_an_event_it_tells_what_can_be_asked_for(folder: Path) -> None:
    answer(folder, "pause")
    lines = [line.split(maxsplit=1) for line in answer(folder).splitlines()]
    assert lines[0][0] == "Held"
    told = {words[0]: " ".join(words[1:]).strip() for words in lines[1:]}
    assert [*told] == [
        *("pause", "step", "continue", "validate", "checkpoint", "stop"),
        *("end_epoch", "set"),
    ]
    assert told["pause"] == "The run is held already."
    assert told["step"] == "do the work of one state, in a run that is held"
    assert told["end_epoch"] == "leave out the rest of the batches of this epoch"
    assert told["set"].startswith("change settings, such as lr=1e-4")
    assert all(told.values())
    answer(folder, "continue")


def test_settings_are_changed_and_listed(run: Run, folder: Path) -> None:
    assert answer(folder, "set", "lr=0.001", "max_epochs=2000000") == (
        "lr=0.001, max_epochs=2000000 is set."
    )
    assert run.trainer.context.limits.max_epochs == 2000000
    told = {
        line.split()[0]: " ".join(line.split()[1:]) for line in answer(folder, "set").splitlines()
    }
    assert told["lr"] == "a number from 0 (times the update); 0.001 now"
    assert told["clip_norm"] == "a number above 0, or None (norm of all gradients); None now"


def test_a_setting_that_cannot_be_changed_so_is_refused(folder: Path) -> None:
    assert refusal(folder, "set", "lr=-1") == "smt: set lr=-1: it is a number from 0."
    assert "Did you mean 'lr'" in refusal(folder, "set", "lrr=0.1")
    assert "write NAME=VALUE" in refusal(folder, "set", "lr", "0.1")
    assert "write NAME=VALUE" in refusal(folder, "set", "lr=fast")
    assert "'stop' carries nothing" in refusal(folder, "stop", "lr=0.1")


def test_what_cannot_be_done_is_an_error_that_says_why(folder: Path, tmp_path: Path) -> None:
    assert refusal(folder, "step") == "smt: Only a run that is held can be stepped."
    assert "no button or event 'stpo'. Did you mean 'stop'" in refusal(folder, "stpo")
    assert "There is no folder" in refusal(tmp_path / "none", "stop")
    assert "There is no rank 7 that listens; rank 0 may." in refusal(folder, "stop", "--rank", 7)


def test_nobody_listens_where_the_run_was_killed(tmp_path: Path) -> None:
    with training(tmp_path / "run") as one:
        one.kill()
        one.wait()
    assert refusal(tmp_path / "run", "stop").startswith("smt: The run was killed in fit.")


def test_nobody_listens_where_the_run_is_paused_and_its_process_gone(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.observe.recorded import *\n"
        "trainer(run=sys.argv[1]).fit(Net(), batches(), until='epoch_end')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=110,
    )
    assert not list(tmp_path.glob("requests*"))
    assert "The run was paused" in refusal(tmp_path, "stop")
    assert "and its process is gone. Nobody listens." in refusal(tmp_path, "stop")


@pytest.mark.slow
def test_each_rank_is_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, rank=0, ranks=2), training(folder, rank=1, ranks=2):
        told = answer(folder, "pause").splitlines()
        assert [line.split(":")[0] for line in told] == ["Rank 0", "Rank 1"]
        assert answer(folder, "continue", "--rank", 1) == "The run goes on."
        assert refusal(folder, "step") == "smt: Rank 1: Only a run that is held can be stepped."
        assert "Rank 0, held before fit." in answer(folder)


def test_a_guess_is_told_the_right_command() -> None:
    done = smt("stop", "runs/mine")
    assert done.exit_code == 2
    assert "A run is asked so: smt post runs/mine stop" in done.stderr


def test_asking_does_not_wait_for_torch(tmp_path: Path) -> None:
    with training(tmp_path / "run"):
        done = smt_that_tells_imports("post", tmp_path / "run", "pause")
    assert done.returncode == 0
    assert done.stdout.startswith("The run is held before fit.")
    assert done.stderr.splitlines()[-1] == "False False"
