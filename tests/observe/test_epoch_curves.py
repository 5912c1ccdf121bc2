"""The curves that a notebook shows below the table of a running fit."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.observe.epoch_curves import curves_as_html
from statemachine_trainer.observe.epoch_table import EpochRecord

VALUES = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 1e300, -1e300])


def record(epoch: int, loss: float, val_loss: float | None = None) -> EpochRecord:
    validation = {} if val_loss is None else {"val<loss>": val_loss}
    return EpochRecord(epoch, epoch, 1.0, {"loss": loss}, validation)


def test_validation_comes_first_and_names_are_escaped() -> None:
    shown = curves_as_html([record(1, 3.0, 4.0), record(2, 2.0, 3.0), record(3, 1.0, 2.5)])
    assert re.findall(r">([^<]*) \((\w+)\)<br>", shown) == [
        ("val&lt;loss&gt;", "validation"),
        ("loss", "train"),
    ]
    assert 'aria-label="loss (train) from 1.000 to 3.000"' in shown
    assert 'points="3.0,3.0 75.0,20.0 147.0,37.0"' in shown


def test_there_is_no_curve_of_one_point() -> None:
    assert curves_as_html([]) == ""
    assert curves_as_html([record(1, 1.0)]) == ""
    shown = curves_as_html([record(1, 1.0, 2.0), record(2, 1.0)])
    assert "validation" not in shown


@given(st.lists(VALUES, max_size=5))
def test_any_values_give_points_inside_the_picture(values: list[float]) -> None:
    shown = curves_as_html([record(at, value) for at, value in enumerate(values, 1)])
    finite = [one for one in values if math.isfinite(one)]
    assert bool(shown) == (len(finite) > 1)
    for points in re.findall(r'points="([^"]*)"', shown):
        for x, y in (map(float, point.split(",")) for point in points.split()):
            assert 0 <= x <= 150
            assert 0 <= y <= 40
    if shown:
        ElementTree.fromstring(shown.replace("<br>", ""))
