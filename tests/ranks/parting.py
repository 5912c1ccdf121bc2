"""Fits of two ranks, one of which does something else than the other in one batch.

All in one launch: each answers with what came of it, as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer import SAMLoop, Trainer, YieldingLoop
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops.compiled import CompiledStep
from tests.ranks.together import (
    FOLDER,
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

BOTH = -1
"""In place of the number of a rank."""


class LeavesOut(Task):
    """Returns None for some batches, before it calls its network, which has no buffers."""

    def __init__(self, bad: dict[int, int]) -> None:
        super().__init__(bad)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))

    def is_left_out(self, trainer: Trainer) -> bool:
        """Whether this rank leaves the batch out."""
        return self.bad.get(trainer.context.counts.batch) in (RANK, BOTH)

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> Any:
        """Return the loss, or None."""
        return None if self.is_left_out(trainer) else self.loss(batch)


class LeavesOutLate(LeavesOut):
    """Returns None for some batches, after its network."""

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> Any:
        loss = self.loss(batch)
        return None if self.is_left_out(trainer) else loss


class Twice(LeavesOut):
    """Goes backward by hand, some batches twice or not at all."""

    automatic_optimization = False

    def __init__(self, bad: dict[int, int], often: int) -> None:
        super().__init__(bad)
        self.often = often

    def training_step(  # type: ignore[override]
        self, batch: Any, batch_idx: int, trainer: Trainer, optimizers: Any
    ) -> None:
        for _ in range(self.often if self.is_left_out(trainer) else 1):
            optimizers[0].zero_grad()
            trainer.backward(self.loss(batch))
            optimizers[0].step()


class Yields(LeavesOut):
    """Yields the loss, or nothing."""

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> Any:
        if not self.is_left_out(trainer):
            yield self.loss(batch)


class Searching(LeavesOut):
    """Has an optimizer that evaluates the loss itself."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


def fit(model: nn.Module, loops: dict[str, Any] | None = None, **settings: Any) -> Trainer:
    """Fit; return the trainer."""
    one = trainer(**settings)
    one.loop.replace(**(loops or {}))
    one.fit(model, loader())
    return one


def in_ddp(model: nn.Module, loops: dict[str, Any] | None = None, **settings: Any) -> Trainer:
    """Fit a model in the wrapper."""
    return fit(DistributedDataParallel(model), loops, **settings)


def refused_to(act: Callable[[], object]) -> list[str]:
    """What each rank says of something that not all do alike, without its advice."""
    return from_all(refusal(act).partition(". ")[0])


def none_at_one_rank() -> Any:
    places = [(0, 0), (2, 1), (3, 0), (7, 1)]
    return [refused_to(partial(in_ddp, LeavesOut({batch: rank}))) for batch, rank in places]


def none_within_a_window() -> Any:
    return [
        refused_to(partial(in_ddp, LeavesOut({batch: 1}), accumulate=2)) for batch in (2, 3, 6, 7)
    ]


def none_where_gradients_lie_in_buckets() -> Any:
    def act() -> None:
        fit(DistributedDataParallel(LeavesOut({2: 0}), gradient_as_bucket_view=True))

    return refused_to(act)


def none_at_both() -> Any:
    """What all leave out is not there, as with a setting that lets them agree on each batch."""

    def fitted(**settings: Any) -> Any:
        model = LeavesOut({1: BOTH, 2: BOTH, 7: BOTH})
        wrapper = DistributedDataParallel(model, gradient_as_bucket_view=True)
        one = fit(wrapper, accumulate=2, **settings)
        return {"weights": trained(model), "steps": one.context.counts.step}

    return [fitted(), fitted(nonfinite_loss="skip")]


def checkpoints_before_none() -> Any:
    every = Checkpoints(FOLDER / "before-none", every=1)
    said = refused_to(partial(in_ddp, LeavesOut({3: 1}), checkpoints=every))
    return [said, from_all(sorted(one.name for one in every.store.root.glob("0*")))[0]]


def by_hand() -> Any:
    places = [(0, 0), (2, 2), (3, 2), (7, 0), (7, 2)]
    return [
        [batch, often, *refused_to(partial(in_ddp, Twice({batch: 1}, often)))]
        for batch, often in places
    ]


def yields_nothing() -> Any:
    loops = {"optimizer": YieldingLoop()}
    return refused_to(partial(in_ddp, Yields({2: 1}), loops))


def none_beside_a_compiled_step() -> Any:
    loops = {"optimizer": CompiledStep(backend="eager", accumulate=2)}
    none_at_both = in_ddp(LeavesOut({2: BOTH}), loops).context.counts.step
    loops = {"optimizer": CompiledStep(backend="eager", accumulate=2)}
    return [none_at_both, refused_to(partial(in_ddp, LeavesOut({2: 1}), loops))]


def inside(bad: dict[int, int]) -> nn.Module:
    """A model whose network is in the wrapper."""
    model = LeavesOut(bad)
    model.net = DistributedDataParallel(model.net)  # type: ignore[assignment]
    return model


def all_leave_out() -> Any:
    """Where a rank cannot take part without a loss, all leave the batch out."""
    bad = {2: 1, 7: 0}
    late = LeavesOutLate(bad)
    fits: dict[str, Callable[[], Trainer]] = {
        "fully_shard": lambda: fit(cut_up(late, *late.net)),
        "wrapped inside": lambda: fit(inside(bad)),
        "sam": lambda: in_ddp(LeavesOut(bad), {"optimizer": SAMLoop()}),
        "lbfgs": lambda: in_ddp(Searching(bad)),
        "split": lambda: in_ddp(LeavesOut(bad), on_oom="split"),
    }
    return {name: run().context.counts.step for name, run in fits.items()}


def outputs_where_all_leave_out() -> Any:
    """How many outputs each rank has gathered in the first epoch."""
    gathered: list[int] = []
    one = trainer(on_oom="split", max_epochs=1)
    one.loop["epoch"].gather_outputs = True
    one.on("epoch_end", lambda: gathered.append(len(one.context.outputs or ())))
    one.fit(DistributedDataParallel(LeavesOut({2: 1})), loader())
    return from_all(gathered)


class LogsOtherwise(LeavesOut):
    """Logs the mean at one rank, and the largest at the other."""

    def training_step(self, batch: Any, batch_idx: int, trainer: Trainer) -> Any:
        cast(Any, self).log("seen", 1.0, reduce="max" if RANK else "mean")
        return self.loss(batch)


def a_metric_that_is_reduced_otherwise() -> Any:
    return refused_to(partial(in_ddp, LogsOtherwise({})))


SCENES = [
    a_metric_that_is_reduced_otherwise,
    none_at_one_rank,
    none_within_a_window,
    none_where_gradients_lie_in_buckets,
    none_at_both,
    checkpoints_before_none,
    by_hand,
    yields_nothing,
    none_beside_a_compiled_step,
    all_leave_out,
    outputs_where_all_leave_out,
]

if __name__ == "__main__":
    play(SCENES)
