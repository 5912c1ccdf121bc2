"""Trainers in threads of one process compile each for itself."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer.loops import log
from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.trainer import Trainer


class Line(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), start))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.mse_loss(inputs @ self.weight, targets)
        log("start", self.weight.sum())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fitted(start: float, *, compiled: bool) -> tuple[Tensor, dict[str, float]]:
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if compiled:
        trainer.loop["optimizer"] = CompiledStep(backend="eager")
    model = Line(start)
    inputs = torch.arange(12.0).reshape(4, 3) / 12
    trainer.fit(model, [(inputs, inputs.sum(1))] * 6)
    if compiled:
        assert trainer.loop["optimizer"].eager is None
        assert trainer.loop["optimizer"].graphs
    return model.weight.detach(), dict(trainer.metrics)


def test_each_trainer_trains_and_logs_its_own() -> None:
    found: dict[float, Any] = {}
    starts = [0.0, 1.0, 2.0, 3.0]

    def work(start: float) -> None:
        found[start] = fitted(start, compiled=True)

    threads = [threading.Thread(target=work, args=(start,)) for start in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found[9.0] = fitted(9.0, compiled=True)  # nor is a later one disturbed
    for start in (*starts, 9.0):
        weight, metrics = fitted(start, compiled=False)
        torch.testing.assert_close(found[start][0], weight, rtol=1e-5, atol=1e-5)
        assert abs(found[start][1]["start"] - metrics["start"]) < 1e-4
