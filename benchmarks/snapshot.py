"""What a checkpoint costs, as a ratio to a bare `torch.save` of the same model and optimizer.

A model of 100 MB of parameters trained with SGD and momentum: 200 MB to write. Four ways to save it
take turns. Each writes a new checkpoint and then deletes its one before, as a run does:

- ``torch.save``: into a new file, which the kernel writes to the disk whenever it likes;
- ``torch.save + fsync``: the same, safe from a loss of power, as a checkpoint of ours always is;
- foreground: `Store.save`;
- background: what `Store(background=True).save` keeps the caller waiting, the write before done.

The ratio is taken within each turn; the median and the range over the turns are printed.

    python benchmarks/snapshot.py [--turns 15] [--megabytes 100] [--folder PATH]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from statemachine_trainer.snapshot import Retention, Store

WIDTH = 1024


def make_state(megabytes: int) -> dict[str, object]:
    """The state of a trained stack of linear layers, and of its optimizer."""
    layers = max(1, round(megabytes * 1e6 / (4 * WIDTH * (WIDTH + 1))))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(torch.randn(8, WIDTH)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Bare:
    """`torch.save` into a new file each time, deleting the one before."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        folder.mkdir()
        self._folder = folder
        self._durable = durable
        self._turn = 0

    def save(self, state: dict[str, object]) -> None:
        """Save, and wait for the disk if that was asked for."""
        path = self._folder / f"{self._turn}.pt"
        with path.open("wb") as file:
            torch.save(state, file)
            if self._durable:
                file.flush()
                os.fsync(file.fileno())
        (self._folder / f"{self._turn - 1}.pt").unlink(missing_ok=True)
        self._turn += 1


def measure(folder: Path, state: dict[str, object], turns: int) -> dict[str, list[float]]:
    """Seconds of each way, turn by turn; two turns warm up and are not counted."""
    foreground = Store(folder / "foreground", retention=Retention(last=1))
    background = Store(folder / "background", retention=Retention(last=1), background=True)
    bare, durable = Bare(folder / "bare", durable=False), Bare(folder / "durable", durable=True)
    times: dict[str, list[float]] = {}
    for turn in range(turns + 2):
        taken = {
            "torch.save": seconds(lambda: bare.save(state)),
            "torch.save + fsync": seconds(lambda: durable.save(state)),
            "foreground": seconds(lambda: foreground.save(state, name="now")),
            "background": seconds(lambda: background.save(state, name="now")),
        }
        background.wait()
        os.sync()  # so that the next turn does not wait for what this one left in memory
        if turn > 1:
            for name, value in taken.items():
                times.setdefault(name, []).append(value)
    background.close()
    return times


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=100, help="of parameters")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (a temporary one)")
    options = parser.parse_args()
    state = make_state(options.megabytes)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        times = measure(Path(folder), state, options.turns)
    bare = times["torch.save"]
    print(
        f"{options.megabytes} MB of parameters, SGD with momentum, {options.turns} turns, ", end=""
    )
    print(f"{torch.get_num_threads()} threads\n")
    print("| way | seconds, median | ratio to torch.save, median | range |")
    print("|---|---|---|---|")
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, bare, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        median = statistics.median(ratios)
        print(f"| {name} | {statistics.median(values):.4f} | {median:.2f} | {spread} |")


if __name__ == "__main__":
    main()
