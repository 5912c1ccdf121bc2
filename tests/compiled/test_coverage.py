"""What is captured whole, in parts or not is what the table in docs/compiled.md says."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statemachine_trainer import EMA
from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.trainer import Trainer

PAGE = Path(__file__).parents[2] / "docs" / "compiled.md"

Batch = tuple[Tensor, Tensor]

OF_THE_TABLE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether this torch captures as much as the one of the table."""

WHOLE, APART, NOT, OWN = "whole", "all but the optimizer's step", "not", "not: its own loop"


class Line(nn.Module):
    """What the others vary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.extra = self.make()

    def make(self) -> Any:
        """Return what this one has besides."""
        return None

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the prediction."""
        outputs: Tensor = self.net(inputs)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        inputs, targets = batch
        return F.mse_loss(self.outputs(inputs), targets)

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recurrent(Line):
    kind: type[Any] = nn.LSTM

    def make(self) -> Any:
        return self.kind(3, 3, batch_first=True)

    def outputs(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.extra(inputs[:, None])
        return super().outputs(hidden[:, 0])


class Gated(Recurrent):
    kind = nn.GRU


class Sparse(Line):
    def make(self) -> Any:
        return nn.Embedding(5, 3, sparse=True)

    def outputs(self, inputs: Tensor) -> Tensor:
        return super().outputs(self.extra(inputs[:, 0].abs().long() % 5))


class Checkpointed(Line):
    def outputs(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(self.net, inputs, use_reentrant=False)
        return outputs


class CheckpointedDropout(Checkpointed):
    def make(self) -> Any:
        self.net.insert(1, nn.Dropout(0.2))


class Masked(Line):
    """A mixture of two experts, each of which sees its own rows."""

    def make(self) -> Any:
        return nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def outputs(self, inputs: Tensor) -> Tensor:
        first = inputs[:, 0] > 0
        outputs = torch.zeros_like(inputs)
        outputs[first] = self.extra[0](inputs[first])
        outputs[~first] = self.extra[1](inputs[~first])
        return super().outputs(outputs)


class Deciding(Line):
    def outputs(self, inputs: Tensor) -> Tensor:
        return super().outputs(inputs if inputs.sum() > 0 else -inputs)


class Averaged(Line):
    def make(self) -> Any:
        return copy.deepcopy(self.net).requires_grad_(False)

    def outputs(self, inputs: Tensor) -> Tensor:
        averaged: Any = self.extra
        with torch.no_grad():
            for mine, now in zip(averaged.parameters(), self.net.parameters(), strict=True):
                mine.lerp_(now, 0.1)
        outputs: Tensor = super().outputs(inputs) + averaged(inputs)
        return outputs


class Inner(Line):
    """A step along the gradient within the step."""

    def outputs(self, inputs: Tensor) -> Tensor:
        names = [name for name, _ in self.net.named_parameters()]
        weights = [*self.net.parameters()]
        loss = self.net(inputs).square().mean()
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        moved = {n: w - 0.1 * g for n, w, g in zip(names, weights, grads, strict=True)}
        outputs: Tensor = torch.func.functional_call(self.net, moved, (inputs,))
        return outputs


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor) -> Tensor:
        return one.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class WithFunction(Line):
    def outputs(self, inputs: Tensor) -> Tensor:
        reverse: Any = Reversed.apply
        outputs: Tensor = super().outputs(inputs) + reverse(self.net(inputs))
        return outputs


class Hooked(Line):
    def make(self) -> Any:
        self.net[0].register_full_backward_hook(lambda module, grad, _: None)


class Reading(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.seen = loss.item()
        return loss


class Numbered(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (1 + batch_idx)


class ByHand(Line):
    automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int, optimizers: Any = None) -> Any:
        loss = super().training_step(batch, batch_idx)
        optimizer = optimizers[0] if isinstance(optimizers, list | tuple) else optimizers
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss


class Closing(Line):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1)


class Counting(torch.optim.SGD):
    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step()


class Counted(Line):
    def configure_optimizers(self) -> Any:
        return Counting(self.parameters(), lr=0.1)


class Cycled(Line):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Dropping(Line):
    def make(self) -> Any:
        self.net.insert(1, nn.Dropout(0.2))
        self.net.append(nn.BatchNorm1d(3))


def lightning_module() -> Any:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(3, 3)

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    from statemachine_trainer.integrations.lightning import module

    return module(Module())


@dataclass
class Setup:
    """What is trained, and how.

    Attributes:
        make: Makes the model.
        comes: What the table says of it.
        sizes: Of the batches.
        settings: Of the trainer.
        callbacks: Makes callbacks.
        compiler: Settings of `CompiledStep`.
    """

    make: Callable[[], Any]
    comes: str
    sizes: tuple[int, ...] = (4,) * 6
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    compiler: dict[str, Any] = field(default_factory=lambda: {"backend": "eager"})


SETUPS = {
    "dropout, batch norm": Setup(Dropping, WHOLE),
    "accumulation windows": Setup(Line, WHOLE, settings={"accumulate": 4}),
    "`clip_norm`, `clip_value`": Setup(
        Line, WHOLE, settings={"clip_norm": 0.1, "clip_value": 0.05}
    ),
    "batches of several sizes (a graph for each)": Setup(Line, WHOLE, (4, 4, 3, 4, 2, 4, 3)),
    '`precision="bf16"`': Setup(Line, WHOLE, settings={"precision": "bf16"}),
    "an average of the weights that the step keeps": Setup(Averaged, WHOLE),
    "the callback `EMA`": Setup(Line, WHOLE, callbacks=lambda: [EMA(0.9)]),
    "`nn.LSTM`": Setup(Recurrent, WHOLE),
    "`nn.GRU`": Setup(Gated, WHOLE),
    "embeddings with `sparse=True`": Setup(Sparse, WHOLE),
    "`torch.utils.checkpoint` (nothing is computed twice, so it saves no memory)": Setup(
        Checkpointed, WHOLE
    ),
    "routing by boolean masks": Setup(Masked, WHOLE),
    "numbers that the step keeps (`loss.item()`)": Setup(Reading, WHOLE),
    "custom autograd functions": Setup(WithFunction, WHOLE),
    "`torch.autograd.grad` within the step, of parameters": Setup(Inner, WHOLE),
    '`precision="fp16"`': Setup(Line, APART, settings={"precision": "fp16"}),
    '`nonfinite_loss="skip"` or `"raise"`': Setup(Line, APART, settings={"nonfinite_loss": "skip"}),
    "optimizers that count in Python": Setup(Counted, APART),
    "`OneCycleLR` with `cycle_momentum`": Setup(Cycled, APART),
    "`torch.utils.checkpoint` with dropout": Setup(CheckpointedDropout, NOT),
    "a condition on a tensor": Setup(Deciding, NOT),
    "formulas with `batch_idx`": Setup(Numbered, NOT),
    "hooks on the backward pass of a module": Setup(Hooked, NOT),
    "optimizers that evaluate the loss (`LBFGS`)": Setup(Closing, NOT),
    "`automatic_optimization = False`": Setup(ByHand, OWN),
    "LightningModules": Setup(lightning_module, OWN),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fitted(setup: Setup, *, compiled: bool) -> tuple[nn.Module, Trainer, list[str]]:
    trainer = Trainer(
        max_epochs=2, device="cpu", progress=False, callbacks=setup.callbacks(), **setup.settings
    )
    if compiled:
        names = {*setup.settings} & {"accumulate", "clip_norm", "clip_value", "nonfinite_loss"}
        kept = {name: setup.settings[name] for name in names}
        trainer.loop["optimizer"] = CompiledStep(**setup.compiler, **kept)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(size, 3, generator=generator), torch.randn(size, 3, generator=generator))
        for size in setup.sizes
    ]
    model = setup.make()
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, batches)
    return model, trainer, [str(w.message) for w in caught if w.category is NotCompiled]


def captured(trainer: Trainer) -> str:
    """Say how much of a step was captured in a run."""
    loop: Any = trainer.loop["optimizer"]
    if not isinstance(loop, CompiledStep):
        return OWN
    programs = [
        program
        for fused in loop._fused.values()
        for one in fused._captures
        for program in one.programs.values()
    ]
    if loop.eager is not None or not programs:
        return NOT
    return WHOLE if programs[-1].recipe.updates else APART


@pytest.mark.parametrize("name", SETUPS)
def test_it_is_captured_as_the_table_says_and_comes_to_the_same(name: str) -> None:
    setup = SETUPS[name]
    eager, plain, _ = fitted(setup, compiled=False)
    model, trainer, told = fitted(setup, compiled=True)
    assert captured(trainer) == setup.comes or not OF_THE_TABLE, told
    assert trainer.steps == plain.steps
    loose = "16" in setup.settings.get("precision", "")
    tolerance = 0.02 if loose else 1e-5
    for (key, mine), theirs in zip(
        model.state_dict().items(), eager.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=key)
    for one, other in zip(model.modules(), eager.modules(), strict=True):
        assert getattr(one, "seen", 0.0) == pytest.approx(getattr(other, "seen", 0.0), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_other_modes_of_the_compiler_come_to_the_same(mode: str) -> None:
    setup = Setup(Dropping, WHOLE, compiler={"mode": mode})
    eager, _, _ = fitted(setup, compiled=False)
    model, trainer, told = fitted(setup, compiled=True)
    assert captured(trainer) == WHOLE, told
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_table_has_all_of_this_and_nothing_else() -> None:
    text = PAGE.read_text(encoding="utf-8").split("## What is captured", 1)[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert dict(rows[1:]) == {name: setup.comes for name, setup in SETUPS.items()}
