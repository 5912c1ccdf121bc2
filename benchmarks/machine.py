"""What the machine itself costs: a run with the states and loops of a training epoch, all empty.

Eight transitions a batch, of which none trains anything: what is left is what the machine takes,
the calls of the empty states included. With nobody listening, and with one subscriber on
`batch_end`. The median and the range over turns of 10,000 batches, one thread on one core.

    python benchmarks/machine.py [--turns 30] [--batches 10000] [--core N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Literal

from _twins import hold_still

from statemachine_trainer.machine import Driver, Loop, field, place


class OptimizerLoop(Loop):
    """Three states that do nothing; one field to be reset at each entry."""

    initial = "forward"
    transitions = (
        ["forward_done", "forward", "backward"],
        ["backward_done", "backward", "optimizer_step"],
    )
    outcomes = ("optimized",)

    turn: int = 0

    def forward(self) -> Literal["forward_done"]:
        """Answer."""
        return "forward_done"

    def backward(self) -> Literal["backward_done"]:
        """Answer."""
        return "backward_done"

    def optimizer_step(self) -> Literal["optimized"]:
        """Answer."""
        return "optimized"


class BatchLoop(Loop):
    """One split for each batch."""

    initial = "batch_start"
    transitions = (
        ["batch_started", "batch_start", "batch_split"],
        ["split", "batch_split", "optimizer"],
        ["optimized", "optimizer", "batch_split"],
        ["batch_complete", "batch_split", "batch_end"],
    )
    outcomes = ("batch_done",)

    optimizer: Loop = place(OptimizerLoop)
    done: bool = False

    def batch_start(self) -> Literal["batch_started"]:
        """Answer."""
        return "batch_started"

    def batch_split(self) -> Literal["split", "batch_complete"]:
        """Answer one, then the other."""
        if self.done:
            return "batch_complete"
        self.done = True
        return "split"

    def batch_end(self) -> Literal["batch_done"]:
        """Answer."""
        return "batch_done"


class EpochLoop(Loop):
    """As many batches as are asked for.

    Args:
        batches: Their number.
    """

    initial = "fetch"
    transitions = (["fetched", "fetch", "batch"], ["batch_done", "batch", "fetch"])
    outcomes = ("exhausted",)

    batch: Loop = place(BatchLoop)
    fetched: int = field(0)

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def fetch(self) -> Literal["fetched", "exhausted"]:
        """Count."""
        if self.fetched == self.batches:
            return "exhausted"
        self.fetched += 1
        return "fetched"


def run(batches: int, *, heard: bool) -> float:
    """Return microseconds per batch of one run."""
    driver = Driver(EpochLoop(batches), name="epoch")
    if heard:
        driver.board.on("batch_end", lambda sender, moment: None)
    driver.start()
    start = time.perf_counter()
    driver.run()
    return (time.perf_counter() - start) / batches * 1e6


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--core", type=int, help="to be pinned to (the last one)")
    options = parser.parse_args()
    print(f"{hold_still(options.core)}; {options.turns} turns of {options.batches} batches\n")
    print("| case | us/batch, median | range | us/transition |")
    print("|---|---|---|---|")
    for case, heard in (("nobody listening", False), ("one subscriber", True)):
        taken = [run(options.batches, heard=heard) for _ in range(options.turns)]
        median = statistics.median(taken)
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        print(f"| {case} | {median:.2f} | {spread} | {median / 8:.3f} |")


if __name__ == "__main__":
    main()
