"""Fits of LightningModules for `torchrun`, in Lightning's trainer and in ours; prints what they came to.

    torchrun --nproc-per-node 2 lightning_fits.py FOLDER [FIT ...]

Each rank writes `fits-RANK.json`: by fit, what both trainers came to.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
import torch.distributed as dist
import torchmetrics
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, WeightedRandomSampler

from statemachine_trainer import Trainer, parallel
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.integrations import lightning
from statemachine_trainer.snapshot import Retention

RANK = int(os.environ["RANK"])


def data(samples: int, *, shuffle: bool = False, sampler: Any = None) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 6, generator=generator)
    targets = (inputs[:, 0] > inputs[:, 1]).long()
    return DataLoader(TensorDataset(inputs, targets), 5, shuffle=shuffle, sampler=sampler)


class Net(L.LightningModule):
    """Batch norm and dropout, so that each rank has buffers and random numbers of its own."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2)
        )
        self.right = torchmetrics.Accuracy("multiclass", num_classes=2)

    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.right(self(batch[0]), batch[1])
        self.log("val_right", self.right)

    def on_validation_epoch_end(self) -> None:
        self.log("val_rank", float(self.global_rank + 1), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class WithData(Net):
    """With loaders of its own."""

    def train_dataloader(self) -> Any:
        return data(40, shuffle=True)

    def val_dataloader(self) -> Any:
        return data(20)


class Late(WithData):
    """Has a layer that is made when the run begins."""

    def configure_model(self) -> None:
        if not hasattr(self, "more"):
            self.more = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Any:
        return self.more(self.net(inputs))


class ByHand(WithData):
    """Two optimizers in turn, one of them each second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(6, 2)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        both: Any = self.optimizers()
        one, other = both
        self.toggle_optimizer(one)
        one.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        one.step()
        self.untoggle_optimizer(one)
        if batch_idx % 2:
            self.toggle_optimizer(other)
            other.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.other(batch[0]), batch[1]))
            self.clip_gradients(other, 0.5, "norm")
            other.step()
            self.untoggle_optimizer(other)
        self.log("loss", loss, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net.parameters(), lr=0.1),
            torch.optim.Adam(self.other.parameters(), lr=0.1),
        ]


class Gathers(WithData):
    """Its loss needs what the others have."""

    def loss(self, batch: Any) -> Tensor:
        inputs = self.net(batch[0])
        everybodys: Any = self.all_gather(inputs, sync_grads=True)
        loss: Tensor = nn.functional.cross_entropy(inputs, batch[1]) + everybodys.square().mean()
        return loss


class OwnStep(WithData):
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None
    ) -> None:
        optimizer.step(closure=closure)
        for group in optimizer.param_groups:
            group["lr"] *= 0.99


class StopsAnEpoch(Net):
    def train_dataloader(self) -> Any:
        return data(40, shuffle=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 else None


class Data(L.LightningDataModule):
    prepared = 0

    def prepare_data(self) -> None:
        type(self).prepared += 1

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(RANK)  # ranks may draw as they like
        weights = torch.rand(30, generator=torch.Generator().manual_seed(5))
        self.sampler = WeightedRandomSampler(weights.tolist(), 30, generator=generator)

    def train_dataloader(self) -> Any:
        return data(30, sampler=self.sampler)

    def val_dataloader(self) -> Any:
        return [data(20), data(11, shuffle=True)]


class Several(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class Notes(Callback):
    """What the trainer says of the ranks, and the order of the hooks."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        names = (
            "global_rank",
            "local_rank",
            "node_rank",
            "world_size",
            "num_devices",
            "num_nodes",
            "is_global_zero",
        )
        self.seen += [getattr(trainer, name) for name in names]
        self.seen += [type(trainer.model).__name__, type(trainer.strategy.model).__name__]
        self.seen += [module.global_rank, trainer.strategy.broadcast(trainer.global_rank, 1)]
        self.seen += [
            trainer.strategy.reduce_boolean_decision(RANK == 0, all=one) for one in (True, False)
        ]
        self.seen += [float(trainer.strategy.reduce(torch.tensor(RANK + 1.0)))]
        self.seen += module.all_gather(torch.tensor([RANK])).flatten().tolist()
        self.seen += [rank_zero_only(lambda: "zero")(), trainer.distributed_sampler_kwargs]

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += [f"batch {batch_idx}", batch[1].tolist() if isinstance(batch, list) else None]
        if "loss_step" in trainer.callback_metrics:
            self.seen.append(round(float(trainer.callback_metrics["loss_step"]), 5))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.seen.append(f"validated at {trainer.global_step}")


class Prints(Callback):
    def on_train_start(self, trainer: Any, module: Any) -> None:
        trainer.print("by the trainer")
        module.print("by the module")


EPOCHS: Final = {"max_epochs": 2}
FITS: Final[dict[str, tuple[Callable[[], Any], dict[str, Any]]]] = {
    "plain": (WithData, {}),
    "given": (Net, {"data": lambda: (data(40, shuffle=True), data(20))}),
    "in order": (Net, {"data": lambda: (data(40), data(20))}),
    "dict": (
        Net,
        {
            "data": lambda: ({"a": data(40, shuffle=True), "b": data(20)}, None),
            "part": lambda batch: batch["a"],
        },
    ),
    "late": (Late, {}),
    "by hand": (ByHand, {"ddp": {"find_unused_parameters": True}}),
    "gathers": (Gathers, {}),
    "own step": (OwnStep, {}),
    "accumulates": (WithData, {"accumulate": 2, "clip_norm": 0.5}),
    "schedules": (WithData, {"callbacks": lambda: [GradientAccumulationScheduler({0: 2, 1: 1})]}),
    "stops early": (
        WithData,
        {
            "max_epochs": 6,
            "callbacks": lambda: [EarlyStopping("val_loss", patience=0, min_delta=10.0)],
        },
    ),
    "stops an epoch": (StopsAnEpoch, {}),
    "data module": (Several, {"datamodule": Data}),
    "seeded": (WithData, {"seed": True}),
    "validates often": (WithData, {"validate_every": 0.5}),
}
THEIRS: Final = {
    "accumulate": "accumulate_grad_batches",
    "clip_norm": "gradient_clip_val",
    "validate_every": "val_check_interval",
}


def outcome(module: Any, notes: Notes, metrics: Any, steps: int, epochs: int) -> dict[str, Any]:
    weights = sha256()
    for tensor in module.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "seen": notes.seen,
        "metrics": {name: round(float(value), 5) for name, value in sorted(metrics.items())},
        "steps": steps,
        "epochs": epochs,
    }


def make(kind: Any, more: dict[str, Any]) -> tuple[Any, list[Any], Notes]:
    torch.manual_seed(1)
    if more.get("seed"):
        L.seed_everything(3, verbose=False)
    module, notes = kind(), Notes()
    if "part" in more:
        whole = module.training_step
        module.training_step = lambda batch, batch_idx: whole(more["part"](batch), batch_idx)
    torch.manual_seed(10 + RANK)
    return module, [notes, Prints(), *more.get("callbacks", list)()], notes


def settings_of(more: dict[str, Any]) -> dict[str, Any]:
    ours = ("accumulate", "clip_norm", "validate_every", "max_epochs")
    return {**EPOCHS, **{name: more[name] for name in ours if name in more}}


def in_theirs(kind: Any, more: dict[str, Any]) -> dict[str, Any]:
    module, callbacks, notes = make(kind, more)
    settings = {THEIRS.get(name, name): value for name, value in settings_of(more).items()}
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(**more.get("ddp", {})), callbacks=callbacks,
        logger=False, enable_model_summary=False, enable_progress_bar=False, enable_checkpointing=False,
        num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    datamodule = more["datamodule"]() if "datamodule" in more else None
    train, validation = more.get("data", lambda: (None, None))()
    trainer.fit(module, train, validation, datamodule=datamodule)
    return outcome(
        module, notes, trainer.callback_metrics, trainer.global_step, trainer.current_epoch
    )


def in_ours(
    kind: Any, more: dict[str, Any], kept: Checkpoints | None = None, resume: str | None = None
) -> dict[str, Any]:
    module, callbacks, notes = make(kind, more)
    datamodule = more["datamodule"]() if "datamodule" in more else None
    model: nn.Module = lightning.module(module, callbacks=callbacks, datamodule=datamodule)
    if "ddp" in more:
        model = parallel.ddp(model, **more["ddp"])
    trainer = Trainer(
        device="cpu", progress=False, sanity_batches=0, checkpoints=kept, **settings_of(more)
    )
    trainer.fit(model, *more.get("data", tuple)(), resume=resume)
    return outcome(module, notes, trainer.metrics, module.global_step, module.current_epoch)


def resumed(name: str, folder: Path) -> dict[str, Any]:
    """Resume a fit from checkpoints within its first and its second epoch, and tell all ends."""
    kind, more = FITS[name]
    whole = in_ours(kind, more, checkpoints(folder / "whole"))
    steps = sorted((folder / "whole").glob("0*"))
    chosen = (steps[1], steps[-3])
    return {
        "whole": whole,
        **{
            one.name: in_ours(kind, more, checkpoints(folder / one.name), str(one))
            for one in chosen
        },
    }


def others(folder: Path) -> dict[str, Any]:
    """What else the ranks do with one module: files, loggers, tests, a second fit."""
    torch.manual_seed(1)
    module = WithData()
    saving = ModelCheckpoint(folder / "theirs", monitor="val_loss", save_top_k=-1)
    loggers = CSVLogger(folder / "csv")
    model = lightning.module(module, callbacks=[saving], loggers=loggers, log_every_n_steps=1)
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.fit(model)
    dealt = data(21, sampler=DistributedSampler(data(21).dataset, shuffle=False))
    tested = trainer.test(model, dealt)["test_loss"]
    theirs = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_model_summary=False,
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    copy = WithData()
    copy.load_state_dict(module.state_dict())
    by_theirs = theirs.test(copy, dealt, verbose=False)[0]["test_loss"]
    alone = trainer.test(model, data(21))["test_loss"] if RANK == 1 else None
    dist.barrier()
    steps = module.global_step
    trainer.loop.max_epochs = 2
    trainer.fit(model)
    return {
        "files": sorted(one.name for one in (folder / "theirs").iterdir()),
        "logs": sorted(one.name for one in (folder / "csv" / "lightning_logs").iterdir()),
        "tested": abs(tested - by_theirs) < 1e-5,
        "tested alone": alone,
        "steps": [steps, module.global_step],
    }


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder, every="1 batch", retention=Retention(last=None))


def main() -> None:
    wanted = argparse.ArgumentParser()
    wanted.add_argument("folder", type=Path)
    wanted.add_argument("fits", nargs="*")
    wanted.add_argument("--resume", nargs="*", default=())
    wanted.add_argument("--others", action="store_true")
    given = wanted.parse_args()
    (given.folder / f"pid-{RANK}").write_text(str(os.getpid()))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\.")
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name in given.fits:
        kind, more = FITS[name]
        os.environ.pop("PL_GLOBAL_SEED", None)
        print(f"-- {name}", file=sys.stderr)
        found[name] = {"theirs": in_theirs(kind, more), "ours": in_ours(kind, more)}
    if given.others:
        found["others"] = others(given.folder)
    for name in given.resume:
        found[f"{name} resumed"] = resumed(name, given.folder / name)
    (given.folder / f"fits-{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
