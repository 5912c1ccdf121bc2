"""A rank that the others have lost is named: which one, in which state, since when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from statemachine_trainer.running.lost_ranks import naming_lost_ranks, sort_of_loss
from tests.ranks.launching import launch, launched, output_of, ranks, wait_until

PROGRAM = "training.py"

processes = pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix")


@pytest.mark.slow
@processes
def test_a_rank_that_was_killed_is_named_with_its_state(tmp_path: Path) -> None:
    assert launch(PROGRAM, tmp_path, "--task", "--what", "kill@4/0", torchrun=True) != 0
    number = ranks(tmp_path)[0]
    told = output_of(tmp_path)
    assert f"Rank 0 (process {number} on " in told
    assert "is gone. It was last seen in 'fit.epoch.batch." in told
    assert "Rank 1 waited for it in 'fit.epoch." in told


@pytest.mark.slow
@processes
def test_a_rank_that_hangs_is_named_when_the_time_of_the_user_is_over(tmp_path: Path) -> None:
    options = ("--task", "--what", "hang@4/1", "--epochs", 20, "--timeout", 30)
    with launched(PROGRAM, tmp_path, *options, torchrun=True):
        wait_until(lambda: "did not answer in time" in output_of(tmp_path))
        number = ranks(tmp_path)[1]
    told = output_of(tmp_path)
    assert f"Rank 1 (process {number} on " in told
    assert "did not answer in time. It was last seen in 'fit.epoch.fetch'" in told


@pytest.mark.parametrize(
    "text, sort",
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:46004", "closed"),
        ("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer", "closed"),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms", "late"),
        ("Application timeout caused pair closure", "late"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
        ("the request timed out", None),
    ],
)
def test_errors_of_the_process_group_are_told_from_others(text: str, sort: str | None) -> None:
    assert sort_of_loss(RuntimeError(text)) == sort


def test_errors_of_torch_for_broken_connections_count_too() -> None:
    assert sort_of_loss(dist.DistNetworkError("The client socket has timed out")) == "late"


def test_other_errors_and_runs_of_one_process_stay_as_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match=r"^gloo: connection closed by peer$"),
        naming_lost_ranks(None),
    ):
        raise RuntimeError("gloo: connection closed by peer")
