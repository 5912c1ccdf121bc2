"""`smt launch` starts ranks by `torchrun`: they are restarted, stopped by Ctrl-C, and resumed together."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer import Run
from statemachine_trainer.cli import app
from statemachine_trainer.run_record import read_record, resume_command
from tests.processes import ROOT, in_group, wait_until

SCRIPT = """
import os, signal
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from statemachine_trainer import Checkpoints, Trainer, parallel


def make_trainer(epochs: int = 2, kill: bool = False, every: str = "1 step"):
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    model = parallel.ddp(nn.Linear(4, 1))
    checkpoints = Checkpoints("run", every=every)
    trainer = Trainer(max_epochs=epochs, device="cpu", progress=False, checkpoints=checkpoints)

    def happen(trainer):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if trainer.steps == 3 and kill and first and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.steps == 3:
            open(f"reached-{os.environ['RANK']}", "w").close()

    trainer.on("batch_end", happen)
    sampler = DistributedSampler(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer.start(
        model, DataLoader(data, 4, sampler=sampler), loss=nn.MSELoss(), optimizer=optimizer
    )
    return trainer
"""

processes = pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "launched_net.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def command(*arguments: object) -> list[object]:
    return [sys.executable, "-m", "statemachine_trainer", "launch", "--ranks", 2, *arguments]


def environment() -> dict[str, str]:
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    known.pop("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", None)  # the command sets it
    return known


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--ranks", "2", "gone.py:train"), "There is no file gone.py."),
        (("--ranks", "2", "launched_net.py:nothing"), "has no 'nothing'"),
        (("launched_net.py:make_trainer",), "launch needs --ranks"),
        (("--ranks", "0", "launched_net.py:make_trainer"), "Use a number of at least 1."),
        (("--ranks", "2", "--max-restart", "1", "x.py:f"), "launch has no option --max-restart."),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_rank_starts(
    arguments: tuple[str, ...], told: str, here: Path
) -> None:
    done = CliRunner().invoke(app, ["launch", *arguments])
    assert done.exit_code == 2
    assert told in done.output
    assert len(done.output.splitlines()) == 1


def test_misspelt_options_of_the_function_are_refused_before_any_rank_starts(here: Path) -> None:
    pytest.importorskip("jsonargparse")
    options = ["--ranks", "2", "launched_net.py:make_trainer", "--epcohs", "3"]
    done = CliRunner().invoke(app, ["launch", *options])
    assert done.exit_code == 2
    assert "launched_net.py:make_trainer has no parameter" in done.output


@pytest.mark.slow
@pytest.mark.timeout(400)  # for a machine that is busy
@processes
def test_ranks_go_on_by_themselves_after_one_was_lost_and_the_run_knows_how_it_was_launched(
    here: Path,
) -> None:
    pytest.importorskip("jsonargparse")
    options = ("--max-restarts", 1, "launched_net.py:make_trainer", "--kill", "true")
    with in_group(command(*options), here / "output.txt", env=environment()) as process:
        assert process.wait(180) == 0, (here / "output.txt").read_text()
    run = Run(here / "run")
    (restart,) = run.restarts()
    assert (restart.facts["attempt"], restart.facts["rank"]) == (1, 1)
    assert run.status == "ended"
    again, folder = resume_command(here / "run")
    assert folder == here
    assert again[1:7] == ["-m", "statemachine_trainer", "launch", "--ranks", "2", "--max-restarts"]
    assert "--config" in again


@pytest.mark.slow
@pytest.mark.timeout(400)
@processes
def test_control_c_stops_all_ranks_with_one_checkpoint(here: Path) -> None:
    pytest.importorskip("jsonargparse")
    options = ("launched_net.py:make_trainer", "--epochs", 100_000, "--every", "1000 epochs")
    with in_group(command(*options), here / "output.txt", env=environment()) as process:
        wait_until(lambda: all((here / f"reached-{rank}").exists() for rank in (0, 1)), 180)
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 128 + signal.SIGINT, (here / "output.txt").read_text()
    assert "smt: The ranks were stopped by SIGINT." in (here / "output.txt").read_text()
    record = read_record(here / "run")
    assert record is not None
    assert record.history[-1]["event"] == "stopped"
    assert len([*(here / "run").glob("0*-step-*")]) == 1
    assert {ring.status for ring in Run(here / "run").rings()} == {"stopped"}
