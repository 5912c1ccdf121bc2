"""Case 1: the order of everything in a fit with one optimizer.

Departures from Lightning: states take the place of hooks, and the optimizer's step does not wrap
the forward and backward pass (only one that takes a closure does). `zero_grad` comes after the
forward pass and opens an accumulation window. The last validation comes before the end of the
epoch, as there; schedulers by epochs move in the state `epoch_end`, after that validation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from tests.loops.outer_kit import Model, make_trainer, numbered

VALIDATION = [
    "validation_start",
    "validation_fetch", "validation_step", "call validation_step",
    "validation_fetch", "validation_step", "call validation_step",
    "validation_fetch", "validation_end",
]  # fmt: skip
BATCH = [
    "fetch", "batch_start", "batch_split",
    "forward", "call training_step",
    "backward", "call zero_grad", "call backward",
    "optimizer_step", "call step", "call scheduler",
    "batch_split", "batch_end",
]  # fmt: skip


class Watched(Model):
    """Notes what is called, among the states."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.order.append("call training_step")
        loss = super().training_step(batch, batch_idx)
        loss.register_hook(lambda _: self.order.append("call backward"))
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.order.append("call validation_step")

    def configure_optimizers(self) -> Any:
        self.order.append("call configure_optimizers")
        note = self.order.append

        class Noting(torch.optim.SGD):
            def zero_grad(self, set_to_none: bool = True) -> None:
                note("call zero_grad")
                super().zero_grad(set_to_none)

        optimizer = Noting(self.parameters(), lr=0.01)
        optimizer.register_step_pre_hook(lambda *_: note("call step"))

        def factor(step: int) -> float:
            if step:  # asked once when it is made, too
                note("call scheduler")
            return 1.0

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def test_states_and_calls_of_a_fit_come_in_this_order() -> None:
    order: list[str] = []
    trainer = make_trainer(sanity_batches=2, clip_norm=1.0)
    loops = {"fit", "sanity", "epoch", "batch", "optimizer", "validation"}

    def note(moment: Any) -> None:
        name = moment.path.rpartition(".")[2]
        if name not in loops:
            order.append(name)

    trainer.on("*", note)
    trainer.fit(Watched(order), numbered(2), numbered(2))
    sanity = [name.replace("validation_", "sanity_") for name in VALIDATION]
    sanity = [name.replace("call sanity_", "call validation_") for name in sanity]
    assert order == [
        "call configure_optimizers",
        "fit_start",
        *sanity,
        "next_epoch",
        "epoch_start",
        *BATCH,
        *BATCH,
        "fetch",
        "drain",
        *VALIDATION,
        "fetch",
        "drain",
        "epoch_end",
        "next_epoch",
        "fit_end",
    ]
