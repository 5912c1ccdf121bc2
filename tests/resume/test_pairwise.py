"""Every pair of values of the axes meets in a set-up that resumes exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import Trainer
from statemachine_trainer.data import ReplayWarning
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.pairwise import AXES, CHANGES, is_possible, pairs, setup_of, table
from tests.resume.changed import check_changed, goes_on_elsewhere

ROWS = table()
PLAIN = {**{axis: values[0] for axis, values in AXES.items()}, "elsewhere": True}


@pytest.fixture(autouse=True)
def two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplayWarning)  # streams without a state
        yield


def maker(row: dict[str, Any]) -> Callable[[], Trainer]:
    """Return what makes the trainer of a row, at its second start in another folder if the row says so."""
    make = setup_of(row).make_trainer
    return goes_on_elsewhere(make, Path.cwd().parent) if row["elsewhere"] else make


def check(row: dict[str, Any], examples: int) -> None:
    """Stop a row at some boundaries; go on with other settings where the row says so."""
    if row["changed"] is None:
        report = assert_resumable(maker(row), examples=examples, seed=0)
        assert report.runs >= examples
        return
    check_changed(maker(row), setup_of(row), examples, seed=0)


def test_the_table_holds_every_pair_that_goes_together() -> None:
    for pair in pairs():
        assert any(pair.items() <= row.items() for row in ROWS), pair
    assert all(map(is_possible, ROWS))
    assert all([*row] == [*AXES] for row in ROWS)
    assert len(ROWS) <= 90


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_rows_are_exact(number: int) -> None:
    check({**ROWS[number], "workers": (0, None)}, 1)


@pytest.mark.parametrize("changed", CHANGES)
def test_with_another_setting_a_run_goes_on_as_if_it_were_set_there(changed: str) -> None:
    check({**PLAIN, "changed": changed}, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_row_is_exact(number: int) -> None:
    check(ROWS[number], 2)
