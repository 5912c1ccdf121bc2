"""What Dynamo does not look at again is looked at in each call, or the step is not compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.trainer import Trainer

Batch = tuple[Tensor, Tensor]


pytestmark = pytest.mark.usefixtures("exact")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.options: dict[str, float] = {}
        self.nodes: list[Any] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01, eps=1e-4)


def fitted(
    model: Line, change: Callable[[Line], None] | None = None, *, compiled: bool
) -> tuple[Tensor, Any]:
    """Train for eight steps; the change is made after the fourth."""
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if compiled:
        trainer.loop["optimizer"] = CompiledStep(backend="eager")
    if change is not None:
        wanted = change
        trainer.on("batch_end", lambda: wanted(model) if trainer.steps == 4 else None)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator))
        for _ in range(8)
    ]
    trainer.fit(model, batches)
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    return weights, trainer.loop["optimizer"]


def assert_same(make: Callable[[], Line], change: Callable[[Line], None] | None = None) -> Any:
    """Train twins, one compiled, and compare them; returns the loop of the compiled one."""
    eager, _ = fitted(make(), change, compiled=False)
    compiled, loop = fitted(make(), change, compiled=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
    return loop


# -- hooks where gradients are accumulated --------------------------------------------------------


def hook_before(model: Line) -> None:
    node = get_gradient_edge(model.net[0].weight).node  # type: ignore[arg-type]
    node.register_prehook(lambda grads: (grads[0] * 0.1,))
    model.nodes.append(node)  # which torch holds no longer than a backward pass


def hook_after(model: Line) -> None:
    weight: Any = model.net[0].weight
    node = get_gradient_edge(weight).node
    node.register_hook(lambda *_: (weight.grad.mul_(0.1), None)[1])
    model.nodes.append(node)


@pytest.mark.parametrize("hook", [hook_before, hook_after])
def test_a_hook_where_a_gradient_is_accumulated_is_called(hook: Callable[[Line], None]) -> None:
    with pytest.warns(NotCompiled, match="hook where its gradient is accumulated"):
        loop = assert_same(Line, hook)
    assert loop.eager is not None


def test_so_is_one_on_a_parameter_that_needs_gradients_since_later() -> None:
    def make() -> Line:
        model = Line()
        model.net[0].requires_grad_(False)
        return model

    def thaw(model: Line) -> None:
        model.net[0].requires_grad_(True)
        hook_before(model)

    with pytest.warns(NotCompiled, match="hook where its gradient is accumulated"):
        assert_same(make, thaw)


# -- gradients, exceptions and methods ------------------------------------------------------------


class Reading(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        grad: Tensor | None = self.net[0].weight.grad  # type: ignore[assignment]
        return loss if grad is None else loss * (1 + grad.norm())


def test_a_step_that_reads_gradients_is_not_compiled() -> None:
    with pytest.warns(NotCompiled, match="reads the gradient of a parameter"):
        assert assert_same(Reading).eager is not None


class Trying(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        try:
            return loss * self.options["weight"]
        except KeyError:
            return loss


class Suppressing(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weight = 1.0
        with contextlib.suppress(AttributeError):
            weight = self.weight  # type: ignore[assignment]
        return super().training_step(batch, batch_idx) * weight


def set_both(model: Line) -> None:
    model.options["weight"] = model.weight = 3.0  # type: ignore[assignment]


@pytest.mark.parametrize("make", [Trying, Suppressing])
def test_a_step_that_catches_exceptions_is_not_compiled(make: type[Line]) -> None:
    with pytest.warns(NotCompiled, match=r"catches an exception in \w+, .*\.py:\d+|suppress"):
        assert assert_same(make, set_both).eager is not None


class Finally(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            with torch.enable_grad():
                return super().training_step(batch, batch_idx)
        finally:
            self.done = True


def test_one_that_only_ends_blocks_is() -> None:
    loop = assert_same(Finally)
    assert loop.eager is None
    assert loop.graphs


def test_a_method_of_torch_that_is_replaced_is_captured_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def halve(_: Line) -> None:
        plain = nn.Linear.forward
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: plain(self, x) / 2)

    eager, _ = fitted(Line(), halve, compiled=False)
    monkeypatch.undo()
    compiled, loop = fitted(Line(), halve, compiled=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
    assert len(loop.graphs) == 2


# -- how it is told -------------------------------------------------------------------------------


class Growing(Line):
    calls = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.calls += 1
        return super().training_step(batch, batch_idx) * self.calls


class Adding(Line):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + batch_idx)


@pytest.mark.parametrize(
    "make, said", [(Growing, r"`self\.calls == 1`"), (Adding, r"`batch_idx == 1`")]
)
def test_what_changes_with_each_batch_is_named_as_the_code_names_it(
    make: type[Line], said: str
) -> None:
    with pytest.warns(NotCompiled, match=rf"{said}.*test_what_is_looked_at\.py:\d+"):
        assert_same(make)


def test_what_has_no_line_of_its_own_is_told_with_that_of_the_step() -> None:
    with pytest.warns(NotCompiled, match=r"\(the step: .*test_what_is_looked_at\.py:\d+\)"):
        assert_same(Line, hook_before)
