"""How much longer a fit with checkpoints takes to start over a data set of a million Python objects.

The search for state walks over all that a fit reaches, and so does the record of what the script has made.
Both are bounded. This measures what is left: a fit over a data set that holds a million objects, beside the
same fit over one that holds ten, in turns, and compares the shortest times. What collections of garbage take
meanwhile is told apart.

    python benchmarks/large_data.py [--rounds 7] [--cpu-time] [--count 1000000] [--profile KIND]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _peers.report import load
from overhead import machine
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints

Times = dict[str, float]
"""Milliseconds by what took them."""


class Item:
    """A small object with a dictionary."""

    def __init__(self, number: int) -> None:
        self.number, self.text = number, "one"


class Slotted:
    """A small object without a dictionary."""

    __slots__ = ("number", "text")

    def __init__(self, number: int) -> None:
        self.number, self.text = number, "one"


@dataclass
class Row:
    """A small object that refers to another one."""

    number: int
    item: Item


KINDS: dict[str, Callable[[int], Any]] = {
    "a list of objects": lambda count: [Item(number) for number in range(count)],
    "a list of tuples": lambda count: [(number, "one") for number in range(count)],
    "a list of tuples of objects": lambda count: [(Item(number), 1) for number in range(count)],
    "a dict of texts": lambda count: {f"file {number}": f"{number}" for number in range(count)},
    "nested lists": lambda count: [[[number, 1], [2]] for number in range(count)],
    "a list of objects with slots": lambda count: [Slotted(number) for number in range(count)],
    "a dict of dicts": lambda count: {number: {"label": number} for number in range(count)},
    "a list of lists of objects": lambda count: [
        [Item(number) for number in range(1000)] for _ in range(max(1, count // 1000))
    ],
    "a set of tuples": lambda count: {(number, "one") for number in range(count)},
    "a list of data classes": lambda count: [Row(one, Item(one)) for one in range(count)],
    "a list of tensors": lambda count: [torch.zeros(1) for _ in range(count // 10)],
}
"""What a data set holds, by name."""


class Data(Dataset[torch.Tensor]):
    """A data set that holds some objects."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index) + 0 * len(self.inside))


class Net(nn.Module):
    """A model of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a loss."""
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def start(inside: Any, folder: Path, clock: Callable[[], float]) -> Times:
    """Start a fit over a data set and write its first checkpoint; return what that took."""
    loader = DataLoader(Data(inside), batch_size=5)
    trainer = Trainer(
        max_epochs=1, device="cpu", progress=False, checkpoints=Checkpoints(folder, every=1)
    )
    model = Net()
    collected = [0.0, 0.0]

    def watch(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            collected[1] = clock()
        else:
            collected[0] += clock() - collected[1]

    gc.collect()
    gc.callbacks.append(watch)
    try:
        before = clock()
        trainer.start(model, loader)
        started = clock()
        garbage = collected[0]
        trainer.state_dict()
        noted = clock()
        trainer.state_dict()
        again = clock()
    finally:
        gc.callbacks.remove(watch)
    return {
        "start": 1e3 * (started - before),
        "of it garbage": 1e3 * garbage,
        "first state": 1e3 * (noted - started),
        "next state": 1e3 * (again - noted),
    }


def compare(kind: str, count: int, rounds: int, clock: Callable[[], float]) -> tuple[Times, Times]:
    """Return the shortest times over ten objects and over many, measured in turns."""
    few, many = KINDS[kind](10), KINDS[kind](count)
    shortest: tuple[Times, Times] = {}, {}
    with tempfile.TemporaryDirectory() as root:
        for number in range(rounds + 1):
            for side, inside in enumerate((few, many)):
                taken = start(inside, Path(root) / f"{number} {side}", clock)
                for name, milliseconds in taken.items() if number else ():
                    known = shortest[side].get(name, milliseconds)
                    shortest[side][name] = min(known, milliseconds)
    return shortest


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--cpu-time", action="store_true", help="instead of the time on the wall")
    parser.add_argument("--kinds", nargs="*", default=[*KINDS])
    parser.add_argument("--profile", metavar="KIND", help="what a start takes its time for")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.profile:
        inside = KINDS[options.profile](options.count)
        with tempfile.TemporaryDirectory() as root:
            start(KINDS[options.profile](10), Path(root) / "few", time.process_time)
            with cProfile.Profile() as profile:
                start(inside, Path(root) / "many", time.process_time)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(40)
        return
    clock = time.process_time if options.cpu_time else time.perf_counter
    kind_of_time = "CPU time" if options.cpu_time else "time on the wall"
    print(f"{machine()}; {kind_of_time}, shortest of {options.rounds}, in turns; {load()}\n")
    print("| data set of | start, ms more | of it garbage | first state | next state |")
    print("|---|---|---|---|---|")
    for kind in options.kinds:
        few, many = compare(kind, options.count, options.rounds, clock)
        more = [f"{many[name] - few[name]:.1f}" for name in few]
        print(f"| {kind} | {' | '.join(more)} |", flush=True)


if __name__ == "__main__":
    main()
