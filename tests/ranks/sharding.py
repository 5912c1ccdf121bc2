"""Trainings of a model that `fully_shard` has cut up, all in one launch; their results as JSON.

Without `torchrun` they are those of one process with the whole model, on the joined batches of as many
ranks as the command line says.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import Trainer, load_weights, parallel
from statemachine_trainer.callbacks import EMA, SWA, Checkpoints, EarlyStopping
from statemachine_trainer.loops.recipes import SAMLoop
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Best, Retention, Store, checkpoint_folder
from statemachine_trainer.snapshot.ranked import save_together

FOLDER = Path(sys.argv[1])
RANK = int(os.environ.get("RANK", "0"))
SIZE = int(os.environ.get("WORLD_SIZE", "1"))
RANKS = int(sys.argv[2])
"""Ranks whose batches are read."""

INPUTS = torch.randn(72, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))
BATCH = 4
BEST = Retention(best=Best("val_loss", mode="max"))


class Net(nn.Module):
    """Has parameters of its own, and parts that are cut up by themselves; none divides evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(8, 17)
        self.norm = nn.LayerNorm(17)
        self.two = nn.Linear(17, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(torch.relu(self.norm(self.one(inputs)))) * self.scale
        return out


class Task(Net):
    log: Callable[..., None]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Parts(Task):
    """Its steps never call the model as a whole."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.forward(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.forward(batch[0]), batch[1]))


class Overflowing(Parts):
    """One gradient of one rank overflows in the fourth batch."""

    batches = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.batches += 1
        return loss + self.scale[0] * 1e38 if self.batches == 4 else loss


class ByHand(Task):
    automatic_optimization = False

    def training_step(  # type: ignore[override]
        self, batch: Any, batch_idx: int, optimizers: Any
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        nn.functional.cross_entropy(self(batch[0]), batch[1]).backward()
        optimizer.step()


class Two(Task):
    """Each optimizer has parts of the model."""

    def training_step(  # type: ignore[override]
        self, batch: Any, batch_idx: int, optimizer_idx: int
    ) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        first = [*self.one.parameters(), *self.norm.parameters()]
        second = [*self.two.parameters(), self.scale]
        return [torch.optim.SGD(one, lr=0.1) for one in (first, second)]


class Yielding(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        yield nn.functional.cross_entropy(self(batch[0]), batch[1])


class Joined:
    """The batches that the ranks read, joined."""

    def __init__(self) -> None:
        self.samplers: list[DistributedSampler[Any]] = [
            DistributedSampler(DATA, RANKS, rank) for rank in range(RANKS)
        ]

    def set_epoch(self, epoch: int) -> None:
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __iter__(self) -> Any:
        orders = [[*sampler] for sampler in self.samplers]
        for start in range(0, len(orders[0]), BATCH):
            yield [i for order in orders for i in order[start : start + BATCH]]

    def __len__(self) -> int:
        return -(-len(self.samplers[0]) // BATCH)


def loaders() -> tuple[Any, Any]:
    if SIZE == 1:
        return DataLoader(DATA, batch_sampler=Joined()), DataLoader(DATA, BATCH)
    validation: DistributedSampler[Any] = DistributedSampler(DATA, shuffle=False)
    return (
        DataLoader(DATA, BATCH, sampler=DistributedSampler(DATA)),
        DataLoader(DATA, BATCH, sampler=validation),
    )


def cut_up(model: Any, **settings: Any) -> Any:
    """The model, cut up; with four ranks it is repeated along one axis, and cut up along the other."""
    if SIZE == 1:
        return model
    shape, names = ((2, 2), ("replicate", "shard")) if SIZE == 4 else ((SIZE,), ("shard",))
    settings.setdefault("mesh", init_device_mesh("cpu", shape, mesh_dim_names=names))
    for part in (model.one, model.two, model):
        fully_shard(part, **settings)
    return model


def cut_up_alone(model: Any) -> Any:
    shape, names = ((2, 2), ("replicate", "shard")) if SIZE == 4 else ((SIZE,), ("shard",))
    return fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))


def trainer(**settings: Any) -> Trainer:
    plain = {"max_epochs": 2, "device": "cpu", "progress": False, "run": False}
    return Trainer(**{**plain, **settings})


def whole(model: nn.Module) -> dict[str, list[Any]]:
    tensors: dict[str, Any] = model.state_dict()
    return {
        name: (one.full_tensor() if hasattr(one, "full_tensor") else one).tolist()
        for name, one in tensors.items()
    }


def trained(model: nn.Module, fit: Trainer | None = None, **settings: Any) -> Any:
    fit = trainer(**settings) if fit is None else fit
    cut = cut_up(model)
    fit.fit(cut, *loaders())
    return {
        "weights": whole(cut),
        "metrics": dict(fit.metrics),
        "steps": fit.steps,
        "epochs": fit.epoch,
    }


# -- trainings -------------------------------------------------------------------------------------


def a_plain_model() -> Any:
    model, fit = cut_up(Net()), trainer()
    fit.fit(
        model,
        *loaders(),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
    )
    return {"weights": whole(model), "metrics": dict(fit.metrics), "steps": fit.steps}


def a_model_of_blocks_by_the_helper() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 17), nn.ReLU(), nn.Linear(17, 3))
    model, fit = parallel.fsdp(net), trainer()
    fit.fit(
        model,
        *loaders(),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
    cut = [type(one).__name__ for one in model.modules()]
    return {
        "weights": whole(model),
        "metrics": dict(fit.metrics),
        "steps": fit.steps,
        "kinds": cut,
    }


def steps_of_its_own() -> Any:
    return trained(Task())


def steps_that_call_parts_only() -> Any:
    return trained(Parts())


def accumulation_with_open_windows_and_clipping() -> Any:
    return trained(Task(), accumulate=4, clip_norm=0.05)


def clipping_by_value() -> Any:
    return trained(Parts(), clip_value=0.001)


def half_precision_that_overflows_at_one_rank() -> Any:
    return trained(Overflowing(), precision="fp16")["steps"]


def optimizing_by_hand() -> Any:
    return trained(ByHand())


def two_optimizers() -> Any:
    return trained(Two())


def an_average_that_is_evaluated() -> Any:
    return trained(Task(), callbacks=[EMA(0.8)])


def an_average_of_epochs_that_is_evaluated() -> Any:
    return trained(Task(), callbacks=[SWA()], max_epochs=3)


def weights_that_go_in_and_out() -> Any:
    """A checkpoint in parts, loaded into a whole model and into parts; and that of a whole model into parts."""
    folder = FOLDER / "weights"
    fit = trainer(run=None, checkpoints=Checkpoints(folder, retention=BEST), callbacks=[EMA(0.8)])
    cut = cut_up(Task())
    fit.fit(cut, *loaders(), restore_best=True)
    plain, other = Task(), cut_up(Task())
    load_weights(plain, folder, best="val_loss", mode="max")
    load_weights(other, folder, best="val_loss", mode="max")
    best = fit.validate(cut, loaders()[1], checkpoint="best")
    again = fit.validate(cut, loaders()[1])
    return {
        "whole": whole(plain),
        "parts": whole(other),
        "restored": whole(cut),
        "same": [best == again, whole(plain) == whole(other) == whole(cut)],
    }


def early_stopping() -> Any:
    stopping = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    return trained(Task(), max_epochs=20, callbacks=[stopping])


def a_receiver_that_calls_the_model_within_a_window() -> Any:
    fit = trainer(accumulate=3)

    def look() -> None:
        with torch.no_grad():
            fit.model(INPUTS[:4])

    fit.on("batch_end", look)
    return trained(Task(), fit)


def sizes_of_files() -> Any:
    """Of a checkpoint of a narrow and of a wide model: what rank 0 writes for all, and the parts."""
    ranks, found = Ranks.here(), []
    assert ranks is not None
    for width in (64, 4096):
        model = cut_up_alone(nn.Linear(16, width, bias=False))
        store = Store(FOLDER / f"width-{width}")
        tree = {"weights": model.state_dict()}
        path = save_together(ranks, store, tree, name="a", metadata={})
        files = {one.name: one.stat().st_size for one in path.iterdir()}
        parts = {name: size for name, size in files.items() if name.startswith("shard-")}
        found.append([sum(files.values()) - sum(parts.values()), sum(parts.values()), len(parts)])
    return found


# -- what is told, or refused ----------------------------------------------------------------------


WRITE_TENSORS = checkpoint_folder.write_tensors


def no_room(*_: object) -> Any:
    raise OSError(28, "No space left on device")


def refusal(act: Callable[[], object]) -> str | None:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def a_disk_that_fails_at_one_rank() -> Any:
    """The file of rank 1 cannot be made: its folder is another one there."""
    ranks = Ranks.here()
    assert ranks is not None
    store = Store(FOLDER / "failing")
    tree = {"weights": cut_up(Net()).state_dict(), "kept": 1}
    save_together(ranks, store, tree, name="first", metadata={})
    if RANK == 1:
        checkpoint_folder.write_tensors = no_room  # type: ignore[assignment]
    try:
        text = refusal(lambda: save_together(ranks, store, tree, name="second", metadata={}))
    finally:
        checkpoint_folder.write_tensors = WRITE_TENSORS
    assert [info.name for info in store.list()] == ["first"]
    return text


def sharpness() -> Any:
    fit = trainer()
    fit.loop.replace(optimizer=SAMLoop(rho=0.05))
    return refusal(lambda: trained(Task(), fit))


def losses_that_are_yielded() -> Any:
    return refusal(lambda: trained(Yielding()))


def evaluations_of_different_lengths() -> Any:
    few = DataLoader(DATA, BATCH, sampler=range(8 * (1 + RANK)))
    return refusal(lambda: trainer().fit(cut_up(Task()), loaders()[0], few))


def the_same_data_at_all_ranks() -> Any:
    return refusal(lambda: trainer().fit(cut_up(Task()), DataLoader(DATA, BATCH)))


def a_part_that_nothing_averages() -> Any:
    model = Task()
    fully_shard(model.one)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer().fit(model, *loaders())
    return [one.category.__name__ for one in caught]


def a_mesh_of_some_ranks() -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("some", "others"))
    return refusal(lambda: trainer().fit(cut_up(Task(), mesh=mesh["others"]), *loaders()))


TRAININGS: list[Callable[[], Any]] = [
    a_plain_model,
    a_model_of_blocks_by_the_helper,
    steps_of_its_own,
    steps_that_call_parts_only,
    accumulation_with_open_windows_and_clipping,
    clipping_by_value,
    half_precision_that_overflows_at_one_rank,
    optimizing_by_hand,
    two_optimizers,
    an_average_that_is_evaluated,
    an_average_of_epochs_that_is_evaluated,
    weights_that_go_in_and_out,
    early_stopping,
    a_receiver_that_calls_the_model_within_a_window,
]
OF_FOUR: list[Callable[[], Any]] = [
    steps_that_call_parts_only,
    accumulation_with_open_windows_and_clipping,
    an_average_that_is_evaluated,
]
TOLD: list[Callable[[], Any]] = [
    sizes_of_files,
    a_disk_that_fails_at_one_rank,
    sharpness,
    losses_that_are_yielded,
    evaluations_of_different_lengths,
    the_same_data_at_all_ranks,
    a_part_that_nothing_averages,
]
TOLD_OF_FOUR: list[Callable[[], Any]] = [
    sizes_of_files,
    a_mesh_of_some_ranks,
]


def main() -> None:
    """Run all of them, in the same order at each rank."""
    (FOLDER / f"pid-{RANK}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    scenes = [*(OF_FOUR if RANKS == 4 else TRAININGS)]
    if SIZE > 1:
        dist.init_process_group("gloo")
        scenes += TOLD_OF_FOUR if SIZE == 4 else TOLD
    found = {scene.__name__: scene() for scene in scenes}
    (FOLDER / f"found-{RANK}.json").write_text(json.dumps(found))
    if SIZE > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
