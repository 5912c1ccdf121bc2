"""State that no object declares: gradients of the last step, caches of random results, the environment."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.callbacks import Checkpoints

BATCHES = [torch.full((2, 3), place / 7) for place in range(6)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class ByItsLastGradient(Net):
    """Reads what the step before has left."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        last = self.layer.weight.grad
        damping = 1.0 if last is None else 1.0 / (1.0 + float(last.norm()))
        return super().training_step(batch, batch_idx) * damping


class Damping:
    """A callback that reads it before the step."""

    def on_batch_start(self, trainer: Any) -> None:
        for one in trainer.context.model.parameters():
            if one.grad is not None:
                one.data.sub_(one.grad, alpha=0.1)


class Watching:
    """A callback that reads them where checkpoints hold them anyway."""

    def on_exit_optimizer_step(self, trainer: Any) -> None:
        sum(float(one.grad.norm()) for one in trainer.context.model.parameters())


def trained(
    make: Callable[[], nn.Module], folder: Path, stop: int | None, *callbacks: object
) -> dict[str, torch.Tensor]:
    """Train; stop after so many batches, and go on in a new trainer."""

    def start(resume: str | None) -> tuple[Trainer, nn.Module]:
        keeping = Checkpoints(folder, every="1000 epoch", at_end=False)
        trainer = Trainer(
            max_epochs=2, device="cpu", progress=False, callbacks=callbacks, checkpoints=keeping
        )
        model = make()
        trainer.start(model, BATCHES, resume=resume)
        return trainer, model

    trainer, model = start(None)
    if stop is not None:
        first = trainer
        first.run(until=lambda: first.context.counts.batch == stop)
        first.checkpoint()
        trainer, model = start("auto")
    trainer.run()
    return model.state_dict()


@pytest.mark.parametrize("stop", [1, 6, 9])
@pytest.mark.parametrize("reader", ["the step", "a callback"])
def test_gradients_that_the_next_step_reads_are_held(
    tmp_path: Path, reader: str, stop: int
) -> None:
    make, callbacks = (ByItsLastGradient, ()) if reader == "the step" else (Net, (Damping(),))
    expected = trained(make, tmp_path / "whole", None, *callbacks)
    found = trained(make, tmp_path / "stopped", stop, *callbacks)
    assert all(torch.equal(found[name], one) for name, one in expected.items())


def gradients_in(folder: Path, model: nn.Module) -> int:
    trainer = Trainer(
        max_epochs=1, device="cpu", progress=False, checkpoints=folder, callbacks=[Watching()]
    )
    trainer.start(model, BATCHES)
    trainer.run(until="epoch_end")
    return len(trainer.state_dict()["context"]["model"]["grads"])


def test_gradients_that_are_read_after_the_backward_pass_alone_take_no_room(
    tmp_path: Path,
) -> None:
    assert gradients_in(tmp_path / "a", Net()) == 0
    assert gradients_in(tmp_path / "b", ByItsLastGradient()) == 2


@cache
def noise(place: int) -> torch.Tensor:
    return torch.randn(3)


@cache
def shifted(place: int) -> torch.Tensor:
    return torch.full((3,), float(place))


class WithACache(Net):
    def __init__(self, cached: Any) -> None:
        super().__init__()
        self.cached = cached

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch + self.cached(batch_idx), batch_idx)


class WithADict(Net):
    def __init__(self, *, draws: bool) -> None:
        super().__init__()
        self.kept: dict[int, torch.Tensor] = {-1: torch.zeros(3)}
        self.training_step = self.drawn if draws else self.counted  # type: ignore[method-assign]

    def drawn(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx not in self.kept:
            self.kept[batch_idx] = torch.randn(3)
        return super().training_step(batch + self.kept[batch_idx], batch_idx)

    def counted(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx not in self.kept:
            self.kept[batch_idx] = torch.full((3,), float(batch_idx))
        return super().training_step(batch + self.kept[batch_idx], batch_idx)


class Phases:
    """A callback that keeps what it knows in the environment."""

    def on_batch_end(self, trainer: Any) -> None:
        os.environ["PHASE_OF_THE_RUN"] = str(trainer.context.counts.batch // 2)


def told(folder: Path, model: nn.Module, *callbacks: object) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(
            max_epochs=1, device="cpu", progress=False, callbacks=callbacks,
            checkpoints=Checkpoints(folder, every=1),
        ).fit(model, BATCHES)  # fmt: skip
    return "\n".join(str(one.message) for one in caught if one.category is NotHeld)


def test_a_cache_of_random_results_is_told(tmp_path: Path) -> None:
    noise.cache_clear()
    assert "which are drawn at random, from 1 results to 2 results" in told(
        tmp_path, WithACache(noise)
    )


def test_a_cache_of_what_can_be_computed_again_is_not_told(tmp_path: Path) -> None:
    shifted.cache_clear()
    assert told(tmp_path, WithACache(shifted)) == ""


def test_a_dict_that_keeps_random_results_is_told(tmp_path: Path) -> None:
    assert "attribute 'kept' of the module" in told(tmp_path / "a", WithADict(draws=True))


def test_an_environment_variable_that_training_sets_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHASE_OF_THE_RUN", "0")
    message = told(tmp_path, Net(), Phases())
    assert "the environment variable PHASE_OF_THE_RUN, from '0' to '1'" in message
    assert "a new process begins it anew" in message
