"""What a step gains that `torch.compile` cuts in two, because a condition in it depends on a tensor.

`CompiledStep` does such a step without the compiler. Forward and backward pass could go through
`torch.compile`, which makes a graph of what comes before the condition and one of what comes after,
with the optimizer's step outside. Here such a loop, written by hand, is measured against the same
loop without the compiler: by turns, in one process, on one thread, by the time of the processor.
Printed is the median over the turns of the ratio of the two.

    python benchmarks/compiled_in_parts.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TURNS = 15
_STEPS = {"tiny MLP, SGD": 200, "small transformer, AdamW": 30, "convolutions, AdamW": 30}


class Deciding(nn.Module):
    """A condition on a tensor between two layers."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs, or half of them."""
        return inputs if inputs.sum() > 0 else inputs * 0.5


def perceptron() -> nn.Module:
    """Return a perceptron for 16 features."""
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), Deciding(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def transformer() -> nn.Module:
    """Return a transformer for 32 places of 64 features."""
    first, second = (
        nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True) for _ in range(2)
    )
    return nn.Sequential(first, Deciding(), second, nn.Flatten(), nn.Linear(64 * 32, 4))


def convolutions() -> nn.Module:
    """Return a network of convolutions for pictures of 16 by 16."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), Deciding(),
        nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def stepping(
    model: nn.Module, kind: type[torch.optim.Optimizer], inputs: Tensor, *, compiled: bool
) -> Callable[[], None]:
    """Return a training step, its first calls done."""
    optimizer = kind(model.parameters(), lr=1e-3)  # type: ignore[call-arg]
    targets = torch.arange(len(inputs)) % 4

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), targets)

    called = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad()
        called(inputs, targets).backward()
        optimizer.step()

    for _ in range(10):
        step()
    return step


def main() -> None:
    """Measure, and print a line for each task."""
    torch.set_num_threads(1)
    tasks = [
        (perceptron, torch.optim.SGD, (16, 16)),
        (transformer, torch.optim.AdamW, (8, 32, 64)),
        (convolutions, torch.optim.AdamW, (8, 3, 16, 16)),
    ]
    for (name, steps), (make, kind, shape) in zip(_STEPS.items(), tasks, strict=True):
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        contenders = [stepping(make(), kind, inputs, compiled=how) for how in (False, True)]
        ratios = []
        for _ in range(_TURNS):
            times = []
            for step in contenders:
                began = time.process_time()
                for _ in range(steps):
                    step()
                times.append(time.process_time() - began)
            ratios.append(times[1] / times[0])
        print(f"{name}: {statistics.median(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
