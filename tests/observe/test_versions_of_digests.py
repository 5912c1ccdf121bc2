"""Digests that were computed in another way tell nothing about a run, and a comparison says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import compare_runs
from statemachine_trainer.observe.difference import OtherDigests, compare_looks
from statemachine_trainer.observe.fingerprint_file import (
    MAGIC,
    Look,
    block,
    blocks_of,
    name_of_rank,
    read_fingerprints,
)
from statemachine_trainer.observe.replicas import compare_ranks
from statemachine_trainer.snapshot.digests import VERSION
from tests.observe.printed import read, train
from tests.observe.test_replicas import between_batches, run_of


def as_of_version(folder: Path, version: int, first: int = 10**6, rank: int = 0) -> None:
    """Write the fingerprints of a run anew; the first looks say that they are of another version."""
    found, known = read_fingerprints(folder, rank), dict[Any, int]()
    assert found is not None
    data = MAGIC + block(b"M", json.dumps(found.facts).encode())
    for number, one in enumerate(found.looks):
        taken = found.taken(one)
        if number < first:
            taken = replace(taken, look=replace(one, digests=version))
        data += blocks_of(taken, known)
    (folder / name_of_rank(rank)).write_bytes(data)


def test_a_look_that_does_not_say_how_is_of_the_first_version(tmp_path: Path) -> None:
    assert Look("batch_start", "fit", 0, 0, 0, {}).digests == 1
    train(tmp_path, max_epochs=1)
    assert {one.digests for one in read(tmp_path).looks} == {VERSION}


@pytest.mark.parametrize("version", [1, VERSION + 1])
def test_runs_with_digests_of_two_versions_do_not_differ_but_cannot_be_compared(
    tmp_path: Path, version: int
) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, max_epochs=1)
    as_of_version(tmp_path / "b", version)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.compared is None
    assert f"versions {VERSION} and {version} of the fingerprints" in found.why
    as_of_version(tmp_path / "a", version)  # two of the same version can be
    assert "equal at" in compare_runs(tmp_path / "a", tmp_path / "b").verdict


def test_a_run_that_goes_on_with_another_version_is_compared_where_it_can_be(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, max_epochs=1)
    as_of_version(tmp_path / "b", 1, first=4)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.compared is not None
    assert found.compared.left_out == 4
    assert "equal at" in found.verdict
    assert "4 more places could not be compared" in found.verdict


def test_such_a_difference_is_an_error_of_its_own(tmp_path: Path) -> None:
    train(tmp_path / "a", max_epochs=1)
    first = read(tmp_path / "a")
    train(tmp_path / "b", max_epochs=1)
    as_of_version(tmp_path / "b", 1)
    with pytest.raises(OtherDigests, match="do not tell whether the two differ"):
        compare_looks(first, read(tmp_path / "b"))


def test_ranks_with_other_digests_in_some_places_say_how_many_and_what_to_do(
    tmp_path: Path,
) -> None:
    run_of(tmp_path, None, None)
    whole = compare_ranks(tmp_path)
    assert whole.other_digests == 0
    assert "could not be compared" not in str(whole)
    as_of_version(tmp_path, 1, first=3, rank=1)
    found = compare_ranks(tmp_path)
    assert (found.parting, found.other_digests, found.places) == (None, 3, whole.places - 3)
    assert "3 more places could not be compared" in str(found)
    assert "Install one version for all ranks" in str(found)
    assert found.to_dict()["other_digests"] == 3


def test_ranks_that_part_say_which_places_were_left_out_too(tmp_path: Path) -> None:
    run_of(tmp_path, None, between_batches)
    as_of_version(tmp_path, 1, first=1, rank=1)
    found = compare_ranks(tmp_path)
    assert found.parting is not None
    assert "1 more place could not be compared" in str(found)


def test_ranks_with_other_digests_everywhere_are_told(tmp_path: Path) -> None:
    run_of(tmp_path, None, None)
    as_of_version(tmp_path, 1, rank=1)
    with pytest.raises(OtherDigests):
        compare_ranks(tmp_path)
