"""Two processes that start in one folder at about the same time, many times over.

python -m tests.crash.double_starts [COUNT] [SEED]
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from statemachine_trainer import RunFolder
from statemachine_trainer.callbacks import Checkpoints
from tests.observe.recorded import Net, batches, trainer

KINDS = ("plain", "without a record", "without a black box", "paused", "in memory")
TOGETHER = 10
"""Pairs that are tried at the same time: they mostly wait."""

LATEST = 2.0
"""Seconds by which the second one starts later, at most."""

LONGEST = 60.0
"""Seconds that one waits for the other to be done; then it is as if that had never started."""

PAUSE = 0.05


def try_all(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Try so many pairs of starts, at random delays.

    Returns:
        For each its kind, and what became of the two: "ran", or an error.
    """
    torch.optim.Adam(Net().parameters())  # imports what the forks would else import each
    delays = random.Random(seed)
    outcomes: list[tuple[str, list[str]]] = []
    while len(outcomes) < count:
        kinds = [KINDS[(len(outcomes) + n) % len(KINDS)] for n in range(TOGETHER)]
        pairs = [_Pair(kind, delays.uniform(0, LATEST)) for kind in kinds]
        outcomes += [(pair.kind, pair.wait()) for pair in pairs]
    return outcomes[:count]


class _Pair:
    """Two processes forked from this one."""

    def __init__(self, kind: str, delay: float) -> None:
        self.kind = kind
        memory = Path("/dev/shm")
        here = memory if kind == "in memory" and os.access(memory, os.W_OK) else None
        self._root = Path(tempfile.mkdtemp(dir=here))
        begin = time.time() + 0.5
        marks = (self._root / "first", self._root / "second")
        self._children = [
            _fork(self._root / "run", kind, begin, *marks),
            _fork(self._root / "run", kind, begin + delay, *reversed(marks)),
        ]

    def wait(self) -> list[str]:
        """Return what became of the two."""
        told = []
        for child, end in self._children:
            with os.fdopen(end, "rb") as file:
                told.append(file.read().decode())
            os.waitpid(child, 0)
        shutil.rmtree(self._root, ignore_errors=True)
        return told


def _fork(folder: Path, kind: str, begin: float, mark: Path, other: Path) -> tuple[int, int]:
    """Train in a fork, until the other one has made its mark."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        torch.set_num_threads(1)
        time.sleep(max(0.0, begin - time.time()))
        end = time.time() + LONGEST
        try:
            _train(folder, kind, lambda: other.exists() or time.time() > end)
            told = "ran"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        mark.touch()
        os.write(writing, told.encode())
    finally:
        os._exit(0)


def _train(folder: Path, kind: str, other_is_done: Callable[[], bool]) -> None:
    settings: dict[str, Any] = {"checkpoints": Checkpoints(folder, every=1), "max_epochs": 10**6}
    if kind == "without a record":
        settings["run"] = False
    if kind == "without a black box":
        settings["run"] = RunFolder(folder, blackbox=False)
    one = trainer(**settings)
    one.on("batch_end", lambda: time.sleep(PAUSE))
    first = 2 if kind == "paused" else 0
    one.on(
        "batch_end", lambda one: one.stop(), when=lambda _: one.steps > first and other_is_done()
    )
    if kind == "paused":
        one.fit(Net(), batches(), resume="auto", until=lambda trainer: trainer.steps == first)
        while not other_is_done():
            time.sleep(PAUSE)
        one.run()
        return
    one.fit(Net(), batches(), resume="auto")


def one_was_refused(told: list[str]) -> bool:
    """Whether one ran and the other one was told why it did not."""
    return sorted(one.partition(":")[0] for one in told) == ["FolderInUse", "ran"]


if __name__ == "__main__":
    began = time.monotonic()
    count, seed = [*map(int, sys.argv[1:]), *(200, 0)[len(sys.argv) - 1 :]]
    outcomes = try_all(count, seed)
    wrong = [one for one in outcomes if not one_was_refused(one[1])]
    print(f"{len(outcomes)} double starts in {time.monotonic() - began:.0f} s:")
    print(Counter(kind for kind, _ in outcomes))
    print(f"{len(wrong)} not as they should be", *wrong, sep="\n")
    sys.exit(bool(wrong))
