"""Case 5: frequencies (1, 2) over 10 batches.

Ours departs at the border of an epoch: Lightning begins the cycle anew, here it runs on.
"""

from __future__ import annotations

from typing import Any

from tests.loops.inner_kit import Pair, make_batches, make_trainer


def configure(one: Any, two: Any) -> Any:
    return [{"optimizer": one, "frequency": 1}, {"optimizer": two, "frequency": 2}]


def test_the_optimizers_take_turns() -> None:
    model = Pair(configure)
    make_trainer().fit(model, make_batches(10))
    assert [index for _, index in model.ran] == [0, 1, 1, 0, 1, 1, 0, 1, 1, 0]


def test_the_cycle_runs_on_in_the_next_epoch() -> None:
    model = Pair(configure)
    make_trainer(max_epochs=2).fit(model, make_batches(4))
    assert [index for _, index in model.ran] == [0, 1, 1, 0, 1, 1, 0, 1]
