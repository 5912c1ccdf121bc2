"""Measures one peer: runs in the environment of that peer, and prints JSON, a line for each row.

Usage: python -m _peers.inside ADAPTER ROW ... [--turns FACTOR] [--cpu-time]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _twins import BareLoop, Clock, hold_still, same_bits, together
from torch.utils._python_dispatch import TorchDispatchMode

from _peers.work import WIDTHS, Classifier, Plain, Training, Turns, make_batches, median_ratio

BLOCK = 50
BLOCKS = 2
"""Blocks in a turn: in one of them falls a checkpoint, where there are any."""
TURNS = {"tiny": 50, "5 ms": 10}
WAITS = ("_local_scalar_dense", "is_nonzero")
"""Operations that read a number from the device, and so wait for it."""


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.waits += any(name in str(func) for name in WAITS)
        return func(*args, **(kwargs or {}))


def turns(adapter: Any, size: str, factor: float, clock: Clock, how: str) -> dict[str, Any]:
    """Let a peer and the bare twin take turns.

    Args:
        adapter: That of the peer.
        size: Of the model.
        factor: On the number of turns.
        clock: Tells the time in seconds.
        how: "" for the training alone, "one callback", or "as used".
    """
    torch.manual_seed(0)
    batches = make_batches(size, BLOCK)
    model, twin = Classifier(WIDTHS[size]), Classifier(WIDTHS[size])
    twin.load_state_dict(model.state_dict())
    data = Turns(batches, twin, max(3, round(TURNS[size] * factor)) * BLOCKS, clock)
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    if how == "as used":
        with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as terminal:
            adapter.as_used(model, data, Path(folder), terminal)
    else:
        adapter.steps(model, data, count if how else None)
    if how == "one callback" and calls != data.count:
        raise RuntimeError(f"The callback was called {calls} times in {data.count} steps.")
    taken, steps = together(data.taken, BLOCKS), BLOCK * BLOCKS
    return {
        "ratio": median_ratio(taken),
        "bare_us": statistics.median(turn.bare for turn in taken) / steps * 1e6,
        "extra_us": statistics.median(t.tested - t.bare for t in taken) / steps * 1e6,
        **agreement(model, twin),
    }


def agreement(model: Classifier, twin: Classifier) -> dict[str, Any]:
    """How far the weights are from those of the twin."""
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    apart = max(float((one.detach() - other.detach()).abs().max()) for one, other in pairs)
    return {"same_bits": same_bits(model, twin), "apart": apart}


def training(adapter: Any, factor: float) -> dict[str, Any]:
    """Let a peer and the bare loop train by turns, each a whole training."""
    bare = importlib.import_module("_peers.adapters.bare")
    ratios, seconds = [], []
    found: dict[str, Any] = {}
    for number in range(1 + max(2, round(6 * factor))):
        torch.manual_seed(number)
        model, twin = Classifier(WIDTHS["5 ms"]), Classifier(WIDTHS["5 ms"])
        twin.load_state_dict(model.state_dict())
        theirs, loss, written = _timed(adapter.training, model)
        ours, expected, least = _timed(bare.training, twin)
        found = agreement(model, twin)
        if abs(loss - expected) > 1e-3 * abs(expected):
            raise RuntimeError(f"The validation loss is {loss}, that of the bare loop {expected}.")
        if written < least / 3:
            raise RuntimeError(f"{written} bytes were written, by the bare loop {least}.")
        if number:  # the first is to get warm
            ratios.append(theirs / ours)
            seconds.append(ours)
    return {"ratio": statistics.median(ratios), "bare_s": statistics.median(seconds), **found}


def _timed(train: Callable[[Any, Training], float], model: Classifier) -> tuple[float, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        job = Training(Path(folder))
        gc.collect()
        begin = time.perf_counter()
        loss = train(model, job)
        taken = time.perf_counter() - begin
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return taken, loss, sum(path.stat().st_size for path in files)


def counts(adapter: Any) -> dict[str, Any]:
    """Count what a step is made of: over a long and a short run, what is between them."""
    few, many = 10, 30

    def calls(count: int) -> int:
        model, data = Classifier(WIDTHS["tiny"]), Plain(make_batches("tiny", count))
        seen = 0

        def profile(frame: Any, event: str, _argument: object) -> None:
            nonlocal seen
            seen += event == "call"

        gc.disable()
        sys.setprofile(profile)
        try:
            adapter.steps(model, data, None)
        finally:
            sys.setprofile(None)
            gc.enable()
        return seen

    def operations(count: int) -> Operations:
        model, data = Classifier(WIDTHS["tiny"]), Plain(make_batches("tiny", count))
        mode = Operations()
        with mode:
            adapter.steps(model, data, None)
        return mode

    calls(few)
    short, long = operations(few), operations(many)
    return {
        "calls": (calls(many) - calls(few)) / (many - few),
        "operations": (long.count - short.count) / (many - few),
        "waits": (long.waits - short.waits) / (many - few),
    }


def memory(adapter: Any) -> dict[str, Any]:
    """Peak memory of a process that trains the tiny model."""
    torch.manual_seed(0)
    data = Plain(make_batches("tiny", BLOCK) * 20)
    adapter.steps(Classifier(WIDTHS["tiny"]), data, None)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mib": kib / 1024 if sys.platform == "linux" else kib / 2**20}


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter")
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--turns", type=float, default=1.0)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    warnings.simplefilter("ignore")
    BareLoop(Classifier(WIDTHS["tiny"])).train(make_batches("tiny", 1))  # what torch imports late
    everywhere = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    hold_still()
    begin = clock()
    adapter = importlib.import_module(f"_peers.adapters.{options.adapter}")
    print(json.dumps({"row": "import", "seconds": clock() - begin}), flush=True)
    for row in options.rows:
        if row == "training":
            if everywhere is not None:
                os.sched_setaffinity(0, everywhere)
            found = training(adapter, options.turns)
        elif row == "counts":
            found = counts(adapter)
        elif row == "memory":
            found = memory(adapter)
        else:
            size, _, how = row.partition(", ")
            if how == "as used" and not hasattr(adapter, "as_used"):
                continue
            found = turns(adapter, size, options.turns, clock, how)
        print(json.dumps({"row": row, **found}), flush=True)


if __name__ == "__main__":
    main()
