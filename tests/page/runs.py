"""A run to look at: it trains until it is told to stop, and slowly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from statemachine_trainer import Checkpoints, Trainer
from statemachine_trainer.control.hold import Hold

DEADLINE = 100.0
"""Seconds within which what is waited for has come, also on a busy machine; longer is a hang."""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: It does not come true.
    """
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"it never came: {what}"
        time.sleep(0.01)


class Run:
    """A fit in a thread, as a script's main thread would run it."""

    def __init__(
        self, checkpoints: Path | Checkpoints | None = None, folder: Path | None = None
    ) -> None:
        torch.manual_seed(0)
        self.data: Any = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(5)]
        self.trainer = Trainer(
            max_epochs=10**6, progress=False, checkpoints=checkpoints, run=folder
        )
        self.trainer.on("batch_start", lambda: time.sleep(0.002))
        self.model = nn.Linear(3, 2)
        self.thread = threading.Thread(target=self._fit, daemon=True)

    def _fit(self) -> None:
        self.trainer.fit(
            self.model,
            self.data,
            self.data,
            loss=nn.functional.cross_entropy,
            optimizer=torch.optim.SGD(self.model.parameters(), lr=0.1),
        )

    def begin(self) -> None:
        """Begin to train, and return when the first batch is done."""
        self.thread.start()
        until(lambda: self.trainer.driver.running and self.batch > 0, "the first batch")

    @property
    def batch(self) -> int:
        """Batches done."""
        context = self.trainer.driver.context
        return 0 if context is None else int(context.counts.batch)

    def end(self) -> None:
        """Let it stop at its next boundary, also if a test that failed has left it held."""
        if self.thread.is_alive():
            Hold.of(self.trainer.driver).let_go()
            self.trainer.stop()
            self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
