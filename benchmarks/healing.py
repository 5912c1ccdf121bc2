"""What a step costs more with recovery and fingerprints than without, in Python calls and in microseconds.

All cases train in turns, many times, and of each the shortest processor time is taken: so what else the machine does
drops out. Python calls are those of `sys.setprofile`, of a long run less those of a short one.

Usage: python benchmarks/healing.py [--rounds N] [--sizes tiny]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from _twins import Batch, Classifier

from statemachine_trainer import BatchLoop, RecoverLoop, Trainer, every

SIZES = {"tiny": ((32, 64, 10), 32), "5 ms": ((256,) * 9, 128)}
WARM, MEASURED = 20, 100


class BadBatch(Exception):
    """What a step could raise. None does here."""


class Leaving(BatchLoop):
    """Leaves out a batch whose step raises `BadBatch`."""

    errors: ClassVar[Any] = [[BadBatch, "optimizer", "batch_split"]]


def trainer(loop: BatchLoop | None = None, **settings: Any) -> Trainer:
    """Make a trainer, with another loop in the place of the batch loop."""
    one = Trainer(max_epochs=1, device="cpu", progress=False, sanity_batches=0, **settings)
    if loop is not None:
        one.loop.replace(batch=loop)
    return one


def changing() -> Trainer:
    """Make a trainer whose rate is set in each batch."""
    one = trainer()
    one.on("batch_end", lambda trainer: trainer.post("set", lr=0.1))
    return one


def in_folder(**settings: Any) -> Callable[[], Trainer]:
    """Make trainers with a folder."""
    return lambda: trainer(run=Path(tempfile.mkdtemp()), **settings)


CASES: dict[str, tuple[Callable[[], Trainer], str]] = {
    # what it is: how it is made, and what it is compared with
    "nothing": (trainer, ""),
    "an error edge that is not taken": (lambda: trainer(Leaving()), "nothing"),
    "`on_oom='split'`, all fits": (lambda: trainer(on_oom="split"), "nothing"),
    "`RecoverLoop()`": (lambda: trainer(RecoverLoop()), "nothing"),
    "`RecoverLoop(keep_every=50)`": (lambda: trainer(RecoverLoop(keep_every=50)), "nothing"),
    "`post('set', lr=...)` in each batch": (changing, "nothing"),
    "a run folder": (in_folder(), "nothing"),
    "fingerprints every 100 steps": (in_folder(fingerprints=every(100, "step")), "a run folder"),
    "fingerprints every 10 steps": (in_folder(fingerprints=every(10, "step")), "a run folder"),
}


class Clocked:
    """Batches that note the processor time from one of them to another."""

    def __init__(self, made: list[Batch], count: int) -> None:
        self.made, self.count, self.seconds = made, count, 0.0

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            if number == WARM:
                began = time.thread_time()
            yield self.made[number % len(self.made)]
        self.seconds = time.thread_time() - began


def microseconds(make: Callable[[], Trainer], size: str) -> float:
    """Return how long a step takes."""
    widths, samples = SIZES[size]
    made = [(torch.randn(samples, widths[0]), torch.randint(10, (samples,))) for _ in range(20)]
    data = Clocked(made, WARM + MEASURED)
    make().fit(Classifier(widths), data)
    return 1e6 * data.seconds / MEASURED


def calls(make: Callable[[], Trainer]) -> float:
    """Return how many Python calls a step makes."""
    widths, samples = SIZES["tiny"]
    made = [(torch.randn(samples, widths[0]), torch.randint(10, (samples,))) for _ in range(20)]
    counted = []
    for count in (200, 200, 400):
        one, model, seen = make(), Classifier(widths), [0]

        def profile(_frame: object, event: str, _arg: object, seen: list[int] = seen) -> None:
            seen[0] += event == "call"

        gc.disable()
        sys.setprofile(profile)
        try:
            one.fit(model, made * (count // 20))
        finally:
            sys.setprofile(None)
            gc.enable()
        counted.append(seen[0])
    return (counted[2] - counted[1]) / 200


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.rounds):
        for size in given.sizes:
            for name, (make, _against) in CASES.items():
                found.setdefault((size, name), []).append(microseconds(make, size))
    counted = {name: calls(make) for name, (make, _) in CASES.items()}
    print(f"| | beside | calls | {' | '.join(f'us, {size}' for size in given.sizes)} |")
    print(f"|---|---|---|{'---|' * len(given.sizes)}")
    for name, (_, against) in CASES.items():
        more = counted[name] - counted.get(against, 0.0)
        cells = []
        for size in given.sizes:
            mine, theirs = found[size, name], found.get((size, against), [0.0])
            spread = statistics.median(mine) - min(mine)
            cells.append(f"{min(mine) - min(theirs):+.0f} (median {spread:.0f} above)")
        print(f"| {name} | {against} | {more:+.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
