"""Every pair of values of the axes meets in k-fold, active learning or phases that resume exactly."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.pairwise import TREES, pairs, setup_of, table

ROWS = table(TREES)


def check(row: dict[str, Any], examples: int) -> None:
    report = assert_resumable(setup_of(row).make_trainer, examples=examples, seed=0)
    assert report.runs >= examples


def test_the_table_holds_every_pair_that_goes_together() -> None:
    for pair in pairs(TREES):
        assert any(pair.items() <= row.items() for row in ROWS), pair
    assert len(ROWS) <= 40


@pytest.mark.parametrize("tree", TREES["tree"])
def test_a_row_of_each_recipe_is_exact(tree: str) -> None:
    row = next(one for one in ROWS if one["tree"] == tree and one["own_generators"])
    check({**row, "workers": (0, None)}, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_row_is_exact(number: int) -> None:
    check(ROWS[number], 2)
