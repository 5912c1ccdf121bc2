"""Case 7: truncated backpropagation through time.

Ours departs with several optimizers: each keeps hiddens of its own (Lightning hands the second one
those of the first), and a step is counted once for both unless all are asked for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.loops.inner_kit import make_trainer


class Recurrent(nn.Module):
    """Hiddens are a number times what was handed on before, so that their way can be followed."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.Linear(1, 1) for _ in range(optimizers))
        self.calls: list[tuple[int, int, int, int]] = []
        self.entered: dict[int, list[Tensor | None]] = {n: [] for n in range(optimizers)}
        self.handed_on: dict[int, list[Tensor]] = {n: [] for n in range(optimizers)}

    def training_step(
        self,
        batch: Tensor,
        batch_idx: int,
        optimizer_idx: int,
        split_idx: int,
        hiddens: Tensor | None,
    ) -> Any:
        self.calls.append((batch_idx, split_idx, optimizer_idx, batch.shape[1]))
        self.entered[optimizer_idx].append(hiddens)
        before = 0.0 if hiddens is None else hiddens
        state = self.cells[optimizer_idx](batch.unsqueeze(-1)).mean() + before
        self.handed_on[optimizer_idx].append(state)
        return {"loss": state.square(), "hiddens": state}

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(cell.parameters(), lr=0.1) for cell in self.cells]


def sequences(count: int, size: int, steps: int) -> list[Tensor]:
    """Loads `count` sequences in batches of `size`, the last one smaller."""
    return list(torch.split(torch.randn(count, steps), size))


def test_15_time_steps_in_splits_of_2_are_8_splits_the_last_of_length_1() -> None:
    model = Recurrent()
    make_trainer(split_steps=2).fit(model, sequences(32, 10, 15))
    assert [call[3] for call in model.calls[:8]] == [2, 2, 2, 2, 2, 2, 2, 1]
    assert model.calls[-1][:2] == (3, 7)
    assert len(model.calls) == 4 * 8


def test_hiddens_are_none_in_the_first_split_only_and_have_no_graph_on_entry() -> None:
    model = Recurrent()
    make_trainer(split_steps=2).fit(model, sequences(32, 10, 15))
    entered, handed_on = model.entered[0], model.handed_on[0]
    assert [hiddens is None for hiddens in entered] == [c[1] == 0 for c in model.calls]
    for number, hiddens in enumerate(entered):
        if hiddens is not None:
            assert hiddens.grad_fn is None
            assert torch.equal(hiddens, handed_on[number - 1])


@pytest.mark.parametrize("which, steps", [("first", 4), ("all", 8)])
def test_8_time_steps_in_splits_of_2_for_2_optimizers(which: str, steps: int) -> None:
    model = Recurrent(optimizers=2)
    trainer = make_trainer(split_steps=2, count_steps_of=which)
    trainer.fit(model, sequences(4, 4, 8))
    assert trainer.steps == steps
    assert [call[1:3] for call in model.calls] == [(s, o) for s in range(4) for o in range(2)]
    for optimizer in range(2):
        pairs = zip(model.entered[optimizer][1:], model.handed_on[optimizer], strict=False)
        assert all(hiddens is not None and torch.equal(hiddens, on) for hiddens, on in pairs)
