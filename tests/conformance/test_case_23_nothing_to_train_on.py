"""Case 23: a batch that is None, and a loss that is None.

The end of the batch fires for both and nothing is propagated backward. Ours departs for a batch that
is None: it is a batch like any other, handed to the step, which may leave it out (Lightning does not
call the step). There is no warning for a loss that is None: leaving a batch out is a step's right.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.loops.inner_kit import (
    Batch,
    Regression,
    Signals,
    assert_same_weights,
    make_batches,
    make_trainer,
)


class Skipping(Regression):
    def training_step(self, batch: Batch | None, batch_idx: int) -> Any:
        return None if batch is None else super().training_step(batch, batch_idx)


def test_a_batch_that_is_none_is_handed_to_the_step_which_may_leave_it_out() -> None:
    first, last = make_batches(2)
    model, expected = Skipping(), Regression()
    trainer = make_trainer()
    outputs: list[bool] = []
    trainer.on("batch_end", lambda: outputs.append(trainer.context.output is None))
    trainer.fit(model, [first, None, last])
    make_trainer().fit(expected, [first, last])
    assert outputs == [False, True, False]
    assert trainer.context.counts.batch == 3
    assert_same_weights(model, expected)


def test_a_step_that_can_not_do_with_it_says_where() -> None:
    with pytest.raises(TypeError) as caught:
        make_trainer().fit(Regression(), [None])
    assert "fit.epoch.batch.optimizer.forward" in caught.value.__notes__[0]


@pytest.mark.filterwarnings("error")
def test_no_loss_for_every_second_batch() -> None:
    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx % 2 == 0 else super().training_step(batch, batch_idx)

    trainer = make_trainer()
    signals = Signals(trainer, "backward", "batch_end")
    trainer.fit(Model(), make_batches(4))
    assert signals.fired == ["batch_end", "backward", "batch_end"] * 2
    assert trainer.steps == 2
