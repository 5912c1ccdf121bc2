"""What the trainer costs, as a ratio to a bare PyTorch loop that trains a twin model.

A tiny perceptron, of which a step takes some hundred microseconds, shows what a step costs; a
larger one, of about 5 ms a step, shows what is left of that in practice. The loop under test and
the bare one train in blocks of 50 steps on the same batches, one after the other, in one process, with one
thread on one core (see `_twins.py`). A turn is two blocks of each, so that each has one checkpoint where
there are any. Per turn the ratio; per process the median over the turns; over the processes, one after the
other, the median and the range.

- bare: the bare loop in our place, which shows what the method makes of a ratio of 1;
- nobody listening: `Trainer.fit` as it is, without a progress bar;
- one subscriber: with a function that counts batches on `batch_end`;
- logging: nobody listening, but each step logs its loss, which the bare loop does not;
- black box: nobody listening, but each transition is written into the ring of a run folder;
- page: nobody listening, but the live page is served, and another process asks it for the state of
  the run four times a second, as a browser does;
- as used: a progress bar, two values logged in each step, the learning rate, the black box and the
  journal, and a checkpoint in the background every 100 steps (in a tiny run: every 25 ms);
- as used, no checkpoints: the same without the checkpoints.

    python benchmarks/overhead.py [--processes 5] [--core N] [--size tiny] [--case page] [--cpu-time]

On a machine that others use at the same time, `--cpu-time` leaves out the time that they take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from _processes import measure
from _twins import Batch, Batches, Classifier, Comparison, Workload, bare, compare, hold_still
from rich.console import Console

from statemachine_trainer import EMA, Checkpoints, Monitor, Progress, every
from statemachine_trainer.loops import log
from statemachine_trainer.machine import Moment
from statemachine_trainer.observe.recorder import RunFolder
from statemachine_trainer.trainer import Trainer

Found = dict[tuple[str, str], list[Comparison]]
"""What each process found, by size and case."""

WORKLOADS = {
    "tiny": Workload(widths=(32, 64, 10), batch_size=32, turns=100),
    "5 ms": Workload(widths=(*[256] * 8, 10), batch_size=128, turns=30),
}


def nobody_listening(model: Classifier, batches: Batches) -> None:
    """Train with nobody listening."""
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, batches)


def one_subscriber(model: Classifier, batches: Batches) -> None:
    """Train with a receiver that counts the batches."""
    seen = 0

    def count(trainer: Trainer, moment: Moment) -> None:
        nonlocal seen
        seen += 1

    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.on("batch_end", count)
    trainer.fit(model, batches)
    if seen != trainer.steps:
        raise RuntimeError(f"The subscriber was called {seen} times in {trainer.steps} steps.")


def logging(model: Classifier, batches: Batches) -> None:
    """Train with a step that logs its loss."""
    _logs(model, number=False)
    nobody_listening(model, batches)


def _logs(model: Classifier, *, number: bool) -> None:
    """Let the step of a model log its loss, and a number if asked for."""
    step = model.training_step

    def training_step(batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = step(batch, batch_idx)
        log("loss", loss)
        if number:
            log("number", 0.5)
        return loss

    model.training_step = training_step  # type: ignore[method-assign]


def usual_ones_on(model: Classifier, batches: Batches) -> None:
    """Train with what people switch on: learning rates, throughput, and an average of the weights."""
    usual = [Monitor(throughput=True), EMA()]
    Trainer(max_epochs=1, device="cpu", progress=False, callbacks=usual).fit(model, batches)


def black_box(model: Classifier, batches: Batches) -> None:
    """Train with the black box on, and no journal."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", journal=False)
        trainer = Trainer(max_epochs=1, device="cpu", progress=False, run=run)
        trainer.fit(model, batches)


_BROWSER = """
import http.cookiejar, sys, time, urllib.request
opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
opener.open(sys.argv[1]).read()
print(flush=True)
state = sys.argv[1].partition("?")[0] + "state"
while True:
    opener.open(state).read()
    time.sleep(0.25)
"""


def page(model: Classifier, batches: Batches) -> None:
    """Train while somebody looks at the page."""
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    with trainer.serve() as served:
        command = [sys.executable, "-c", _BROWSER, served.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as browser:
            if hasattr(os, "sched_setaffinity"):  # a browser has a core of its own
                os.sched_setaffinity(browser.pid, range(os.cpu_count() or 1))
            assert browser.stdout is not None
            browser.stdout.readline()
            trainer.fit(model, batches)
            browser.kill()


def as_used_without_checkpoints(model: Classifier, batches: Batches) -> None:
    """Train with all that people usually have, but no checkpoints."""
    as_used(model, batches, checkpoints=False)


def as_used(model: Classifier, batches: Batches, *, checkpoints: bool = True) -> None:
    """Train with all that people usually have."""
    _logs(model, number=True)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as terminal:
        run = Path(folder) / "run"
        often = Checkpoints(run, every=every(100, "step"), background=True, at_end=False)
        trainer = Trainer(
            max_epochs=1,
            device="cpu",
            progress=Progress(Console(file=terminal, force_terminal=True, width=100)),
            callbacks=[Monitor()],
            checkpoints=often if checkpoints else None,
            run=run,
        )
        trainer.fit(model, batches)


CASES = {
    "bare": bare,
    "nobody listening": nobody_listening,
    "one subscriber": one_subscriber,
    "logging": logging,
    "usual ones on": usual_ones_on,
    "black box": black_box,
    "page": page,
    "as used, no checkpoints": as_used_without_checkpoints,
    "as used": as_used,
}


def measure_here(core: int | None, sizes: list[str], cases: list[str], *, cpu_time: bool) -> None:
    """Measure cases in this process and print them as JSON, a line each."""
    print(json.dumps({"how": hold_still(core)}))
    clock = time.process_time if cpu_time else time.perf_counter
    for size in sizes:
        for seed, (case, train) in enumerate(CASES.items()):
            if case not in cases:
                continue
            found = compare(train, WORKLOADS[size], seed=seed, clock=clock)
            print(json.dumps({"size": size, "case": case, **asdict(found)}), flush=True)


def table(found: Found) -> str:
    """Lay out what was found as a table in Markdown."""
    rows = [
        "| size | case | ratio to bare | range | bare, us/step | more, us/step | same weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for (size, case), runs in found.items():
        ratios = [run.ratio for run in runs]
        bare_us = statistics.median(run.bare_us for run in runs)
        extra_us = statistics.median(run.extra_us for run in runs)
        same = "to the bit" if all(run.same_bits for run in runs) else "NO"
        rows.append(
            f"| {size} | {case} | {statistics.median(ratios):.4f} | {min(ratios):.4f} to "
            f"{max(ratios):.4f} | {bare_us:.0f} | {extra_us:.1f} | {same} |"
        )
    return "\n".join(rows)


def machine() -> str:
    """Name the processor and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def main() -> None:
    """Measure and print a table in Markdown; exit with an error if weights differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--core", type=int, help="to be pinned to (the last one)")
    parser.add_argument("--size", choices=WORKLOADS, help="only this one")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one, or these")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the time on the wall")
    parser.add_argument("--here", action="store_true", help="measure in this process; print JSON")
    options = parser.parse_args()
    sizes = [options.size] if options.size else list(WORKLOADS)
    if options.here:
        cases = options.case or list(CASES)
        measure_here(options.core, sizes, cases, cpu_time=options.cpu_time)
        return
    how, lines = measure(__file__, options.processes, sys.argv[1:])
    found: Found = {}
    for line in lines:
        where = line.pop("size"), line.pop("case")
        found.setdefault(where, []).append(Comparison(**line))
    turns = " and ".join(f"{WORKLOADS[size].turns} ({size})" for size in sizes)
    clock = "CPU time" if options.cpu_time else "time on the wall"
    print(
        f"{machine()}; {how}; {clock}; {options.processes} processes, turns of 100 steps: {turns}\n"
    )
    print(table(found))
    if not all(run.same_bits for runs in found.values() for run in runs):
        raise SystemExit("The weights of a model differ from those of its bare twin.")


if __name__ == "__main__":
    main()
