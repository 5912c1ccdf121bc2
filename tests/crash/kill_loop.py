"""A training, killed with SIGKILL at random times and started again, until it ends.

    python kill_loop.py FOLDER KILLS SEED [options of training.py]

torch is imported once: each process to be killed is a fork of this one, as it was before anything
was trained. Prints what happened as JSON; what the digests say is for the caller to compare.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from statemachine_trainer.audit.report import NotHeld
from tests.crash import training

LEFTOVERS = (".tmp@", ".trash@")
FIRST_STEPS = 60.0
"""Seconds after which a process that has not begun to train hangs."""


def start(arguments: list[str]) -> tuple[int, int]:
    """Fork a process that trains; return its number, and a pipe that gets a byte for each state that it leaves."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    code = 1
    warnings.filterwarnings("ignore", category=NotHeld)

    def tell() -> None:
        os.write(writing, b".")

    try:
        training.train(training.options(arguments), begun=tell)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(reading: int, states: int, seconds: float, chance: random.Random) -> None:
    """Let a process leave up to so many states, and go on for up to so long; now and then not even begin.

    Counted in states, since a machine that is busy now may be idle later: the run would end too early.
    """
    if chance.random() < 0.1:
        time.sleep(chance.uniform(0.0, 0.1))
        return
    left = chance.randint(1, states)
    while left and select.select([reading], [], [], FIRST_STEPS)[0]:
        told = len(os.read(reading, left))
        if not told:
            return
        left -= told
    time.sleep(chance.uniform(0.0, seconds))


def run_whole(arguments: list[str]) -> tuple[float, int]:
    """Run the training without a disturbance; return how long it took, and how many states it left."""
    begun = time.monotonic()
    process, reading = start(arguments)
    status = os.waitpid(process, 0)[1]
    took, left = time.monotonic() - begun, len(os.read(reading, 1 << 16))
    os.close(reading)
    assert status == 0, "the undisturbed training failed"
    assert left < 1 << 16, "more than a pipe holds"
    return took, left


def main() -> None:
    root, kills, seed, rest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    warnings.simplefilter("error")  # a damaged checkpoint that is met on the way is a failure
    torch.set_num_threads(1)
    chance = random.Random(seed)
    begun = time.monotonic()
    training.warm_up()
    gc.freeze()  # else each fork copies what is imported, as it looks for garbage there
    run_whole([str(root / "bare"), str(root / "bare.json"), "--bare", *rest])
    whole, states = run_whole([str(root / "whole"), str(root / "whole.json"), *rest])

    folder, arguments = root / "run", [str(root / "run"), str(root / "run.json"), *rest]
    killed = cut_short = before_first = starts = 0
    while True:
        starts += 1
        process, reading = start(arguments)
        if killed < kills:
            # Each lives, on average, for that part of the run that leaves enough for the others.
            wait_for(reading, max(1, int(0.8 * states / kills)), whole / states, chance)
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        os.close(reading)
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        cut_short += any(name.startswith(LEFTOVERS) for name in names)
        before_first += not any(name[0].isdigit() for name in names)
    assert os.WEXITSTATUS(status) == 0, f"start {starts} failed"
    history = json.loads((folder / "run.json").read_text())["history"]
    print(
        json.dumps(
            {
                "kills": killed,
                "cut_short": cut_short,
                "before_first": before_first,
                "starts": starts,
                "resumed": sum(one["event"] == "resumed" for one in history),
                "seconds": round(time.monotonic() - begun, 1),
                "undisturbed_seconds": round(whole, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
