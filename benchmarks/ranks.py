"""What ranks that agree cost, as a ratio to a bare loop around `DistributedDataParallel`.

The loop under test and the bare one take turns of 50 steps on the same batches, in the same processes, each
with a wrapper of its own (see `_twins.py`). Per turn the ratio at rank 0; per launch the median over the turns;
over the launches the median and the range. Beside it the ratio of the lowest times of a turn, which a busy machine
disturbs least. One thread a rank, one machine; gloo, or what torch takes for the accelerator that is there.

A step waits for 5 ms, as the processor does while a device computes: the forward pass of a tiny perceptron
(32-64-10) sleeps until 5 ms have gone by since it began. It is the same for both loops. What a processor does
besides is not hidden behind the wait, as it would be with a device. A step that computes for 5 ms, `--compute`,
tells little where there are more ranks than cores: ranks then wait for cores, too. On a busy Linux machine
`chrt -r 5 python benchmarks/ranks.py` gives the ranks a priority at which others do not disturb them.

- bare: the bare loop in our place, which shows what the method makes of a ratio of 1;
- trainer: `Trainer.fit` as it is, whose ranks meet once a batch. One rank has nobody to meet, so its row has
  what the trainer costs without meetings.

    python benchmarks/ranks.py [--ranks 1 2 4 8] [--launches 5] [--turns 20] [--compute] [--write FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from _twins import BareLoop, Batches, Classifier, TurnTaking
from overhead import machine
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer import Trainer

COMPUTES, WAITS = (*[256] * 8, 10), (32, 64, 10)
"""Widths of a perceptron whose step takes about 5 ms; of one that takes next to nothing."""

BATCH, STEPS, SECONDS = {COMPUTES: 128, WAITS: 32}, 50, 0.005


class Waiting(Classifier):
    """A tiny perceptron that takes its time, and leaves the processor to others meanwhile."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits, of shape (batch, classes)."""
        end = time.perf_counter() + SECONDS
        logits = super().forward(inputs)
        time.sleep(max(0.0, end - time.perf_counter()))
        return logits


class BareRanks(BareLoop):
    """The loop that one writes by hand, around a wrapper."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.model = cast("Classifier", model)  # it is called as one
        self.optimizer = model.module.configure_optimizers()


def bare(model: DistributedDataParallel, batches: Batches) -> None:
    """Train by the bare loop."""
    BareRanks(model).train(batches)


def trainer(model: DistributedDataParallel, batches: Batches) -> None:
    """Train as users do."""
    Trainer(max_epochs=1, progress=False).fit(model, batches)


CASES = {"bare": bare, "trainer": trainer}


def measure_here(turns: int, kind: type[Classifier]) -> None:
    """Measure as one of the ranks; rank 0 prints what it found as JSON, a line for each case."""
    torch.set_num_threads(1)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    widths = WAITS if kind is Waiting else COMPUTES
    for case, train in CASES.items():
        torch.manual_seed(0)
        models = [kind(widths).to(device), kind(widths).to(device)]
        models[1].load_state_dict(models[0].state_dict())
        tested, twin = (DistributedDataParallel(one) for one in models)
        torch.manual_seed(1 + dist.get_rank())  # each rank has data of its own
        batches = [
            (
                torch.randn(BATCH[widths], widths[0]).to(device),
                torch.randint(10, (BATCH[widths],)).to(device),
            )
            for _ in range(STEPS)
        ]
        loader = TurnTaking(batches, BareRanks(twin).train, turns=turns)
        train(tested, loader)
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            # Loosely: of more than two ranks the wrappers add in another order, and that grows.
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-2)
        if dist.get_rank() == 0:
            ratio = statistics.median(turn.tested / turn.bare for turn in loader.taken)
            times = statistics.median(turn.bare for turn in loader.taken) / STEPS
            lowest = min(turn.tested for turn in loader.taken) / min(
                turn.bare for turn in loader.taken
            )
            found = {"case": case, "ratio": ratio, "lowest": lowest, "bare_ms": times * 1e3}
            print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def launch(ranks: int, arguments: list[str]) -> list[dict[str, float]]:
    """Measure with so many ranks in new processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *torchrun, __file__, "--here", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


class Row(NamedTuple):
    """What the launches with so many ranks found of one case: medians over them, and the range of the ratio."""

    ranks: int
    case: str
    ratio: float
    low: float
    high: float
    lowest: float
    bare_ms: float


def rows_of(ranks: int, found: list[list[dict[str, float]]]) -> Iterator[Row]:
    """Summarize launches, case by case."""
    for number, case in enumerate(CASES):
        ratios = [one[number]["ratio"] for one in found]
        lowest, bare_ms = (
            statistics.median(one[number][key] for one in found) for key in ("lowest", "bare_ms")
        )
        median = statistics.median(ratios)
        yield Row(ranks, case, median, min(ratios), max(ratios), lowest, bare_ms)


def table_of(rows: list[Row]) -> str:
    """Return a table in Markdown."""
    lines = [
        "| ranks | case | ratio to bare | range | of the lowest times | bare, ms/step |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        ratio = f"{one.ratio:.3f} | {one.low:.3f} to {one.high:.3f} | {one.lowest:.3f}"
        lines.append(f"| {one.ranks} | {one.case} | {ratio} | {one.bare_ms:.2f} |")
    return "\n".join(lines)


def has_priority() -> bool:
    """Return whether this process, and so the ranks that it starts, have a real-time priority."""
    if not hasattr(os, "sched_getscheduler"):
        return False
    return os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the ratio against the number of ranks, a line for each case with its range, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ranks"  # the same figures make the same file
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(5, 3))
    for case, color in zip(CASES, ("#9ca3af", "#1e3a8a"), strict=True):
        found = [one for one in rows if one.case == case]
        sizes = [one.ranks for one in found]
        apart = [[one.ratio - one.low for one in found], [one.high - one.ratio for one in found]]
        ratios = [one.ratio for one in found]
        panel.errorbar(
            sizes, ratios, apart, fmt="o-", color=color, markersize=4, capsize=3, label=case
        )
    panel.axhline(1.03, color="#fb923c", linestyle=":", linewidth=1)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [f"{size}" for size in sizes])
    panel.set(xlabel="ranks", ylabel="time of a step, bare loop = 1")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--compute", action="store_true", help="compute for 5 ms, do not wait")
    parser.add_argument("--write", type=Path, help="folder for the table and the plot")
    parser.add_argument("--here", action="store_true", help="measure as a rank; print JSON")
    options = parser.parse_args()
    if options.here:
        measure_here(options.turns, Classifier if options.compute else Waiting)
        return
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    arguments = ["--turns", str(options.turns), *["--compute"] * options.compute]
    rows = [
        row
        for ranks in options.ranks
        for row in rows_of(ranks, [launch(ranks, arguments) for _ in range(options.launches)])
    ]
    how = (
        f"{machine()}; load {load:.1f} before{', real-time priority' if has_priority() else ''}; one thread a rank; "
        f"{'computes' if options.compute else 'waits'}; {options.launches} launches, {options.turns} turns of "
        f"{STEPS} steps"
    )
    text = f"{textwrap.fill(how, 120)}\n\n{table_of(rows)}\n"
    print(text, end="")
    if options.write is not None:
        (options.write / "ranks.md").write_text(f"# What ranks that agree cost\n\n{text}")
        draw(rows, options.write / "ranks.svg")


if __name__ == "__main__":
    main()
