"""Short scenes with two ranks, all in one launch: each answers with what came of it, as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torchmetrics import MeanMetric

from statemachine_trainer import Trainer, log, parallel
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops.recipes import YieldingLoop
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Best, Retention, Store
from statemachine_trainer.snapshot.ranked import save_together, tree_of_rank

RANK = int(os.environ["RANK"])
FOLDER = Path(sys.argv[1])

INPUTS = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, INPUTS.sum(1, keepdim=True))


class Task(nn.Module):
    """Counts its calls of hooks; logs what differs between ranks."""

    log: Callable[..., None]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Linear(3, 1)
        self.epochs_heard = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(inputs)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("rank", RANK + 1.0)
        self.log("sum", RANK + 1.0, reduce="sum")
        self.log("max", RANK + 1.0, reduce="max")
        if RANK == 1:
            self.log("of_one", 5.0)
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", RANK + 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def on_epoch_end(self) -> None:
        self.epochs_heard += 1


class Inside(Task):
    """Has the wrapper in it, and optimizes by hand."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.net = DistributedDataParallel(self.net)  # type: ignore[assignment]

    def training_step(  # type: ignore[override]
        self, batch: Any, batch_idx: int, optimizers: Any
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        nn.functional.mse_loss(self(batch[0]), batch[1]).backward()
        optimizer.step()


class TwoOptimizers(Task):
    """Each has parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 1)

    def training_step(  # type: ignore[override]
        self, batch: Any, batch_idx: int, optimizer_idx: int
    ) -> torch.Tensor:
        chosen = (self.net, self.other)[optimizer_idx]
        return nn.functional.mse_loss(chosen(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(one.parameters(), lr=0.05) for one in (self.net, self.other)]


class Measured(Task):
    """Logs an object of torchmetrics."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.mean.update(RANK + 1.0)
        self.log("mean", self.mean)


class Yielding(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        yield nn.functional.mse_loss(self(batch[0]), batch[1])


def loader(sampler: Any = None) -> DataLoader[Any]:
    return DataLoader(DATA, 4, sampler=DistributedSampler(DATA) if sampler is None else sampler)


def trainer(**settings: Any) -> Trainer:
    plain = {"max_epochs": 1, "device": "cpu", "progress": False, "run": False}
    return Trainer(**{**plain, **settings})


def wrapped(model: nn.Module | None = None) -> DistributedDataParallel:
    return DistributedDataParallel(Task() if model is None else model)


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def refusal(act: Callable[[], object]) -> str | None:
    try:
        act()
    except Exception as error:
        return told(error)
    return None


# -- scenes ----------------------------------------------------------------------------------------


def ranks_tell_each_other() -> Any:
    ranks = Ranks.here()
    assert ranks is not None
    return {
        "same": Ranks.here() is ranks,
        "largest": ranks.largest([RANK, -RANK, 7.5]),
        "from_first": ranks.from_first({"rank": RANK, "text": "ä" * (1 - RANK)}),
        "from_all": ranks.from_all(["x" * 10 * RANK, None]),
        "to_first": [len(one) for one in ranks.to_first(b"ab" * 1000 * RANK)],
    }


def metrics_are_reduced() -> Any:
    fit = trainer(max_epochs=2)
    metrics = dict(fit.fit(wrapped(), loader(), loader()))
    return metrics


def an_evaluation_by_itself_is_of_one_rank() -> Any:
    model = wrapped()
    return trainer().validate(model, loader()) if RANK == 1 else None


def the_model_comes_out_of_its_wrapper() -> Any:
    model = wrapped()
    fit = trainer()
    fit.fit(model, loader())
    return {
        "is": fit.model is model.module,
        "heard": model.module.epochs_heard,
        "names": [name for name, _ in fit.model.named_parameters()],
        "log": hasattr(model.module, "log"),
        "forward": "forward" in vars(model.module),
    }


def ranks_validate_different_numbers_of_batches() -> Any:
    few = DataLoader(DATA, 4, sampler=range(4 * (1 + RANK)))
    return dict(trainer(sanity_batches=0).fit(wrapped(), loader(), few))


def complaints(model: nn.Module) -> list[str]:
    """The warnings of a fit, and whether the ranks end up with different weights."""
    ranks, before = Ranks.here(), parameters(model)
    assert ranks is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer().fit(model, loader())
    assert parameters(model) != before
    parted = len({str(one) for one in ranks.from_all(parameters(model))}) > 1
    return [*(type(one.message).__name__ for one in caught), *["parted"] * parted]


def parameters(model: nn.Module) -> list[Any]:
    return [one.tolist() for one in model.parameters()]


def forgetting_to_wrap() -> Any:
    return complaints(Task())


def wrapping() -> Any:
    return complaints(parallel.ddp(Task()))


def wrapping_inside() -> Any:
    return complaints(Inside())


def two_optimizers() -> Any:
    return complaints(DistributedDataParallel(TwoOptimizers(), find_unused_parameters=True))


def gradients_are_averaged_once_a_window() -> Any:
    model, calls = wrapped(), []

    def average(_: object, bucket: Any) -> Any:
        calls.append(1)
        return (
            dist.all_reduce(bucket.buffer() / 2, async_op=True)
            .get_future()
            .then(lambda future: future.value()[0])
        )

    average.__annotations__ = {}  # torch wants none, or those of its own that are no texts
    model.register_comm_hook(None, average)
    fit = trainer(accumulate=2)
    windows: list[int] = []
    fit.on("batch_end", lambda: windows.append(len(calls)))
    fit.fit(model, loader())
    same = Ranks.here().from_all(parameters(model))  # type: ignore[union-attr]
    return {"calls": windows, "steps": fit.steps, "same": same[0] == same[1]}


def metric_objects_reduce_themselves() -> Any:
    fit = trainer(run=None, checkpoints=Checkpoints(FOLDER / "measured", every=1), max_epochs=2)
    return fit.fit(wrapped(Measured()), loader(), loader())["mean"]


def different_numbers_of_batches() -> Any:
    return refusal(lambda: trainer().fit(wrapped(), loader(range(8 + 4 * RANK))))


def everybody_reads_the_same() -> Any:
    return refusal(lambda: trainer().fit(wrapped(), loader(SequentialSampler(DATA))))


def everybody_shuffles_all_for_itself() -> Any:
    model = wrapped()
    torch.manual_seed(RANK)
    return refusal(lambda: trainer().fit(model, DataLoader(DATA, 4, shuffle=True)))


def everybody_shuffles_a_part_of_its_own() -> Any:
    part = Subset(DATA, range(RANK, len(DATA), 2))
    return refusal(lambda: trainer().fit(wrapped(), DataLoader(part, 4, shuffle=True)))


def everybody_reads_the_same_and_nobody_averages() -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer().fit(Task(), loader(SequentialSampler(DATA)))
    return [one.category.__name__ for one in caught if "same batch" in str(one.message)]


def everybody_reads_ones() -> Any:
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 3
    return refusal(lambda: trainer().fit(wrapped(), data))


def our_group_waits_as_long_as_the_users() -> Any:
    ours: Any = Ranks.here()._group  # type: ignore[union-attr]
    return ours._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def validation_at_one_rank() -> Any:
    return refusal(lambda: trainer().fit(wrapped(), loader(), loader() if RANK == 0 else None))


def checkpoints_at_one_rank() -> Any:
    folder = FOLDER / "one" if RANK == 0 else None
    return refusal(lambda: trainer(checkpoints=folder).fit(wrapped(), loader()))


def yielding_losses_inside() -> Any:
    class InsideYielding(Yielding):
        def __init__(self) -> None:
            super().__init__()
            self.net = DistributedDataParallel(self.net)  # type: ignore[assignment]

    fit = trainer()
    fit.loop.replace(optimizer=YieldingLoop())
    return refusal(lambda: fit.fit(InsideYielding(), loader()))


def an_environment_that_says_otherwise() -> Any:
    os.environ["RANK"] = "5"
    try:
        return refusal(lambda: trainer().fit(wrapped(), loader()))
    finally:
        os.environ["RANK"] = str(RANK)


def an_event_that_nobody_takes() -> Any:
    fit = trainer()
    heard = []
    fit.on("batch_end", lambda: heard.append(refusal(lambda: fit.post("nonsense"))), once=True)
    fit.fit(wrapped(), loader())
    return heard


def parts_of_a_checkpoint() -> Any:
    ranks = Ranks.here()
    assert ranks is not None
    store = Store(FOLDER / "parts")
    same, own = torch.arange(5000.0), torch.full((3,), RANK + 0.5)
    tree = {
        "same": same,
        "own": own,
        "where": RANK,
        "nested": [(same, {1, 2}), own.double()],
        "nothing": torch.empty(0),
        "bits": torch.tensor([True, RANK == 0]),
    }
    path = save_together(ranks, store, tree, name="a", metadata={"rank": RANK})
    loaded = store.load("a")
    back = tree_of_rank(loaded.tree, RANK)
    return {
        "path": path.name,
        "metadata": loaded.metadata,
        "size": (path / "tensors.safetensors").stat().st_size,
        "own": back["own"].tolist(),
        "same": torch.equal(back["same"], same) and torch.equal(back["nested"][0][0], same),
        "double": [str(back["nested"][1].dtype), back["nested"][1].tolist()],
        "bits": back["bits"].tolist(),
        "rest": [back["where"], sorted(back["nested"][0][1]), list(back["nothing"].shape)],
        "keys": sorted(back),
    }


def a_state_that_one_rank_cannot_write() -> Any:
    ranks = Ranks.here()
    assert ranks is not None
    store = Store(FOLDER / "unwritable")
    tree = {"a": [1, print if RANK == 1 else 2]}
    text = refusal(lambda: save_together(ranks, store, tree, name="a", metadata={}))
    assert not store.list()
    return text


def a_disk_that_takes_nothing() -> Any:
    ranks = Ranks.here()
    assert ranks is not None
    if RANK == 0:
        (FOLDER / "file").write_text("")
    store = Store(FOLDER / "file" / "inside")
    return refusal(lambda: save_together(ranks, store, {"a": 1}, name="a", metadata={}))


def a_disk_that_fails_in_the_background() -> Any:
    class Validated(Task):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]).detach())

    folder = FOLDER / "lost"
    keep = Retention(last=1, best=Best("val_loss"))
    writer = Checkpoints(folder, every=2, background=True, retention=keep, at_end=False)
    fit = trainer(checkpoints=writer, validate_every=3)

    def lose_the_folder() -> None:
        if RANK == 0 and fit.context.counts.batch == 1:
            shutil.rmtree(folder)
            folder.write_text("")

    fit.on("batch_start", lose_the_folder)
    return refusal(lambda: fit.fit(wrapped(Validated()), loader(), loader()))


def a_pause_at_one_rank() -> Any:
    fit = trainer(max_epochs=2)
    fit.on("batch_end", fit.pause, when=lambda: RANK == 1 and fit.context.counts.batch == 1)
    fit.fit(wrapped(), loader())
    stood = [fit.context.counts.batch, fit.driver.path]
    fit.run()
    return [*stood, fit.context.counts.batch, fit.driver.path]


def fitting_again_goes_on() -> Any:
    model, data = wrapped(), loader()
    fit = trainer()
    epochs: list[int] = []
    fit.on("epoch_start", lambda: epochs.append(fit.epoch))
    fit.fit(model, data)
    fit.loop.max_epochs = 2
    fit.fit(model, data)
    return epochs


def each_epoch_has_an_order_of_its_own() -> Any:
    seen: list[list[float]] = [[], []]
    fit = trainer(max_epochs=2)
    fit.on("batch_start", lambda: seen[fit.epoch].extend(fit.context.batch[0][:, 0].tolist()))
    fit.fit(wrapped(), loader())
    return seen


def main() -> None:
    """Play all scenes, in the same order at each rank."""
    (FOLDER / f"pid-{RANK}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=77))
    scenes = [
        ranks_tell_each_other,
        metrics_are_reduced,
        an_evaluation_by_itself_is_of_one_rank,
        the_model_comes_out_of_its_wrapper,
        ranks_validate_different_numbers_of_batches,
        forgetting_to_wrap,
        wrapping,
        wrapping_inside,
        two_optimizers,
        gradients_are_averaged_once_a_window,
        metric_objects_reduce_themselves,
        different_numbers_of_batches,
        everybody_reads_the_same,
        everybody_shuffles_all_for_itself,
        everybody_shuffles_a_part_of_its_own,
        everybody_reads_the_same_and_nobody_averages,
        everybody_reads_ones,
        our_group_waits_as_long_as_the_users,
        validation_at_one_rank,
        checkpoints_at_one_rank,
        yielding_losses_inside,
        an_environment_that_says_otherwise,
        an_event_that_nobody_takes,
        parts_of_a_checkpoint,
        a_state_that_one_rank_cannot_write,
        a_disk_that_takes_nothing,
        a_disk_that_fails_in_the_background,
        a_pause_at_one_rank,
        fitting_again_goes_on,
        each_epoch_has_an_order_of_its_own,
    ]
    found = {scene.__name__: scene() for scene in scenes}
    (FOLDER / f"found-{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
