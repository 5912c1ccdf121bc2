"""A run killed with SIGKILL at any moment ends as if nothing had happened."""

from __future__ import annotations

import json
import os

import pytest

from tests.crash.processes import digest, fast_folder, run
from tests.processes import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def kill(kills: int, *options: str, seed: int) -> dict[str, float]:
    with fast_folder() as root:
        done = run(ROOT / "tests/crash/kill_loop.py", root, kills, seed, "--everywhere", *options)
        assert done.returncode == 0, done.stderr
        undisturbed = digest(root / "bare.json")
        assert digest(root / "whole.json") == undisturbed  # writing checkpoints changes nothing
        assert digest(root / "run.json") == undisturbed
    counts: dict[str, float] = json.loads(done.stdout)
    print(f"{' '.join(options)}: {counts}")
    assert counts["kills"] == kills
    assert counts["resumed"] >= kills // 2
    return counts


@pytest.mark.parametrize("mode", [[], ["--background"]], ids=["foreground", "background"])
def test_a_run_killed_a_few_times_ends_with_the_same_bits(mode: list[str]) -> None:
    kill(10, "--epochs", "2", *mode, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--background"]], ids=["foreground", "background"])
def test_a_run_killed_two_hundred_times_ends_with_the_same_bits(mode: list[str]) -> None:
    counts = kill(200, "--epochs", "20", *mode, seed=1)
    assert counts["cut_short"] > 0  # some kills did land in the middle of a save


@pytest.mark.slow
def test_a_run_with_workers_killed_twenty_times_ends_with_the_same_bits() -> None:
    kill(20, "--epochs", "6", "--workers", "2", seed=2)
