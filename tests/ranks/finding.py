"""Searches for settings with two ranks. All in one launch: each answers with what came of it, as JSON."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from statemachine_trainer import find_batch_size, find_learning_rate
from statemachine_trainer.parallel.cut_up import local_of
from tests.ranks.together import (
    RANK,
    Task,
    cut_up,
    from_all,
    loader,
    play,
    refusal,
    trained,
    trainer,
)

MOST = 6 - RANK
"""Samples that each rank has memory for."""


class Full(Task):
    """Draws noise; runs out of memory with too many samples."""

    def __init__(self, most: int = 100) -> None:
        super().__init__({})
        self.net.append(nn.Dropout(0.3))
        self.most, self.calls = most, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        self.calls += 1
        if len(batch[0]) > self.most:
            raise torch.OutOfMemoryError("on purpose")
        return self.loss(batch)


def full_and_cut_up() -> Full:
    model = Full()
    return cast(Full, cut_up(model, model.net[0], model.net[2]))


def state(model: nn.Module, optimizer: torch.optim.Optimizer, data: DataLoader[Any]) -> list[Any]:
    """What a search may leave a trace in, at this rank."""
    tensors = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    tensors += [one.grad for one in model.parameters() if one.grad is not None]
    for kept in optimizer.state.values():
        tensors += [one for one in kept.values() if isinstance(one, torch.Tensor)]
    plain: list[Any] = [local_of(one.detach()).tolist() for one in tensors]
    rates = [group["lr"] for group in optimizer.param_groups]
    return [*plain, rates, cast(Any, data.sampler).epoch, cast(Any, model).calls]


def searched_rate(wrapped: nn.Module, model: Full) -> dict[str, Any]:
    optimizer = model.configure_optimizers()
    data = loader()
    torch.manual_seed(RANK)
    trainer(max_epochs=1).fit(wrapped, data, optimizer=optimizer)
    before = state(model, optimizer, data)
    found = find_learning_rate(wrapped, data, optimizer=optimizer, steps=12, device="cpu")
    kept = before == state(model, optimizer, data)
    first, second = from_all([found.losses, found.suggestion])
    return {"kept": from_all(kept), "same": first == second, "steps": len(found.rates)}


def a_rate() -> Any:
    model = Full()
    return searched_rate(DistributedDataParallel(model), model)


def a_rate_where_parameters_are_cut_up() -> Any:
    model = full_and_cut_up()
    return searched_rate(model, model)


def a_fit_after_a_search() -> Any:
    def fitted(*, search: bool) -> Any:
        model = Full(MOST)
        wrapped, data = DistributedDataParallel(model), loader()
        torch.manual_seed(RANK)
        if search:
            find_learning_rate(wrapped, data, steps=5, device="cpu")
            find_batch_size(wrapped, data, device="cpu")
        trainer().fit(wrapped, data)
        return trained(model)

    return fitted(search=True) == fitted(search=False)


def a_batch_size() -> Any:
    model = Full(MOST)
    optimizer, data = model.configure_optimizers(), loader()
    before = state(model, optimizer, data)
    wrapped = DistributedDataParallel(model)
    size = find_batch_size(wrapped, data, optimizer=optimizer, device="cpu")
    return {"size": from_all(size), "kept": from_all(before == state(model, optimizer, data))}


def a_batch_size_that_all_have_memory_for() -> Any:
    return from_all(find_batch_size(DistributedDataParallel(Full()), loader(), device="cpu"))


def too_large_a_start() -> Any:
    wrapped = DistributedDataParallel(Full(MOST))
    return from_all(refusal(lambda: find_batch_size(wrapped, loader(), start=6, device="cpu")))


def an_error_at_one_rank() -> Any:
    class Wrong(Full):
        def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
            if RANK == 1:
                raise ValueError("no such thing")
            return super().training_step(batch, batch_idx)

    try:
        find_batch_size(DistributedDataParallel(Wrong()), loader(), device="cpu")
    except Exception as error:
        return from_all(type(error).__name__)
    return from_all("")


def a_batch_size_where_parameters_are_cut_up() -> Any:
    return from_all(refusal(lambda: find_batch_size(full_and_cut_up(), loader(), device="cpu")))


SCENES = [
    a_rate,
    a_rate_where_parameters_are_cut_up,
    a_batch_size,
    a_batch_size_that_all_have_memory_for,
    a_fit_after_a_search,
    too_large_a_start,
    an_error_at_one_rank,
    a_batch_size_where_parameters_are_cut_up,
]

if __name__ == "__main__":
    play(SCENES)
