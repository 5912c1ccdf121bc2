"""Processes that save as fast as they can, killed at random times.

Run as a program, so that torch is imported once and each process to be killed is a fork of it:

    python kill_loop.py FOLDER KILLS {foreground,background} SEED

Each process goes on from the newest checkpoint, tells through a pipe of each that is safe, and is
killed with SIGKILL. Then the newest must be whole, not older than what was told, and all of one
moment. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import warnings
from pathlib import Path

import torch

from statemachine_trainer.snapshot import Best, Loaded, Retention, Store

SIZES = (300_000, 70_000, 5, 0, 90)


def step_of(loaded: Loaded | None) -> int:
    if loaded is None:
        return 0
    tree, step = loaded.tree, loaded.metadata["step"]
    assert isinstance(tree, dict)
    assert isinstance(step, int)
    assert tree["step"] == step
    assert all(bool((weight == step).all()) for weight in tree["weights"])
    return step


def save_for_ever(root: Path, background: bool, told: int) -> None:
    retention = Retention(last=2, best=Best("loss"))
    store = Store(root, retention=retention, background=background)
    step = step_of(store.newest())
    weights = [torch.full((size,), step, dtype=torch.int32) for size in SIZES]
    while True:
        step += 1
        for weight in weights:
            weight.fill_(step)
        metadata = {"step": step, "metrics": {"loss": -(step % 7)}}
        store.save({"step": step, "weights": weights}, name=f"step-{step}", metadata=metadata)
        safe = step - 1 if background else step  # a save waits for the write before
        os.write(told, safe.to_bytes(8, "little"))


def kill_one(root: Path, background: bool, chance: random.Random) -> int:
    """Let a process save until a random moment; the last step that it told to be safe."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            save_for_ever(root, background, writing)
        finally:
            os._exit(1)  # only reached by an error, which is on stderr
    os.close(writing)
    # From the first checkpoint that is safe on, a few saves' time, and no two moments alike.
    told = b""
    for _ in range(2 if background else 1):
        told = os.read(reading, 8)
    select.select([], [], [], chance.uniform(0, 0.03))
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status), "the process ended by itself"
    while piece := os.read(reading, 1 << 16):
        told += piece
    os.close(reading)
    return int.from_bytes(told[-8:], "little")


def main() -> None:
    root, kills, mode, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    warnings.simplefilter("error")  # a damaged checkpoint that is seen is a failure
    torch.set_num_threads(1)
    chance = random.Random(seed)
    cut_short = steps = 0
    for _ in range(kills):
        told = kill_one(root, mode == "background", chance)
        cut_short += any(path.name.startswith((".tmp@", ".trash@")) for path in root.iterdir())
        store = Store(root)
        found = step_of(store.newest())
        assert found >= max(told, steps), f"step {told} was safe, and {found} is the newest"
        assert all(info.damage is None for info in store.list())
        steps = found
    print(json.dumps({"kills": kills, "steps": steps, "cut_short": cut_short}))


if __name__ == "__main__":
    main()
