"""What fingerprints at every tenth step cost, beside a step of some milliseconds on one thread of a CPU.

The shortest of many is taken of both, so that what else the machine does drops out.

Usage: python benchmarks/fingerprints.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from statemachine_trainer import Trainer, every
from statemachine_trainer.observe.fingerprint_file import Leaves, Taken, blocks_of
from statemachine_trainer.observe.fingerprints import Fingerprints

WIDTH = 512
BATCH = 128
EVERY = 10


class Written:
    """Takes looks as a file does."""

    def __init__(self) -> None:
        self._known: dict[Leaves, int] = {}

    def add(self, taken: Taken) -> None:
        """Lay out a look."""
        blocks_of(taken, self._known)


def shortest(action: Callable[[], object], times: int = 300) -> float:
    """Return the shortest time that something takes, in milliseconds."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return 1e3 * min(found)


def main() -> None:
    """Print the two times."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = nn.Linear(256, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    batches = [(torch.randn(BATCH, 256), torch.randint(0, 10, (BATCH,))) for _ in range(400)]
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-3)

    trainer.start(model, batches, loss=nn.CrossEntropyLoss(), optimizer=adam)
    trainer.run("batch_end")
    step = shortest(lambda: trainer.run("batch_end"))
    prints = Fingerprints(trainer.driver, every(1, "batch"), Written())
    looks = shortest(prints._before)
    prints._looked = trainer.context.counts.batch - 1, 0
    looks += shortest(prints._after)
    count = sum(one.numel() for one in model.parameters())
    print(
        f"{count:,} parameters, Adam: a step takes {step:.2f} ms, and looking at one {looks:.2f} ms."
    )
    print(f"At every {EVERY}th step that is {100 * looks / (EVERY * step):.1f} % of the time.")


if __name__ == "__main__":
    main()
