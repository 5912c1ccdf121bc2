"""LightningModules that two ranks train come to what Lightning's own DDP comes to, and go on after a resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

from tests.ranks.launching import launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix"),
]

COMPARED = ("given", "late", "by hand", "gathers", "accumulates", "stops early", "data module")
RESUMED = ("accumulates", "by hand")

Found = list[dict[str, Any]]
"""What each rank found, by fit."""


def found_by_ranks(folder: Path, *arguments: str) -> Found:
    assert launch("lightning_fits.py", folder, *arguments) == 0
    return [json.loads((folder / f"fits-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by_ranks(tmp_path_factory.mktemp("compared"), *COMPARED)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by_ranks(tmp_path_factory.mktemp("more"), "--others", "--resume", *RESUMED)


@pytest.mark.parametrize("fit", COMPARED)
def test_weights_metrics_and_what_callbacks_see_are_those_of_lightning(
    compared: Found, fit: str
) -> None:
    for rank in compared:
        theirs, ours = rank[fit]["theirs"], rank[fit]["ours"]
        known = {name: ours["metrics"].get(name) for name in theirs["metrics"]}
        assert known == pytest.approx(theirs["metrics"], abs=2e-5)
        same = ("weights", "seen", "steps", "epochs")
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.parametrize("fit", RESUMED)
def test_a_resumed_fit_ends_with_the_same_bits_at_each_rank(more: Found, fit: str) -> None:
    for rank in more:
        whole, *resumed = rank[f"{fit} resumed"].values()
        assert len(resumed) == 2
        assert all(one == whole for one in resumed)


def test_one_rank_writes_the_files_of_callbacks_and_loggers(more: Found) -> None:
    for rank in more:
        assert rank["others"]["files"] == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]
        assert rank["others"]["logs"] == ["version_0"]


def test_a_test_is_reduced_where_its_samples_are_dealt_out_and_else_that_of_one_rank(
    more: Found,
) -> None:
    assert [rank["others"]["tested"] for rank in more] == [True, True]
    assert more[0]["others"]["tested alone"] is None
    assert isinstance(more[1]["others"]["tested alone"], float)


def test_a_second_fit_goes_on(more: Found) -> None:
    assert [rank["others"]["steps"] for rank in more] == [[4, 8], [4, 8]]
