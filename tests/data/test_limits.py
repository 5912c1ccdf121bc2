"""Limits on the batches of a pass: 1 is one batch, 1.0 is all of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.data import BadLimit, describe_limit, limit_batches


@pytest.mark.parametrize(
    "limit,length,expected",
    [
        (None, 10, 10),
        (None, None, None),
        (3, 10, 3),
        (30, 10, 10),
        (30, None, 30),
        (0, 10, 0),
        (0.0, None, 0),
        (1.0, 10, 10),
        (1.0, None, None),
        (0.25, 10, 2),
        (0.5, 0, 0),
    ],
)
def test_a_limit_is_a_count_or_a_fraction(
    limit: float | None, length: int | None, expected: int | None
) -> None:
    assert limit_batches(limit, length) == expected


def test_trap_38_one_is_one_batch_and_one_point_zero_is_all() -> None:
    assert (limit_batches(1, 10), limit_batches(1.0, 10)) == (1, 10)
    assert describe_limit(1) == "1 batch (int: a count)"
    assert describe_limit(1.0) == "all batches (float: 100% of them)"
    assert describe_limit(2) == "2 batches (int: a count)"
    assert describe_limit(0.5) == "50% of the batches (float: a fraction)"
    assert describe_limit(None) == "all batches"


@pytest.mark.parametrize(
    "limit,length,message",
    [
        (-1, 10, r"is -1, taken as a count \(an int\), which can not be negative"),
        (-0.5, 10, r"is -0.5, taken as a fraction \(a float\), which must lie between"),
        (2.0, 10, r"taken as a fraction .* For a count of batches give an int, 2\."),
        (float("nan"), 10, r"which must lie between 0.0 and 1.0"),
        (0.5, None, r"taken as a fraction .* the loader has no length"),
        (0.05, 10, r"0.05 of 10 batches leaves none"),
        (0.9, 1, r"0.9 of 1 batch leaves none"),
        (True, 10, r"'valid' is True. Give an int"),
        ("3", 10, r"is '3'. Give an int"),
    ],
)
def test_a_limit_that_makes_no_sense_says_what_it_was_taken_for(
    limit: Any, length: int | None, message: str
) -> None:
    with pytest.raises(BadLimit, match=message):
        limit_batches(limit, length, "valid")


@given(st.floats(0, 1), st.integers(0, 1000))
def test_a_fraction_is_rounded_down_and_never_to_nothing(limit: float, length: int) -> None:
    try:
        count = limit_batches(limit, length)
    except BadLimit:
        assert 0 < limit < 1
        assert int(limit * length) == 0
    else:
        assert count == int(limit * length)
