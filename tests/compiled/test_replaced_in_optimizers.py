"""What is replaced in an optimizer, in the middle of a run, is replaced in a compiled step too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.trainer import Trainer

pytestmark = pytest.mark.usefixtures("exact")


class Line(nn.Module):
    def __init__(self, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.make = make

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


def trained(
    make: Callable[[Any], torch.optim.Optimizer],
    change: Callable[[int, Any], object],
    *,
    compiled: bool,
) -> tuple[Tensor, Any]:
    """Train for eight steps; the change is made after each of them."""
    model = Line(make)
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if compiled:
        trainer.loop["optimizer"] = CompiledStep(backend="eager")
    trainer.on("batch_end", lambda: change(trainer.steps, trainer.context.optimizers[0]))
    trainer.fit(model, [(torch.ones(2, 3) * n / 8, torch.zeros(2, 3)) for n in range(1, 9)])
    return model.layer.weight.detach().clone(), trainer.loop["optimizer"]


def idle(*_: Any, **__: Any) -> bool:
    """Stand in for the method that gathers parameters: none of them is trained."""
    return False


def of_a_class() -> Callable[[Any], torch.optim.Optimizer]:
    """Return a new class of optimizers, all of whose code is torch's."""
    return type("Own", (torch.optim.SGD,), {"__module__": __name__})


def at_the_class(step: int, optimizer: Any) -> None:
    if step == 4:
        type(optimizer)._init_group = idle


def at_the_object(step: int, optimizer: Any) -> None:
    if step == 4:
        optimizer._init_group = idle


def at_the_object_that_is_written_to(step: int, optimizer: Any) -> None:
    optimizer.seen = step
    at_the_object(step, optimizer)


def in_other_attributes(step: int, optimizer: Any) -> None:
    if step == 4:
        optimizer.__dict__ = {**vars(optimizer), "_init_group": idle}


@pytest.mark.parametrize(
    "change",
    [at_the_class, at_the_object, at_the_object_that_is_written_to, in_other_attributes],
    ids=lambda one: one.__name__,
)
def test_a_method_that_is_replaced_is_called(change: Callable[[int, Any], object]) -> None:
    eager, _ = trained(of_a_class(), change, compiled=False)
    unchanged, _ = trained(of_a_class(), lambda *_: None, compiled=False)
    assert not torch.allclose(eager, unchanged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCompiled)
        found, _ = trained(of_a_class(), change, compiled=True)
    torch.testing.assert_close(found, eager, rtol=1e-9, atol=1e-9)


def test_attributes_that_are_written_to_all_the_time_compile_nothing_anew() -> None:
    def note(step: int, optimizer: Any) -> None:
        optimizer.seen = step

    eager, _ = trained(torch.optim.AdamW, note, compiled=False)
    found, loop = trained(torch.optim.AdamW, note, compiled=True)
    torch.testing.assert_close(found, eager, rtol=1e-9, atol=1e-9)
    assert (loop.eager, loop.apart, loop.again, len(loop.graphs)) == (None, [], 0, 1)
