"""Two ranks that search for a learning rate or a batch size find the same, and leave no trace."""

from __future__ import annotations

import pytest

from tests.ranks.launching import Found, both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by("finding.py", tmp_path_factory.mktemp("finding"), longest=180.0)


@pytest.mark.parametrize("scene", ["a_rate", "a_rate_where_parameters_are_cut_up"])
def test_ranks_find_the_same_rate_and_are_as_before(found: Found, scene: str) -> None:
    assert both(found, scene) == {"kept": [True, True], "same": True, "steps": 12}


def test_the_batch_size_is_what_fits_at_all_ranks(found: Found) -> None:
    assert both(found, "a_batch_size") == {"size": [5, 5], "kept": [True, True]}


def test_it_ends_with_the_samples_of_a_rank(found: Found) -> None:
    assert both(found, "a_batch_size_that_all_have_memory_for") == [16, 16]


def test_a_fit_after_searches_is_the_same_fit(found: Found) -> None:
    assert both(found, "a_fit_after_a_search") is True


def test_a_start_that_is_too_large_at_one_rank_is_refused_at_all(found: Found) -> None:
    first, second = both(found, "too_large_a_start")
    assert first == second
    assert "a batch of 6 does not fit at one of the ranks" in first


def test_an_error_at_one_rank_ends_the_search_at_all(found: Found) -> None:
    assert both(found, "an_error_at_one_rank") == ["AnotherRankFailed", "ValueError"]


def test_where_ranks_exchange_parts_of_parameters_the_search_is_refused(found: Found) -> None:
    first, second = both(found, "a_batch_size_where_parameters_are_cut_up")
    assert first == second
    assert "its parameters are cut up among the ranks" in first
