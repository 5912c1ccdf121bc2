"""Whether a long run stays as it began: memory, files and the cost of a step, with everything on.

A tiny model is trained in epochs of 10,000 steps, with a progress bar, two values and the learning
rate logged in each step, a validation after each epoch, early stopping that watches it, black box,
journal, the live page (nobody looks at it), and checkpoints in the background every 2,000 steps, of
which three are kept. After each epoch is noted, in the run itself:

- us/step: CPU time of the process, of all that it did in the epoch;
- MiB: memory of the process at that moment;
- objects: those that Python's collector of garbage knows, after a collection;
- journal, ring: bytes of these files; the journal gets a few lines an epoch, so it may grow by them;
- files: in the folder of the run, those in its checkpoints included.

    python benchmarks/long.py [--steps 1000000] [--minutes 10] [--write docs/performance]

Each epoch goes to the standard error as it ends. The command ends with an error if memory, objects or
the cost of a step have grown by a tenth from the first quarter of the run (without its first epoch)
to the last.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from _peers.report import load
from _twins import Batch, Classifier, hold_still
from overhead import machine
from rich.console import Console
from torch.nn import functional as F

from statemachine_trainer import (
    Checkpoints,
    EarlyStopping,
    Monitor,
    Progress,
    Retention,
    Trainer,
    every,
    log,
)

EPOCH = 10_000
"""Steps in an epoch."""

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Noted:
    """How the run is at the end of an epoch."""

    steps: int
    us_per_step: float
    mebibytes: float
    objects: int
    journal: int
    ring: int
    files: int


class Logged(Classifier):
    """The perceptron, with all that is logged."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        loss = super().training_step(batch, batch_idx)
        log("loss", loss, prog_bar=True)
        log("number", 0.5)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch."""
        inputs, targets = batch
        log("validation_loss", F.cross_entropy(self(inputs), targets))


class Repeated:
    """A pass over a few batches, again and again.

    Args:
        batches: The batches.
        count: Batches in the pass.
    """

    def __init__(self, batches: Sequence[Batch], count: int) -> None:
        self._batches = batches
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self._count):
            yield self._batches[number % len(self._batches)]


def train(folder: Path, steps: int, seconds: float) -> list[Noted]:
    """Train so many steps, or as many as there is time for, and note each epoch."""
    torch.manual_seed(0)
    batches = [(torch.randn(32, 32), torch.randint(10, (32,))) for _ in range(50)]
    noted: list[Noted] = []
    end = time.monotonic() + seconds
    with Path(os.devnull).open("w") as terminal:
        trainer = Trainer(
            max_steps=steps,
            device="cpu",
            progress=Progress(Console(file=terminal, force_terminal=True, width=100)),
            callbacks=[Monitor(), EarlyStopping("validation_loss", patience=steps)],
            checkpoints=Checkpoints(
                folder, every=every(2_000, "step"), retention=Retention(last=3), background=True
            ),
        )
        begun = time.process_time()

        @trainer.on("epoch_end:exit")
        def note(trainer: Trainer) -> None:
            nonlocal begun
            taken = time.process_time() - begun
            gc.collect()
            noted.append(look(trainer, folder, taken))
            print(noted[-1], file=sys.__stderr__, flush=True)  # not the one of the bar
            if time.monotonic() > end:
                trainer.stop()
            begun = time.process_time()

        with trainer.serve():
            trainer.fit(Logged((32, 64, 10)), Repeated(batches, EPOCH), batches[:5])
    return noted


def look(trainer: Trainer, folder: Path, seconds: float) -> Noted:
    """Note how the run is."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20
    # A checkpoint is written meanwhile; `os.walk` passes over a folder that was renamed since it was listed.
    paths = [Path(where, name) for where, _, names in os.walk(folder) for name in names]
    return Noted(
        steps=trainer.steps,
        us_per_step=seconds / EPOCH * 1e6,
        mebibytes=resident,
        objects=len(gc.get_objects()),
        journal=sum(_size(path) for path in paths if path.name.startswith("journal")),
        ring=sum(_size(path) for path in paths if path.suffix == ".ring"),
        files=len(paths),
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def grown(noted: Sequence[Noted]) -> dict[str, float]:
    """Return by which factor each thing grew, from the first quarter to the last."""
    after = noted[1:] if len(noted) > 4 else noted
    quarter = max(1, len(after) // 4)
    return {
        one.name: statistics.median(getattr(n, one.name) for n in after[-quarter:])
        / max(statistics.median(getattr(n, one.name) for n in after[:quarter]), 1e-9)
        for one in fields(Noted)
    }


def table(noted: Sequence[Noted], rows: int = 12) -> str:
    """Lay out some epochs, evenly spread, and what grew, in Markdown."""
    lines = [
        "| steps | us/step | MiB | objects | journal, B | ring, B | files |",
        "|---|---|---|---|---|---|---|",
    ]
    places = sorted({round(k * (len(noted) - 1) / max(1, rows - 1)) for k in range(rows)})
    for place in places:
        one = noted[place]
        lines.append(
            f"| {one.steps:,} | {one.us_per_step:.0f} | {one.mebibytes:.1f} | "
            f"{' | '.join(f'{number:,}' for number in astuple(one)[3:])} |"
        )
    factors = [f"{factor:.3f}" for name, factor in grown(noted).items() if name != "steps"]
    lines.append(f"| last quarter by first | {' | '.join(factors)} |")
    return "\n".join(lines)


def main() -> None:
    """Train and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--core", type=int, help="to be pinned to (the last one)")
    parser.add_argument("--write", type=Path, help="folder for the table")
    options = parser.parse_args()
    how = f"{machine()}; {hold_still(options.core)}; CPU time; {load()}"
    with tempfile.TemporaryDirectory() as folder:
        noted = train(Path(folder, "run"), options.steps, options.minutes * 60)
    text = f"{how}; load {os.getloadavg()[0]:.1f} at the end\n\n{table(noted)}"
    print(text)
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "long.md").write_text(f"# A long run\n\n{text}\n")
    factors = grown(noted)
    for name in ("mebibytes", "objects", "us_per_step", "ring"):
        if factors[name] > 1.1:
            raise SystemExit(f"{name} has grown: {factors[name]:.2f} times as much at the end.")


if __name__ == "__main__":
    main()
