"""A small training for `torchrun --max-restarts`, of which each attempt is killed in another state.

The command line names what happens in each attempt: `STATE@number/rank` for SIGKILL where a rank enters the state
for that time in its attempt. The last attempt is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints
from tests.ranks.training import RANK, Pair, Points, Task, digest, loaders

WRITING = "writing"
"""No state: the first file of a checkpoint goes to the disk. The number is that of the batches done."""


BETWEEN = "between"
"""No state: between the two backward passes of a batch."""


class ByHand(Task):
    """Goes backward twice a batch, and steps its optimizer by hand."""

    automatic_optimization = False
    between: Killed | None = None

    def training_step(  # type: ignore[override]
        self, batch: Pair, batch_idx: int, trainer: Trainer, optimizers: Any
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        trainer.backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        if self.between is not None:
            self.between()
        trainer.backward(0.1 * self(batch[0]).square().mean())
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Killed:
    """Kills this process at the place that was asked for."""

    def __init__(self, what: str) -> None:
        self.place, _, rest = what.partition("@")
        number, _, rank = rest.partition("/")
        self.number, self.rank = int(number or 0), int(rank or -1)
        self.seen = 0

    def __call__(self) -> None:
        self.seen += 1
        if self.rank == RANK and self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def attach(self, trainer: Trainer, model: Task) -> None:
        """Subscribe to the state; of `writing`, to the calls with which files reach the disk."""
        if self.place == BETWEEN and isinstance(model, ByHand):
            model.between = self
        elif self.place == WRITING:
            flush = os.fsync

            def fsync(number: Any) -> None:
                context = trainer.driver.context
                if context is not None and context.counts.batch == self.number:
                    self.seen = self.number - 1
                    self()
                flush(number)

            os.fsync = fsync  # type: ignore[assignment]
        elif self.place:
            trainer.on(self.place, self)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", nargs="*", default=[])
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--by-hand", action="store_true")
    wanted = parser.parse_args()
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    (wanted.folder / f"pid-{RANK}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = (ByHand if wanted.by_hand else Task)(random_parts=not wanted.shard)
    if wanted.shard:
        for part in (model.one, model.two, model):
            fully_shard(part)
    whole = model if wanted.shard else DistributedDataParallel(model)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(RANK)
    data = Points(noise=True)
    train, validation = loaders(data, argparse.Namespace(workers=0))
    trainer = Trainer(
        max_epochs=3,
        accumulate=1 if wanted.by_hand else 2,
        checkpoints=Checkpoints(wanted.folder / "run", every=1),
        device="cpu",
        progress=False,
    )
    Killed(wanted.kill[attempt] if attempt < len(wanted.kill) else "").attach(trainer, model)
    trainer.fit(whole, train, validation, resume="auto")
    result = {**digest(trainer, data), "attempt": attempt}
    (wanted.folder / f"digest-{RANK}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
