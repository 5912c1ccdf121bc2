"""Every pair of values of the axes meets in a set-up that resumes exactly."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from statemachine_trainer.data import ReplayWarning
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.pairwise import AXES, is_possible, pairs, setup_of, table

ROWS = table()


def check(row: dict[str, Any], examples: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplayWarning)  # streams without a state
        report = assert_resumable(setup_of(row).make_trainer, examples=examples, seed=0)
    assert report.runs >= examples


def test_the_table_holds_every_pair_that_goes_together() -> None:
    for pair in pairs():
        assert any(pair.items() <= row.items() for row in ROWS), pair
    assert all(map(is_possible, ROWS))
    assert all([*row] == [*AXES] for row in ROWS)
    assert len(ROWS) <= 45


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_rows_are_exact(number: int) -> None:
    check({**ROWS[number], "workers": (0, None)}, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_row_is_exact(number: int) -> None:
    check(ROWS[number], 2)
