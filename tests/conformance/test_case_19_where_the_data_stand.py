"""Case 19: two steps, then two more in a new fit: no batch is seen twice, none is left out.

Lightning does so for loaders with a state; ours for a plain shuffled loader too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from statemachine_trainer import Trainer
from statemachine_trainer.snapshot import decode, encode


class StatefulLoader:
    """Counts from 0 to 3 and can say how far it is."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> StatefulLoader:
        return self

    def __next__(self) -> torch.Tensor:
        if self.position == 4:
            raise StopIteration
        self.position += 1
        return torch.full((1, 1), float(self.position - 1))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Seeing(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.seen: list[int] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen += batch.flatten().int().tolist()
        loss: torch.Tensor = self(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def shuffled() -> DataLoader[Any]:
    return DataLoader([torch.tensor([float(i)]) for i in range(4)], shuffle=True)  # type: ignore[arg-type]


def seen_in_two_fits(make: Any) -> tuple[list[int], list[int]]:
    first, second = Seeing(), Seeing()
    trainer = Trainer(max_epochs=1, progress=False, seed=3)
    trainer.start(first, make())
    trainer.run(until=lambda trainer, moment: moment.state == "fetch" and trainer.steps == 2)
    saved = encode(trainer.state_dict())
    resumed = Trainer(max_epochs=1, progress=False)
    resumed.start(second, make())
    resumed.load_state_dict(decode(*saved))
    resumed.run()
    return first.seen, second.seen


def test_a_loader_with_a_state_goes_on_where_it_stood() -> None:
    assert seen_in_two_fits(StatefulLoader) == ([0, 1], [2, 3])


def test_a_plain_shuffled_loader_goes_on_where_it_stood() -> None:
    whole = Seeing()
    Trainer(max_epochs=1, progress=False, seed=3).fit(whole, shuffled())
    first, second = seen_in_two_fits(shuffled)
    assert first + second == whole.seen
    assert len(first) == len(second) == 2
