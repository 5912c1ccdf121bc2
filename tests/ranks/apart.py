"""Short fits of two ranks whose gradients the wrapper does not average, beside torch alone. See `together`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from statemachine_trainer import Trainer, YieldingLoop
from statemachine_trainer.loops.compiled import CompiledStep
from tests.ranks.together import (
    INPUTS,
    RANK,
    Task,
    batches,
    by_hand,
    fitted,
    loader,
    play,
    refusal,
    refused,
    trained,
    trainer,
)

# -- Backward passes that the wrapper does not see -------------------------------------------------


class Pair(nn.Module):
    """Two networks that play against each other, with an optimizer for each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.maker: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.judge: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        # One that requires gradients can be sent to all ranks only where none are recorded.
        self.register_buffer("seen", torch.zeros(1, requires_grad=True))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=0.05) for one in (self.judge, self.maker)]


def told_apart(judge: Any, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The loss of the judge, by one call of it."""
    says = judge(torch.cat([real, made.detach()]))
    loss: torch.Tensor = (says[: len(real)] - 1).square().mean() + says[len(real) :].square().mean()
    return loss


def act_by_hand(model: Any, real: torch.Tensor, optimizers: Any, alone: Callable[[], Any]) -> None:
    """Three backward passes and two steps; the gradients of the first pass of the maker are not averaged."""
    of_judge, of_maker = optimizers
    with torch.no_grad():  # else the wrapper of the maker waits for a backward pass
        made = model.maker(real)
    told_apart(model.judge, real, made).backward()
    nn.utils.clip_grad_norm_(model.judge.parameters(), 0.1)
    of_judge.step()
    of_judge.zero_grad()
    model.judge.requires_grad_(False)
    judge = getattr(model.judge, "module", model.judge)
    with alone():
        (judge(model.maker(real)) - 1).square().mean().backward()
    model.maker(real).square().mean().backward()
    of_maker.step()
    of_maker.zero_grad()
    model.judge.requires_grad_(True)


class PairByHand(Pair):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int, optimizers: Any, trainer: Trainer) -> None:
        """As by hand."""
        wrapper: Any = trainer.context.steps.whole
        act_by_hand(self, batch[0], optimizers, wrapper.no_sync)


def pair_in_wrappers() -> Any:
    model = Pair()
    model.maker, model.judge = map(DistributedDataParallel, (model.maker, model.judge))
    return model


def optimizing_by_hand() -> Any:
    ours = fitted("by-hand", PairByHand)
    model = pair_in_wrappers()
    optimizers = model.configure_optimizers()
    for _, epoch in batches():
        for batch in epoch:
            act_by_hand(model, batch[0], optimizers, model.maker.no_sync)
    return [ours, {"weights": trained(model), "steps": [8, 8]}]


class YieldingPair(Pair):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        made = self.maker(batch[0])
        yield told_apart(self.judge, batch[0], made)
        yield (self.judge(made) - 1).square().mean()


def yielding_losses() -> Any:
    ours = fitted("yields", YieldingPair, loop=lambda: {"optimizer": YieldingLoop()})
    model = pair_in_wrappers()
    of_judge, of_maker = model.configure_optimizers()
    for _, epoch in batches():
        for real, _ in epoch:
            made = model.maker(real)
            told_apart(model.judge, real, made).backward()
            of_judge.step()
            of_judge.zero_grad()
            model.judge.requires_grad_(False)
            (model.judge.module(made) - 1).square().mean().backward()
            model.judge.requires_grad_(True)
            of_maker.step()
            of_maker.zero_grad()
    return [ours, {"weights": trained(model), "steps": [8, 8]}]


def yielding_losses_in_windows() -> Any:
    loop = {"optimizer": YieldingLoop(accumulate=3, nonfinite_loss="skip")}
    return fitted("yields-windows", YieldingPair, loop=lambda: loop)["steps"]


class SomeParts(Pair):
    """Uses the maker at each rank, and the judge at one; the third part at none. Some gradients are sparse."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(6, 3, sparse=True)
        self.idle = nn.Linear(3, 3)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def training_step(self, batch: Any, batch_idx: int, optimizers: Any) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        made = self.maker(batch[0])
        if RANK == 0:
            made = self.judge(made + self.names(torch.arange(len(made))))
        made.square().mean().backward()
        assert self.idle.weight.grad is None
        optimizer.step()


def parts_that_one_rank_uses() -> Any:
    return fitted("parts", SomeParts)["steps"]


def a_wrapper_with_a_hook() -> Any:
    model = DistributedDataParallel(PairByHand())
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return refused(model)


def compiled(
    name: str, make: Callable[[], nn.Module], backend: Any = "eager", **settings: Any
) -> Any:
    """Fit with a compiled step, and without; how much was left out by the compiler."""
    loops: list[CompiledStep] = []
    of_fit = {name: settings.pop(name) for name in ("data", "wrapper") if name in settings}

    def loop() -> Any:
        loops.append(CompiledStep(backend=backend, differs="raise", **settings))
        return {"optimizer": loops[-1]}

    ours = fitted(name, make, loop=loop, **of_fit)
    assert all(one.graphs and one.eager is None for one in loops), "nothing was compiled"
    return [ours, fitted(f"{name}-plain", make, **of_fit, **settings)]


class Plain(Task):
    """Looks at nothing but its batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return self.loss(batch)


def a_compiled_step() -> Any:
    return compiled("compiled", lambda: Plain({}))


def a_compiled_step_that_leaves_batches_out() -> Any:
    """One sample has no target, so that in each epoch one batch of one rank has no finite loss."""
    targets = INPUTS.sum(1, keepdim=True)
    targets[5] = math.nan
    settings = {"data": TensorDataset(INPUTS, targets), "nonfinite_loss": "skip"}
    return compiled("compiled-skip", lambda: Plain({}), **settings)


def a_compiled_step_in_windows() -> Any:
    return compiled("compiled-windows", lambda: Plain({}), accumulate=3)[0]["steps"]


def a_step_that_cannot_be_compiled_at_one_rank() -> Any:
    class Awkward(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
            loss = self.loss(batch)
            return loss * 1.0 if RANK == 0 or loss.item() < math.inf else loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = {"optimizer": CompiledStep(backend="eager")}
        ours = fitted("awkward", lambda: Awkward({}), loop=lambda: loop)
    return [ours, by_hand({})]


def a_compiled_step_in_a_wrapper_with_a_hook() -> Any:
    model = DistributedDataParallel(Plain({}))
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    fit = trainer()
    fit.loop.replace(optimizer=CompiledStep(backend="eager"))
    return refusal(lambda: fit.fit(model, loader()))


class Recurrent(nn.Module):
    """Hands its hidden state on from one piece of a sequence to the next."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.cell = nn.GRU(1, 4, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, piece: Any, hiddens: Any) -> Any:
        found, hiddens = self.cell(piece[0][..., None], hiddens)
        return (self.out(found).squeeze(-1) - piece[1]).square().mean(), hiddens

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
        loss, hiddens = self(batch, hiddens)
        return {"loss": loss, "hiddens": hiddens}

    def split_batch(self, batch: Any, split_steps: int) -> Any:
        return pieces(batch, split_steps)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def pieces(batch: Any, size: int) -> Any:
    inputs = batch[0].repeat(1, 2)
    return [(inputs[:, at : at + size], inputs[:, at : at + size] + 1) for at in (0, 2, 4)]


def backpropagating_through_pieces_of_time() -> Any:
    ours = fitted("time", Recurrent, split_steps=2)
    model = Recurrent()
    wrapper = DistributedDataParallel(model)
    optimizer = model.configure_optimizers()
    for _, epoch in batches():
        for batch in epoch:
            hiddens = None
            for piece in pieces(batch, 2):
                optimizer.zero_grad()
                loss, hiddens = wrapper(piece, hiddens)
                loss.backward()
                optimizer.step()
                hiddens = hiddens.detach()
    return [ours, {"weights": trained(model), "steps": [24]}]


SCENES: list[Callable[[], Any]] = [
    optimizing_by_hand,
    yielding_losses,
    yielding_losses_in_windows,
    parts_that_one_rank_uses,
    a_wrapper_with_a_hook,
    backpropagating_through_pieces_of_time,
    a_compiled_step,
    a_compiled_step_that_leaves_batches_out,
    a_compiled_step_in_windows,
    a_step_that_cannot_be_compiled_at_one_rank,
    a_compiled_step_in_a_wrapper_with_a_hook,
]


if __name__ == "__main__":
    play(SCENES)
