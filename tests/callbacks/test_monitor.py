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


EVERYTHING: dict[str, Any] = {
    "gradient_norm": True,
    "throughput": True,
    "tokens": lambda batch: batch[0].numel(),
    "memory": True,
    "flops": 60.0,
    "peak_flops": 1e9,
}


def test_throughput_memory_and_use_of_the_device_are_metrics_of_each_epoch(tmp_path: Path) -> None:
    trainer = trainer_with(Monitor(**EVERYTHING), run=tmp_path)
    trainer.fit(make_net(), make_batches(3), loss=MSE, optimizer=SGD)
    found = trainer.metrics
    assert found["samples_per_second"] == pytest.approx(4 * found["batches_per_second"])
    assert found["tokens_per_second"] == pytest.approx(8 * found["batches_per_second"])
    assert found["mfu"] == pytest.approx(found["samples_per_second"] * 60 / 1e9)
    assert 0.01 < found["memory_gib"] < 1000
    assert len(Run(tmp_path).metrics("samples_per_second")) == 2


def test_the_time_of_validation_does_not_count() -> None:
    seconds = 0.0

    class Model(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            nonlocal seconds
            seconds += 1.0
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            nonlocal seconds
            seconds += 50.0

    trainer = trainer_with(Monitor(throughput=True), validate_every=2, sanity_batches=1)
    trainer.start(Model(), make_batches(4), make_batches(2))
    trainer.context.clock = lambda: seconds
    trainer.run()
    assert trainer.metrics["batches_per_second"] == pytest.approx(1.0)
    assert trainer.metrics["samples_per_second"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": False},
        {"on_step": 1},
        {"throughput": "yes"},
        {"memory": 1},
        {"tokens": 8},
        {"flops": 1e9},
        {"peak_flops": 1e9},
        {"flops": -1, "peak_flops": 1e9},
        {"flops": 1, "peak_flops": float("inf")},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="Monitor"):
        Monitor(**settings)


def test_a_function_that_counts_no_tokens_is_refused() -> None:
    trainer = trainer_with(Monitor(tokens=lambda batch: 0.5))  # type: ignore[arg-type, return-value]
    with pytest.raises(SettingError, match=r"tokens=0\.5.*returns a whole number"):
        trainer.fit(make_net(), make_batches(3), loss=MSE, optimizer=SGD)


def test_it_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        trainer = trainer_with(Monitor(**EVERYTHING), accumulate=2, validate_every=2)
        trainer.start(
            make_net(), make_batches(3), make_batches(1), loss=MSE, optimizer=SGD, scheduler=HALF
        )
        return trainer

    assert_resumable(make_trainer, examples=8, seed=0)
