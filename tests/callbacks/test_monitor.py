"""Learning rates and norms of gradients are logged by one callback."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from statemachine_trainer import Monitor, Run, Trainer
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import Regression, make_batches, make_net

SGD = partial(torch.optim.SGD, lr=0.1)
MSE = nn.functional.mse_loss
HALF = {"scheduler": partial(ExponentialLR, gamma=0.5), "interval": "step"}


def trainer_with(monitor: Monitor, **settings: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 2, "callbacks": [monitor], "progress": False, "device": "cpu", **settings}
    )


def test_the_rate_is_that_of_the_last_step_of_each_epoch(tmp_path: Path) -> None:
    trainer = trainer_with(Monitor(), run=tmp_path)
    trainer.fit(make_net(), make_batches(3), loss=MSE, optimizer=SGD, scheduler=HALF)
    rates = [one.value for one in Run(tmp_path).metrics("lr")]
    assert rates == pytest.approx([0.1 / 4, 0.1 / 32])
    assert trainer.metrics["lr"] == rates[-1]


def test_each_group_of_parameters_has_a_name() -> None:
    class Grouped(Regression):
        def configure_optimizers(self) -> Any:
            every = list(self.parameters())
            groups: list[dict[str, Any]] = [{"params": every[:1], "lr": 0.2}, {"params": every[1:]}]
            return torch.optim.SGD(groups, lr=0.1)

    trainer = trainer_with(Monitor())
    trainer.fit(Grouped(), make_batches(2))
    assert (trainer.metrics["lr/0/0"], trainer.metrics["lr/0/1"]) == (0.2, 0.1)


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1}, {"accumulate": 3}, {"accumulate": 5}])
def test_the_norm_is_that_before_clipping(settings: dict[str, Any]) -> None:
    batches, net = make_batches(4), make_net()
    trainer = trainer_with(Monitor(gradient_norm=True), max_epochs=1, **settings)
    trainer.fit(net, batches, loss=MSE, optimizer=partial(torch.optim.SGD, lr=0.0))
    size, norms, other = settings.get("accumulate", 1), [], make_net()
    for begin in range(0, len(batches), size):
        window = batches[begin : begin + size]
        other.zero_grad()
        (sum(MSE(other(x), y) for x, y in window) / len(window)).backward()  # type: ignore[union-attr]
        norms.append(float(torch.cat([p.grad.flatten() for p in other.parameters()]).norm()))  # type: ignore[union-attr]
    assert trainer.metrics["grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_it_changes_nothing_else() -> None:
    nets = make_net(), make_net()
    for net, callbacks in zip(nets, ([], [Monitor(gradient_norm=True)]), strict=True):
        Trainer(max_epochs=2, callbacks=callbacks, progress=False, device="cpu").fit(
            net, make_batches(3), loss=MSE, optimizer=SGD
        )
    pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("settings", [{"learning_rate": False}, {"on_step": 1}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="Monitor"):
        Monitor(**settings)


def test_it_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        trainer = trainer_with(Monitor(gradient_norm=True), accumulate=2)
        trainer.start(make_net(), make_batches(3), loss=MSE, optimizer=SGD, scheduler=HALF)
        return trainer

    assert_resumable(make_trainer, examples=8, seed=0)
