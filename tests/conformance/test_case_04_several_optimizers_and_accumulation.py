"""Case 4: two optimizers, accumulation of two batches, two batches.

Gradients are cleared twice, in batch 0; four backward passes; both step in batch 1. Ours departs in
what is counted: Lightning counts 2 steps, here it is 1 (of the first optimizer) unless all are asked
for; each scheduler goes by the steps of its own optimizer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from tests.loops.inner_kit import Batch, Pair, make_batches, make_trainer


@pytest.mark.parametrize("which, steps", [("first", 1), ("all", 2)])
def test_gradients_are_cleared_in_batch_0_and_both_step_in_batch_1(which: str, steps: int) -> None:
    order: list[str] = []

    class Watched(torch.optim.SGD):
        name = ""

        def zero_grad(self, set_to_none: bool = True) -> None:
            order.append(f"zero_grad {self.name}")
            super().zero_grad(set_to_none)

    class Model(Pair):
        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx, optimizer_idx)
            loss.register_hook(lambda _: order.append(f"backward {optimizer_idx}"))
            return loss

        def configure_optimizers(self) -> Any:
            optimizers = []
            for name, net in (("0", self.one), ("1", self.two)):
                optimizer = Watched(net.parameters(), lr=0.1)
                optimizer.name = name
                optimizer.register_step_post_hook(lambda o, *_: order.append(f"step {o.name}"))
                optimizers.append(optimizer)
            return optimizers, [{"scheduler": StepLR(o, 1), "interval": "step"} for o in optimizers]

    trainer = make_trainer(accumulate=2, count_steps_of=which)
    trainer.fit(Model(lambda one, two: None), make_batches(2))
    assert order == [
        "zero_grad 0",
        "backward 0",
        "zero_grad 1",
        "backward 1",
        "backward 0",
        "step 0",
        "backward 1",
        "step 1",
    ]
    assert trainer.steps == steps
    moved = [slot.schedulers[0].scheduler.last_epoch for slot in trainer.context.slots]
    assert moved == [1, 1]
