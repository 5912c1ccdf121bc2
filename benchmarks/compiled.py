"""What `CompiledStep` gains, as a ratio to a bare PyTorch loop that trains a twin model.

Four contenders, each against the bare eager loop, by turns on the same batches in one process, with
one thread on one core (see `_twins.py`):

- bare: the bare loop itself, which shows what the method makes of a ratio of 1;
- bare, compiled: the bare loop with `torch.compile(model)`;
- ours: `Trainer.fit` as it is;
- ours, compiled: `Trainer.fit` with `CompiledStep` in the place of the optimizer loop.

On a tiny perceptron with three optimizers, a small transformer, a small convolutional network, and
a perceptron of which a step is nearly all matrix products. A ratio of 0.25 is four times as fast.
Compiling falls into the turns that do not count; its time is given apart. Per turn the ratio; per
process the median over the turns; over the processes, one after the other, median and range. The
last column says how far the weights of the contender are from those of a bare twin after 50 steps,
relative to the weights (2-norms).

    python benchmarks/compiled.py [--processes 5] [--core N] [--task mlp-sgd] [--cpu-time]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from _processes import measure
from _twins import Batch, Batches, Clock, TurnTaking, hold_still
from overhead import machine
from torch import nn
from torch.nn import functional as F

from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.trainer import Trainer

_COMPARED = 50
"""Steps after which weights are compared. (Much later, Adam makes much of any rounding.)"""

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


class Network(nn.Module):
    """Any network that ends in logits, trained on the cross entropy.

    Args:
        layers: The network.
        make_optimizer: Makes the optimizer of its parameters.
    """

    def __init__(self, layers: nn.Module, make_optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.layers = layers
        self._make_optimizer = make_optimizer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits, the classes in dimension 1."""
        logits: torch.Tensor = self.layers(inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self._make_optimizer(self.parameters())


class Encoder(nn.Module):
    """A transformer over letters that says which comes next; its attention is causal.

    Args:
        letters: Their number.
        width: Features of a letter.
        length: Letters in a text.
    """

    def __init__(self, letters: int = 64, width: int = 64, length: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.places = nn.Parameter(torch.randn(length, width) / 10)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the logits, of shape (batch, letters, length)."""
        hidden = self.layers(self.letters(texts) + self.places, self.mask, is_causal=True)
        logits: torch.Tensor = self.head(hidden).transpose(1, 2)
        return logits


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    """Return a network of two convolutions with batch norm, for small pictures."""
    return nn.Sequential(
        *(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 10)),
    )


def points(features: int, size: int) -> Callable[[], Batch]:
    """Return a function that draws a batch for a perceptron with ten classes."""
    return lambda: (torch.randn(size, features), torch.randint(10, (size,)))


def texts() -> Batch:
    """Draw a batch for the transformer."""
    return torch.randint(64, (8, 32)), torch.randint(64, (8, 32))


def pictures() -> Batch:
    """Draw a batch for the convolutional network."""
    return torch.randn(8, 3, 16, 16), torch.randint(10, (8,))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Make plain SGD."""
    return torch.optim.SGD(parameters, lr=0.01)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """Make SGD with momentum."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Make AdamW."""
    return torch.optim.AdamW(parameters, lr=1e-3)


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        layers: Makes the network.
        optimizer: Makes its optimizer.
        draw: Draws a batch.
        steps: In a block.
        turns: Blocks that count.
    """

    layers: Callable[[], nn.Module]
    optimizer: MakeOptimizer
    draw: Callable[[], Batch]
    steps: int = 50
    turns: int = 100


def tiny() -> nn.Module:
    """Make the tiny perceptron of the overhead benchmark."""
    return perceptron((32, 64, 10))


TASKS = {
    "mlp-sgd": Task(tiny, sgd, points(32, 32)),
    "mlp-momentum": Task(tiny, momentum, points(32, 32)),
    "mlp-adamw": Task(tiny, adamw, points(32, 32)),
    "transformer": Task(Encoder, adamw, texts, steps=10, turns=60),
    "cnn": Task(convolutional, adamw, pictures, steps=10, turns=60),
    "large": Task(lambda: perceptron((512, 1024, 1024, 10)), sgd, points(512, 256), 5, 30),
}


def bare(model: Network, batches: Batches) -> None:
    """Train by the loop that one writes by hand."""
    bare_loop(model, model)(batches)


def bare_compiled(model: Network, batches: Batches) -> None:
    """The same, the model compiled by `torch.compile`."""
    bare_loop(torch.compile(model), model)(batches)


def ours(model: Network, batches: Batches) -> None:
    """Train by the trainer."""
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, batches)


def ours_compiled(model: Network, batches: Batches) -> None:
    """Train by the trainer, the step compiled."""
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.loop.replace(optimizer=CompiledStep)
    trainer.fit(model, batches)


def bare_loop(called: Callable[..., Any], model: Network) -> Callable[[Batches], None]:
    """Return the bare loop, which goes on with its optimizer at each call."""
    optimizer = model.configure_optimizers()

    def train(batches: Batches) -> None:
        for inputs, targets in batches:
            loss = F.cross_entropy(called(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


CASES: dict[str, Callable[[Network, Batches], None]] = {
    "bare": bare,
    "bare, compiled": bare_compiled,
    "ours": ours,
    "ours, compiled": ours_compiled,
}


@dataclass(frozen=True)
class Found:
    """What came out of the turns of one case in one process.

    Attributes:
        ratio: Median of the ratios of a block to the twin's.
        us: Median of a step, in microseconds.
        bare_us: Median of a step of the twin.
        before: Seconds that went by before the turns that count, compiling included.
        off: How far apart the weights are after a few steps, relative to the weights.
    """

    ratio: float
    us: float
    bare_us: float
    before: float
    off: float


def compare(train: Callable[[Network, Batches], None], task: Task, clock: Clock) -> Found:
    """Let a contender and a bare twin train by turns."""
    torch.manual_seed(0)
    batches = [task.draw() for _ in range(task.steps)]
    model, twin = (Network(task.layers(), task.optimizer) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    loader = TurnTaking(batches, bare_loop(twin, twin), turns=task.turns, clock=clock)
    start = time.perf_counter()
    train(model, loader)
    whole = time.perf_counter() - start
    counted = sum(turn.tested + turn.bare for turn in loader.taken)
    again, alike = (Network(task.layers(), task.optimizer) for _ in range(2))
    alike.load_state_dict(again.state_dict())
    few = (batches * _COMPARED)[:_COMPARED]
    train(again, few)
    bare(alike, few)
    return Found(
        ratio=statistics.median(turn.tested / turn.bare for turn in loader.taken),
        us=statistics.median(turn.tested for turn in loader.taken) / task.steps * 1e6,
        bare_us=statistics.median(turn.bare for turn in loader.taken) / task.steps * 1e6,
        before=whole - counted,
        off=difference(again, alike),
    )


def difference(model: nn.Module, twin: nn.Module) -> float:
    """Return how far the weights of two models are apart, relative to the weights (2-norms)."""
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    flat = [(a.detach().flatten(), b.detach().flatten()) for a, b in pairs]
    ours, theirs = (torch.cat(parts).double() for parts in zip(*flat, strict=True))
    return float((ours - theirs).norm() / theirs.norm())


def measure_here(core: int | None, tasks: Sequence[str], *, cpu_time: bool) -> None:
    """Measure in this process and print the results as JSON, a line each."""
    print(json.dumps({"how": hold_still(core)}))
    clock = time.process_time if cpu_time else time.perf_counter
    for task in tasks:
        for case, train in CASES.items():
            found = compare(train, TASKS[task], clock)
            print(json.dumps({"task": task, "case": case, **asdict(found)}), flush=True)


def table(found: dict[tuple[str, str], list[Found]]) -> str:
    """Lay out what was found as a table in Markdown."""
    rows = [
        "| task | case | ratio to bare | range | times as fast | us/step | bare, us/step | before, s |"
        " weights off |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, case), runs in found.items():
        ratios = [run.ratio for run in runs]
        ratio = statistics.median(ratios)
        us, bare_us, before = (
            statistics.median(getattr(run, name) for run in runs)
            for name in ("us", "bare_us", "before")
        )
        off = max(run.off for run in runs)
        rows.append(
            f"| {task} | {case} | {ratio:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | "
            f"{1 / ratio:.2f} | {us:.0f} | {bare_us:.0f} | {before:.1f} | {off:.1e} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--core", type=int, help="to be pinned to (the last one)")
    parser.add_argument("--task", choices=TASKS, help="only this one")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the time on the wall")
    parser.add_argument("--here", action="store_true", help="measure in this process; print JSON")
    options = parser.parse_args()
    tasks = [options.task] if options.task else list(TASKS)
    if options.here:
        measure_here(options.core, tasks, cpu_time=options.cpu_time)
        return
    how, lines = measure(__file__, options.processes, sys.argv[1:])
    found: dict[tuple[str, str], list[Found]] = {}
    for line in lines:
        found.setdefault((line.pop("task"), line.pop("case")), []).append(Found(**line))
    clock = "CPU time" if options.cpu_time else "time on the wall"
    print(f"{machine()}; {how}; {clock}; {options.processes} processes\n")
    print(table(found))


if __name__ == "__main__":
    main()
