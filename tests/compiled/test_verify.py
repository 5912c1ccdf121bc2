"""The compiled step is compared with the step without the compiler."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer.loops.compiled import CompiledDiffers, CompiledStep, NotCompiled
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.trainer import Trainer

Batch = tuple[Tensor, Tensor]


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Divided(Line):
    """Does something else where it is compiled."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        if torch.compiler.is_compiling():
            inputs = inputs * 3
        return super().training_step((inputs, targets), batch_idx)


def fitted(model: nn.Module, loop: CompiledStep | None, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator))
        for _ in range(8)
    ]
    trainer = Trainer(max_epochs=1, device="cpu", progress=False, **settings)
    if loop is not None:
        trainer.loop["optimizer"] = loop
    trainer.fit(model, batches)
    return trainer.loop["optimizer"]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def test_a_step_that_is_another_one_when_compiled_is_found_and_the_run_stays_right() -> None:
    one, other = Divided(), Divided()
    fitted(other, None)
    with pytest.warns(NotCompiled, match="does not do what the step does: .*net.* differs by"):
        loop = fitted(one, CompiledStep(backend="eager"))
    assert loop.eager is not None
    assert torch.equal(weights(one), weights(other))


def test_it_may_be_an_error() -> None:
    with pytest.raises(CompiledDiffers, match="Use OptimizerLoop"):
        fitted(Divided(), CompiledStep(backend="eager", differs="raise"))


def test_without_comparing_nobody_sees_it() -> None:
    one, other = Divided(), Divided()
    fitted(other, None)
    loop = fitted(one, CompiledStep(backend="eager", verify=None))
    assert loop.eager is None
    assert loop.difference is None
    assert not torch.allclose(weights(one), weights(other))


@pytest.mark.parametrize("verify", ["first", 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_right_step_differs_by_rounding_alone(verify: Any, accumulate: int) -> None:
    one, other = Line(), Line()
    fitted(other, None, accumulate=accumulate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCompiled)
        step = CompiledStep(backend="eager", verify=verify, accumulate=accumulate)
        loop = fitted(one, step)
    assert loop.eager is None
    assert loop.difference < 1e-3
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"verify": 0}, {"verify": "often"}, {"differs": "shout"}])
def test_other_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="CompiledStep"):
        CompiledStep(**settings)
