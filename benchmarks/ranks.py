"""What ranks that agree cost, as a ratio to a bare loop around `DistributedDataParallel`.

The loop under test and the bare one take turns of 50 steps on the same batches, in the same processes, each
with a wrapper of its own (see `_twins.py`). Per turn the ratio at rank 0; per launch the median over the turns;
over the launches the median and the range. Beside it the ratio of the lowest times of a turn, which a busy machine
disturbs least. One thread a rank, one machine; gloo, or what torch takes for the
accelerator that is there. Where there are more ranks than cores, ranks wait for cores too, and the ratio tells little.

- bare: the bare loop in our place, which shows what the method makes of a ratio of 1;
- trainer: `Trainer.fit` as it is, whose ranks meet once a batch.

    python benchmarks/ranks.py [--ranks 1 2 4 8] [--launches 3] [--turns 30]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import cast

import torch
import torch.distributed as dist
from _twins import BareLoop, Batches, Classifier, TurnTaking
from overhead import machine
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer import Trainer

WIDTHS = (*[256] * 8, 10)
"""Of a perceptron whose step takes about 5 ms."""

BATCH, STEPS = 128, 50


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


def measure_here(turns: int) -> None:
    """Measure as one of the ranks; rank 0 prints what it found as JSON, a line for each case."""
    torch.set_num_threads(1)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    for case, train in CASES.items():
        torch.manual_seed(0)
        models = [Classifier(WIDTHS).to(device), Classifier(WIDTHS).to(device)]
        models[1].load_state_dict(models[0].state_dict())
        tested, twin = (DistributedDataParallel(one) for one in models)
        torch.manual_seed(1 + dist.get_rank())  # each rank has data of its own
        batches = [
            (torch.randn(BATCH, 256).to(device), torch.randint(10, (BATCH,)).to(device))
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


def launch(ranks: int, turns: int) -> list[dict[str, float]]:
    """Measure with so many ranks in new processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *torchrun, __file__, "--here", "--turns", str(turns)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--here", action="store_true", help="measure as a rank; print JSON")
    options = parser.parse_args()
    if options.here:
        measure_here(options.turns)
        return
    load = os.getloadavg()[0]
    rows = [
        "| ranks | case | ratio to bare | range | of the lowest times | bare, ms/step |",
        "|---|---|---|---|---|---|",
    ]
    for ranks in options.ranks:
        found = [launch(ranks, options.turns) for _ in range(options.launches)]
        for number, case in enumerate(CASES):
            ratios = [one[number]["ratio"] for one in found]
            times = statistics.median(one[number]["bare_ms"] for one in found)
            lowest = statistics.median(one[number]["lowest"] for one in found)
            middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
            rows.append(
                f"| {ranks} | {case} | {middle:.3f} | {low:.3f} to {high:.3f} | {lowest:.3f} | {times:.2f} |"
            )
    print(
        f"{machine()}; load {load:.1f} before; one thread a rank; {options.launches} launches, "
        f"{options.turns} turns of {STEPS} steps\n"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
