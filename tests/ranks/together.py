"""Short fits of two ranks, beside the same training written by hand with torch alone.

All in one launch: each answers with what came of it, as JSON.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import ClosureLoop, RecoverLoop, Trainer
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Retention

RANK = int(os.environ["RANK"])
FOLDER = Path(sys.argv[1])
EPOCHS, BATCH = 2, 4

INPUTS = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, INPUTS.sum(1, keepdim=True))
"""Four batches an epoch at each of two ranks."""

Bad = dict[int, int]
"""Batches of the run, and the rank at which each has no finite loss."""


class Task(nn.Module):
    """Has no finite loss for some batches at one rank."""

    def __init__(self, bad: Bad) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.bad = bad

    def loss(self, batch: Any) -> torch.Tensor:
        """The loss of a batch, before anything goes wrong."""
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def spoilt(self, loss: torch.Tensor, trainer: Trainer) -> torch.Tensor:
        """The loss, or NaN."""
        return loss * math.nan if self.bad.get(trainer.context.counts.batch) == RANK else loss

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> Any:
        """Return the loss, or NaN."""
        return self.spoilt(self.loss(batch), trainer)

    def configure_optimizers(self) -> Any:
        """Return an optimizer with a state."""
        return torch.optim.Adam(self.parameters(), lr=0.05)


def loader(data: Any = DATA) -> DataLoader[Any]:
    return DataLoader(data, BATCH, sampler=DistributedSampler(data))


def batches() -> Iterator[tuple[int, list[Any]]]:
    """The epochs that a fit reads, and their batches."""
    data = loader()
    for epoch in range(EPOCHS):
        data.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield epoch, list(data)


def from_all(value: Any) -> list[Any]:
    """What each rank has. A collective."""
    ranks = Ranks.here()
    assert ranks is not None
    return ranks.from_all(value)


def cut_up(model: Any, *parts: nn.Module) -> Any:
    """Cut up the parameters of a model among the ranks, those of some parts by themselves; return the model."""
    from torch.distributed.fsdp import fully_shard  # most scenes have no use for it

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for one in (*parts, model):
        fully_shard(one, mesh=mesh)
    return model


def trained(model: nn.Module) -> list[Any]:
    """The parameters, to the bit; the buffers are those of a rank."""
    return [one.tolist() for one in model.parameters()]


def trainer(**settings: Any) -> Trainer:
    plain = {"max_epochs": EPOCHS, "device": "cpu", "progress": False, "run": False}
    return Trainer(**{**plain, **settings})


def fitted(name: str, make: Callable[[], nn.Module], **settings: Any) -> dict[str, Any]:
    """Fit, and go on from each of its checkpoints; what all of them came to, if that is the same."""
    loop = settings.pop("loop", dict)
    wrapper = settings.pop("wrapper", {})
    data = settings.pop("data", DATA)

    def fit(resume: Path | None) -> dict[str, Any]:
        every = Checkpoints(FOLDER / name, every=1, retention=Retention(last=99))
        one = trainer(checkpoints=every if resume is None else None, **settings)
        one.loop.replace(**loop())
        model = make()
        one.fit(DistributedDataParallel(model, **wrapper), loader(data), resume=resume)
        slots = [slot.steps for slot in one.context.slots]
        return {"weights": trained(model), "steps": slots, "batches": one.context.counts.batch}

    whole = fit(None)
    told = from_all(whole)
    assert told[0] == told[1], "the ranks have come to different ends"
    saved = sorted(one for one in (FOLDER / name).iterdir() if one.name[:3].isdigit())
    for place in saved[2::3]:
        assert fit(place) == whole, f"another end from {place.name}"
    return {**whole, "checkpoints": len(saved)}


# -- Batches that are left out ---------------------------------------------------------------------


def by_hand(bad: Bad, accumulate: int = 1) -> dict[str, Any]:
    """The same with torch alone, where a batch of which a rank has no finite loss is not there."""
    model = Task(bad)
    wrapper = DistributedDataParallel(model.net)
    model.net = wrapper  # type: ignore[assignment]
    optimizer = model.configure_optimizers()
    window, steps, number = 0, 0, 0

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    for _, epoch in batches():
        usable = [index for index in range(len(epoch)) if number + index not in bad]
        for index, batch in enumerate(epoch):
            if index not in usable:
                with torch.no_grad():
                    model.loss(batch)  # as the statistics of batch normalization have seen it
                continue
            window += 1
            closes = window == accumulate or index == usable[-1]
            size = accumulate if window == accumulate or index != usable[-1] else window
            with nullcontext() if closes else wrapper.no_sync():
                (model.loss(batch) / accumulate).backward()
            if closes:
                if size < accumulate:
                    for one in model.parameters():
                        assert one.grad is not None
                        one.grad.mul_(accumulate / size)
                step()
                window, steps = 0, steps + 1
        number += len(epoch)
    return {"weights": trained(model), "steps": [steps]}


def a_batch_that_one_rank_cannot_use_is_left_out_by_all() -> Any:
    bad = {1: 0, 2: 1, 7: 1}
    ours = fitted("skip", lambda: Task(bad), nonfinite_loss="skip")
    return [ours, by_hand(bad)]


def a_batch_is_left_out_of_a_window() -> Any:
    bad = {1: 1, 6: 0}
    ours = fitted("window", lambda: Task(bad), nonfinite_loss="skip", accumulate=2)
    return [ours, by_hand(bad, 2)]


class ReturnsNone(Task):
    """Leaves the batch out itself."""

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> Any:
        loss = super().training_step(batch, batch_idx, trainer)
        return loss if torch.isfinite(loss) else None


def a_step_that_returns_none_at_one_rank() -> Any:
    bad = {1: 0, 2: 1, 7: 1}
    ours = fitted("none", lambda: ReturnsNone(bad), nonfinite_loss="skip")
    return [ours, by_hand(bad)]


def with_the_scaler_of_fp16() -> Any:
    bad = {1: 0, 6: 1}
    return fitted("fp16", lambda: Task(bad), nonfinite_loss="skip", precision="fp16")


class TwoOptimizers(Task):
    """Each has parameters of its own; the second has no finite loss."""

    def __init__(self, bad: Bad) -> None:
        super().__init__(bad)
        self.other = nn.Linear(3, 1)

    def training_step(  # type: ignore[override]
        self, batch: Any, batch_idx: int, trainer: Trainer, optimizer_idx: int
    ) -> torch.Tensor:
        if optimizer_idx == 0:
            return self.loss(batch)
        loss = nn.functional.mse_loss(self.other(batch[0]), batch[1])
        return self.spoilt(loss, trainer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=0.05) for one in (self.net, self.other)]


def one_of_two_optimizers_is_left_out() -> Any:
    wrapper = {"find_unused_parameters": True}
    bad = {1: 0, 6: 1}
    return fitted("two", lambda: TwoOptimizers(bad), nonfinite_loss="skip", wrapper=wrapper)


def the_rank_is_told() -> Any:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("statemachine_trainer.recovery")
    log.addHandler(handler)
    trainer(nonfinite_loss="skip").fit(DistributedDataParallel(Task({5: 1})), loader())
    log.removeHandler(handler)
    return told


class Searching(Task):
    """Has an optimizer that searches along a line, by the loss at its points."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(
            self.parameters(), lr=0.3, max_iter=6, line_search_fn="strong_wolfe"
        )


def an_optimizer_that_evaluates_the_loss_itself() -> Any:
    return fitted("searches", lambda: Searching({}))["steps"]


def the_same_by_its_own_loop() -> Any:
    loop = {"optimizer": ClosureLoop()}
    return fitted("searches-by-loop", lambda: Searching({}), loop=lambda: loop)["steps"]


class WithItsOwn(Task):
    """Has a parameter that the wrapper leaves to each rank."""

    def __init__(self) -> None:
        super().__init__({})
        self.own = nn.Parameter(torch.zeros(1))
        names = {"own"}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return self.loss(batch) + RANK * self.own.sum()


def warned(model: nn.Module, **settings: Any) -> list[str]:
    """What a fit warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer().fit(DistributedDataParallel(model, **settings), loader())
    return [f"{one.category.__name__}: {one.message}" for one in caught]


def a_parameter_that_the_wrapper_ignores() -> Any:
    return warned(WithItsOwn())


def ranks_that_begin_with_other_weights() -> Any:
    model = Task({})
    with torch.no_grad():
        next(model.parameters()).add_(RANK)
    return warned(model, init_sync=False)


# -- Ranks that would part -------------------------------------------------------------------------


def refusal(act: Callable[[], object]) -> str:
    """What is said by something that cannot be done."""
    try:
        act()
    except StateMachineError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refused(model: nn.Module, **settings: Any) -> str:
    """What a fit says that cannot begin."""
    return refusal(lambda: trainer(**settings).fit(model, loader()))


def skipping_at_one_rank() -> Any:
    how = {} if RANK == 0 else {"nonfinite_loss": "skip"}
    return refused(DistributedDataParallel(Task({})), **how)


def cutting_batches_at_one_rank() -> Any:
    how = {} if RANK == 0 else {"on_oom": "split"}
    return refused(DistributedDataParallel(Task({})), **how)


def more_epochs_at_one_rank() -> Any:
    return refused(DistributedDataParallel(Task({})), max_epochs=1 + RANK)


def a_wrapper_at_one_rank() -> Any:
    model = Task({})
    wrapper = DistributedDataParallel(model)
    return refused(wrapper if RANK == 0 else model)


def another_rate_at_one_rank() -> Any:
    class Other(Task):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05 * (1 + RANK))

    return refused(DistributedDataParallel(Other({})))


def checkpoints_at_other_times_at_one_rank() -> Any:
    writer = Checkpoints(FOLDER / "times", every=1 + RANK)
    return refused(DistributedDataParallel(Task({})), checkpoints=writer)


def all_go_back_where_one_rank_does_harm() -> Any:
    bad = {1: 0, 6: 1}
    ours = fitted("back", lambda: Task(bad), loop=lambda: {"batch": RecoverLoop()}, accumulate=2)
    left_out = fitted("left", lambda: ReturnsNone(bad), nonfinite_loss="skip", accumulate=2)
    return [ours, left_out]


# -- What ranks exchange ---------------------------------------------------------------------------

MORE = 10
"""Batches by which one run is longer than another."""


def exchanges(run: Callable[[int], object]) -> list[float]:
    """How many collectives a batch takes: in the group of all ranks, and in the one in which ranks agree."""
    ranks = Ranks.here()
    assert ranks is not None
    groups: Any = [dist.group.WORLD, ranks.group]
    found = []
    for size in (3, 3 + MORE):
        before = [one._get_sequence_number_for_group() for one in groups]
        run(size)
        after = [one._get_sequence_number_for_group() for one in groups]
        found.append([one - other for one, other in zip(after, before, strict=True)])
    few, many = found
    return [(one - other) / MORE for one, other in zip(many, few, strict=True)]


def exchanges_of_a_batch() -> Any:
    inputs = INPUTS.repeat(4, 1)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))

    def by_the_trainer(size: int, **settings: Any) -> None:
        one = trainer(max_epochs=1, max_steps=size, **settings)
        one.fit(DistributedDataParallel(Task({})), loader(data))

    def in_a_loop_of_ones_own(size: int) -> None:
        model = Task({})
        wrapper = DistributedDataParallel(model.net)
        optimizer = model.configure_optimizers()
        for inputs, targets in islice(loader(data), size):
            optimizer.zero_grad()
            nn.functional.mse_loss(wrapper(inputs), targets).backward()
            optimizer.step()

    return {
        "bare": exchanges(in_a_loop_of_ones_own),
        "trainer": exchanges(by_the_trainer),
        "skip": exchanges(partial(by_the_trainer, nonfinite_loss="skip")),
    }


SCENES = [
    exchanges_of_a_batch,
    a_batch_that_one_rank_cannot_use_is_left_out_by_all,
    a_batch_is_left_out_of_a_window,
    a_step_that_returns_none_at_one_rank,
    with_the_scaler_of_fp16,
    one_of_two_optimizers_is_left_out,
    the_rank_is_told,
    all_go_back_where_one_rank_does_harm,
    an_optimizer_that_evaluates_the_loss_itself,
    the_same_by_its_own_loop,
    a_parameter_that_the_wrapper_ignores,
    ranks_that_begin_with_other_weights,
    skipping_at_one_rank,
    cutting_batches_at_one_rank,
    more_epochs_at_one_rank,
    a_wrapper_at_one_rank,
    another_rate_at_one_rank,
    checkpoints_at_other_times_at_one_rank,
]


def play(scenes: list[Callable[[], Any]]) -> None:
    """Play scenes, in the same order at each rank; all, or those that are named."""
    (FOLDER / f"pid-{RANK}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    wanted = sys.argv[2:] or [scene.__name__ for scene in scenes]
    found = {scene.__name__: scene() for scene in scenes if scene.__name__ in wanted}
    (FOLDER / f"found-{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    play(SCENES)
