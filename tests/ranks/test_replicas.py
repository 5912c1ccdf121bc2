"""The ranks of one run are compared: whose replica is another one, from which step on, and which weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.observe.replicas import compare_ranks
from tests.ranks.launching import launch

pytestmark = pytest.mark.slow

EACH_STEP = json.dumps({"fingerprints": "1 step"})


def test_a_rank_with_a_corrupted_weight_is_named_and_so_are_step_and_tensor(tmp_path: Path) -> None:
    settings = ["--settings", EACH_STEP, "--epochs", 2, "--random"]
    assert launch("training.py", tmp_path, *settings, "--what", "corrupt@4/1") == 0
    found = compare_ranks(tmp_path / "run")
    assert found.ranks == 2
    assert found.parting is not None
    assert found.parting.ranks == [1]
    assert found.parting.names == ["one.weight"]
    said = CliRunner().invoke(app, ["diff", str(tmp_path / "run")])
    assert said.exit_code == 1
    assert "Their replicas part at the start of step 5 (batch 5, epoch 2): weight one.weight." in (
        said.output
    )
    assert "It is another one at rank 1: it changed between two batches" in said.output
    assert "All were equal at the end of step 4 (batch 4, epoch 2)." in said.output


def test_replicas_are_equal_also_after_a_stop(tmp_path: Path) -> None:
    settings = ["--settings", EACH_STEP, "--epochs", 2, "--random", "--every", 2]
    launch("training.py", tmp_path, *settings, "--what", "stop@4/0")
    assert launch("training.py", tmp_path, *settings) == 0
    found = compare_ranks(tmp_path / "run")
    assert found.parting is None
    assert found.left_out == []
    assert found.places >= 12  # before and after each of 6 batches
