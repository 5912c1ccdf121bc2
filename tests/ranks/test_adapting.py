"""Ranks that a model is cut up among write what is trained alone, and go on with the frozen rest of the script."""

from __future__ import annotations

import pytest

from tests.ranks.launching import Found, both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by("adapting.py", tmp_path_factory.mktemp("adapting"), longest=180.0)


def test_a_run_goes_on_with_the_frozen_weights_of_the_script(found: Found) -> None:
    assert both(found, "it_goes_on")["same"] == [True, True]
    assert both(found, "in_the_background")["same"] == [True, True]


def test_frozen_weights_are_not_in_the_checkpoint(found: Found) -> None:
    whole = both(found, "of_all")
    for scene in ("it_goes_on", "in_the_background"):
        assert both(found, scene)["size"] < whole - 80_000


def test_another_base_is_refused_at_all_ranks(found: Found) -> None:
    first, second = both(found, "it_goes_on")["others"]
    assert first == second
    assert first.startswith(
        "SnapshotMismatch: The checkpoint holds what was trained alone, and 3 of"
    )


def test_one_process_takes_the_rest_from_its_own_model(found: Found) -> None:
    said = "SnapshotMismatch: The checkpoint holds what was trained alone, and 3"
    assert both(found, "it_goes_on")["alone"] == [[True, True, said]] * 2


def test_what_one_rank_has_changed_by_hand_is_written(found: Found) -> None:
    assert both(found, "changed_by_hand_at_one_rank")["same"] == [True, True]
