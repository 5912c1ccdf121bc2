"""A small GPT on four ranks, `fully_shard` times tensor parallelism; a rank is killed, and two ranks go on.

The text is Python's own documentation (`pydoc_data.topics`), in bytes. Four processes hold the model as 2 x 2: pairs
hold the layers together, and the parts are cut up along the other axis. They train twice: undisturbed, and until rank 3
ends itself by SIGKILL between two checkpoints. Two processes, 1 x 2, then go on from the newest checkpoint, with
batches twice as large: the samples of each step are those of the undisturbed run. Both curves are drawn over one
another, and their largest difference is printed, before and after the change of ranks. All over gloo, on the CPU.

    python benchmarks/gpt_on_ranks.py FOLDER [--width 256] [--layers 4] [--steps 120] [--picture FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.intervals import every
from statemachine_trainer.snapshot import Retention

TOGETHER = 2
"""Ranks that hold the layers together."""

RANKS, AFTER = 4, 2
"""Before the kill, and after it."""


@dataclass(frozen=True)
class Size:
    """How large the model is, and how long it is trained.

    Attributes:
        width: Of the stream; heads have 32 numbers.
        layers: Blocks of attention and a perceptron.
        length: Bytes of text in a sample.
        batch: Samples of a step, all ranks together.
        steps: Of the training, one epoch.
        every: Steps between two checkpoints.
        kill: Rank 3 is killed as this step is done.
    """

    width: int = 256
    layers: int = 4
    length: int = 128
    batch: int = 8
    steps: int = 120
    every: int = 20
    kill: int = 69


class Block(nn.Module):
    """Attention to what came before, and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        """Take and return (samples, length, width)."""
        seen = self.before(stream)
        query, key, value = (
            part(seen).unflatten(-1, (-1, 32)).transpose(1, 2)  # those that this rank has
            for part in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.out(found.transpose(1, 2).flatten(2))
        made: Tensor = stream + self.down(F.gelu(self.up(self.between(stream))))
        return made


class GPT(nn.Module):
    """Predicts the next byte of a text."""

    log: Callable[..., None]

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.letters = nn.Embedding(256, size.width)
        self.places = nn.Embedding(size.length, size.width)
        self.blocks = nn.Sequential(*(Block(size.width) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Take bytes, (samples, length); return scores, (samples, length, 256)."""
        stream = self.letters(text) + self.places.weight
        scores: Tensor = self.head(self.norm(self.blocks(stream)))
        return scores

    def training_step(self, batch: Tensor) -> Tensor:
        """Return the mean loss of a byte; `batch` has one byte more than the model sees."""
        loss = F.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def cut_up(model: GPT) -> Any:
    """Cut a model up over all ranks; return the mesh of (data, tensor)."""
    shape = (dist.get_world_size() // TOGETHER, TOGETHER)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    plan = {name: ColwiseParallel() for name in ("query", "key", "value", "up")}
    for block in model.blocks:
        parallelize_module(
            block, mesh["tensor"], {**plan, "out": RowwiseParallel(), "down": RowwiseParallel()}
        )
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    return mesh


class Text(Dataset[Tensor]):
    """Pieces of Python's documentation, as many as are read."""

    def __init__(self, size: Size) -> None:
        text = "".join(topics[name] for name in sorted(topics)).encode()
        codes = torch.tensor([*text])
        self.length = size.length + 1
        starts = torch.arange(size.batch * size.steps) * 7919 % (len(codes) - self.length)
        self.pieces = torch.stack([codes[start : start + self.length] for start in starts])

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> Tensor:
        return self.pieces[index]


def train(size: Size, folder: Path, *, kill: bool) -> None:
    """Train as one rank, from where the folder stands; note the loss of each step, over all samples, at rank 0."""
    torch.manual_seed(0)
    model, data = GPT(size), Text(size)
    mesh = cut_up(model)
    readers, reader = mesh["data"].size(), mesh["data"].get_local_rank()
    torch.manual_seed(reader)
    trainer = Trainer(
        max_epochs=1,
        device="cpu",
        progress=False,
        clip_norm=1.0,
        checkpoints=Checkpoints(
            folder, every=every(size.every, "step"), retention=Retention(last=2)
        ),
    )
    rank, curve = dist.get_rank(), folder / "curve.jsonl"

    def note() -> None:
        loss = cast(Tensor, trainer.context.loss).detach().clone()
        dist.all_reduce(loss, group=mesh["data"].get_group())
        if rank == 0:
            with curve.open("a") as file:
                file.write(
                    f"{json.dumps([trainer.steps, float(loss) / readers, dist.get_world_size()])}\n"
                )
        if kill and rank == RANKS - 1 and trainer.steps == size.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.on("batch_end", note)
    sampler: DistributedSampler[Tensor] = DistributedSampler(data, readers, reader)
    trainer.fit(model, DataLoader(data, size.batch // readers, sampler=sampler), resume="auto")


def here(size: Size, folder: Path) -> None:
    """Do the part of one process of a launch."""
    dist.init_process_group("gloo")
    (folder / f"pid-{dist.get_rank()}").write_text(
        str(os.getpid())
    )  # for whoever has to end all of them
    torch.set_num_threads(1)
    if dist.get_world_size() == RANKS:
        train(size, folder / "undisturbed", kill=False)
    train(size, folder / "killed", kill=dist.get_world_size() == RANKS)
    dist.destroy_process_group()


Curve = dict[int, tuple[float, int]]
"""Loss, and number of ranks, by step."""


def read(path: Path) -> Curve:
    """Read what `train` noted. Of a step that was done again the later one counts."""
    lines = map(json.loads, path.read_text().splitlines())
    return {step: (loss, ranks) for step, loss, ranks in lines}


def differences(one: Curve, other: Curve) -> dict[int, float]:
    """Return the largest difference of two curves, by the number of ranks of the other one."""
    found: dict[int, float] = {}
    for step, (loss, ranks) in other.items():
        found[ranks] = max(found.get(ranks, 0.0), abs(loss - one[step][0]))
    return found


def draw(one: Curve, other: Curve, killed: int, path: Path) -> None:
    """Draw both curves, and their difference below, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "gpt"  # the same figures make the same file
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.6), sharex=True, height_ratios=(3, 1))
    above.plot(
        [*one],
        [loss for loss, _ in one.values()],
        color="#fdba74",
        linewidth=4,
        label="undisturbed, 4 ranks",
    )
    for ranks, color in ((RANKS, "#1e3a8a"), (AFTER, "#0f766e")):
        part = {step: loss for step, (loss, count) in other.items() if count == ranks}
        above.plot(
            [*part],
            [*part.values()],
            color=color,
            linewidth=1,
            label=f"killed and resumed: {ranks} ranks",
        )
    apart = [max(1e-9, abs(loss - one[step][0])) for step, (loss, _) in other.items()]
    below.plot([*other], apart, color="#c2410c", linewidth=1)
    below.set(yscale="log", xlabel="step", ylabel="difference")
    above.set(ylabel="loss of a byte")
    above.legend(frameon=False, fontsize=8)
    for panel in (above, below):
        panel.axvline(killed, color="#9ca3af", linestyle=":", linewidth=1)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def launch(ranks: int, folder: Path, arguments: list[str]) -> int:
    """Run the part of `here` in so many processes; return the exit code of `torchrun`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *torchrun, __file__, str(folder), *arguments, "--here"]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    ).returncode


def main() -> None:
    """Train, kill, go on; compare and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--here", action="store_true", help="be one of the ranks")
    given = parser.parse_args()
    size = Size(**{name: getattr(given, name) for name in vars(Size())})
    if given.here:
        here(size, given.folder)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if any(given.folder.iterdir()):
        parser.error(
            f"{given.folder} is not empty, and its runs would be resumed: give a new folder"
        )
    options = [text for name, value in vars(size).items() for text in (f"--{name}", str(value))]
    assert launch(RANKS, given.folder, options) != 0, "nothing was killed"
    assert launch(AFTER, given.folder, options) == 0
    one, other = (read(given.folder / name / "curve.jsonl") for name in ("undisturbed", "killed"))
    weights = sum(parameter.numel() for parameter in GPT(size).parameters())
    print(f"{weights} weights; {len(one)} and {len(other)} steps; loss {one[size.steps][0]:.4f}")
    for ranks, found in differences(one, other).items():
        print(f"largest difference of the curves with {ranks} ranks: {found:.2e}")
    if given.picture is not None:
        draw(one, other, size.kill, given.picture)


if __name__ == "__main__":
    main()
