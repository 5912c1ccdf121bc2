"""The operations of a batch are recorded, and the first one that differs is named."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.cli.batch_again import BatchAgain
from statemachine_trainer.cli.operations import twice
from statemachine_trainer.cli.places import CannotReplay
from statemachine_trainer.debugging.operations import Operation, compare_operations
from statemachine_trainer.trainer import Trainer

_calls = itertools.count()


@torch.library.custom_op("smt_tests::drifting", mutates_args=())
def drifting(inputs: torch.Tensor) -> torch.Tensor:
    """A kernel that never gives the same again."""
    return inputs + next(_calls)


drifting.register_autograd(lambda context, gradient: gradient)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.between(self.body(batch))).square().mean()
        return loss

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Drifting(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        drifted: torch.Tensor = drifting(hidden)
        return drifted


class Counting(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * next(_calls)


class Branching(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.exp() if next(_calls) % 2 else hidden.sin()


class Drawing(Net):
    """Draws from a generator that is never the same."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.rand(4, generator=torch.Generator().manual_seed(next(_calls)))


def started(model: nn.Module, batches: int = 5, steps: int = 2) -> Trainer:
    trainer = Trainer(max_epochs=1, seed=1, device="cpu", progress=False)
    draw = torch.Generator().manual_seed(2)
    trainer.start(model, [torch.randn(6, 3, generator=draw) for _ in range(batches)])
    trainer.run(lambda trainer: trainer.steps >= steps)
    return trainer


def test_a_batch_that_is_done_twice_gives_the_same() -> None:
    again = twice(started(Net()))
    assert again.departure is None
    assert str(again) == (
        f"step 3 (batch 3, epoch 1), done twice: its {again.operations} operations give the same, to the bit."
    )


def test_doing_it_again_leaves_the_run_as_it_was() -> None:
    weights = []
    for looks in (False, True):
        torch.manual_seed(0)
        trainer = started(Net())
        if looks:
            twice(trainer)
        trainer.run()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_operation_says_what_it_reads_and_writes_and_where() -> None:
    found = BatchAgain(started(Net())).operations()
    first = next(one for one in found if one.name == "aten.addmm.default")
    assert first.state == "fit.epoch.batch.optimizer.forward"
    assert first.place == "body.0"
    assert first.line.startswith("test_operations.py:")
    assert first.line.endswith("in training_step")
    assert [one.name for one in first.inputs] == ["self", "mat1", "mat2"]
    assert [one.kind for one in first.outputs] == ["float32 (6, 4)"]
    backward = [one for one in found if one.state.endswith("backward")]
    assert any(one.place == "AddmmBackward0" and not one.line for one in backward)
    assert any(one.state.endswith("optimizer_step") for one in found)
    assert [Operation.from_dict(one.to_dict()) for one in found] == found


def test_a_kernel_that_differs_for_equal_inputs_is_named() -> None:
    said = str(twice(started(Drifting())))
    assert "smt_tests.drifting.default (forward, test_operations.py:" in said
    assert "gives something else for equal inputs: result" in said


def test_an_argument_that_differs_is_named_with_both_values() -> None:
    again = twice(started(Counting()))
    assert again.departure is not None
    assert again.departure.what == "inputs"
    assert again.departure.names == ("other",)
    assert "in between) reads something else: other (" in str(again)


def test_a_generator_in_another_state_is_named() -> None:
    again = twice(started(Drawing()))
    assert again.departure is not None
    assert "reads something else: the state of the generator" in str(again)


def test_another_way_is_told_with_both_operations() -> None:
    again = twice(started(Branching()))
    assert again.departure is not None
    assert again.departure.what == "way"
    assert "aten.exp.default" in str(again)
    assert "aten.sin.default" in str(again)


def test_of_two_runs_the_weights_that_differ_are_named() -> None:
    found = [BatchAgain(started(Net(), steps=n)).operations() for n in (2, 3)]
    departure = compare_operations(*found)
    assert departure is not None
    assert departure.what == "inputs"


def test_memory_that_is_not_filled_yet_makes_no_difference() -> None:
    class Filling(Net):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                room = torch.empty(64, 4)
                room[:] = 1.0
                room = torch.empty_like(room).copy_(room)
            return hidden + room.mean(0)

    assert twice(started(Filling())).departure is None


def test_at_the_end_no_batch_comes() -> None:
    with pytest.raises(CannotReplay, match="no batch comes after it"):
        twice(started(Net(), batches=3, steps=3))
