"""What it takes to go on from a checkpoint, beside `torch.load(mmap=True)` of the same tensors.

In new processes, by turns, from a warm cache of the disk:

- torch: `model.load_state_dict(torch.load(path, mmap=True))`, and the same of the optimizer, if it keeps tensors. It
  checks nothing, and the tensors of the optimizer stay in the file;
- the checkpoint: `fit(model, data, resume="auto")`, from the call to the first batch. It checks each byte, reads all
  else that a run has, and nothing stays in the file;
- the floor: each byte of the same file is read once and checked, by two threads. The weights come into the memory
  that the model has, and all else into fresh memory. Nothing else is done.

Before it is timed, each process makes one step of a fit of a tiny model: torch imports its compiler with the first
optimizer. And it takes memory as large as the checkpoint, and gives it back. A virtual machine may have given memory
that nobody used to its host, and whoever uses it next waits for that. The package is compiled, as by an installer.
On a machine that others use, give it a real-time priority (`chrt -r 5`), and few turns.

    python benchmarks/reading.py [--processes 3] [--layers 15] [--width 4096] [--threads 1] [--folder PATH]
"""

from __future__ import annotations

import argparse
import compileall
import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from _peers.report import load
from overhead import machine
from torch import Tensor, nn
from zlib_ng.zlib_ng import crc32

import statemachine_trainer
from statemachine_trainer import Trainer

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-6),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-6),
}
COPIES = {"SGD": 1, "Adam": 3}
"""Tensors of the size of a weight that a checkpoint has of each: Adam keeps two."""

PIECE = 512 << 10
POPULATE_WRITE = 23  # as in `madvise(2)`


class Begun(Exception):
    """The first step has begun: that is all that is measured."""


class Stack(nn.Module):
    """A stack of wide layers, which are trained for next to nothing."""

    def __init__(self, width: int, layers: int, optimizer: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        self.width, self.optimizer = width, optimizer
        self.goes_on = True

    def training_step(self, batch: Tensor) -> Tensor:
        """Return a loss.

        Raises:
            Begun: It was to begin, and no more.
        """
        if not self.goes_on:
            raise Begun
        return self.layers(batch).sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return OPTIMIZERS[self.optimizer](self)

    def data(self) -> list[Tensor]:
        """Return batches."""
        return [torch.zeros(1, self.width)] * 2


def write(model: Stack, folder: Path) -> None:
    """Train a model for one step, and write a checkpoint and the files of torch."""
    trainer = Trainer(max_steps=1, checkpoints=folder / "run", progress=False)
    trainer.fit(model, model.data())
    torch.save(model.state_dict(), folder / "model.pt")
    torch.save(trainer.context.optimizers[0].state_dict(), folder / "optimizer.pt")
    os.sync()


def by_torch(model: Stack, folder: Path) -> float:
    """Return the seconds that torch takes."""
    optimizer = model.configure_optimizers()
    begun = time.perf_counter()
    model.load_state_dict(torch.load(folder / "model.pt", mmap=True))
    if model.optimizer != "SGD":  # else there is nothing in it
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", mmap=True))
    return time.perf_counter() - begun


def by_checkpoint(model: Stack, folder: Path) -> float:
    """Return the seconds from `fit` to its first batch."""
    trainer = Trainer(max_steps=2, checkpoints=folder / "run", progress=False)
    model.goes_on = False
    begun = time.perf_counter()
    with suppress(Begun):
        trainer.fit(model, model.data(), resume="auto")
    return time.perf_counter() - begun


def by_nothing_else(model: Stack, folder: Path) -> float:
    """Return the seconds in which each byte is read once and checked."""
    file = os.open(next(folder.glob("run/*/tensors.safetensors")), os.O_RDONLY)
    had = [one.detach() for one in model.parameters()]
    begun, at = time.perf_counter(), 0
    fresh = [torch.empty_like(one) for one in had * (COPIES[model.optimizer] - 1)]
    with ThreadPoolExecutor(1) as second:
        for one in had + fresh:
            half = one.nbytes // 2
            later = second.submit(
                read_and_check, file, at + half, one.data_ptr() + half, one.nbytes - half
            )
            read_and_check(file, at, one.data_ptr(), half)
            later.result()
            at += one.nbytes
    return time.perf_counter() - begun


def read_and_check(file: int, at: int, address: int, size: int) -> int:
    """Read bytes at a place in a file into memory; return their checksum."""
    checksum = 0
    for start in range(0, size, PIECE):
        length = min(PIECE, size - start)
        begin = -(-(address + start) // mmap.PAGESIZE) * mmap.PAGESIZE
        inside = max(address + start + length - begin, 0)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(inside), POPULATE_WRITE)
        piece = (ctypes.c_char * length).from_address(address + start)
        os.preadv(file, [piece], at + start)
        checksum = crc32(piece, checksum)
    return checksum


WAYS = {"torch": by_torch, "checkpoint": by_checkpoint, "floor": by_nothing_else}


def measure_here(way: str, optimizer: str, options: argparse.Namespace) -> None:
    """Print the seconds that one way takes in this process."""
    torch.set_num_threads(options.threads)
    tiny = Stack(1, 1, "SGD")
    Trainer(max_steps=1, progress=False).fit(tiny, tiny.data())
    model = Stack(options.width, layers_of(optimizer, options), optimizer)
    torch.empty(COPIES[optimizer] * len(model.layers) * (model.width + 1) ** 2).fill_(1)
    print(WAYS[way](model, options.folder))


def measure(optimizer: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure all ways in new processes, by turns."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        write(Stack(options.width, layers_of(optimizer, options), optimizer), Path(name))
        given = f"--folder {name} --threads {options.threads} --width {options.width}"
        for _ in range(options.processes):
            for way in WAYS:
                here = f"{given} --layers {options.layers} --here {way} {optimizer}".split()
                command = [sys.executable, __file__, *here]
                line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[way].append(float(line.splitlines()[-1]))
    return found


def layers_of(optimizer: str, options: argparse.Namespace) -> int:
    """How many layers make a checkpoint of the same size with each optimizer."""
    layers: int = options.layers // COPIES[optimizer]
    return layers


def table(found: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> str:
    """Lay out the times in Markdown."""
    lines = [
        "| optimizer | GB | torch, s | range | going on, s | range | floor, s | range | to torch | to the floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    bytes_of_layer = 4 * options.width * (options.width + 1)
    for name, times in found.items():
        size = COPIES[name] * layers_of(name, options) * bytes_of_layer
        cells = [name, f"{size / 1e9:.2f}"]
        for way in WAYS:
            low, high = min(times[way]), max(times[way])
            cells += [f"{low:.3f}", f"{low:.3f} to {high:.3f}"]
        for way in ("torch", "floor"):
            cells.append(f"{min(times['checkpoint']) / min(times[way]):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--layers", type=int, default=15, help="of a model without Adam")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (a temporary one)")
    parser.add_argument(
        "--here", nargs=2, help="measure this way, with this optimizer, in this process"
    )
    parser.add_argument("--write", type=Path, help="folder for the table")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    options = parser.parse_args()
    if options.here:
        way, optimizer = options.here
        measure_here(way, optimizer, options)
        return
    how = (
        f"{machine()}; {options.processes} processes; threads of torch: {options.threads}; {load()}"
    )
    compileall.compile_dir(Path(statemachine_trainer.__file__).parent, quiet=1)
    found = {name: measure(name, options) for name in options.optimizers}
    text = f"{how}\n\n{table(found, options)}"
    print(text)
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "reading.md").write_text(f"# Going on from a checkpoint\n\n{text}\n")


if __name__ == "__main__":
    main()
