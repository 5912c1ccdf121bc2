"""The numbers on the page about exactness are those that the tests count."""

from __future__ import annotations

from pathlib import Path

import pytest

from statemachine_trainer.snapshot.sampling import ALIKE, LARGE, TYPED
from statemachine_trainer.snapshot.search import MOST
from statemachine_trainer.testing.pairwise import AXES, TREES, pairs, table
from tests.audit.test_what_a_script_made import DATA, SETTINGS
from tests.data import test_changed_workers, test_loaders_made_anew
from tests.data.own_generators import LOADERS, PLACES
from tests.data.test_search import UNHELD

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "exactness.md").read_text()


def parameters(test: object, names: str) -> int:
    (mark,) = [one for one in test.pytestmark if one.args[0] == names]  # type: ignore[attr-defined]
    return len(mark.args[1])


COUNTS = {
    "places of a generator in a data set": len(PLACES),
    "parts of a loader, and data sets in data sets": len(LOADERS),
    "things that no checkpoint can hold": len(UNHELD),
    "numbers of workers before and after a stop": parameters(
        test_changed_workers.test_the_order_stays_and_only_randomness_in_workers_is_told,
        "before, after",
    ),
    "functions that make other data in other epochs": parameters(
        test_loaders_made_anew.test_a_resumed_run_makes_the_same_loaders, "maker"
    ),
    "attributes of a data set that the next script makes otherwise": len(SETTINGS),
    "data that the next script makes otherwise": len(DATA),
    "pairs of values in k-fold, active learning and phases": len([*pairs(TREES)]),
    "pairs of values of the axes below": len([*pairs()]),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_inputs_are_counted(kind: str) -> None:
    count = COUNTS[kind]
    assert f"| {kind} | {count} | {count} | `pytest " in PAGE


def test_the_bounds_are_those_of_the_search() -> None:
    for bound in (MOST, LARGE, TYPED, ALIKE):
        assert f"{bound:,}" in PAGE


def test_every_axis_is_listed() -> None:
    listed = PAGE.partition("| axis | values |")[2].strip().splitlines()
    assert len([one for one in listed if one.startswith("| ")]) == len(AXES)
    assert f"{len(table())} set-ups" in PAGE
    assert f"{len(table(TREES))} runs" in PAGE
