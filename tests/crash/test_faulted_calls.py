"""Each call to the system fails in turn, and the process ends at each in turn: the run is told, or goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.crash.faulted_calls import ERRORS, Told, count_calls, faulted, in_fork, train

CHECKPOINT = re.compile(r"/(\d{6}-|\.tmp@|\.trash@|latest|pins\.json)|/run$")
"""What belongs to the checkpoints: if that cannot be written or read, the run is told so."""


def undisturbed(folder: Path) -> Told:
    told = in_fork(lambda: train(folder))
    assert told is not None
    return told


def check(told: Told | None, whole: Told, folder: Path) -> None:
    """See what came of a fault, and that the next process ends as an undisturbed run does."""
    if told is not None:
        assert "raw" not in told, told
        if "error" in told:
            assert CHECKPOINT.search(str(told["met"])), told
            assert told["error"] in ("WriteFailed", "Unreadable", "Damaged"), told
        else:
            assert told["weights"] == whole["weights"], told
    again = in_fork(lambda: train(folder))
    assert again is not None
    assert again.get("weights") == whole["weights"], (told, again)
    assert not (folder / "run.lock").exists()


def sweep(root: Path, error: int | None, stride: int) -> int:
    train(root / "here")  # imports what each fork would else import for itself
    whole = undisturbed(root / "whole")
    calls = count_calls(root / "counted" / "run")
    assert calls > 50
    for at in range(0, calls, stride):
        folder = root / f"{at}" / "run"
        check(faulted(folder, at, error), whole, folder)
    return calls


@pytest.mark.parametrize("error", [None, ERRORS[0]])
def test_some_calls_go_wrong(tmp_path: Path, error: int | None) -> None:
    sweep(tmp_path, error, stride=29)


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, *ERRORS])
def test_each_call_goes_wrong_in_turn(tmp_path: Path, error: int | None) -> None:
    print(f"{sweep(tmp_path, error, stride=1)} calls, each with error {error}")
