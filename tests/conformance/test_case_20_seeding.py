"""Case 20: the sequence of training batches is the same with and without a sanity check."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.loops.outer_kit import Model, make_trainer


class First(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[0], batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(5)


def test_the_sanity_check_does_not_touch_the_order_of_training() -> None:
    data = TensorDataset(torch.arange(32.0).unsqueeze(1))
    orders = []
    for batches in (0, 2):
        model = First()
        trainer = make_trainer(max_epochs=2, sanity_batches=batches, seed=7)
        trainer.fit(model, DataLoader(data, shuffle=True), DataLoader(data, shuffle=True))
        orders.append(model.trained)
    assert orders[0] == orders[1]
    assert orders[0][:32] != orders[0][32:]
