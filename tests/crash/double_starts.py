"""Two processes that start in one folder at about the same time, many times over."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
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
        folder = self._root / "run"
        self._children = [_fork(folder, kind, begin), _fork(folder, kind, begin + delay)]

    def wait(self) -> list[str]:
        """Return what became of the two."""
        told = []
        for child, end in self._children:
            with os.fdopen(end, "rb") as file:
                told.append(file.read().decode())
            os.waitpid(child, 0)
        shutil.rmtree(self._root, ignore_errors=True)
        return told


def _fork(folder: Path, kind: str, begin: float) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        torch.set_num_threads(1)
        time.sleep(max(0.0, begin - time.time()))
        try:
            _train(folder, kind, begin + 2 * LATEST + 2)
            told = "ran"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode())
    finally:
        os._exit(0)


def _train(folder: Path, kind: str, end: float) -> None:
    """Train until the other one has surely started."""
    settings: dict[str, Any] = {"checkpoints": Checkpoints(folder, every=1), "max_epochs": 10**6}
    if kind == "without a record":
        settings["run"] = False
    if kind == "without a black box":
        settings["run"] = RunFolder(folder, blackbox=False)
    one = trainer(**settings)
    one.on("batch_end", lambda: time.sleep(0.05))
    one.on("batch_end", lambda trainer: trainer.stop(), when=lambda _: time.time() > end)
    if kind == "paused":
        one.fit(Net(), batches(), resume="auto", until=lambda trainer: trainer.steps == 2)
        time.sleep(max(0.0, end - time.time()))
        one.run()
        return
    one.fit(Net(), batches(), resume="auto")
