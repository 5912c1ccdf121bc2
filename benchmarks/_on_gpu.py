"""The parts of `on_gpu.py`: each measures one thing and prints what it finds, a line of JSON each.

    python benchmarks/_on_gpu.py PART [--rehearse]

On a GPU times come from CUDA events. What waits for a disk is timed by the clock.
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
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from _twins import BareLoop, Batch, Classifier, TurnTaking, same_bits
from torch import nn
from torch.nn import functional as F

from statemachine_trainer import RunFolder, every
from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.snapshot import Retention, Store
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer

ROOT = Path(__file__).parents[1]


class Machine:
    """Where the parts run.

    Args:
        rehearse: On the CPU, small.

    Attributes:
        device: The device.
        small: Whether sizes are small.
    """

    def __init__(self, *, rehearse: bool) -> None:
        self.small = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda")
        self._start: Any = None

    def clock(self) -> float:
        """Return seconds; on a GPU by events, when all that was asked for so far is done."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._start is None:
            self._start = event
        return float(self._start.elapsed_time(event)) / 1e3

    def wall(self) -> float:
        """Return the time of the clock, when all that was asked for so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def tell(what: str, value: object, unit: str = "") -> None:
    """Print a result."""
    print(json.dumps({"what": what, "value": value, "unit": unit}), flush=True)


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Tell of an error as a result, and let the rest of the part go on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        tell(what, f"failed: {type(error).__name__}: {error}"[:300])
        _failures.append(what)


_failures: list[str] = []


def about(here: Machine) -> None:
    """Tell of device and versions."""
    if here.device.type == "cuda":
        tell("device", torch.cuda.get_device_name())
        tell("memory", f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
        tell("CUDA", str(torch.version.cuda))
    else:
        tell("device", f"{platform.processor() or platform.machine()} (a rehearsal)")
    tell("torch", str(torch.__version__))


# -- Tests ----------------------------------------------------------------------------------------


def tests(here: Machine) -> None:
    """Run every test marked `gpu`."""
    marked = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
    ]
    tell("files with such tests", len(marked))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q"]
        command += ["--continue-on-collection-errors"]  # of a file that lacks a library
        done = subprocess.run(
            [*command, f"--junitxml={report}", *marked],
            cwd=ROOT,
            check=False,
            stdout=sys.stderr,
        )
        tell("exit status of pytest", done.returncode)
        for case in ElementTree.parse(report).iter("testcase"):
            outcome = next((one.tag for one in case if one.tag != "properties"), "passed")
            tell(str(case.get("name")), outcome)
    if done.returncode:
        _failures.append("tests")


# -- What a step costs ----------------------------------------------------------------------------


def trainer_of(here: Machine, **settings: Any) -> Trainer:
    """Make a quiet trainer."""
    settings = {"max_epochs": 1, "progress": False, **settings}
    return Trainer(device=str(here.device), **settings)


def overhead(here: Machine) -> None:
    """Compare a step with one of a bare loop that trains a twin by turns."""
    sizes = {"tiny": ((32, 64, 10), 32), "large": ((1024, *[2048] * 4, 10), 1024)}
    if here.small:
        sizes = {"tiny": ((8, 8, 10), 4)}
    modes: dict[str, Callable[[], Any]] = {
        "bare": lambda: None,
        "eager": lambda: None,
        "compiled": CompiledStep,
        "CUDA graph": lambda: CompiledStep(mode="reduce-overhead"),
    }
    for size, (widths, samples) in sizes.items():
        for mode, loop in modes.items():
            if here.device.type == "cpu" and mode == "CUDA graph":
                continue
            with telling(f"{size}, {mode}"):
                _take_turns(here, f"{size}, {mode}", widths, samples, loop)


def _take_turns(
    here: Machine, name: str, widths: tuple[int, ...], samples: int, loop: Callable[[], Any]
) -> None:
    torch.manual_seed(0)
    steps, turns = (5, 3) if here.small else (50, 30)
    batches = [
        (
            torch.randn(samples, widths[0], device=here.device),
            torch.randint(10, (samples,), device=here.device),
        )
        for _ in range(steps)
    ]
    model, twin = Classifier(widths).to(here.device), Classifier(widths).to(here.device)
    twin.load_state_dict(model.state_dict())
    loader = TurnTaking(batches, BareLoop(twin).train, turns=turns, clock=here.clock)
    if name.endswith("bare"):
        BareLoop(model).train(loader)
    else:
        trainer = trainer_of(here)
        if (made := loop()) is not None:
            trainer.loop["optimizer"] = made
        trainer.fit(model, loader)
    ratios = [turn.tested / turn.bare for turn in loader.taken]
    bare = statistics.median(turn.bare for turn in loader.taken) / steps * 1e6
    more = statistics.median(turn.tested - turn.bare for turn in loader.taken) / steps * 1e6
    tell(f"{name}: ratio to bare", statistics.median(ratios))
    tell(f"{name}: range", f"{min(ratios):.3f} to {max(ratios):.3f}")
    tell(f"{name}: bare", bare, "us/step")
    tell(f"{name}: more", more, "us/step")
    tell(f"{name}: same bits", same_bits(model.cpu(), twin.cpu()))


# -- Feeding --------------------------------------------------------------------------------------


def prefetch(here: Machine) -> None:
    """Time a step whose batches come from pinned memory, with and without reading ahead."""
    width, samples = (64, 32) if here.small else (4096, 4096)
    few, many = (2, 6) if here.small else (10, 60)
    pin = here.device.type == "cuda"
    made = [(torch.randn(samples, width), torch.randint(10, (samples,))) for _ in range(4)]
    batches = [tuple(one.pin_memory() if pin else one for one in batch) for batch in made]
    there = [tuple(one.to(here.device) for one in batch) for batch in made]
    for name, data, ahead in (
        ("batches on the device", there, False),
        ("without prefetch", batches, False),
        ("with prefetch", batches, True),
    ):
        with telling(name):
            taken = {}
            for count in (few, few, many):
                model = Classifier((width, 1024, 10))
                whole = (data * count)[:count]
                begin = here.clock()
                trainer_of(here, prefetch=ahead).fit(model, whole)
                taken[count] = here.clock() - begin
            tell(name, (taken[many] - taken[few]) / (many - few) * 1e3, "ms/step")
    tell("of a batch", made[0][0].nbytes / 2**20, "MiB")


# -- Snapshots ------------------------------------------------------------------------------------


def snapshot(here: Machine) -> None:
    """Time how long a save keeps the caller waiting."""
    layers, width = (2, 64) if here.small else (32, 1024)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(here.device)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, width, device=here.device)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    tell("tensors", sum(one.nbytes for one in model.parameters()) * 3 / 1e6, "MB")
    with tempfile.TemporaryDirectory() as folder:

        def saved_by_torch(number: int) -> None:
            with Path(folder, f"{number}.pt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        with telling("torch.save and fsync"):
            tell("torch.save and fsync", _median(here, saved_by_torch), "s")
        for background in (False, True):
            name = "background" if background else "foreground"
            with telling(name):
                store = Store(
                    Path(folder, name), background=background, retention=Retention(last=1)
                )
                stalls = []
                for number in range(4):
                    begin = here.wall()
                    store.save(state, name=f"step-{number}")
                    stalls.append(here.wall() - begin)
                    store.wait()
                store.close()
                tell(f"{name}: first stall", stalls[0], "s")
                tell(f"{name}: stall", statistics.median(stalls[1:]), "s")


def _median(here: Machine, act: Callable[[int], object], times: int = 3) -> float:
    taken = []
    for number in range(times):
        begin = here.wall()
        act(number)
        taken.append(here.wall() - begin)
    return statistics.median(taken)


# -- Memory ---------------------------------------------------------------------------------------


def memory(here: Machine) -> None:
    """Train a batch that does not fit, by `on_oom="split"`, and compare with one that does."""
    if here.device.type == "cpu":
        tell("splitting", "no GPU: memory of the CPU is not taken up here")
        return
    total = torch.cuda.get_device_properties(0).total_memory
    batches = [(torch.randn(16384, 1024), torch.randint(10, (16384,))) for _ in range(4)]
    models = []
    for limit in (None, 1.0):
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit * 2**30 / total)
        model = Classifier((1024, *[4096] * 4, 10))
        torch.cuda.reset_peak_memory_stats()
        trainer = trainer_of(here, on_oom="split")
        trainer.fit(model, batches)
        name = "memory enough" if limit is None else f"{limit:g} GiB allowed"
        tell(f"{name}: most in use", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        tell(f"{name}: samples in a piece", str(trainer.context.piece_size or "all"))
        models.append(model.cpu())
        torch.cuda.set_per_process_memory_fraction(1.0)
    tell("weights apart, relative", _apart(*models))


def _apart(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    flat = [(a.detach().flatten(), b.detach().flatten()) for a, b in pairs]
    mine, theirs = (torch.cat(parts).double() for parts in zip(*flat, strict=True))
    return float((mine - theirs).norm() / theirs.norm())


# -- Exactness ------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """A network with convolutions, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, 16, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return F.cross_entropy(self.layers(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _resumable(here: Machine, *, exhaustive: bool = False, **settings: Any) -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(16, 3, 16, 16), torch.randint(10, (16,))) for _ in range(4)]

    def make() -> Trainer:
        trainer = trainer_of(here, max_epochs=2, seed=0, **settings)
        trainer.start(Pictures(), batches)
        return trainer

    assert_resumable(make, exhaustive=exhaustive)


def resume(here: Machine) -> None:
    """Stop a training at each boundary, and compare the bits of those that go on."""
    for name, ahead in (("deterministic algorithms", False), ("the same, read ahead", True)):
        with telling(name):
            _resumable(here, exhaustive=not ahead, deterministic=True, prefetch=ahead)
            tell(name, f"the same bits from {'some' if ahead else 'all'} boundaries")


def fp16(here: Machine) -> None:
    """Train in fp16 with its scaler, and stop and go on."""
    batches = [(torch.randn(16, 3, 16, 16), torch.randint(10, (16,))) for _ in range(8)]
    trainer = trainer_of(here, max_epochs=4, precision="fp16")
    trainer.fit(Pictures(), batches)
    scaler = trainer.context.precision.scaler
    assert scaler is not None
    tell("scale at the end", scaler.get_scale())
    tell("steps of 32 batches", trainer.steps)
    with telling("resume"):
        _resumable(here, precision="fp16", deterministic=True)
        tell("resume", "the same bits from some boundaries")


def fingerprints(here: Machine) -> None:
    """Time a step without fingerprints, and with those of every tenth step."""
    width, samples = (64, 32) if here.small else (2048, 1024)
    few, many = (10, 30) if here.small else (20, 220)
    batch = torch.randn(samples, width), torch.randint(10, (samples,))
    batches = [tuple(one.to(here.device) for one in batch)]
    for often in (None, every(10)):
        name = "none" if often is None else "at every tenth step"
        with telling(name):
            taken = {}
            for count in (few, few, many):
                with tempfile.TemporaryDirectory() as folder:
                    run = RunFolder(folder, blackbox=False, journal=False)
                    trainer = trainer_of(here, run=run, fingerprints=often)
                    begin = here.clock()
                    trainer.fit(Classifier((width, *[width] * 4, 10)), batches * count)
                    taken[count] = here.clock() - begin
            tell(name, (taken[many] - taken[few]) / (many - few) * 1e3, "ms/step")


PARTS: dict[str, Callable[[Machine], None]] = {
    one.__name__: one
    for one in (
        *(about, tests, overhead, prefetch, snapshot),
        *(memory, resume, fp16, fingerprints),
    )
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available() and options.part != "about":
        tell("no GPU", True)
        return
    if options.part == "about" and not torch.cuda.is_available():
        options.rehearse = True
    warnings.simplefilter("ignore")
    PARTS[options.part](Machine(rehearse=options.rehearse))
    if _failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
