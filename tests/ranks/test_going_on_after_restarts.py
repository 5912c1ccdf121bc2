"""`torchrun --max-restarts`: ranks are killed in many states, and the run goes on by itself to the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer.observe.run import Run
from tests.ranks.launching import launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),  # five starts of two ranks, on a machine that may be busy
    pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix"),
]

PROGRAM = "restarting.py"
KILLS = {
    "wrapped": (
        "fit.epoch.batch.optimizer.forward@1/1",  # there is no checkpoint yet
        "fit.epoch.batch.optimizer.optimizer_step@1/0",
        "fit.epoch.validation.validation_step@2/1",
    ),
    "cut up": (
        "fit.epoch.batch.optimizer.backward@2/0",
        "writing@3/1",
        "fit.epoch.epoch_end@1/0",
    ),
}
"""What happens in each attempt, as `restarting.py` reads it."""


def results(folder: Path) -> list[dict[str, Any]]:
    """What the training came to, by rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("digest-*.json"))]


@pytest.mark.parametrize("kind", KILLS)
def test_a_run_whose_ranks_are_killed_goes_on_by_itself_to_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    options = ["--shard"] if kind == "cut up" else []
    assert launch(PROGRAM, tmp_path / "whole", *options) == 0
    kills = ("--kill", *KILLS[kind])
    assert launch(PROGRAM, tmp_path / "killed", *options, *kills, torchrun=True, restarts=3) == 0
    for whole, resumed in zip(
        *map(results, (tmp_path / "whole", tmp_path / "killed")), strict=True
    ):
        assert (whole.pop("attempt"), resumed.pop("attempt")) == (0, 3)
        read, rest = whole.pop("read"), resumed.pop("read")
        assert resumed == whole
        assert read[-len(rest) :] == rest
    restarts = [one.facts for one in Run(tmp_path / "killed" / "run").restarts()]
    assert [one["attempt"] for one in restarts] == [1, 2, 3]
    lost = [int(kill.rpartition("/")[2]) for kill in KILLS[kind]]
    assert [one["rank"] for one in restarts] == lost
    assert {one["how"] for one in restarts} == {"killed"}
    began = None if kind == "wrapped" else "000001-step-00000000-batch-00000001"
    assert restarts[0]["checkpoint"] == began


def test_a_rank_that_is_killed_between_two_backward_passes_by_hand_goes_on_to_the_same_bits(
    tmp_path: Path,
) -> None:
    assert launch(PROGRAM, tmp_path / "whole", "--by-hand") == 0
    killed = ("--by-hand", "--kill", "between@5/1")
    assert launch(PROGRAM, tmp_path / "killed", *killed, torchrun=True, restarts=1) == 0
    for whole, resumed in zip(
        *map(results, (tmp_path / "whole", tmp_path / "killed")), strict=True
    ):
        assert (whole.pop("attempt"), resumed.pop("attempt")) == (0, 1)
        read, rest = whole.pop("read"), resumed.pop("read")
        assert resumed == whole
        assert read[-len(rest) :] == rest
