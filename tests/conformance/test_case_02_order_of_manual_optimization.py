"""Case 2: the order of a batch with manual optimization.

As in Lightning nothing happens by itself: no gradients are cleared or clipped, no scheduler moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import StepLR

from tests.loops.inner_kit import Batch, Regression, Signals, make_batches, make_trainer, mse


def test_everything_happens_in_the_one_state_and_by_the_hand_of_the_step() -> None:
    order: list[str] = []

    class Model(Regression):
        automatic_optimization = False

        def training_step(self, batch: Batch, optimizers: Any, trainer: Any) -> Any:  # type: ignore[override]
            def closure() -> Any:
                order.append("closure")
                loss = mse(self.net, batch)
                loss.register_hook(lambda _: order.append("backward"))
                trainer.backward(loss)
                return loss

            optimizers[0].step(closure)

    def configure(parameters: Any) -> Any:
        optimizer = Watched(parameters, lr=0.1)
        scheduler = {"scheduler": StepLR(optimizer, 1), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    class Watched(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            order.append("zero_grad")

    trainer = make_trainer()
    model = Model(configure)
    trainer.start(model, make_batches(1))
    signals = Signals(trainer, "fit.epoch.batch.*:enter")
    signals.fired = order
    trainer.run(until="epoch_end")
    assert order == [
        "batch_start",
        "batch_split",
        "optimizer",
        "manual_step",
        "closure",
        "backward",
        "batch_split",
        "batch_end",
    ]
    trainer.run()
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.1
