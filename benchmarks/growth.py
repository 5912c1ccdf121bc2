"""Whether the cost of a batch grows with anything but the work that it does.

The machine alone, with states that do nothing, so that its own cost is all there is:

- length: 10 to 1,000,000 batches in one run; to be flat, but for the first
  batch at the small end;
- subscribers: 1 to 100 receivers of one signal; to be a line, and 100 receivers of a signal that
  fires once a run are to cost next to nothing;
- depth: a loop of two states inside 1 to 10 loops; its own transitions are to be flat.

Of each the median over turns, in microseconds, one thread on one core.

    python benchmarks/growth.py [--turns 7] [--most 1000000] [--core N] [--cpu-time]
        [--write docs/performance]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from _peers.report import load
from _twins import Clock, hold_still
from machine import EpochLoop
from overhead import machine

from statemachine_trainer.machine import Driver, Loop, field, place

Measure = Callable[[int, Clock], float]
"""Microseconds at a value of what is varied, by a clock."""

Points = dict[int, list[float]]
"""Microseconds of each turn, by what is varied."""


class Ticking(Loop):
    """Two states in turn, so many times.

    Args:
        times: How often.
    """

    initial = "tick"
    transitions = (["ticked", "tick", "tock"], ["tocked", "tock", "tick"])
    outcomes = ("ended",)

    count: int = field(0)

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def tick(self) -> Literal["ticked", "ended"]:
        """Count."""
        if self.count == self.times:
            return "ended"
        self.count += 1
        return "ticked"

    def tock(self) -> Literal["tocked"]:
        """Answer."""
        return "tocked"


class Around(Loop):
    """A loop with another inside."""

    initial = "inside"
    transitions = ()
    outcomes = ("ended",)

    inside: Loop = place(Ticking)


def nested(depth: int, times: int) -> Loop:
    """Two states in turn, inside so many loops."""
    loop: Loop = Ticking(times)
    for _ in range(depth - 1):
        loop = Around(inside=loop)
    return loop


def seconds(driver: Driver, clock: Clock) -> float:
    """What a run takes, once it is started."""
    driver.start()
    begin = clock()
    driver.run()
    return clock() - begin


def of_length(batches: int, clock: Clock) -> float:
    """Microseconds a batch, in a run of so many."""
    repeats = max(1, 1000 // batches)  # a run of ten is too short for the clock
    drivers = [Driver(EpochLoop(batches), name="epoch") for _ in range(repeats)]
    return sum(seconds(driver, clock) for driver in drivers) / repeats / batches * 1e6


def of_subscribers(signal: str) -> Measure:
    """Make a function: microseconds a batch, with so many receivers of a signal."""

    def measure(count: int, clock: Clock) -> float:
        driver = Driver(EpochLoop(2000), name="epoch")
        for _ in range(count):
            driver.board.on(signal, lambda sender, moment: None)
        return seconds(driver, clock) / 2000 * 1e6

    return measure


def of_depth(depth: int, clock: Clock) -> float:
    """Microseconds a transition, of a loop inside so many."""
    times = 10_000
    driver = Driver(nested(depth, times), name="root")
    return seconds(driver, clock) / (2 * times) * 1e6


def vary(measure: Measure, values: list[int], turns: int, clock: Clock) -> Points:
    """Measure at each value, all values in turn, again and again."""
    points: Points = {value: [] for value in values}
    for _ in range(turns):
        for value in values:
            points[value].append(measure(value, clock))
    return points


def table(found: dict[str, Points]) -> str:
    """Lay out what was found in Markdown."""
    lines = []
    for name, points in found.items():
        lines += [f"**{name}**", "", "| | median | range |", "|---|---|---|"]
        for value, taken in points.items():
            spread = f"{min(taken):.3f} to {max(taken):.3f}"
            lines.append(f"| {value:,} | {statistics.median(taken):.3f} | {spread} |")
        lines.append("")
    return "\n".join(lines)


def plot(found: dict[str, Points], path: Path) -> None:
    """Draw what was found, a panel each, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "growth"  # the same figures make the same file
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2))
    for panel, (name, points) in zip(panels, found.items(), strict=True):
        medians = [statistics.median(taken) for taken in points.values()]
        low = [min(taken) for taken in points.values()]
        panel.fill_between([*points], low, [max(t) for t in points.values()], color="#fed7aa")
        panel.plot([*points], medians, "o-", color="#c2410c", markersize=4)
        panel.set_title(name, fontsize=9)
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
        if max(points) > 1000:
            panel.set_xscale("log")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--most", type=int, default=1_000_000, help="batches of the longest run")
    parser.add_argument("--core", type=int, help="to be pinned to (the last one)")
    parser.add_argument("--write", type=Path, help="folder for the tables, the plot and figures")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the time on the wall")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    told = "CPU time" if options.cpu_time else "time on the wall"
    how = f"{machine()}; {hold_still(options.core)}; {options.turns} turns; {told}; {load()}"
    lengths = [10**power for power in range(1, 8) if 10**power <= options.most]
    receivers = [1, 2, 5, 10, 20, 50, 100]
    cases: dict[str, tuple[Measure, list[int]]] = {
        "batches in a run: us/batch": (of_length, lengths),
        "receivers of `batch_end`: us/batch": (of_subscribers("batch_end"), receivers),
        "receivers called once a run: us/batch": (of_subscribers("epoch:exhausted"), receivers),
        "depth: us/transition": (of_depth, [1, 2, 3, 5, 7, 10]),
    }
    found = {
        name: vary(measure, values, options.turns, clock)
        for name, (measure, values) in cases.items()
    }
    print(f"{how}\n\n{table(found)}")
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "growth.json").write_text(json.dumps({"how": how, **found}) + "\n")
        (options.write / "growth.md").write_text(
            f"# How the cost grows\n\n{how}\n\n{table(found)}\n"
        )
        plot(found, options.write / "growth.svg")


if __name__ == "__main__":
    main()
