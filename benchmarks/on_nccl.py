"""One training of several ranks, on the accelerators that are there: undisturbed, or with a rank that is killed.

Started by `on_nccl.sh`, which compares what both end with. Where there is no accelerator it runs over gloo.

    torchrun --nproc-per-node 2 benchmarks/on_nccl.py FOLDER {ddp,fsdp} {whole,killed}
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import Trainer, parallel
from statemachine_trainer.callbacks import Checkpoints

SAMPLES, BATCH, EPOCHS = 4096, 32, 4


def make_model(how: str) -> nn.Module:
    """A perceptron with dropout, wrapped as was asked for."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.1)) for _ in range(8)]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    return parallel.ddp(model) if how == "ddp" else parallel.fsdp(model)


def main() -> None:
    """Train, and write the weights that come of it to a file."""
    folder, how, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    model = make_model(how)
    rank, size = dist.get_rank(), dist.get_world_size()
    inputs = torch.randn(SAMPLES, 256, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs[:, :10].argmax(1))
    torch.manual_seed(rank)  # other dropout at each rank
    batches = SAMPLES // (BATCH * size)
    run = folder / f"{how}-{what}"
    trainer = Trainer(
        max_epochs=EPOCHS, progress=False, checkpoints=Checkpoints(run, every=max(1, batches // 3))
    )
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if what == "killed" and attempt == 0 and rank == size - 1:
        at = 2 * batches + batches // 2
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        trainer.on("batch_end", kill, when=lambda trainer: trainer.steps == at)
    trainer.fit(
        model,
        DataLoader(data, BATCH, sampler=DistributedSampler(data)),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        resume="auto",
    )
    whole = [getattr(one, "full_tensor", lambda one=one: one)() for one in model.parameters()]
    if rank == 0:
        torch.save([one.detach().cpu() for one in whole], folder / f"{how}-{what}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
