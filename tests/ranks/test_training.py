"""Real ranks, often under `torchrun`: the same training as in one process, stopped, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer.observe.blackbox import find_parting, read_blackbox
from statemachine_trainer.run_record import read_record
from statemachine_trainer.snapshot.loading import load_checkpoint, load_weights
from tests.processes import ROOT
from tests.ranks.launching import (
    alone,
    launch,
    launched,
    output_of,
    ranks,
    wait_until,
)
from tests.ranks.training import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix"),
]

PROGRAM = "training.py"
HARD = ("--task", "--random", "--accumulate", 2, "--every", 1)
"""Dropout, batch norm and data that draw; a checkpoint after each batch, in open windows too."""

TOLERANCE = 1e-6
"""Gradients of two halves, averaged, are those of the whole up to the order of additions."""


def results(folder: Path) -> list[dict[str, Any]]:
    """What the training came to, by rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("digest-*.json"))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(PROGRAM, folder, *HARD, torchrun=True) == 0
    return folder


def assert_one_process_reads_it(undisturbed: Path, tmp_path: Path) -> None:
    """One process checks the checkpoint of several ranks, and loads the weights that they have."""
    run = undisturbed / "run"
    command = [sys.executable, "-m", "statemachine_trainer", "inspect", str(run), "--check"]
    with (tmp_path / "inspected").open("wb") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, timeout=60, check=False)
    assert done.returncode == 0, (tmp_path / "inspected").read_text()
    model = Task(random_parts=True)
    load_weights(model, run)
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    assert weights == results(undisturbed)[0]["weights"]


def assert_went_on(folder: Path, undisturbed: Path) -> None:
    """Each rank ended with the bits of a run that nothing happened to, and read nothing twice."""
    assert len(results(folder)) > 1
    for whole, resumed in zip(results(undisturbed), results(folder), strict=True):
        read, rest = whole.pop("read"), resumed.pop("read")
        assert resumed == whole
        assert len(rest) < len(read)
        assert read[-len(rest) :] == rest


def test_two_ranks_train_as_one_process_on_the_joined_batches(tmp_path: Path) -> None:
    """Three batches an epoch and two a window: the last window of each epoch is left open."""
    options = ("--accumulate", 2)
    assert launch(PROGRAM, tmp_path / "two", *options) == 0
    assert alone(PROGRAM, tmp_path / "one", *options) == 0
    first, second = results(tmp_path / "two")
    one = json.loads((tmp_path / "one" / "digest-0.json").read_text())
    assert first["weights"] == second["weights"]
    assert first["metrics"] == second["metrics"]
    for name, value in one["weights"].items():
        ours = torch.tensor(first["weights"][name])
        assert torch.allclose(ours, torch.tensor(value), rtol=0, atol=TOLERANCE), name
    assert first["metrics"] == pytest.approx(one["metrics"], abs=TOLERANCE)
    assert (first["steps"], first["epoch"]) == (one["steps"], one["epoch"])


def test_ranks_share_weights_learning_rate_and_metrics_but_no_random_numbers(
    undisturbed: Path,
) -> None:
    first, second = results(undisturbed)
    trained = [name for name in first["weights"] if "running" not in name]
    for name in trained:
        assert first["weights"][name] == second["weights"][name]
    assert first["lr"] == second["lr"]
    assert first["metrics"] == second["metrics"]
    assert first["random"] != second["random"]


def test_a_run_of_which_one_rank_was_killed_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Path
) -> None:
    assert launch(PROGRAM, tmp_path, *HARD, "--what", "kill@5/0", torchrun=True) != 0
    assert not (tmp_path / "digest-1.json").exists()
    assert launch(PROGRAM, tmp_path, *HARD, torchrun=True) == 0
    assert_went_on(tmp_path, undisturbed)


def test_sums_of_three_ranks_are_the_same_bits_where_the_wrapper_keeps_its_buckets(
    tmp_path: Path,
) -> None:
    """After its first step it lays them out anew, and more than two are then added in another order."""
    options = ("--task", "--every", 1, "--epochs", 2, "--keep-buckets")
    assert launch(PROGRAM, tmp_path / "whole", *options, size=3) == 0
    assert launch(PROGRAM, tmp_path / "stopped", *options, "--what", "SIGTERM@2/2", size=3) != 0
    assert launch(PROGRAM, tmp_path / "stopped", *options, size=3) == 0
    assert_went_on(tmp_path / "stopped", tmp_path / "whole")


def test_three_ranks_end_with_the_same_bits_by_default(tmp_path: Path) -> None:
    """Their wrapper lays its buckets out anew after its first pass, which is none that counts."""
    options = ("--task", "--every", 1, "--epochs", 2)
    assert launch(PROGRAM, tmp_path / "whole", *options, size=3) == 0
    assert launch(PROGRAM, tmp_path / "stopped", *options, "--what", "SIGTERM@2/2", size=3) != 0
    assert launch(PROGRAM, tmp_path / "stopped", *options, size=3) == 0
    assert_went_on(tmp_path / "stopped", tmp_path / "whole")


def test_a_signal_to_one_rank_stops_all_at_one_boundary_with_a_checkpoint(
    tmp_path: Path, undisturbed: Path
) -> None:
    assert launch(PROGRAM, tmp_path, *HARD, "--what", "SIGTERM@4/1", torchrun=True) != 0
    run = tmp_path / "run"
    rings = read_blackbox(run)
    assert rings[0].state == rings[1].state == "fit.epoch.batch.batch_end"
    assert find_parting(rings) is None
    state = load_checkpoint(run).metadata
    assert (state["state"], state["batch"]) == ("fit.epoch.fetch", 5)  # asked after the fourth
    record = read_record(run)
    assert record is not None
    last = record.history[-1]
    assert (last["event"], last["signal"]) == ("stopped", signal.SIGTERM)
    assert launch(PROGRAM, tmp_path, *HARD) == 0
    assert_went_on(tmp_path, undisturbed)


def test_an_event_posted_at_one_rank_is_taken_by_all_at_one_boundary(tmp_path: Path) -> None:
    assert launch(PROGRAM, tmp_path, "--task", "--what", "stop@4/1") == 0
    first, second = results(tmp_path)
    assert first["batches"] == second["batches"] == 5  # asked after the fourth, taken after this
    assert first["metrics"] == second["metrics"]
    assert find_parting(read_blackbox(tmp_path / "run")) is None


def test_limits_and_intervals_in_seconds_are_due_at_the_same_batch(tmp_path: Path) -> None:
    settings = json.dumps({"max_time": 1.0})
    options = ("--task", "--epochs", 10_000, "--every", "0.3 s", "--settings", settings)
    assert launch(PROGRAM, tmp_path, *options) == 0
    first, second = results(tmp_path)
    assert first["batches"] == second["batches"]
    assert find_parting(read_blackbox(tmp_path / "run")) is None


def test_an_error_at_one_rank_ends_all(tmp_path: Path) -> None:
    assert launch(PROGRAM, tmp_path, "--what", "nonsense@2/1", torchrun=True) != 0
    assert "No loop of 'fit' takes a posted event 'nonsense'" in output_of(tmp_path)


def test_a_checkpoint_of_ranks_is_one_whole_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    assert_one_process_reads_it(undisturbed, tmp_path)


def test_the_black_box_tells_where_each_rank_hangs_while_it_does_and_after_it_was_killed(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    waiting = "fit.epoch.batch.optimizer.backward"

    def hang() -> bool:
        states = [ring.state for ring in read_blackbox(run)] if run.is_dir() else []
        return states == [waiting, "fit.epoch.fetch"]

    options = ("--task", "--what", "hang@4/1", "--epochs", 20)
    with launched(PROGRAM, tmp_path, *options, torchrun=True):
        wait_until(hang)
        told = blackbox(run)
        assert "Rank 0, process" in told
        assert f"running, in {waiting} for" in told
        assert "running, in fit.epoch.fetch for" in told
        assert f"forward_done > {waiting}" in told
        for number in ranks(tmp_path):
            os.kill(number, signal.SIGKILL)
    assert f"killed in {waiting}" in blackbox(run)
    assert "killed in fit.epoch.fetch" in blackbox(run)


def blackbox(run: Path) -> str:
    """What `smt blackbox` prints."""
    command = [sys.executable, "-m", "statemachine_trainer", "blackbox", str(run), "-n", "12"]
    output = run / "told.txt"
    with output.open("wb") as file:
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            stdout=file,
            stderr=file,
            timeout=60,
            check=True,
        )
    return output.read_text()
