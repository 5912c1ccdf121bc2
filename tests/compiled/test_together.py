"""The compiled step comes to the same as the optimizer loop, whatever else a trainer does meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer import EMA, Checkpoints, Monitor, RecoverLoop, Trainer, Unfreeze, every
from statemachine_trainer.loops import log
from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.machine.swap import LostSettings

Batch = tuple[Tensor, Tensor]


pytestmark = pytest.mark.usefixtures("exact")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.mse_loss(self.net(inputs), targets)
        log("loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        log("val_loss", F.mse_loss(self.net(inputs), targets))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01, eps=1e-4)


class Noisy(Line):
    """Changes gradients before each step."""

    def on_optimizer_step(self) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


@dataclass
class Setup:
    """What is done beside training.

    Attributes:
        whole: Whether the optimizer's step is part of the compiled call.
        settings: Of the trainer.
        callbacks: Makes callbacks.
        change: Is called at the end of each batch.
        bad: The batches whose loss is no number.
        tree: Changes the loops.
        model: Makes the model.
    """

    whole: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    change: Callable[[Trainer, Any], object] | None = None
    bad: tuple[int, ...] = ()
    tree: Callable[[Trainer], object] | None = None
    model: Callable[[], Line] = Line


def recovering(**settings: Any) -> Callable[[Trainer], object]:
    return lambda trainer: trainer.loop.replace(batch=RecoverLoop(most=9, **settings))


def set_at(step: int, **values: float) -> Callable[[Trainer, Any], object]:
    return lambda trainer, _: trainer.post("set", **values) if trainer.steps == step else None


class Clipping:
    """A callback that does by itself what `clip_norm` does."""

    def on_optimizer_step(self, trainer: Trainer) -> None:
        nn.utils.clip_grad_norm_(trainer.context.model.parameters(), 0.05)


def halve(trainer: Trainer) -> None:
    for parameter in trainer.context.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)


def halve_by_another(trainer: Trainer) -> None:
    halve(trainer)


SETUPS = {
    "a learning rate set": Setup(change=set_at(4, lr=0.001)),
    "a norm set": Setup(change=set_at(4, clip_norm=0.01)),
    "both set in each batch": Setup(
        change=lambda t, m: t.post("set", lr=0.01 / t.steps, clip_norm=0.1 / (t.steps % 3 + 1))
    ),
    "averages": Setup(callbacks=lambda: [EMA(0.9)]),
    "the norm of gradients logged": Setup(
        whole=False, callbacks=lambda: [Monitor(gradient_norm=True)]
    ),
    "that, clipped in windows": Setup(
        whole=False,
        callbacks=lambda: [Monitor(gradient_norm=True)],
        settings={"clip_norm": 0.05, "accumulate": 3},
    ),
    "gradients clipped by a callback": Setup(whole=False, callbacks=lambda: [Clipping()]),
    "gradients changed by a receiver": Setup(
        whole=False, tree=lambda trainer: trainer.on("optimizer_step", halve)
    ),
    "gradients changed by what a receiver calls": Setup(
        whole=False, tree=lambda trainer: trainer.on("optimizer_step", halve_by_another)
    ),
    "gradients changed by the model": Setup(whole=False, model=Noisy),
    "losses left out": Setup(whole=False, settings={"nonfinite_loss": "skip"}, bad=(3, 5)),
    "losses left out of windows": Setup(
        whole=False, settings={"nonfinite_loss": "skip", "accumulate": 2}, bad=(3, 5)
    ),
    "layers frozen at first": Setup(callbacks=lambda: [Unfreeze("net.0", epoch=1)]),
    "layers frozen and trained by turns": Setup(
        change=lambda t, m: m.net[0].requires_grad_(t.steps % 4 < 2)
    ),
    "that, in windows": Setup(
        change=lambda t, m: m.net[0].requires_grad_(t.steps % 4 < 2), settings={"accumulate": 2}
    ),
    "going back": Setup(whole=False, tree=recovering(), bad=(3,)),
    "going back two batches more": Setup(whole=False, tree=recovering(back=2), bad=(5,)),
    "going back for a norm": Setup(whole=False, tree=recovering(gradient_norm=1.2)),
    "going back within windows": Setup(
        whole=False, tree=recovering(), bad=(3,), settings={"accumulate": 2}
    ),
    "going back for the loss alone": Setup(tree=recovering(nonfinite=False, spike=9.0)),
}


def fitted(setup: Setup, *, compiled: bool, **more: Any) -> tuple[Line, Trainer]:
    trainer = Trainer(
        max_epochs=2, device="cpu", progress=False, callbacks=setup.callbacks(),
        **{**setup.settings, **more},
    )  # fmt: skip
    if setup.tree is not None:
        setup.tree(trainer)
    if compiled:
        trainer.loop.replace(optimizer=CompiledStep)
        trainer.loop["optimizer"].backend = "eager"
    model, wanted = setup.model(), setup.change
    if wanted is not None:
        trainer.on("batch_end", lambda: wanted(trainer, model))
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator))
        for _ in range(8)
    ]
    good = [*batches]
    for place in setup.bad:
        batches[place] = batches[place][0] * math.nan, batches[place][1]
    torch.manual_seed(1)
    trainer.fit(model, batches, validation=good[:2])
    return model, trainer


def assert_same(one: Line, other: Line, trainer: Trainer, plain: Trainer) -> None:
    for (name, mine), theirs in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12, msg=name)
    assert trainer.steps == plain.steps
    assert trainer.metrics == pytest.approx(plain.metrics, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", SETUPS)
def test_it_comes_to_the_same(name: str) -> None:
    setup = SETUPS[name]
    model, trainer = fitted(setup, compiled=True)
    other, plain = fitted(setup, compiled=False)
    assert_same(model, other, trainer, plain)
    loop: Any = trainer.loop["optimizer"]
    assert loop.eager is None
    programs = [p for one in loop._fused[0]._captures for p in one.programs.values()]
    assert any(p.recipe.updates for p in programs) == setup.whole


def test_fingerprints_change_nothing(tmp_path: Path) -> None:
    setup = Setup(settings={"clip_norm": 0.1})
    plain_model, plain = fitted(setup, compiled=True)
    model, trainer = fitted(
        setup,
        compiled=True,
        checkpoints=Checkpoints(tmp_path, every=every(3, "step")),
        fingerprints=every(2, "step"),
    )
    assert_same(model, plain_model, trainer, plain)
    for mine, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_memory_that_runs_out_is_not_split_and_that_is_told() -> None:
    trainer = Trainer(max_epochs=1, on_oom="split")
    with pytest.warns(LostSettings, match="CompiledStep, which has no such setting"):
        trainer.loop.replace(optimizer=CompiledStep)
