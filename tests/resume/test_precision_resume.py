"""Runs with mixed precision go on at every boundary, behind a backward pass too."""

from __future__ import annotations

from functools import partial

import pytest

from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.setups import Setup, build


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_boundary_is_exact(precision: str, accumulate: int) -> None:
    make = partial(
        build, precision=precision, accumulate=[(0, accumulate)], samples=10, max_epochs=1
    )
    report = assert_resumable(make, exhaustive=True)
    assert len(report.tried) == report.possible


def test_two_optimizers_share_one_scaler() -> None:
    setup = Setup(optimization="two", precision="fp16", samples=10, max_epochs=1, clip_norm=0.5)
    report = assert_resumable(setup.make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible
