"""What there is to wait for before the first step: the import, the building of a trainer, and the start of a fit.

In new processes, one after the other, each after `import torch`:

- the time that `import statemachine_trainer` and its first use (`Trainer`) add; at most 150 ms;
- the time to build the default trainer and to verify its loops, first and second; at most 50 ms;
- which modules took longest, by their own lines alone, with the packages that they belong to;
- the time to the end of the first step, by turns with a bare loop that does the same: from a loader with 4 workers
  (`fork`) to the end of the first step, and from the call of `fit` to there. Before that, each process makes one step
  without workers, because torch imports parts of itself then. Limit: that of the bare loop.

Modules are compiled beforehand. A collection of garbage that falls into the import, of the hundred
thousand objects that torch has made, is counted apart.

    python benchmarks/start.py [--processes 7] [--cpu-time] [--modules 15] [--write docs/performance]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

from _peers.report import load
from overhead import machine

Times = dict[str, list[float]]
"""Milliseconds in each process, by what was timed."""

LIMITS = {"import": 150.0, "build and verify": 50.0}

_IN_PROCESS = """
import gc, json, sys, time, torch
clock = time.{clock}
collected = [0.0, 0.0]
def watch(phase, info):
    if phase == "start":
        collected[1] = clock()
    else:
        collected[0] += clock() - collected[1]
gc.callbacks.append(watch)
before = clock()
import statemachine_trainer
from statemachine_trainer import Trainer
imported = clock()
gc.callbacks.remove(watch)
Trainer(max_epochs=1)
built = clock()
Trainer(max_epochs=1)
again = clock()
times = {{
    "import": imported - before - collected[0],
    "garbage of torch": collected[0],
    "build and verify": built - imported,
    "the same again": again - built,
}}
print(json.dumps({{name: 1e3 * seconds for name, seconds in times.items()}}))
"""

_FIRST_STEP = """
import json, tempfile, time, warnings
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from statemachine_trainer import Trainer

class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(inputs, targets)

warnings.simplefilter("ignore")  # of more workers than cores
torch.set_num_threads(1)
inputs, targets = torch.randn(2000, 32), torch.randint(10, (2000,))
loss = nn.CrossEntropyLoss()

def net():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))

def step(model, optimizer, batch):
    value = loss(model(batch[0]), batch[1])
    optimizer.zero_grad()
    value.backward()
    optimizer.step()

def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)

warm = net()
step(warm, sgd(warm.parameters()), (inputs[:32], targets[:32]))
data, model = {data}, net()
loader = DataLoader(data, batch_size=32, num_workers=4, multiprocessing_context="fork")
clock = time.{clock}
with tempfile.TemporaryDirectory() as folder:
    if {ours}:
        trainer = Trainer(max_steps=1, progress=False, checkpoints={checkpoints})
        ends = []
        trainer.on("batch_end", lambda: ends.append(clock()))
        before = clock()
        trainer.fit(model, loader, loss=loss, optimizer=sgd)
        taken = ends[0] - before
    else:
        before = clock()
        optimizer = sgd(model.parameters())
        for batch in loader:
            step(model, optimizer, batch)
            taken = clock() - before
            break
print(json.dumps(1e3 * taken), flush=True)
"""
_DATA = {"map-style": "TensorDataset(inputs, targets)", "iterable": "Stream()"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter, with one thread and with compiled modules."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True
    )


def measure(processes: int, *, cpu_time: bool) -> Times:
    """Time import and building in new processes, after one that compiles."""
    clock = "process_time" if cpu_time else "perf_counter"
    times: Times = {}
    for number in range(processes + 1):
        line = python("-c", _IN_PROCESS.format(clock=clock)).stdout.splitlines()[-1]
        if number:
            for name, milliseconds in json.loads(line).items():
                times.setdefault(name, []).append(milliseconds)
    return times


def measure_first_steps(processes: int, *, cpu_time: bool) -> Times:
    """Time the first step of a bare loop and of ours in new processes, by turns."""
    clock = "process_time" if cpu_time else "perf_counter"
    variants = {
        "a bare loop": (False, "None"),
        "ours": (True, "None"),
        "with a folder": (True, "folder"),
    }
    times: Times = {}
    for _ in range(processes):
        for kind, data in _DATA.items():
            for who, (ours, checkpoints) in variants.items():
                code = _FIRST_STEP.format(
                    data=data, clock=clock, ours=ours, checkpoints=checkpoints
                )
                line = python("-c", code).stdout.splitlines()[-1]
                times.setdefault(f"first step, {kind}, {who}", []).append(json.loads(line))
    return times


def own_times() -> dict[str, float]:
    """Milliseconds that each module takes by itself, of those that we add to torch."""
    already = set(python("-c", "import sys, torch; print(*sys.modules)").stdout.split())
    code = "import torch, gc; gc.disable(); from statemachine_trainer import Trainer"
    found = {}
    for line in python("-X", "importtime", "-c", code).stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit() and name.strip() not in already:
            found[name.strip()] = int(own) / 1e3
    return found


def table(times: Times) -> str:
    """Lay out the times in Markdown."""
    lines = ["| | ms, median | range | at most |", "|---|---|---|---|"]
    for name, taken in times.items():
        most = f"{LIMITS[name]:.0f}" if name in LIMITS else ""
        spread = f"{min(taken):.1f} to {max(taken):.1f}"
        lines.append(f"| {name} | {statistics.median(taken):.1f} | {spread} | {most} |")
    return "\n".join(lines)


def modules_table(own: dict[str, float], most: int) -> str:
    """Lay out packages and modules in Markdown, the longest first."""
    packages: Counter[str] = Counter()
    for name, milliseconds in own.items():
        packages[name.partition(".")[0]] += milliseconds  # type: ignore[assignment]
    by_time = sorted(own.items(), key=lambda item: -item[1])[:most]
    rows = ["| package | ms | | module | ms |", "|---|---|---|---|---|"]
    for (package, whole), (module, part) in zip(packages.most_common(most), by_time, strict=False):
        rows.append(f"| {package} | {whole:.1f} | | {module} | {part:.1f} |")
    return "\n".join(rows)


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="instead of the time on the wall")
    parser.add_argument("--modules", type=int, default=15, help="lines in the table of modules")
    parser.add_argument("--write", type=Path, help="folder for the table and the figures")
    options = parser.parse_args()
    clock = "CPU time" if options.cpu_time else "time on the wall"
    how = f"{machine()}; {clock}; {options.processes} processes; {load()}"
    times = measure(options.processes, cpu_time=options.cpu_time)
    times |= measure_first_steps(options.processes, cpu_time=options.cpu_time)
    text = f"{how}\n\n{table(times)}\n\n{modules_table(own_times(), options.modules)}"
    print(text)
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "start.json").write_text(json.dumps({"how": how, **times}) + "\n")
        (options.write / "start.md").write_text(f"# Before the first step\n\n{text}\n")


if __name__ == "__main__":
    main()
